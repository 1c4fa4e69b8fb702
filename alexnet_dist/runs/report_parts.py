"""The parts of a report that show one run: classes, pictures, worst predictions, settings, environment, bad files."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from alexnet_dist.base.durable import format_json, read_csv
from alexnet_dist.base.nested import flatten
from alexnet_dist.base.text import escape_text
from alexnet_dist.figures.canvas import is_own_figure
from alexnet_dist.runs.folder import BAD_FILES, PLOTS
from alexnet_dist.runs.past_runs import PastRun
from alexnet_dist.settings.schema import Config

NUM_WORST = 24
MOST_ROWS = 1000  # of a table; it says how many there are
MANY_A_SECOND = 100  # images, that are shown without decimals
QUALITY, SCALES = 82, (1.0, 0.75, 0.5, 0.35, 0.25)  # of a picture that has no room as PNG
IN_BASE64 = 4 / 3
FIGURES = {  # of plots/: what they show
    "confusion.png": "Confusion matrix: rows are true classes, columns predicted ones",
    "conv1.png": "Filters of conv1, each tower's apart; gray is 0",
    "inputs.png": "The first training images as the network sees them, after augmentation",
    "worst.png": "The worst predictions: what each picture is, and what the network said",
    "worst_explained.png": "The same pictures: bright is what speaks for the class that was said (LayerCAM at conv5)",
}
DIAGRAMS = ("confusion.png", "curves.png")
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
class Picture:
    """A picture that lies in the page; one without photographs may change its colors on a dark page."""

    source: str
    alt: str
    caption: str
    width: int
    height: int
    is_diagram: bool = False


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
    pictures = {name: embed(run.folder / PLOTS / name, about, room // len(FIGURES)) for name, about in FIGURES.items()}
    shown = {name: picture for name, picture in pictures.items() if picture is not None}
    drawn = [] if shown else ["Figures are drawn when the run has ended, where log.plots is true."]
    classes = Part("classes", "Classes", drawn, _pick(shown, "confusion.png"), _tabulate_classes(run))
    inside = Part("pictures", "Filters and inputs", [], _pick(shown, "conv1.png", "inputs.png"))
    worst = Part(
        "worst", "Worst predictions", [], _pick(shown, "worst.png", "worst_explained.png"), _tabulate_worst(run)
    )
    bad = Part("bad-files", "Bad files", *_list_bad_files(run))
    parts = [classes, inside, worst, _describe_settings(run), _describe_environment(run), bad]
    return [part for part in parts if part.lines or part.pictures or any(len(table.rows) > 1 for table in part.tables)]


def _pick(shown: dict[str, Picture], *names: str) -> list[Picture]:
    return [shown[name] for name in names if name in shown]


# -- pictures ---------------------------------------------------------------------------------------------------------


def embed_curves(run: PastRun, most: int) -> Picture | None:
    """The figure of the curves, for a page without charts."""
    return embed(run.folder / PLOTS / "curves.png", "Loss, accuracy and learning rate over the run", most)


def embed(path: Path, about: str, most: int) -> Picture | None:
    """A figure that this program drew, as a part of the page; None where there is none, or it cannot be read.

    Args:
        path: the PNG.
        about: what it shows.
        most: bytes that it may have in the page.
    """
    if path.is_symlink() or not path.is_file() or not is_own_figure(path):
        return None
    facts = path.stat()
    try:
        kind, data, width, height = _pack(path, facts.st_mtime_ns, facts.st_size, int(most / IN_BASE64))
    except (OSError, ValueError):
        return None
    is_diagram = path.name in DIAGRAMS
    return Picture(f"data:image/{kind};base64,{data}", about, f"{about}.", width, height, is_diagram)


@lru_cache(maxsize=64)
def _pack(path: Path, changed_ns: int, size: int, most: int) -> tuple[str, str, int, int]:
    """A picture in base64, as it is or, where that is too much, as WebP; `changed_ns`, `size`: of this version."""
    from PIL import Image

    with Image.open(path) as image:
        width, height = image.size
        data, kind = path.read_bytes(), "png"
        for scale in SCALES:
            if len(data) <= most:
                break
            smaller = image.convert("RGB").resize((round(width * scale), round(height * scale)))
            packed = io.BytesIO()
            smaller.save(packed, "WEBP", quality=QUALITY, method=2)
            data, kind = packed.getvalue(), "webp"
    return kind, base64.b64encode(data).decode(), width, height


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
    rows = [
        [
            text(_name(row, "class", "words")),
            *(_parse(row.get(key), "" if key == "count" else ".1%") for key in columns),
            text(_name(row, "most_confused_with", "confused_words")),
            _parse(row.get("confused_count"), ""),
        ]
        for row in _read(run.folder / PLOTS / "classes.csv")[:MOST_ROWS]
    ]
    return [Table("table of classes", [head, *rows], is_sortable=True)]


def _tabulate_worst(run: PastRun) -> list[Table]:
    """The wrong predictions that gave the truth least, then right ones."""
    found = _read(run.folder / PLOTS / "predictions.csv")
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
    return [Table("table of worst predictions", [head, *rows], is_sortable=True)]


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
