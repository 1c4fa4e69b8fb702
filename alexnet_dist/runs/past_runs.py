"""Runs as their folders tell of them: found below a folder, and read with suspicion.

Nothing here needs torch, or a folder that is whole: what is missing or damaged becomes a note.
"""

from __future__ import annotations

import contextlib
import math
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alexnet_dist.base.durable import read_object
from alexnet_dist.base.errors import AlexNetDistError, UsageError
from alexnet_dist.base.run_record import METRICS, RUN, SETTINGS, SUMMARY, read_marker, read_run
from alexnet_dist.figures.curves import find_best
from alexnet_dist.runs.folder import is_held, read_settings
from alexnet_dist.settings.reader import read_layers
from alexnet_dist.settings.shipped import shipped_folder
from alexnet_dist.tracking.trackers import Row, parse_rows

if TYPE_CHECKING:
    from alexnet_dist.runs.report_pictures import Newest

DEEPEST = 4  # folders between the one that is searched and a run
LAST_BYTES = 1 << 16  # of metrics.jsonl: the last row ends in them
STATUSES = ("finished", "interrupted", "failed")
OTHER_SETTINGS, MOST_OTHER = "*", 0.3  # the mark of a recipe that was changed; the part of it that may be
PLACES = ("output_dir", "data.root", "data.cache_dir", "device", "base")  # where and on what, which is no recipe's
LENGTHS = ("train.epochs", "train.max_steps")


@dataclass(frozen=True, eq=False)
class PastRun:
    """What is known of a run; what is not is None, or empty.

    Args:
        folder: the run folder.
        name: in tables.
        settings: {dotted name: value}.
        facts: of run.json.
        summary: of summary.json.
        notes: what is missing or damaged.
        given_rows: what `clean_rows` gives for metrics.jsonl, where it is known; else it is read.
        given_state: how it stands, where that is known.
        given_pictures: what it has shown while it goes on, newer than plots/.
    """

    folder: Path
    name: str
    settings: dict[str, Any]
    facts: dict[str, Any]
    summary: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    given_rows: list[Row] | None = None
    given_state: str | None = None
    given_pictures: Newest | None = None

    @cached_property
    def rows(self) -> list[Row]:
        """Of metrics.jsonl; see `clean_rows`."""
        if self.given_rows is not None:
            return self.given_rows
        try:
            rows, damaged = parse_rows(self.folder / METRICS)
        except OSError as error:
            self.notes.append(f"{METRICS} cannot be read ({error.strerror})")
            return []
        if damaged:
            self.notes.append(f"{METRICS}: {len(damaged)} damaged lines are left out")
        return clean_rows(rows)

    def select(self, event: str, *keys: str) -> list[Row]:
        """The rows of an event that have numbers under all of these keys."""
        rows = self._events.get(event, [])
        return [row for row in rows if all(_number(row.get(key)) is not None for key in keys)]

    @cached_property
    def _events(self) -> dict[str, list[Row]]:
        events: dict[str, list[Row]] = {}
        for row in self.rows:
            events.setdefault(row["event"], []).append(row)
        return events

    @cached_property
    def best(self) -> Row:
        """The best validation: top1, top5, loss, epoch and step, as far as they are known."""
        return dict(find_best(self.select("eval", "top1", "loss")) or {})

    @cached_property
    def last_row(self) -> Row:
        """The last row of metrics.jsonl; the others are not read."""
        return _read_last_row(self.folder / METRICS)

    @cached_property
    def state(self) -> str:
        """How it ended: finished, interrupted or failed; running; or killed, where nothing says how."""
        if self.given_state is not None:
            return self.given_state
        if is_held(self.folder):
            return "running"
        status, ended = self.summary.get("status"), _number(self.summary.get("step"))
        is_newer = ended is not None and (_number(self.last_row.get("step")) or 0) > ended
        return str(status) if status in STATUSES and not is_newer else "killed"

    @cached_property
    def epoch(self) -> int | None:
        """Passes that have ended."""
        ended = _number(self.summary.get("epoch")) if self.state in STATUSES else _number(self.last_row.get("epoch"))
        return None if ended is None else int(ended)

    @property
    def planned(self) -> int | None:
        """Passes that were asked for; None where updates were."""
        epochs = _number(self.settings.get("train.epochs"))
        return None if epochs is None else int(epochs)

    def number(self, key: str) -> float | None:
        """A number of summary.json, of a run whose summary is of its end."""
        return _number(self.summary.get(key)) if self.state in STATUSES else None

    @cached_property
    def best_top1(self) -> float | None:
        """Of the validation set, of the best weights."""
        said = self.number("best_top1")
        return said if said is not None else _number(self.best.get("top1"))

    @property
    def best_epoch(self) -> int | None:
        """After which the best weights were made."""
        said = self.number("best_epoch") if self.number("best_top1") is not None else _number(self.best.get("epoch"))
        return None if said is None else int(said)

    @cached_property
    def seconds(self) -> float | None:
        """Of training, without validation and saving."""
        said = self.number("train_seconds")
        epochs = [] if said is not None else self.select("epoch", "seconds")
        return said if said is not None else math.fsum(row["seconds"] for row in epochs) if epochs else None

    @cached_property
    def num_bytes(self) -> int:
        """Of all its files."""
        return measure_size(self.folder)

    @property
    def started(self) -> str | None:
        """When it began, as run.json says."""
        starts = self.facts.get("starts") or [{}]
        said = starts[0].get("time")
        return said if isinstance(said, str) else None

    @cached_property
    def recipe(self) -> str:
        """The shipped configuration that its settings are those of; with a mark where some differ; "" where most do."""
        return _name_recipe(self.settings)


