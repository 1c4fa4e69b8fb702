"""`compare`: runs beside each other: the settings that differ, results, curves, what seeds make of them."""

from __future__ import annotations

import dataclasses
import string
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from alexnet_dist.base.durable import format_csv, format_json
from alexnet_dist.base.errors import UsageError
from alexnet_dist.base.progress import format_seconds
from alexnet_dist.base.streams import writes_unicode
from alexnet_dist.base.terminal import find_columns
from alexnet_dist.base.text import align, cut_end, escape_text
from alexnet_dist.cli.options import add_options, hand_over, settle_out
from alexnet_dist.cli.runs import COLUMNS, MORE, fit_names, show_percent
from alexnet_dist.settings.reader import new_parser, parse_options

if TYPE_CHECKING:
    from alexnet_dist.runs.comparison import Seeds
    from alexnet_dist.runs.past_runs import PastRun

EXAMPLES = """Put runs beside each other: settings that differ, results, curves.

examples:
  alexnet-dist compare runs/digits runs/digits-2
  alexnet-dist compare runs/digits-seed-*
  alexnet-dist compare runs/digits runs/digits-2 --format json --out both.json
  alexnet-dist compare runs/digits-seed-* --track runs/digits-seeds

A folder of runs, or a cross-validation, stands for the runs in it. Runs that differ in their seed alone are summarized
by mean and spread, which --track gives to their trackers, too. `report` makes a page of the same runs."""

COLUMNS_OF_PAPER = 80  # where there is no terminal
LONGEST_VALUE = 22
MOST_EPOCHS, CURVE_WIDTH = 10, 60  # rows of the table of curves; letters of a curve
BLOCKS, ASCII_BLOCKS = "▁▂▃▄▅▆▇█", "_.-=+*#@"
CURVE = ("epoch", "step", "top1", "top5", "loss")  # of each validation, in JSON


def main(argv: Sequence[str]) -> int:
    """Run the verb; its exit code."""
    parser = new_parser("compare", EXAMPLES, "RUN RUN ... [options]")
    parser.add_argument("folders", metavar="RUN", type=str, nargs="*", help="run folders, or folders of runs")
    parser.add_argument("--format", default="table", choices=["table", *FORMATS], help="of what is printed")
    parser.add_argument("--out", type=str, help="write it to this file instead of the terminal")
    what = "give W&B, TensorBoard and MLflow, where the runs have them, a run for all seeds; it lies in this folder"
    parser.add_argument("--track", metavar="FOLDER", type=str, help=what)
    add_options(parser, "overwrite", "quiet", "debug")
    options = parse_options(argv, parser)
    out = settle_out(options)
    runs = gather_runs(options.folders)
    if len(runs) < 2:
        raise UsageError("two runs are needed", where="command line", remedy="give two run folders, or one with runs")
    if options.format != "table":
        hand_over(FORMATS[options.format](runs), out, is_table=False)
    else:
        columns = (find_columns(sys.stdout) if out is None else None) or COLUMNS_OF_PAPER
        hand_over(format_comparison(runs, columns, writes_unicode() or out is not None), out, is_table=True)
    if options.track is not None:
        from alexnet_dist.runs.seed_summary import track_seeds

        track_seeds(runs, Path(options.track))
    return 0


def gather_runs(folders: Sequence[str]) -> list[PastRun]:
    """The runs that words of a command line name, each once, with names that tell them apart.

    Raises:
        UsageError: no run is there.
    """
    from alexnet_dist.runs.past_runs import find_runs  # numpy; --help should not wait for it

    runs = {run.folder.resolve(): run for folder in folders for run in find_runs(Path(folder))}.values()
    names = [run.name for run in runs]
    is_unclear = len(set(names)) < len(names)
    return [dataclasses.replace(run, name=str(run.folder)) for run in runs] if is_unclear else list(runs)


