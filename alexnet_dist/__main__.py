"""`python -m alexnet_dist VERB ...`, which is also what `accelerate launch -m alexnet_dist VERB ...` runs."""

from alexnet_dist.commands.cli import main

if __name__ == "__main__":
    main()
