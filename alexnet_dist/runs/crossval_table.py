"""What a cross-validation found: a row per fold, mean and standard deviation, as JSON, CSV and on the terminal."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alexnet_dist.assembly.trackers import open_set_trackers
from alexnet_dist.base.durable import read_object, write_csv, write_json
from alexnet_dist.base.errors import CheckpointError
from alexnet_dist.base.machine import describe_machine, find_git_commit, list_versions
from alexnet_dist.base.run_record import METRICS, SUMMARY, read_marker, read_run
from alexnet_dist.base.text import align, escape_text
from alexnet_dist.runs.resume import is_over
from alexnet_dist.settings.schema import Config
from alexnet_dist.tracking.trackers import read_rows

AVERAGED = ("top1", "top5", "loss", "best_top1", "test_top1")
SPREAD = "sample standard deviation (n - 1)"


@dataclass(frozen=True)
class FoldResult:
    """How the run that left one fold out did.

    Args:
        fold: which, from 1.
        num_train, num_val: images trained on, and in the fold.
        top1, top5, loss: of the last weights on the fold.
        best_top1, best_epoch: of the evaluation that was best on the fold: too good, as the fold chose it.
        test_top1: of those weights on data.test; None without one.
        epoch, step: where training ended.
        train_seconds: without evaluation and saving.
    """

    fold: int
    num_train: int
    num_val: int
    top1: float
    top5: float
    loss: float
    best_top1: float
    best_epoch: int
    test_top1: float | None
    epoch: int
    step: int
    train_seconds: float


def read_result(run: Config) -> FoldResult | None:
    """The result that a run folder holds; None if the run has not ended, or is to go on for longer than it did.

    Raises:
        CheckpointError: a file of the run lacks what a finished run has.
    """
    folder = Path(str(run.output_dir))
    try:
        result = _read_numbers(run, folder)
        numbers = dataclasses.asdict(result).items() if result is not None else ()
        broken = [name for name, value in numbers if not isinstance(value, int | float) and name != "test_top1"]
    except (KeyError, TypeError) as error:
        broken = [str(error)]
    if broken:
        why = f"{SUMMARY}, run.json or {METRICS} does not say {broken[0]}"
        remedy = "move the folder away: the fold is then trained again"
        raise CheckpointError("a finished fold is damaged", where=str(folder), why=why, remedy=remedy)
    return result


def _read_numbers(run: Config, folder: Path) -> FoldResult | None:
    summary = read_object(folder / SUMMARY)
    rows = [row for row in read_rows(folder / METRICS) if row["event"] == "eval"]
    if not rows or run.data.fold is None or not is_over(summary, run.train):
        return None
    last = rows[-1]
    return FoldResult(
        fold=run.data.fold,
        num_train=read_run(folder)["data"]["num_train"],
        num_val=last["num_examples"],
        top1=last["top1"],
        top5=last["top5"],
        loss=last["loss"],
        **{key: summary[key] for key in ("best_top1", "best_epoch", "test_top1", "epoch", "step", "train_seconds")},
    )


def write_table(config: Config, results: Sequence[FoldResult], world_size: int, precision: str) -> None:
    """Replace crossval.json and crossval.csv; the folds that are not finished are missing in them.

    Raises:
        MachineError: the disk is full or the folder cannot be written.
    """
    out = Path(str(config.output_dir))
    write_csv(out / "crossval.csv", *_make_csv(results))
    write_json(out / "crossval.json", _summarize(config, results, world_size, precision))


def track_table(config: Config, results: Sequence[FoldResult]) -> None:
    """Give trackers a run that stands for all folds: a row each, at the step of its number, then mean and spread."""
    out = Path(str(config.output_dir))
    group = config.tracking.group or escape_text(out.name)
    trackers = open_set_trackers(config, out, str(read_marker(out).get("id", "0" * 8))[:8], group)
    for result in results:
        figures = {key: value for key in AVERAGED if (value := getattr(result, key)) is not None}
        trackers.log({"event": "fold", "step": result.fold, **figures})
    mean, std = _reduce(results, statistics.fmean, fewest=1), _reduce(results, statistics.stdev, fewest=2)
    spread = {f"{key}_{word}": row[key] for word, row in (("mean", mean), ("std", std)) for key in AVERAGED}
    trackers.finish({"status": "finished", "folds": len(results), **spread})


def _summarize(config: Config, results: Sequence[FoldResult], world_size: int, precision: str) -> dict[str, Any]:
    return {
        "status": "finished" if len(results) == config.data.folds else "unfinished",
        "num_folds": config.data.folds,
        "num_finished": len(results),
        "seed": config.seed,
        "mean": _reduce(results, statistics.fmean, fewest=1),
        "std": _reduce(results, statistics.stdev, fewest=2),
        "std_is": SPREAD,
        "accuracy_is": "of the last weights on the fold that was held out; best_top1 was chosen by that fold",
        "notes": list_notes(config),
        "folds": [dataclasses.asdict(result) for result in results],
        "train_seconds": sum(result.train_seconds for result in results),
        "processes": world_size,
        "precision": precision,
        "settings": dataclasses.asdict(config),
        "versions": list_versions(),
        "machine": describe_machine(),
        "git_commit": find_git_commit(),
    }


def list_notes(config: Config) -> list[str]:
    """What makes the accuracies better than they would be on new images."""
    users = {
        "train.early_stop": config.train.early_stop is not None,
        "schedule.name plateau": config.schedule.name == "plateau",
    }
    return [
        f"{name} looks at the fold that is held out: its accuracy is too good"
        for name, is_set in users.items()
        if is_set
    ]


def _reduce(
    results: Sequence[FoldResult], function: Callable[[Sequence[float]], float], fewest: int
) -> dict[str, float | None]:
    """A statistic of each averaged number; None of too few of them."""
    columns = {name: [getattr(result, name) for result in results] for name in AVERAGED}
    return {
        name: function(values) if len(values) >= fewest and None not in values else None
        for name, values in columns.items()
    }


def _make_csv(results: Sequence[FoldResult]) -> tuple[list[str], list[list[str]]]:
    names = [item.name for item in dataclasses.fields(FoldResult)]
    rows: list[dict[str, Any]] = [
        *map(dataclasses.asdict, results),
        {"fold": "mean", **_reduce(results, statistics.fmean, fewest=1)},
        {"fold": "std", **_reduce(results, statistics.stdev, fewest=2)},
    ]
    return names, [["" if row.get(name) is None else str(row[name]) for name in names] for row in rows]


def format_table(config: Config, results: Sequence[FoldResult]) -> str:
    """The table for the terminal, in percent."""
    rows: list[tuple[str, ...]] = [("fold", "train", "val", "top-1", "top-5", "best top-1", "seconds")]
    for result in results:
        counts = (f"{result.fold}", f"{result.num_train:,}", f"{result.num_val:,}")
        best = f"{_percent(result.best_top1)} (epoch {result.best_epoch})"
        rows.append((*counts, _percent(result.top1), _percent(result.top5), best, f"{result.train_seconds:.1f}"))
    for name, function, fewest in (("mean", statistics.fmean, 1), ("std", statistics.stdev, 2)):
        values = _reduce(results, function, fewest)
        rows.append((name, "", "", *(_percent(values[key]) for key in ("top1", "top5", "best_top1")), ""))
    lines = align(rows, "<>").splitlines()
    lines += ["", f"top-1 and top-5 in percent, of the last weights; std is the {SPREAD}", *list_notes(config)]
    tests = _reduce(results, statistics.fmean, 1)["test_top1"]
    if tests is not None:
        lines.append(f"test top-1 of the best weights, mean over folds: {_percent(tests)}")
    lines.append(f"table: {escape_text(str(Path(str(config.output_dir)) / 'crossval.json'))} and crossval.csv")
    return "\n".join(lines) + "\n"


def _percent(fraction: float | None) -> str:
    return "" if fraction is None else f"{100 * fraction:.2f}"
