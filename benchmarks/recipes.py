"""What the recipes reach: each is trained as its configuration says, with several seeds, on packs of real pictures.

Protocol: `launch/train.py --config NAME` in a process of its own, for every recipe and seed; summary.json, written by
the run, is the result. A recipe with a test set is judged by it, read once with the weights that validation chose;
imagenet_subset and what builds on it by their val folder, which also chooses the epoch, so theirs is the best of it,
with the last epoch's beside it. Every row says on which device it was trained and how many runs shared it.

--data.root is a folder of packs: fruits10, fashion_mnist, cat_dog, cifar10, imagenette224. With `--runs FOLDER` hours
of training can be cut anywhere: the same command reads what has finished there and goes on with the rest. `--page
docs/results.md FILE.json ...` writes the page of results from the JSON files of earlier runs, and trains nothing.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common.report import (
    Report,
    describe_environment,
    format_cell,
    new_parser,
    pick_effort,
    run_benchmark,
    write_json,
)
from common.timing import divide

from alexnet_dist.base.errors import UsageError
from alexnet_dist.base.machine import find_git_commit

REPOSITORY = Path(__file__).resolve().parents[1]
CROSSVAL_FOLDS = 5
ROW = "row.json"  # beside what the run itself writes


@dataclass(frozen=True)
class Recipe:
    """A row of the page.

    Args:
        config: its configuration.
        pack: folder of its images below --data.root.
        published: what its source reports, in words.
        words: further words of the command line.
        seeds: how many times it is trained.
        verb: train, or crossval.
        has_manifests: whether manifests are written first, in the folder of the runs.
        needs: what a machine may lack, so that it is trained only where --only names it.
    """

    config: str
    pack: str
    published: str
    words: tuple[str, ...] = ()
    seeds: int = 3
    verb: str = "train"
    has_manifests: bool = False
    needs: str = ""

    @property
    def command(self) -> str:
        """What a user types."""
        first = (
            f"python launch/prepare.py {' '.join(MANIFESTS)} --data data/{self.pack}; " if self.has_manifests else ""
        )
        return first + " ".join([f"python launch/{self.verb}.py --config {self.config}", *self.words])


ONE_EPOCH = ["--train.epochs", "1"]
FEW_EPOCHS = ("--train.epochs", "30")  # what two cores do in minutes; an ablation stands beside the original's
BF16 = ("--precision", "bf16")  # what auto takes on a GPU and with AMX; AVX-512 has it, too, at 1.8 times fp32's pace
FOUR_EPOCHS = ("--train.epochs", "4")  # what two slow cores do in an hour
FIVE_EPOCHS = ("--train.epochs", "5", "--log.plots", "false")
TEN_EPOCHS = ("--train.epochs", "10", "--optimizer.lr", "0.02")
AS_PUBLISHED = ("--model.init", "torch", "--schedule.name", "constant", "--schedule.warmup_steps", "0")
CAT_DOG_PUBLISHED = (
    *("--train.epochs", "10", *AS_PUBLISHED, "--optimizer.lr", "0.001"),
    *("--augment.resize", "227", "--augment.crop", "centre", "--augment.horizontal_flip", "0"),
)
NOTES_PUBLISHED = ("--train.epochs", "10", *AS_PUBLISHED, "--augment.horizontal_flip", "0")
LISTS = "lists"
MANIFESTS = ("manifest", "--train", "train_data", "--test", "test_data", "--out", LISTS)
FRUITS_PUBLISHED = (
    *("--train.epochs", "10", *AS_PUBLISHED, "--optimizer.lr", "0.001", "--precision", "fp32"),
    *("--channels_last", "false", "--log.every_steps", "1", "--data.engine", "torchvision", "--log.plots", "false"),
)
FROM_MANIFESTS = ("--data.train", "$PWD/lists/train.txt", "--data.test", "$PWD/lists/test.txt")
RECIPES = {
    "fruits": Recipe("fruits", "fruits10", "91.67 % (test, 100 epochs)"),
    "fruits, 5 epochs": Recipe("fruits", "fruits10", "97.25 % in 280 s (run as written)", FIVE_EPOCHS),
    "fruits, as published": Recipe("fruits", "fruits10", "97.25 % in 280 s (run as written)", FRUITS_PUBLISHED),
    "fashion_mnist": Recipe("fashion_mnist", "fashion_mnist", "none", seeds=1),
    "fashion_mnist, bf16": Recipe("fashion_mnist", "fashion_mnist", "none", BF16, seeds=1),
    "fashion_mnist, 4 epochs": Recipe("fashion_mnist", "fashion_mnist", "none", FOUR_EPOCHS, seeds=1),
    "rmsprop_kfold": Recipe(
        "rmsprop_kfold", "imagenette224", "none", ("--folds", str(CROSSVAL_FOLDS)), seeds=1, verb="crossval"
    ),
    "rmsprop_kfold_pretrained": Recipe(
        *("rmsprop_kfold_pretrained", "imagenette224", "none", ("--folds", str(CROSSVAL_FOLDS))),
        seeds=1,
        verb="crossval",
        needs="torchvision's weights, which are downloaded",
    ),
    "cat_dog": Recipe("cat_dog", "cat_dog", "none"),
    "cat_dog, as published": Recipe("cat_dog", "cat_dog", "50 % (run here as written)", CAT_DOG_PUBLISHED, seeds=1),
    "paper_notes_cifar10": Recipe("paper_notes_cifar10", "cifar10", "none"),
    "paper_notes_cifar10, 10 epochs": Recipe("paper_notes_cifar10", "cifar10", "none", TEN_EPOCHS, seeds=1),
    "paper_notes_cat_dog": Recipe("paper_notes_cat_dog", "cat_dog", "none", FROM_MANIFESTS, has_manifests=True),
    "paper_notes_cat_dog, as published": Recipe(
        *("paper_notes_cat_dog", "cat_dog", "50 % (run here as written)", (*FROM_MANIFESTS, *NOTES_PUBLISHED)),
        seeds=1,
        has_manifests=True,
    ),
    "imagenet_subset": Recipe("imagenet_subset", "imagenette224", "none on these classes"),
    "imagenet_few": Recipe("imagenet_few", "imagenette224", "none on these classes"),
    "common_port": Recipe("common_port", "imagenette224", "none"),
    "paper_imagenet": Recipe("paper_imagenet", "imagenet", "59.3 % (ImageNet 2012, val)", seeds=1, needs="ImageNet"),
    "imagenet_subset, 30 epochs": Recipe("imagenet_subset", "imagenette224", "none", FEW_EPOCHS, seeds=1),
    **{
        f"{name}, 30 epochs": Recipe(name, "imagenette224", published, FEW_EPOCHS, seeds=1)
        for name, published in {
            "ablation_no_lrn": "-1.4 points (ImageNet 2012, val)",
            "ablation_pooling": "-0.4 points (ImageNet 2012, val)",
            "ablation_one_column": "-1.7 points at half the width",
            "ablation_no_exchange": "-1.2 points (ImageNet 2012, val)",
            "ablation_weak_colour": "none",
        }.items()
    },
}


def main() -> int:
    """Train, or write the page; the exit code."""
    parser = new_parser("recipes", "What every recipe reaches.")
    usual = [name for name, recipe in RECIPES.items() if not recipe.needs]
    parser.add_argument("--only", nargs="+", choices=list(RECIPES), default=usual, help="recipes to train")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time (default: 1)")
    parser.add_argument("--seeds", type=int, help="of each recipe; default: 3, or 1 for the long ones")
    parser.add_argument("--runs", type=Path, help="folder of the runs, where they stay, without their weights")
    parser.add_argument("--page", nargs="+", type=Path, help="PAGE.md FILE.json ...: write the page, train nothing")
    options, _ = parser.parse_known_args()
    if options.page:
        page, *files = options.page
        page.write_text(format_page([json.loads(path.read_text(encoding="utf-8")) for path in files]), encoding="utf-8")
        return 0
    return run_benchmark(parser, measure)


def measure(options: argparse.Namespace) -> Report:
    """Every recipe with every seed."""
    if options.data_root is None:
        raise UsageError("--data.root is missing", remedy="give the folder of the packs")
    report = Report(describe_environment(options))
    counts = {
        name: pick_effort(options, full=options.seeds or RECIPES[name].seeds, quick=1, tiny=1) for name in options.only
    }
    tasks = [(name, seed) for seed in range(max(counts.values())) for name in counts if seed < counts[name]]
    with tempfile.TemporaryDirectory() as forgotten, ThreadPoolExecutor(options.jobs) as pool:
        folder = (options.runs or Path(forgotten)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        for pack in {RECIPES[name].pack for name in options.only if RECIPES[name].has_manifests}:
            if not (folder / LISTS).exists():
                words = [str(REPOSITORY / "launch" / "prepare.py"), *MANIFESTS, "--data", str(options.data_root / pack)]
                subprocess.run([sys.executable, *words], check=True, cwd=folder)
        running = [pool.submit(run_recipe, *task, options, folder) for task in tasks]
        for done in as_completed(running):
            report.rows.append(done.result())
            if options.out is not None:  # hours of training should not wait for the last run
                write_json(options.out, asdict(report))
    add_ratio(report)
    report.rows.sort(key=lambda row: (list(RECIPES).index(row["recipe"]), row["seed"]))
    return report


def add_ratio(report: Report) -> None:
    """Seconds of whole commands, import to test, and of training alone, where both were run alone."""
    name, rival = "fruits, 5 epochs", "fruits, as published"
    for key, what in {"seconds": "the whole command", "train_seconds": "training"}.items():
        seconds = {
            recipe: [row[key] for row in report.rows if row["recipe"] == recipe and row["jobs"] == 1 and row[key]]
            for recipe in (name, rival)
        }
        if all(seconds.values()):
            words = f"seconds of {what}; target 0.25, at 97.25 % or more on the test set"
            report.add_ratio(f"{name}/{rival}, {what}", divide(seconds[name], seconds[rival]), words)


def run_recipe(name: str, seed: int, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train a recipe once, or the rest of it, or nothing where its row is there; the row.

    Raises:
        RuntimeError: it failed; with its last words.
    """
    recipe = RECIPES[name]
    run = folder / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"
    if (run / ROW).is_file():
        kept: dict[str, Any] = json.loads((run / ROW).read_text(encoding="utf-8"))
        return kept
    is_whole = not run.exists()
    words = [sys.executable, str(REPOSITORY / "launch" / f"{recipe.verb}.py"), "--config", recipe.config]
    words += [
        *(word.replace("$PWD", str(folder)) for word in recipe.words),
        "--data.root",
        str(options.data_root / recipe.pack),
        "--seed",
        str(seed),
    ]
    words += ["--output_dir", str(run), *pick_effort(options, full=[], quick=ONE_EPOCH, tiny=ONE_EPOCH)]
    began = time.perf_counter()
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError(f"{name} failed: {done.stderr.strip().splitlines()[-1:]}")
    row = {"recipe": name, "seed": seed, "jobs": options.jobs, "commit": find_git_commit(), "command": recipe.command}
    row |= {"seconds": seconds if is_whole else None, **READERS[recipe.verb](run)}
    for heavy in (*run.rglob("checkpoints"), *run.rglob("model")):
        shutil.rmtree(heavy)
    write_json(run / ROW, row)
    print(f"{name}, seed {seed}: {row['top1']:.4f}", flush=True)
    return row


