"""`runs`: what was trained below a folder, a row for each run; and what of it can go."""

from __future__ import annotations

import operator
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alexnet_dist.base.durable import format_csv, format_json
from alexnet_dist.base.errors import UsageError
from alexnet_dist.base.progress import format_seconds
from alexnet_dist.base.terminal import find_columns
from alexnet_dist.base.text import align, escape_text, format_bytes, shorten
from alexnet_dist.cli.options import add_options, hand_over, settle_out
from alexnet_dist.settings.nearest import find_nearest
from alexnet_dist.settings.reader import new_parser, parse_options

if TYPE_CHECKING:
    from alexnet_dist.runs.cleaning import Leftover
    from alexnet_dist.runs.past_runs import PastRun

EXAMPLES = """List the runs below a folder: how they ended, how good they are, what they take.

examples:
  alexnet-dist runs
  alexnet-dist runs --sort best --where state=finished --where "optimizer.lr>=0.01"
  alexnet-dist runs experiments --format csv --out runs.csv
  alexnet-dist runs --clean

A recipe is the shipped configuration that a run's settings are nearest to; * marks one that was changed, and `compare`
names the settings. --clean removes the checkpoints of finished runs: their best weights, tables and figures stay, and
they cannot be trained further."""

COLUMNS: dict[str, Callable[[PastRun], Any]] = {
    "name": lambda run: run.name,
    "recipe": lambda run: run.recipe,
    "state": lambda run: run.state,
    "best": lambda run: run.best_top1,
    "test": lambda run: run.number("test_top1"),
    "epochs": lambda run: run.epoch,
    "seconds": lambda run: run.seconds,
    "size": lambda run: run.num_bytes,
}
MORE: dict[str, Callable[[PastRun], Any]] = {  # of CSV and JSON
    "best_epoch": lambda run: run.best_epoch,
    "planned_epochs": lambda run: run.planned,
    "started": lambda run: run.started,
    "folder": lambda run: str(run.folder),
    "notes": lambda run: "; ".join(run.notes),
}
BIGGEST_FIRST = ("best", "test", "epochs", "seconds", "size")
COMPARISONS = {
    "<=": operator.le,
    ">=": operator.ge,
    "!=": operator.ne,
    "=": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
}
SHORTEST_NAME = 12


def main(argv: Sequence[str]) -> int:
    """Run the verb; its exit code."""
    parser = new_parser("runs", EXAMPLES, "[FOLDER] [options]")
    parser.add_argument("folders", metavar="FOLDER", type=str, nargs="*", help="a folder of runs, or a run (runs)")
    parser.add_argument(
        "--sort", type=str, default="name", help="column to sort by; of numbers the largest comes first"
    )
    parser.add_argument("--reverse", action="store_true", help="sort the other way")
    what = "show the runs of which this holds: a column or a setting, a comparison (= or >=), a value; may be repeated"
    parser.add_argument("--where", type=str, action="append", default=[], help=what)
    parser.add_argument("--format", default="table", choices=["table", *FORMATS], help="of what is printed")
    parser.add_argument("--out", type=str, help="write it to this file instead of the terminal")
    parser.add_argument("--clean", action="store_true", help="remove what finished runs no longer need, after asking")
    parser.add_argument("--yes", action="store_true", help="with --clean: remove it without asking")
    add_options(parser, "overwrite", "quiet", "debug")
    options = parse_options(argv, parser)
    folders = options.folders or ["runs"]
    if len(folders) > 1:
        raise UsageError("more than one folder", where="command line", remedy="give the folder above them")
    known = {**COLUMNS, **MORE}
    if options.sort not in known:
        raise _refuse_column(options.sort, known)
    out, filters = settle_out(options), [read_filter(text) for text in options.where]
    from alexnet_dist.runs.past_runs import find_runs  # numpy; --help should not wait for it

    found = find_runs(Path(folders[0]))
    runs = sort_runs([run for run in found if all(is_kept(run) for is_kept in filters)], options.sort, options.reverse)
    if options.clean:
        return _clean(runs, options.yes)
    if options.format != "table":
        hand_over(FORMATS[options.format](runs), out, is_table=False)
    else:
        columns = find_columns(sys.stdout) if out is None else None
        hand_over(format_table(runs, len(found), columns), out, is_table=True)
    return 0


def _refuse_column(name: str, known: dict[str, Any]) -> UsageError:
    near = find_nearest(name, known)
    remedy = f"did you mean {near}?" if near else f"give one of {', '.join(known)}"
    return UsageError(f"--sort: no column {name!r}", where="command line", remedy=remedy)


def read_filter(text: str) -> Callable[[PastRun], bool]:
    """What a word of --where asks of a run: `best>0.9`, `state=finished`, `optimizer.name!=sgd`.

    A run that lacks the value is left out, but for `!=`. Numbers are compared as numbers, everything else as text.

    Raises:
        UsageError: it is no such word, or names neither a column nor a setting.
    """
    match = re.fullmatch(r"\s*([\w.]+)\s*(<=|>=|!=|=|<|>)\s*(.*?)\s*", text, re.DOTALL)
    if match is None:
        remedy = "write a column or a setting, one of = != < <= > >=, and a value"
        raise UsageError(f"--where {text!r} cannot be read", where="command line", remedy=remedy)
    key, sign, wanted = match.groups()
    if key not in (known := {**COLUMNS, **MORE}):
        from alexnet_dist.settings.schema import Config, walk_fields

        settings = [name for name, _ in walk_fields(Config)]
        if key not in settings:
            near = find_nearest(key, [*known, *settings])
            remedy = f"did you mean {near}?" if near else "give a column of the table, or a setting by its dotted name"
            raise UsageError(f"--where: no column or setting {key!r}", where="command line", remedy=remedy)
    return lambda run: _compare(known[key](run) if key in known else run.settings.get(key), sign, wanted)


