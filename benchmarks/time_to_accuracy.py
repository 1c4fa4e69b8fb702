"""Seconds from the command to an accuracy: 55 % of imagenette's validation pictures, 97 % of fruits10's.

Protocol: ours (`launch/train.py`) trains first, then every rival (benchmarks/plain), each in a process of its own with
the whole machine. All evaluate after each epoch on the same folder. The clock starts with the command, so imports, the
building of a cache and evaluations count. A program is stopped when it has reached the goal; a rival, too, when it has
taken --times as long as ours did, and then its row has the best top-1 until there and the ratio is a bound.

- ours: `imagenet_few` with torchvision's network, random crops from the cache, Adam and 16 epochs; `fruits` with 6.
- imagenet_bf16, imagenet_fp32, accelerate_bf16, dali_bf16, compiled_bf16: PyTorch's ImageNet recipe as it comes, with
  the rate that it advises for AlexNet; see `rivals.py`.
- same_recipe_bf16: the plain script of PyTorch's recipe, with our crops, first weights, rule, schedule and batch. The
  ratio to it is one of speed, those to the others are of speed and recipe.
- published: of fruits10 alone, the published system's own way.

--data.root is a folder of packs: imagenette224/{train,val}, fruits10/{train,valid}. Without it pictures are made, and
the goal is a guess that is right by chance: that only shows that it runs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common.photographs import write_photographs
from common.race import Program, ProgramError, Progress, Score, our_program, plain_program, watch
from common.report import Report, describe_environment, new_parser, pick_effort, run_benchmark, write_json
from common.timing import Spread

from alexnet_dist.base.errors import UsageError
from alexnet_dist.base.machine import available_cores, find_device

OURS = "ours"
USUAL = ("same_recipe_bf16", "imagenet_bf16", "published")
BF16 = ("--precision", "bf16")
PLAIN = {
    "imagenet_bf16": ("imagenet.py", *BF16),
    "imagenet_fp32": ("imagenet.py",),
    "accelerate_bf16": ("with_accelerate.py", *BF16),
    "dali_bf16": ("with_dali.py", *BF16),
    "compiled_bf16": ("imagenet.py", *BF16, "--compile"),
}
RIVALS = ("same_recipe_bf16", *PLAIN, "published")


@dataclass(frozen=True)
class Task:
    """Pictures and a goal.

    Args:
        pack: folder below --data.root.
        val: its validation folder.
        goal: top-1 as a fraction.
        config: our recipe.
        settings: further settings of ours.
        same: words that, with SAME, give the plain script our recipe.
        published: the published system with these pictures.
        crops: of the programs that have PyTorch's recipe otherwise.
    """

    pack: str
    val: str
    goal: float
    config: str
    settings: dict[str, Any]
    same: tuple[str, ...]
    published: str = ""
    crops: str = "random_resized"


TASKS = {
    "imagenette": Task(
        pack="imagenette224",
        val="val",
        goal=0.55,
        config="imagenet_few",
        settings={
            "model.variant": "torchvision",
            "augment.crop": "random",
            "augment.lighting": "null",
            "optimizer.name": "adam",
            "optimizer.lr": 0.0003,
            "optimizer.weight_decay": 0,
            "optimizer.bias_weight_decay": "null",
            "schedule.warmup_steps": 15,
            "train.epochs": 16,
            "train.global_batch_size": 64,
        },
        same=("--crops", "random", "--epochs", "16"),
    ),
    "fruits": Task(
        pack="fruits10",
        val="valid",
        goal=0.97,
        config="fruits",
        settings={"train.epochs": 6},
        same=("--epochs", "6"),
        published="fruits",
        crops="whole",
    ),
}
SAME = ("--kaiming", "--cosine", "--batch_size", "64", "--adam", "--lr", "0.0003")  # both of our recipes have it


def main() -> int:
    """Run the benchmark; the exit code."""
    parser = new_parser(
        "time_to_accuracy", "Seconds to an accuracy, ours and others.", quick="an epoch of each within 5 minutes"
    )
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), help="default: all")
    parser.add_argument("--only", nargs="+", choices=RIVALS, default=list(USUAL), help=f"rivals; default: {USUAL}")
    parser.add_argument("--times", type=float, default=1.3, help="as many times ours a rival may take; default: 1.3")
    parser.add_argument("--seed", type=int, default=0, help="of our runs; default: 0")
    return run_benchmark(parser, measure)


def measure(options: argparse.Namespace) -> Report:
    """Ours, then the rivals, task by task."""
    report = Report(describe_environment(options, find_device("auto")))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for task_name in options.tasks:
            run_task(report, task_name, find_pictures(options, TASKS[task_name], folder), options, folder)
    return report


def find_pictures(options: argparse.Namespace, task: Task, folder: Path) -> Path:
    """The pack, or a folder of made pictures with the same parts.

    Raises:
        UsageError: the user's folder has no such pack.
    """
    if options.data_root is not None:
        pack: Path = options.data_root / task.pack
        if not (pack / task.val).is_dir():
            remedy = "give the folder of the packs, or fewer --tasks"
            raise UsageError("no pictures", where=str(pack / task.val), remedy=remedy)
        return pack.resolve()
    made = folder / task.pack
    if not made.exists():
        count, side = pick_effort(options, full=(512, 256), quick=(128, 256), tiny=(16, 64))
        write_photographs(made, count, side, side)
        (made / task.val).symlink_to(made / "train", target_is_directory=True)
    return made


# -- a task -----------------------------------------------------------------------------------------------------------


def run_task(report: Report, name: str, pictures: Path, options: argparse.Namespace, folder: Path) -> None:
    """Train ours, then the rivals, each until the goal or the end of its time; a row after each."""
    task = TASKS[name]
    goal = pick_effort(options, full=task.goal, quick=0.0, tiny=0.0)
    limit = pick_effort(options, full=3600.0, quick=300.0, tiny=300.0)
    ours = run_arm(report, name, OURS, build_ours(task, pictures, folder, options), goal, limit, options, folder)
    for rival in options.only:
        if rival == "published" and not task.published:
            continue
        program = build_rival(task, rival, pictures, options)
        most = pick_effort(options, full=options.times * ours["seconds"], quick=limit, tiny=limit)
        row = run_arm(report, name, rival, program, goal, most, options, folder)
        if "missing" not in row and "missing" not in ours and ours["reached"]:
            add_ratio(report, name, rival, ours, row)


def run_arm(
    report: Report,
    task: str,
    arm: str,
    program: Program,
    goal: float,
    limit: float,
    options: argparse.Namespace,
    folder: Path,
) -> dict[str, Any]:
    """Train one program; its row, which is on the disk before the next one starts."""
    row: dict[str, Any] = {"task": task, "arm": arm, "goal": goal}
    try:
        progress = watch(
            program, folder / f"{task}-{arm}", lambda told: find_goal(told.scores, goal) is not None, limit
        )
        row |= describe_progress(progress, goal)
    except ProgramError as error:
        row |= {"missing": str(error), "reached": False, "seconds": limit}
    report.rows.append(row)
    print(f"{task}, {arm}: {row}", flush=True)
    if options.out is not None:
        write_json(options.out, asdict(report))
    return row


def build_ours(task: Task, pictures: Path, folder: Path, options: argparse.Namespace) -> Program:
    """Our recipe, judged by the pack's own folder after each epoch."""
    settings = {
        **task.settings,
        **pick_effort(options, full={}, quick={"train.epochs": 1}, tiny={"train.epochs": 1}),
        **pick_effort(options, full={}, quick={}, tiny={"train.global_batch_size": 4}),
        "data.engine": "cache",
        "data.cache_dir": folder / "cache",
        "data.val": task.val,
        "data.test": "null",
        "data.val_fraction": 0,
        "seed": options.seed,
    }
    return our_program(task.config, pictures, settings)


