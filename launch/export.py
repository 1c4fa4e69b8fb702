"""`export`: see --help."""

import sys

from alexnet_dist.commands.cli import run

if __name__ == "__main__":
    sys.exit(run("export", sys.argv[1:]))
