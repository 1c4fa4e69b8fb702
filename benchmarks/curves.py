"""Do the engines train alike? The curves of the training loss with each engine, beside those of other seeds.

Protocol: `launch/train.py` runs with each engine and several seeds, everything else being equal. A seed settles the
order of the images, their crops and colors, dropout and the weights: engines with the same seed get the same batches,
but for the rounding of decoders and resizers, which training then makes larger step by step.

The distance of two runs is the mean over epochs of the difference of their training losses. A ratio is the distance
between an engine and torchvision with the same seed, over the distance between two seeds of torchvision: 1 means that
the engine matters as much as the seed, 0 that it does not matter. Median, least and largest over the seeds.

Images come from --data.root (train/ and val/ folders), or are made. A full run trains imagenet_subset, the `paper`
network, for 8 epochs at a rate where the loss falls from the start.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.report import Report, add_device_options, describe_environment, new_parser, pick_effort, run_benchmark
from common.timing import Spread
from common.training import make_images, pick_losses, read_rows, share_settings, train

from alexnet_dist.data.engines.choose import ENGINES, REFERENCE, find_obstacle
from alexnet_dist.parallel.runtime import start_runtime

TRAIN = Path(__file__).resolve().parents[1] / "launch" / "train.py"


@dataclass(frozen=True)
class Effort:
    """How much is trained.

    Args:
        seeds: runs of torchvision; two or more.
        compared: runs of each other engine.
        epochs: of each run.
        batch_size: images of an update.
        num_images: images made where no --data.root is given.
    """

    seeds: int
    compared: int
    epochs: int
    batch_size: int
    num_images: int


def main() -> int:
    """Run the benchmark; the exit code."""
    parser = new_parser("curves", "The training loss with each engine, beside that with other seeds.")
    add_device_options(parser)
    return run_benchmark(parser, measure)


def measure(options: argparse.Namespace) -> Report:
    """Train with every engine and seed, and compare."""
    effort = pick_effort(
        options, full=Effort(2, 1, 8, 64, 512), quick=Effort(2, 1, 2, 32, 64), tiny=Effort(2, 1, 1, 8, 24)
    )
    report = Report(describe_environment(options, start_runtime(options.device, options.precision).device))
    engines = [engine for engine in ENGINES if find_obstacle(engine) is None]
    curves: dict[str, list[list[float]]] = {engine: [] for engine in engines}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_images(options, folder, effort.num_images)
        for seed, engine in itertools.product(range(effort.seeds), engines):
            if engine != REFERENCE and seed >= effort.compared:
                continue
            run = folder / f"{engine}-{seed}"
            train(list_settings(options, effort, folder, engine, seed), run)
            rows = read_rows(run)
            curves[engine].append([row["train_loss"] for row in rows if row["event"] == "epoch"])
            report.rows.append(describe_run(engine, seed, curves[engine][-1], run))
    add_ratios(report, curves, effort)
    return report


def list_settings(
    options: argparse.Namespace, effort: Effort, folder: Path, engine: str, seed: int
) -> dict[str, object]:
    """The command line of a run."""
    return {
        **share_settings(options, folder),
        "config": "imagenet_subset",
        "data.engine": engine,
        "seed": seed,
        "device": options.device,
        "precision": options.precision,
        "optimizer.lr": 0.002,
        "schedule.name": "constant",
        "schedule.warmup_steps": 50,
        "train.epochs": effort.epochs,
        "train.global_batch_size": effort.batch_size,
    }


def describe_run(engine: str, seed: int, losses: list[float], run: Path) -> dict[str, Any]:
    """A row: a run's training loss at its beginning, its quarters and its end, and what it learned."""
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    return {
        "engine": engine,
        "seed": seed,
        **pick_losses(losses),
        "best_top1": summary["best_top1"],
        "images_per_second": summary["images_per_second"],
    }


def add_ratios(report: Report, curves: dict[str, list[list[float]]], effort: Effort) -> None:
    """The distance of each engine from the reference, over that between seeds."""
    reference = curves[REFERENCE]
    between_seeds = statistics.mean(find_distance(*pair) for pair in itertools.combinations(reference, 2))
    for engine in curves:
        if engine != REFERENCE:
            distances = [find_distance(*pair) for pair in zip(curves[engine], reference, strict=False)]
            what = f"distance from torchvision's loss curve over that between seeds, {effort.epochs} epochs; below 1"
            report.add_ratio(f"{engine}/other_seed", Spread.of([value / between_seeds for value in distances]), what)


def find_distance(one: list[float], other: list[float]) -> float:
    """Mean difference of two curves."""
    return statistics.mean(abs(a - b) for a, b in zip(one, other, strict=True))


if __name__ == "__main__":
    sys.exit(main())