def build_rival(task: Task, name: str, pictures: Path, options: argparse.Namespace) -> Program:
    """A plain program that evaluates after each epoch."""
    few = pick_effort(options, full=(), quick=("--epochs", "1"), tiny=("--epochs", "1", "--batch_size", "4"))
    words = ("--evaluate", "--val", task.val, *few)
    if name == "published":
        return plain_program("published.py", pictures, "--name", task.published, *words)
    words = ("--workers", str(available_cores()), "--crops", task.crops, *words)
    if name == "same_recipe_bf16":
        return plain_program("imagenet.py", pictures, *BF16, *words, *SAME, *task.same, *few)
    script, *more = PLAIN[name]
    return plain_program(script, pictures, *more, *words)


def find_goal(scores: Sequence[Score], goal: float) -> Score | None:
    """The first evaluation at or above the goal."""
    return next((score for score in scores if score.top1 >= goal), None)


def describe_progress(progress: Progress, goal: float) -> dict[str, Any]:
    """Whether and when the goal was reached, else how far it went."""
    reached = find_goal(progress.scores, goal)
    best = max(progress.scores, key=lambda score: score.top1, default=None)
    last = reached or (progress.scores[-1] if progress.scores else None)
    return {
        "reached": reached is not None,
        "seconds": reached.seconds if reached is not None else progress.seconds,
        "epochs": last.epoch if last is not None else 0,
        "top1": best.top1 if best is not None else 0.0,
    }


def add_ratio(report: Report, task: str, rival: str, ours: dict[str, Any], row: dict[str, Any]) -> None:
    """Seconds of a rival over ours; a bound where the rival was stopped."""
    ratio = row["seconds"] / ours["seconds"]
    bound = "" if row["reached"] else f"; a bound: it was stopped at {row['top1']:.1%}"
    what = f"seconds to {row['goal']:.0%} over ours{bound}"
    report.add_ratio(f"{task}: {rival}/{OURS}", Spread(ratio, ratio, ratio), what)


if __name__ == "__main__":
    sys.exit(main())