def clean_rows(rows: Iterable[Row]) -> list[Row]:
    """Of some rows those that say their step, and of their values the finite numbers and words."""
    kept = ({key: value for key, value in row.items() if _is_plain(value)} for row in rows)
    return [row for row in kept if _number(row.get("step")) is not None]


def read_past_run(
    folder: Path,
    name: str = "",
    given_rows: list[Row] | None = None,
    given_state: str | None = None,
    given_pictures: Newest | None = None,
) -> PastRun:
    """What a run folder tells, whatever state it is in.

    Args:
        folder: the run folder.
        name: in tables; "" = the folder's.
        given_rows, given_state, given_pictures: see `PastRun`.
    """
    notes: list[str] = []
    try:
        settings, _ = read_settings(folder)
    except AlexNetDistError:
        settings = {}
        notes.append(f"{SETTINGS} is missing or damaged")
    try:
        facts = read_run(folder)
    except AlexNetDistError:
        facts = {}
    if not facts:
        notes.append(f"{RUN} is missing or damaged")
    summary = read_object(folder / SUMMARY)
    if not summary and (folder / SUMMARY).exists():
        notes.append(f"{SUMMARY} is damaged")
    if not _ends_well(folder / METRICS):
        notes.append(f"{METRICS} is missing, or ends in half a line")
    given = (given_rows, given_state, given_pictures)
    return PastRun(folder, name or folder.resolve().name, settings, facts, summary, notes, *given)


def find_runs(folder: Path) -> list[PastRun]:
    """The run in a folder, or those below it, by name; each called by its path from there.

    Raises:
        UsageError: there is no such folder, or none in it.
    """
    if not folder.is_dir():
        raise UsageError("no folder with runs", where=str(folder), remedy="give a run folder, or a folder of runs")
    if is_run(folder):
        return [read_past_run(folder)]
    runs = [read_past_run(path, path.relative_to(folder).as_posix()) for path in _walk(folder, DEEPEST)]
    if not runs:
        raise UsageError("no run in this folder", where=str(folder), remedy="give a run folder, or a folder of runs")
    return runs


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's, or what is left of one."""
    if (kind := read_marker(folder).get("kind")) is not None:
        return bool(kind == "run")
    names = [name for name in (SETTINGS, RUN, METRICS, SUMMARY) if (folder / name).is_file()]
    return METRICS in names or len(names) > 1


def _walk(folder: Path, depth: int) -> Iterator[Path]:
    """The runs below a folder, sorted; links are not followed."""
    with contextlib.suppress(OSError):
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        for entry in entries:
            if entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
                path = folder / entry.name
                if is_run(path):
                    yield path
                elif depth > 1:
                    yield from _walk(path, depth - 1)


def measure_size(folder: Path) -> int:
    """Bytes of the files in a folder; each counts once, whatever names it has."""
    sizes: dict[tuple[int, int], int] = {}
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # other processes may tidy up
            facts = path.lstat()
            if stat.S_ISREG(facts.st_mode):
                sizes[facts.st_dev, facts.st_ino] = facts.st_size
    return sum(sizes.values())


def _ends_well(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - 1, 0))
            return file.read(1) in (b"\n", b"")
    except OSError:
        return False


def _read_last_row(path: Path) -> Row:
    try:
        with path.open("rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - LAST_BYTES, 0))
            rows, _ = parse_rows(file.read())
    except OSError:
        return {}
    return rows[-1] if rows else {}


def _number(value: Any) -> float | None:
    """A value as JSON knows it, where it is a finite number."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) else None


def _is_plain(value: Any) -> bool:
    return isinstance(value, str) or _number(value) is not None


def _name_recipe(settings: dict[str, Any]) -> str:
    found = []
    for name, values in _read_recipes().items():
        wrong = [key for key, value in values.items() if settings.get(key) != value]
        found.append((len(wrong) / max(len(values), 1), -len(values), name, bool(wrong)))
    part, _, name, is_changed = min(found, default=(1.0, 0, "", False))
    if not settings or part > MOST_OTHER:
        return ""
    return name + OTHER_SETTINGS if is_changed else name


_recipes: dict[str, dict[str, Any]] = {}


def _read_recipes() -> dict[str, dict[str, Any]]:
    """What each shipped configuration sets, without places and lengths."""
    if not _recipes:
        for path in sorted(shipped_folder("configs").glob("*.yaml")):
            with contextlib.suppress(AlexNetDistError):
                values, _ = read_layers(path)
                _recipes[path.stem] = {key: values[key] for key in values if key not in (*PLACES, *LENGTHS)}
    return _recipes