def read_training(run: Path) -> dict[str, Any]:
    """What a run says of itself."""
    summary, facts = (json.loads((run / file).read_text(encoding="utf-8")) for file in ("summary.json", "run.json"))
    has_test = summary["test_top1"] is not None
    return {
        "split": "test" if has_test else "val",
        "top1": summary["test_top1"] if has_test else summary["best_top1"],
        "last_top1": None if has_test else summary["final_top1"],
        "val_top1": summary["best_top1"],
        "epochs": summary["epoch"],
        "best_epoch": summary["best_epoch"],
        "train_seconds": summary["train_seconds"],
        **{key: summary[key] for key in ("engine", "precision", "world_size")},
        "device": facts["device"],
        "signal": (facts.get("signal") or {}).get("fc8"),
    }


def read_crossval(run: Path) -> dict[str, Any]:
    """What a cross-validation says of itself: the mean over its folds, with their standard deviation."""
    found = json.loads((run / "crossval.json").read_text(encoding="utf-8"))
    return {
        **read_training(run / "fold-1"),
        "split": f"{found['num_folds']} folds",
        "top1": found["mean"]["top1"],
        "std": found["std"]["top1"],
        "last_top1": None,
        "folds": [fold["top1"] for fold in found["folds"]],
        "train_seconds": found["train_seconds"],
    }


