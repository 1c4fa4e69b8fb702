"""The parts of a report that show one run: classes, pictures, worst predictions, settings, environment, bad files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alexnet_dist.base.durable import format_json, read_csv
from alexnet_dist.base.nested import flatten
from alexnet_dist.base.text import escape_text
from alexnet_dist.runs.folder import BAD_FILES, PLOTS
from alexnet_dist.runs.past_runs import PastRun
from alexnet_dist.runs.report_pictures import (
    CONFUSION,
    CONV1,
    EXPLAINED,
    FIGURES,
    INPUTS,
    WORST,
    Picture,
    find_pictures,
)
from alexnet_dist.settings.schema import Config

NUM_WORST = 24
NO_FIGURES = (
    "Figures are drawn where log.plots is true: when the run has ended, and while it goes on where they take at most "
    "2 % of its time."
)
MOST_ROWS = 1000  # of a table; it says how many there are
MANY_A_SECOND = 100  # images, that are shown without decimals
FACTS = (  # of run.json
    *("strategy", "processes", "device", "precision", "precision_reason", "engine", "engine_reason", "kernels"),
    *("batch", "git_commit", "pretrained"),
)
IMAGES = {  # what data.* of run.json is called; the rest is of use to a resume alone
    "num_train": "training",
    "num_val": "validation",
    "num_test": "test",
    "num_classes": "classes",
    "num_bad_files": "could not be read",
    "fingerprint": "fingerprint",
}
WORDS = {"cpu": "CPU", "gpus": "GPUs", "cpu_features": "CPU features", "memory_gib": "memory (GiB)"}


@dataclass(frozen=True)
class Cell:
    """A cell of a table: its text, and the number that it is sorted by."""

    text: str
    value: float | None = None

    @property
    def is_number(self) -> bool:
        """Whether it stands to the right."""
        return self.value is not None

    def __str__(self) -> str:
        return self.text


Grid = list[list[Cell]]  # the head, then the rows


@dataclass(frozen=True)
class Table:
    """A table of a part."""

    title: str
    rows: Grid
    is_folded: bool = False
    is_sortable: bool = False


@dataclass(frozen=True)
class Part:
    """A section of the page."""

    id: str
    title: str
    lines: Sequence[str] = ()
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = field(default_factory=list)


def text(value: Any) -> Cell:
    """A cell of words."""
    return Cell(escape_text(str(value)))


def show_number(value: Any, form: str = "") -> Cell:
    """A cell of a number; empty where there is none."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return Cell(format(value, form), value) if is_number else Cell("")


def show_share(value: Any) -> Cell:
    """A cell of a fraction, in percent."""
    return show_number(value, ".2%")


def show_speed(value: float | None) -> Cell:
    """A cell of images per second."""
    return show_number(value, ",.0f" if (value or 0.0) >= MANY_A_SECOND else ".1f")


def show_time(said: str) -> str:
    """`2026-01-31T12:00:00+00:00` as people write it; another text as it is."""
    return f"{said[:10]} {said[11:16]} UTC" if re.fullmatch(r"[\d-]{10}T[\d:]{8}\+00:00", said) else said


def drop_empty_columns(rows: Grid) -> Grid:
    """A table without the columns that have nothing but their heads; the first one stays."""
    kept = [not place or any(str(row[place]) for row in rows[1:]) for place in range(len(rows[0]))]
    return [[cell for cell, is_kept in zip(row, kept, strict=True) if is_kept] for row in rows]