def _compare(value: Any, sign: str, wanted: str) -> bool:
    if value is None:
        return (sign == "=") == (wanted in ("", "null")) if sign in ("=", "!=") else False
    try:
        pair: tuple[Any, Any] = float(value), float(wanted)
    except (TypeError, ValueError):
        pair = str(value).lower() if isinstance(value, bool) else str(value), wanted
    return bool(COMPARISONS[sign](*pair))


def sort_runs(runs: Sequence[PastRun], key: str, is_reversed: bool = False) -> list[PastRun]:
    """Runs by a column, numbers from the largest down; those that lack it come last."""
    read = {**COLUMNS, **MORE}[key]
    known = [run for run in runs if read(run) not in (None, "")]
    known.sort(key=read, reverse=(key in BIGGEST_FIRST) != is_reversed)
    return known + [run for run in runs if read(run) in (None, "")]


# -- how they are shown -----------------------------------------------------------------------------------------------


def format_table(runs: Sequence[PastRun], num_found: int, columns: int | None = None) -> str:
    """A row for each run, then how many there are and what is to be known of some.

    Args:
        runs: those that are shown.
        num_found: runs below the folder.
        columns: of a terminal; where they are too few, names lose their middle. None = as wide as it takes.
    """
    rows = [["name", "recipe", "state", "best", "test", "epochs", "time", "size"]]
    for run in runs:
        epochs = "" if run.epoch is None else f"{run.epoch}" + (f"/{run.planned}" if run.planned is not None else "")
        accuracies = (show_percent(run.best_top1), show_percent(run.number("test_top1")))
        time = format_seconds(run.seconds) if run.seconds is not None else ""
        cells = (run.name, run.recipe, run.state, *accuracies, epochs, time, format_bytes(run.num_bytes))
        rows.append([escape_text(cell) for cell in cells])
    table = fit_names(rows, columns)
    total = format_bytes(sum(run.num_bytes for run in runs))
    shown = f"{len(runs)}" if len(runs) == num_found else f"{len(runs)} of {num_found}"
    lines = [f"{shown} runs, {total}; best: validation top-1, test: top-1 of the best weights"]
    lines += [f"note: {escape_text(run.name)}: {'; '.join(run.notes)}" for run in runs if run.notes]
    return f"{table}\n" + "\n".join(lines) + "\n"


def fit_names(rows: Sequence[Sequence[str]], columns: int | None, place: int = 0) -> str:
    """An aligned table of texts and then numbers; names lose their middle where a line has too few columns.

    Args:
        rows: of cells, three texts first.
        columns: that a line may have; None = as many as it takes.
        place: of the name in a row.
    """
    table = align(rows, "<<<>")
    excess = max(map(len, table.splitlines())) - columns if columns is not None else 0
    if excess <= 0:
        return table
    room = max(max(len(row[place]) for row in rows) - excess, SHORTEST_NAME)
    return align([[*row[:place], shorten(row[place], room), *row[place + 1 :]] for row in rows], "<<<>")


def show_percent(fraction: float | None) -> str:
    """A fraction in percent; "" where it is not known."""
    return "" if fraction is None else f"{fraction:.2%}"


def format_rows(runs: Sequence[PastRun]) -> str:
    """CSV: numbers with all their digits, fractions as fractions, sizes in bytes."""
    known = {**COLUMNS, **MORE}
    values = [[read(run) for read in known.values()] for run in runs]
    cells = [["" if value is None else str(value) for value in row] for row in values]
    return format_csv([list(known), *cells])


def format_objects(runs: Sequence[PastRun]) -> str:
    """JSON: a list of objects."""
    known = {**COLUMNS, **MORE}
    return format_json([{key: read(run) for key, read in known.items()} for run in runs], "runs", indent=2) + "\n"


FORMATS = {"csv": format_rows, "json": format_objects}


# -- what can go ------------------------------------------------------------------------------------------------------


def _clean(runs: Sequence[PastRun], is_agreed: bool) -> int:
    from alexnet_dist.runs.cleaning import find_leftovers, remove_leftovers

    leftovers = find_leftovers(runs)
    hand_over(_format_leftovers(leftovers), None, is_table=True)
    if not leftovers:
        return 0
    if not is_agreed and not _ask("Remove them? [y/N] "):
        hand_over("Nothing was removed." + ("" if sys.stdin.isatty() else " --yes removes them.") + "\n", None, True)
        return 0
    hand_over(f"Removed: {format_bytes(remove_leftovers(leftovers))} are free.\n", None, is_table=True)
    return 0


def _format_leftovers(leftovers: Sequence[Leftover]) -> str:
    if not leftovers:
        return "Nothing to remove: no finished run has checkpoints.\n"
    rows = [["run", "checkpoints", "size"]]
    rows += [[escape_text(each.run.name), str(len(each.paths)), format_bytes(each.num_bytes)] for each in leftovers]
    total = format_bytes(sum(each.num_bytes for each in leftovers))
    what = "checkpoints of finished runs. The best weights (model/), tables and figures stay."
    return f"{align(rows, '<>')}\n{total}: {what}\nThese runs cannot be trained further then.\n"


def _ask(question: str) -> bool:
    if not sys.stdin.isatty():
        return False
    print(question, end="", flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