READERS = {"train": read_training, "crossval": read_crossval}


# -- the page ---------------------------------------------------------------------------------------------------------


def format_page(reports: Sequence[dict[str, Any]]) -> str:
    """A table with a row for each recipe, in Markdown; what is missing from the files says so."""
    lines = [
        "# Results",
        "",
        "Made by `benchmarks/recipes.py` from the JSON files in `benchmarks/results`. Top-1 is that of the test set,",
        "read once with the weights that validation chose; where there is none, of `val`, which also chose the epoch:",
        "then the last epoch's stands beside it. Several seeds: mean, with the least and the largest. Commands also",
        "need `--data.root`, and `--seed` for seeds other than 0. The `val` of imagenette has 400 images, so a figure",
        "of about 50 % has a standard error of 2.5 points: more than the published price of any ablation.",
        "",
        "Where and when, by the number in the column `measured`:",
        "",
        *(describe_measurement(number, report) for number, report in enumerate(reports, start=1)),
        "",
        "| recipe | published | top-1 here | of | seeds | epochs | seconds | measured | command |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, recipe in RECIPES.items():
        rows = [(number, row) for number, report in enumerate(reports, 1) for row in report["rows"]]
        found = [(number, row) for number, row in rows if row["recipe"] == name]
        lines += format_rows(name, recipe, found)
    lines.append("")
    for number, report in enumerate(reports, start=1):
        lines += [f"- {number}: {note}" for note in report["notes"]]
        for name, ratio in report["ratios"].items():
            median, least, most = (format_cell(ratio[key]) for key in ("median", "min", "max"))
            lines.append(f"- {number}: {name} {median} ({least} to {most}): {ratio['what']}.")
    return "\n".join([*lines, ""])


def describe_measurement(number: int, report: dict[str, Any]) -> str:
    """Where the rows of a file were measured."""
    environment = report["environment"]
    versions = environment["versions"]
    hardware = ", ".join(environment["gpus"]) or environment["cpu"]
    commits = dict.fromkeys(row.get("commit") or environment["git_commit"] or "unknown" for row in report["rows"])
    return (
        f"{number}. {hardware}, {environment['cores']} cores, torch {versions['torch']}, commit "
        f"{', '.join(commits)}, {environment['time']}"
    )


def format_rows(name: str, recipe: Recipe, found: Sequence[tuple[int, dict[str, Any]]]) -> list[str]:
    """One line for each file in which a recipe stands."""
    if not found:
        state = f"not measured: needs {recipe.needs}" if recipe.needs else "not measured"
        return [f"| {name} | {recipe.published} | {state} | | | | | | `{recipe.command}` |"]
    lines = []
    for measured in dict.fromkeys(number for number, _ in found):
        rows = [row for number, row in found if number == measured]
        top1 = describe_percent([row["top1"] for row in rows])
        if "std" in rows[0]:
            top1 += f", standard deviation {100 * rows[0]['std']:.2f} points"
        if rows[0]["last_top1"] is not None:
            top1 += f"; last {describe_percent([row['last_top1'] for row in rows])}"
        seconds = f"{statistics.median(row['train_seconds'] for row in rows):,.0f}"
        if rows[0]["jobs"] > 1:
            seconds += f" ({rows[0]['jobs']} runs at once)"
        cells = [name, recipe.published, top1, rows[0]["split"], str(len(rows)), str(rows[0]["epochs"]), seconds]
        lines.append(f"| {' | '.join(cells)} | {measured} | `{rows[0]['command']}` |")
    return lines


def describe_percent(values: Sequence[float]) -> str:
    """The mean in per cent, with the least and the largest of several."""
    mean = f"{100 * statistics.mean(values):.2f} %"
    return mean if len(values) == 1 else f"{mean} ({100 * min(values):.2f} to {100 * max(values):.2f})"


if __name__ == "__main__":
    sys.exit(main())
