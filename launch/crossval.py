"""`crossval`: see --help."""

import sys

from alexnet_dist.commands.cli import run

if __name__ == "__main__":
    sys.exit(run("crossval", sys.argv[1:]))
