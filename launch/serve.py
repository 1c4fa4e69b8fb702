"""`serve`: see --help."""

import sys

from alexnet_dist.base.signals import ending_at_once

if __name__ == "__main__":
    with ending_at_once():  # what follows takes a while to import
        from alexnet_dist.cli.main import run

        sys.exit(run("serve", sys.argv[1:]))
