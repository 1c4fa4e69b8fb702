"""Do the strategies train alike? The loss under each, on several numbers of processes, beside that of one process.

Protocol: `launch/train.py` runs with each strategy and number of processes, and on one process with two seeds; all else
is equal: fp32, dropout off, the same global batch, a rate at which the loss falls from the start. Every strategy makes
the updates of one device, but for the order in which numbers are added, which training then makes larger step by step.

A row has the loss at the first update, after each quarter and at the end, and the largest difference from one process
over the first 20 updates (target: 1e-3). A ratio is the mean difference of the losses of all updates from one process,
over the mean difference between the two seeds: 1 means that the strategy matters as much as the seed.

Images come from --data.root (train/ and val/ folders), or are made. A full run trains the `paper` network for two
epochs under ddp, towers and hybrid on 2 and on 4 processes of one machine, over gloo on CPUs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.report import Report, describe_environment, new_parser, pick_effort, run_benchmark
from common.timing import Spread
from common.training import make_images, pick_losses, read_rows, share_settings, train
from curves import find_distance

STRATEGIES = ("ddp", "towers", "hybrid")
FIRST_UPDATES = 20
TARGET = 1e-3


@dataclass(frozen=True)
class Effort:
    """How much is trained.

    Args:
        strategies: that are compared with one process.
        processes: numbers of processes.
        epochs: of each run.
        batch_size: images of an update.
        num_images: images made where no --data.root is given.
    """

    strategies: tuple[str, ...]
    processes: tuple[int, ...]
    epochs: int
    batch_size: int
    num_images: int


def main() -> int:
    """Run the benchmark; the exit code."""
    return run_benchmark(new_parser("strategy_curves", "The loss under each strategy, beside one process."), measure)


def measure(options: argparse.Namespace) -> Report:
    """Train under every strategy, and compare."""
    effort = pick_effort(
        options,
        full=Effort(STRATEGIES, (2, 4), 2, 64, 512),
        quick=Effort(STRATEGIES, (2,), 1, 16, 64),
        tiny=Effort(STRATEGIES[1:2], (2,), 1, 8, 16),
    )
    report = Report(describe_environment(options))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_images(options, folder, effort.num_images)
        settings = list_settings(options, effort, folder)
        alone, other = (run_once({**settings, "seed": seed}, folder / f"seed-{seed}") for seed in (0, 1))
        report.rows += [describe_run("one process", 1, alone, alone), describe_run("another seed", 1, other, alone)]
        for processes in effort.processes:
            for strategy in effort.strategies:
                words = {**settings, "seed": 0, "parallel.strategy": strategy}
                losses = run_once(words, folder / f"{strategy}-{processes}", processes)
                report.rows.append(describe_run(strategy, processes, losses, alone))
                share = find_distance(losses, alone) / find_distance(other, alone)
                what = f"distance of the loss from one process over that of another seed, {processes} processes"
                report.add_ratio(f"{strategy}@{processes}/other_seed", Spread.of([share]), what)
    largest = max(row["largest_difference"] for row in report.rows[2:])
    report.notes.append(
        f"Largest difference of a loss from one process over the first {FIRST_UPDATES} updates: {largest:.1e}; "
        f"target: {TARGET:.0e}."
    )
    return report


def list_settings(options: argparse.Namespace, effort: Effort, folder: Path) -> dict[str, object]:
    """What all runs share."""
    return {
        **share_settings(options, folder),
        "config": "imagenet_subset",
        "data.engine": "cache",
        "model.init": "kaiming",
        "model.dropout": 0,
        "augment.pixel_range": 1,
        "precision": "fp32",
        "optimizer.lr": 0.0003,
        "optimizer.bias_lr_factor": 1,
        "schedule.name": "constant",
        "schedule.warmup_steps": 10,
        "train.epochs": effort.epochs,
        "train.global_batch_size": effort.batch_size,
        "log.every_steps": 1,
    }


def run_once(settings: dict[str, object], run: Path, processes: int = 1) -> list[float]:
    """The training loss of every update of a run."""
    train(settings, run, processes)
    return [row["loss"] for row in read_rows(run) if row["event"] == "train"]


def describe_run(strategy: str, processes: int, losses: Sequence[float], alone: Sequence[float]) -> dict[str, Any]:
    """A row: a run's losses, and how far it went from one process."""
    pairs = list(zip(losses, alone, strict=True))[:FIRST_UPDATES]
    return {
        "strategy": strategy,
        "processes": processes,
        **pick_losses(losses),
        "largest_difference": max(abs(one - other) for one, other in pairs),
    }


if __name__ == "__main__":
    sys.exit(main())
