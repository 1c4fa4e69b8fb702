"""Does the network of 2012 train? The original's input and weights beside those of common ports of the paper.

Protocol: `launch/train.py` with imagenet_subset (pixels from 0 to 255 less the mean, the 2012 program's weights) and
common_port (inputs divided by their deviation, weights of deviation 0.01 everywhere, twice the rate). Rows have the
loss at the beginning, after each quarter and at the end, and how much the first logits of two images differ (see
alexnet_dist/models/signal.py). --figure draws both losses beside that of an equal guess, ln(classes).

Images come from --data.root (train/ and val/ folders), or are made. A full run trains for 12 epochs.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

from common.comparison import draw_comparison
from common.report import Report, add_device_options, describe_environment, new_parser, pick_effort, run_benchmark
from common.training import make_images, pick_losses, read_rows, share_settings, train

from alexnet_dist.parallel.runtime import start_runtime

NAMES = ("imagenet_subset", "common_port")
NUM_MADE = 64


def main() -> int:
    """Run the benchmark; the exit code."""
    parser = new_parser("original", "The loss from the original's beginning and from a common port's.")
    add_device_options(parser)
    parser.add_argument("--figure", type=Path, help="PNG file to draw")
    return run_benchmark(parser, measure)


def measure(options: argparse.Namespace) -> Report:
    """Train both, compare, draw."""
    report = Report(describe_environment(options, start_runtime(options.device, options.precision).device))
    epochs = pick_effort(options, full=12, quick=1, tiny=1)
    runs: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_images(options, folder, NUM_MADE)
        for config in NAMES:
            train(list_settings(options, folder, config, epochs), folder / config)
            runs[config] = read_rows(folder / config)
            facts = json.loads((folder / config / "run.json").read_text(encoding="utf-8"))
            report.rows.append(describe_run(config, runs[config], facts))
    classes = facts["data"]["num_classes"]
    report.notes.append(f"An equal guess among {classes} classes has a loss of {math.log(classes):.3f}.")
    if options.figure is not None:
        draw_comparison(options.figure, runs, math.log(classes), f"an equal guess, ln {classes}")
    return report


def list_settings(options: argparse.Namespace, folder: Path, config: str, epochs: int) -> dict[str, object]:
    """The command line of a run."""
    return {
        **share_settings(options, folder),
        "config": config,
        **({"train.global_batch_size": 8} if options.tiny else {}),
        "data.engine": "cache",
        "device": options.device,
        "precision": options.precision,
        "schedule.warmup_steps": 30,
        "train.epochs": epochs,
        "log.every_steps": 2,
    }


def describe_run(config: str, rows: list[dict[str, Any]], facts: dict[str, Any]) -> dict[str, Any]:
    """A row: losses, validation, and the signal before the first update."""
    losses = [row["loss"] for row in rows if row["event"] == "train"]
    top1 = [row["top1"] for row in rows if row["event"] == "eval"]
    return {
        "config": config,
        **pick_losses(losses),
        "val_top1": top1[-1],
        "signal_at_logits": facts["signal"]["fc8"],
    }


if __name__ == "__main__":
    sys.exit(main())