def name_letters(count: int) -> list[str]:
    """A, B, ... Z, A1, B1, ...: what runs are called in narrow columns."""
    letters = string.ascii_uppercase
    return [letters[n % 26] + (str(n // 26) if n >= 26 else "") for n in range(count)]


def format_comparison(runs: Sequence[PastRun], columns: int, is_unicode: bool = True) -> str:
    """What `compare` prints: runs, settings that differ, validation by epoch, seeds.

    Args:
        runs: two or more.
        columns: that a line may have.
        is_unicode: whether block letters can be shown.
    """
    from alexnet_dist.runs.comparison import find_differences, group_seeds, summarize_seeds

    letters = name_letters(len(runs))
    differences = find_differences(runs)
    parts = [_format_results(runs, letters, columns)]
    if differences:
        rows = {escape_text(key): [escape_text(value) for value in values] for key, values in differences.items()}
        parts.append(_set_side_by_side("settings that differ", letters, rows, columns))
    else:
        parts.append("no setting differs\n")
    parts.append(_format_curves(runs, letters, columns, is_unicode))
    called = dict(zip((run.name for run in runs), letters, strict=True))
    parts += [_format_seeds(summarize_seeds(group), called) for group in group_seeds(runs)]
    notes = [f"note: {escape_text(run.name)}: {'; '.join(run.notes)}\n" for run in runs if run.notes]
    return "\n".join([*filter(None, parts), *(["".join(notes)] if notes else [])])


def _format_results(runs: Sequence[PastRun], letters: Sequence[str], columns: int) -> str:
    rows = [["", "run", "state", "best", "epoch", "test", "time"]]
    for letter, run in zip(letters, runs, strict=True):
        best = "" if run.best_epoch is None else str(run.best_epoch)
        time = "" if run.seconds is None else format_seconds(run.seconds)
        accuracies = (show_percent(run.best_top1), best, show_percent(run.number("test_top1")))
        rows.append([letter, escape_text(run.name), run.state, *accuracies, time])
    return fit_names(rows, columns, place=1)


def _set_side_by_side(title: str, letters: Sequence[str], rows: dict[str, list[str]], columns: int) -> str:
    """A table with a column for each run, in as many parts as it takes for lines to fit."""
    cells = {key: [cut_end(value, LONGEST_VALUE) for value in values] for key, values in rows.items()}
    widths = [max(len(letters[n]), *(len(values[n]) for values in cells.values())) for n in range(len(letters))]
    first = max(len(title), *map(len, cells))
    tables, start = [], 0
    while start < len(letters):
        stop = start + 1
        while stop < len(letters) and first + sum(widths[start : stop + 1]) + 2 * (stop + 1 - start) <= columns:
            stop += 1
        part = [[title, *letters[start:stop]], *([key, *values[start:stop]] for key, values in cells.items())]
        tables.append(align(part, "<>"))
        start = stop
    return "\n".join(tables)


def _format_curves(runs: Sequence[PastRun], letters: Sequence[str], columns: int, is_unicode: bool) -> str:
    """Validation top-1 after up to ten epochs, and of each run the whole curve in a line."""
    curves = [{int(row["epoch"]): row["top1"] for row in run.select("eval", "epoch", "top1")} for run in runs]
    epochs = sorted(set().union(*curves))
    if not epochs:
        return ""
    stride = max(1, -(-len(epochs) // MOST_EPOCHS))
    chosen = epochs[::-1][::stride][::-1]  # the last one is among them
    rows = {str(epoch): [show_percent(curve.get(epoch)) or "-" for curve in curves] for epoch in chosen}
    table = _set_side_by_side("validation top-1, epoch", letters, rows, columns)
    values = [value for curve in curves for value in curve.values()]
    low, high = min(values), max(values)
    lines = [
        f"{letter:<3}{draw_curve([curve[n] for n in sorted(curve)], low, high, is_unicode)}\n"
        for letter, curve in zip(letters, curves, strict=True)
        if curve
    ]
    marks = "an epoch a mark" if len(epochs) <= CURVE_WIDTH else f"{CURVE_WIDTH} marks over the epochs"
    scale = f"from {low:.2%} (lowest mark) to {high:.2%} (highest), {marks}"
    return f"{table}\n{''.join(lines)}{scale}\n"


def draw_curve(values: Sequence[float], low: float, high: float, is_unicode: bool = True) -> str:
    """A curve in a line of letters, from the lowest mark at `low` to the highest at `high`."""
    marks = BLOCKS if is_unicode else ASCII_BLOCKS
    step = max(1.0, len(values) / CURVE_WIDTH)
    shown = [values[int(n * step)] for n in range(min(len(values), CURVE_WIDTH))]
    scale = (len(marks) - 1) / (high - low) if high > low else 0.0
    return "".join(marks[round((value - low) * scale)] for value in shown)


def _format_seeds(summary: Sequence[Seeds], called: dict[str, str]) -> str:
    from alexnet_dist.runs.comparison import SPREAD

    if not summary:
        return ""
    rows = [[f"{len(summary[0].runs)} seeds", "mean", "std", "least", "most"]]
    for found in summary:
        show = format_seconds if found.measure == "seconds" else show_percent
        numbers = (found.mean, found.std, found.least, found.most)
        rows.append([{"seconds": "time"}.get(found.measure, found.measure), *map(show, numbers)])
    letters = ", ".join(called[name] for name in summary[0].runs)
    return f"{align(rows, '<>')}{letters} differ in their seed alone; std is the {SPREAD}\n"


def format_rows(runs: Sequence[PastRun]) -> str:
    """CSV: a row for each run, the columns of `runs` and the settings that differ."""
    from alexnet_dist.runs.comparison import find_differences

    known, differences = {**COLUMNS, **MORE}, find_differences(runs)
    rows = []
    for number, run in enumerate(runs):
        values = [read(run) for read in known.values()]
        rows.append(["" if value is None else str(value) for value in values])
        rows[-1] += [texts[number] for texts in differences.values()]
    return format_csv([[*known, *differences], *rows])


def format_object(runs: Sequence[PastRun]) -> str:
    """JSON: runs with their validation curves, settings that differ, seeds."""
    from alexnet_dist.runs.comparison import find_differences, group_seeds, summarize_seeds

    known = {**COLUMNS, **MORE}
    rows = [{key: read(run) for key, read in known.items()} for run in runs]
    for row, run in zip(rows, runs, strict=True):
        row["validation"] = [{key: each.get(key) for key in CURVE} for each in run.select("eval", "top1")]
    names = [run.name for run in runs]
    differences = {key: dict(zip(names, texts, strict=True)) for key, texts in find_differences(runs).items()}
    seeds = [dataclasses.asdict(found) for group in group_seeds(runs) for found in summarize_seeds(group)]
    return format_json({"runs": rows, "settings_that_differ": differences, "seeds": seeds}, "compare", indent=2) + "\n"


FORMATS = {"csv": format_rows, "json": format_object}