def describe_run(run: PastRun, room: int) -> list[Part]:
    """The parts that there is something to show in.

    Args:
        run: which.
        room: bytes for its pictures.
    """
    newest, place = run.given_pictures, run.folder / PLOTS
    shown = {name: find_pictures(place, name, room // len(FIGURES), newest) for name in FIGURES}
    drawn = [] if any(shown[name] for name in FIGURES if name != CONV1) else [NO_FIGURES]
    classes = Part("classes", "Classes", drawn, shown[CONFUSION], _tabulate_classes(run))
    inside = Part("pictures", "Filters and inputs", [], [*shown[CONV1], *shown[INPUTS]])
    worst = Part("worst", "Worst predictions", [], [*shown[WORST], *shown[EXPLAINED]], _tabulate_worst(run))
    bad = Part("bad-files", "Bad files", *_list_bad_files(run))
    parts = [classes, inside, worst, _describe_settings(run), _describe_environment(run), bad]
    return [part for part in parts if part.lines or part.pictures or any(len(table.rows) > 1 for table in part.tables)]


# -- tables -----------------------------------------------------------------------------------------------------------


def _read(path: Path) -> list[dict[str, str]]:
    """A table of plots/; empty where it cannot be read."""
    try:
        return read_csv(path)
    except (OSError, ValueError):
        return []


def _tabulate_classes(run: PastRun) -> list[Table]:
    columns = {"count": "images", "recall": "recall", "precision": "precision", "f1-score": "F1"}
    head = [*map(text, ("class", *columns.values(), "most confused with", "times"))]
    newest = run.given_pictures
    is_older = newest is not None and newest.find(CONFUSION) is not None  # than the matrix above the table
    rows = [
        [
            text(_name(row, "class", "words")),
            *(_parse(row.get(key), "" if key == "count" else ".1%") for key in columns),
            text(_name(row, "most_confused_with", "confused_words")),
            _parse(row.get("confused_count"), ""),
        ]
        for row in ([] if is_older else _read(run.folder / PLOTS / "classes.csv")[:MOST_ROWS])
    ]
    return [Table("table of classes", [head, *rows], is_sortable=True)] if rows else []


def _tabulate_worst(run: PastRun) -> list[Table]:
    """The wrong predictions that gave the truth least, then right ones."""
    newest = [] if run.given_pictures is None else run.given_pictures.worst
    found = newest or _read(run.folder / PLOTS / "predictions.csv")
    found.sort(key=lambda row: (row.get("right") == "True", _to_float(row.get("true_confidence")) or 0.0))
    head = [*map(text, ("picture", "verdict", "true class", "probability", "predicted class", "probability"))]
    rows = [
        [
            text(row.get("path", "")),
            text({"True": "right", "False": "wrong"}.get(row.get("right", ""), "")),
            text(_name(row, "true_class", "true_words")),
            _parse(row.get("true_confidence"), ".1%"),
            text(_name(row, "predicted_class", "predicted_words")),
            _parse(row.get("confidence"), ".1%"),
        ]
        for row in found[:NUM_WORST]
    ]
    return [Table("table of worst predictions", [head, *rows], is_sortable=True)] if rows else []


def _name(row: dict[str, str], key: str, words: str) -> str:
    name, said = row.get(key, ""), row.get(words, "")
    return f"{name} ({said})" if said else name


def _parse(said: str | None, form: str) -> Cell:
    value = _to_float(said)
    return Cell("") if value is None else show_number(value if form else int(value), form or ",")


def _to_float(said: str | None) -> float | None:
    try:
        return float(said) if said else None
    except ValueError:
        return None


def _tabulate(values: dict[str, Any], what: str) -> Grid:
    said = {key: _say(value, key) for key, value in values.items()}
    return [[text(what), text("value")], *([text(key), text(value)] for key, value in said.items())]


def _say(value: Any, key: str) -> str:
    """A value as people read it: lists of words with commas, and everything else as JSON."""
    if isinstance(value, list) and value and all(isinstance(part, str) for part in value):
        return ", ".join(value)
    return value if isinstance(value, str) else format_json(value, key)


def _describe_settings(run: PastRun) -> Part:
    """First those that are not what they would be without a configuration."""
    defaults = flatten(Config())
    chosen = {key: value for key, value in run.settings.items() if key not in defaults or value != defaults[key]}
    lines = ["These differ from the defaults:"] if chosen else []
    grids = {"settings that differ from the defaults": chosen, "all settings": run.settings}
    tables = [
        Table(title, _tabulate(values, "setting"), is_folded=values is run.settings, is_sortable=values is run.settings)
        for title, values in grids.items()
    ]
    return Part("settings", "Settings", lines, tables=tables)


def _describe_environment(run: PastRun) -> Part:
    facts = {key: run.facts[key] for key in FACTS if run.facts.get(key) not in (None, "", {})}
    data, machine, versions = (_take_dict(run.facts.get(key)) for key in ("data", "machine", "versions"))
    groups = {
        "training": _call_by_words(flatten(facts)),
        "machine": _call_by_words(machine),
        "images": {words: data[key] for key, words in IMAGES.items() if data.get(key)},
        "versions": versions,
    }
    tables = [Table(title, _tabulate(values, title)) for title, values in groups.items() if values]
    starts = [start for start in run.facts.get("starts") or [] if isinstance(start, dict)]
    keys = ("step", "processes", "micro_batch_size")
    rows = [
        [text(show_time(str(start.get("time", "")))), *(text(start.get(key, "")) for key in keys)] for start in starts
    ]
    head = [*map(text, ("start", "from step", "processes", "images a forward"))]
    return Part("environment", "Environment", tables=[*tables, Table("starts", [head, *rows])])


def _take_dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _call_by_words(values: dict[str, Any]) -> dict[str, Any]:
    """Facts under words that people know, without those that say nothing."""
    return {WORDS.get(key, key.replace("_", " ")): value for key, value in values.items() if value not in ([], {}, "")}


def _list_bad_files(run: PastRun) -> tuple[list[str], list[Picture], list[Table]]:
    found = _read(run.folder / BAD_FILES)
    head = [text("file"), text("reason")]
    rows = [[text(row.get("path", "")), text(row.get("reason", ""))] for row in found[:MOST_ROWS]]
    count = len(found)
    lines = (
        [f"{count:,} images could not be read" + (f"; the first {MOST_ROWS:,}:" if count > MOST_ROWS else ":")]
        if found
        else []
    )
    return lines, [], [Table("bad files", [head, *rows], is_sortable=True)]
