"""Which weights: the options that evaluate, predict and export share."""

from __future__ import annotations

from argparse import ArgumentParser


def add_model_options(parser: ArgumentParser) -> None:
    """Add --model and --weights."""
    parser.add_argument("--model", type=str, help="a run folder, its model/, or one of its checkpoints/step-N")
    parser.add_argument(
        "--weights",
        type=str,
        default="best",
        choices=["best", "last"],
        help="of a run folder: best = those of model/, last = those of the newest intact checkpoint",
    )
