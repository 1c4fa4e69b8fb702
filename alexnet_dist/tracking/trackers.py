"""What is written while a run goes on: metrics.jsonl, which is the truth, and mirrors of it, which may break."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from alexnet_dist.base.durable import disk_errors_named, format_json, parse_json, refuse_link, write_file
from alexnet_dist.base.errors import MachineError
from alexnet_dist.tracking.pictures import Pictures

logger = logging.getLogger("alexnet_dist")

Row = dict[str, Any]
MEMORY = ("gpu_memory_mib", "resident_memory_mib")  # a row of a log point has one of them
T = TypeVar("T")


class Tracker(Protocol):
    """Something that takes the rows of metrics.jsonl."""

    def log(self, row: Row) -> None:
        """Take one row."""

    def finish(self, summary: Row) -> None:
        """Take the run's summary; nothing follows."""


@runtime_checkable
class Gallery(Tracker, Protocol):
    """A tracker that shows pictures, too."""

    def show(self, pictures: Pictures) -> None:
        """Take what there is to see of a step."""


@runtime_checkable
class Keeper(Tracker, Protocol):
    """A tracker that keeps models, too."""

    def keep(self, model: Path, facts: Row, is_last: bool) -> None:
        """Take a model folder, which may be replaced as soon as this returns unless `is_last`.

        Args:
            model: the folder.
            facts: which weights it holds.
            is_last: whether the run has ended.
        """


Start = Callable[[list[Row]], Tracker]  # makes a tracker from the rows that metrics.jsonl holds already


@dataclass(frozen=True)
class Run:
    """What a tracker may know of the run.

    Args:
        folder: the run folder.
        run_id: the same at each start of the run; eight letters and digits.
        settings: all of the run, nested.
        settings_text: the same as YAML.
        facts: of run.json, those that may be told: no path, no name of a machine or a user.
    """

    folder: Path
    run_id: str
    settings: Mapping[str, Any]
    settings_text: str
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tracking(self) -> Mapping[str, Any]:
        """The settings of `TrackingConfig`."""
        tracking: Mapping[str, Any] = self.settings["tracking"]
        return tracking


@dataclass(frozen=True)
class Kind:
    """A tracker that a run may have.

    Args:
        prepare: gives what starts it, or None where the run does not want it.
        is_asked_for: whether settings of `TrackingConfig` ask for it by name. The run then ends before anything is
            trained if the tracker cannot be made, or cannot write to the run folder.
        check: sees to it that its package is there, and raises MachineError if not.
        is_everywhere: whether each process has it, and not the main one alone.
        is_for_sets: whether it also shows what several runs came to together, such as the folds of a cross-validation.
    """

    prepare: Callable[[Run], Start | None]
    is_asked_for: Callable[[Mapping[str, Any]], bool] = lambda tracking: False
    check: Callable[[], None] = lambda: None
    is_everywhere: bool = False
    is_for_sets: bool = False


class MetricsFile:
    """metrics.jsonl: one JSON object a line, each flushed.

    Args:
        path: the file; it is made when missing.
        size: bytes to keep of what is there; what a killed process wrote after the restored step is cut off.

    Raises:
        MachineError: the file cannot be written, or is a symbolic link.
    """

    def __init__(self, path: Path, size: int) -> None:
        self._path = path
        refuse_link(path)
        with disk_errors_named(path):
            if path.exists() and path.stat().st_nlink > 1:  # a backup made of second names keeps what it has
                write_file(path, path.read_bytes())
            self._file = path.open("a+b", buffering=0)
            self._file.truncate(min(size, self._file.seek(0, os.SEEK_END)))  # a larger size would add zero bytes
            self._size = self._file.seek(0, os.SEEK_END)

    def log(self, row: Row) -> None:
        """Append a row.

        Raises:
            DivergedError: a number in it is not finite: such a row is written nowhere.
            MachineError: the disk is full or the file cannot be written.
        """
        line = (format_json(row, self._path.name) + "\n").encode()
        with disk_errors_named(self._path):
            while line:  # a disk that is nearly full takes a part of it
                num_written = self._file.write(line)
                self._size += num_written
                line = line[num_written:]

    def sync(self) -> int:
        """Make the rows durable; the file's size in bytes.

        Raises:
            MachineError: the disk is full or the file cannot be written, or another one has its name.
        """
        with disk_errors_named(self._path):
            os.fsync(self._file.fileno())
            self._settle()
        return self._size

    def _settle(self) -> None:
        """Notice what somebody did to the file while the run wrote it. One that was removed is written again."""
        mine = os.fstat(self._file.fileno())
        if mine.st_size != self._size:
            logger.warning("%s was changed while the run wrote it: rows may be missing in it", self._path)
            self._size = mine.st_size
        try:
            there = self._path.lstat()
        except FileNotFoundError:
            self._file.seek(0)
            write_file(self._path, self._file.read())
            self._file.close()
            self._file = self._path.open("a+b", buffering=0)
            logger.warning("%s was removed while the run wrote it: it is written again", self._path)
            return
        if not os.path.samestat(mine, there):
            remedy = "move that one away and start the same command again"
            raise MachineError(
                f"another file took the place of {self._path.name}", where=str(self._path), remedy=remedy
            )

    def rows(self) -> list[Row]:
        """The rows written so far, also by earlier starts."""
        rows, damaged = parse_rows(self._path)
        if damaged:
            shown = ", ".join(map(str, damaged[:5])) + (", ..." if len(damaged) > 5 else "")
            logger.warning("%s: damaged lines are left out of its mirrors: %s", self._path, shown)
        return rows

    def close(self) -> None:
        """Make the rows durable and close the file, unless that was done.

        Raises:
            MachineError: see `sync`.
        """
        if not self._file.closed:
            self.sync()
            self._file.close()


def read_rows(path: Path) -> list[Row]:
    """The rows of a metrics.jsonl; damaged lines, and a last one cut short by a kill, are left out."""
    return parse_rows(path)[0]


def parse_rows(source: Path | bytes) -> tuple[list[Row], list[int]]:
    """The rows of a metrics.jsonl, or of a part of one, and the numbers of the lines that are none, from 1."""
    rows: list[Row] = []
    damaged: list[int] = []
    data = source if isinstance(source, bytes) else source.read_bytes() if source.exists() else b""
    for number, line in enumerate(data.split(b"\n")[:-1], start=1):
        try:
            row = parse_json(line)
        except ValueError:
            row = None
        if isinstance(row, dict) and isinstance(row.get("event"), str):
            rows.append(row)
        else:
            damaged.append(number)
    return rows, damaged


def find_most_memory(rows: Sequence[Row]) -> Row:
    """The most memory of any of these rows, under the names that they have for it; the others have none."""
    found = {key: [row[key] for row in rows if key in row] for key in MEMORY}
    return {key: max(values) for key, values in found.items() if values}


def find_rows_until(path: Path, size: int, step: int) -> tuple[int, str | None]:
    """How much of metrics.jsonl a checkpoint stands for: whole lines, none of them of a later step.

    Args:
        path: the file.
        size: its bytes when the checkpoint was written.
        step: of the checkpoint.

    Returns:
        Bytes to keep, and a line where the file is not what it was then.
    """
    data = path.read_bytes() if path.exists() else b""
    kept = data[:size]
    if len(kept) == size and (not kept or (kept.endswith(b"\n") and _is_row_until(kept.rsplit(b"\n", 2)[-2], step))):
        return size, None
    end = position = 0
    for line in data.split(b"\n")[:-1]:
        position += len(line) + 1
        if _is_row_until(line, step):
            end = position
    return end, f"{path.name} is not what it was at step {step}: its rows until there are kept, some may be missing"


def _is_row_until(line: bytes, step: int) -> bool:
    try:
        row = parse_json(line)
    except ValueError:
        return False
    found = row.get("step") if isinstance(row, dict) else None
    return isinstance(found, int) and found <= step and row.get("event") != "test"


class Trackers:
    """metrics.jsonl and its mirrors as one.

    metrics.jsonl comes first: its errors are the run's errors. A mirror that fails, for whatever reason, is left out
    from then on with one line of warning, and the run goes on.

    Args:
        metrics: metrics.jsonl, cut back to the restored step; None where another process writes it.
        starts: for each mirror its name in warnings, and what makes it from the rows that metrics.jsonl holds already.
        everywhere: those that each process has. They may wait for one another, so one of them begins without earlier
            rows where these cannot be read.
    """

    def __init__(
        self, metrics: MetricsFile | None, starts: Mapping[str, Start], everywhere: Container[str] = ()
    ) -> None:
        self._metrics = metrics
        self._mirrors: dict[str, Tracker] = {}
        alone = [name for name in starts if name not in everywhere]
        rows = [] if metrics is None else self._guard(", ".join(alone), metrics.rows)
        if rows is None:
            starts, rows = {name: start for name, start in starts.items() if name in everywhere}, []
        for name, start in starts.items():
            mirror = self._guard(name, partial(start, rows))
            if mirror is not None:
                self._mirrors[name] = mirror

    def log(self, row: Row) -> None:
        """Write a row everywhere.

        Raises:
            DivergedError, MachineError: see `MetricsFile.log`; the mirrors then get nothing.
        """
        if self._metrics is not None:
            self._metrics.log(row)
        for name, mirror in list(self._mirrors.items()):
            self._guard(name, partial(mirror.log, row))

    def sync(self) -> int:
        """Make the rows durable; the size of metrics.jsonl in bytes.

        Raises:
            MachineError: metrics.jsonl cannot be written.
        """
        assert self._metrics is not None
        return self._metrics.sync()

    @property
    def names(self) -> list[str]:
        """Of the mirrors that have not failed."""
        return list(self._mirrors)

    @property
    def has_gallery(self) -> bool:
        """Whether a mirror shows pictures."""
        return any(isinstance(mirror, Gallery) for mirror in self._mirrors.values())

    @property
    def shows_images(self) -> bool:
        """Whether one of these may show what tells of images; a gallery that may not says `shows_images = False`."""
        galleries = (mirror for mirror in self._mirrors.values() if isinstance(mirror, Gallery))
        return any(getattr(gallery, "shows_images", True) for gallery in galleries)

    def show(self, pictures: Pictures) -> None:
        """Show pictures wherever there is a place for them."""
        for name, mirror in list(self._mirrors.items()):
            if isinstance(mirror, Gallery):
                self._guard(name, partial(mirror.show, pictures))

    def keep(self, model: Path, facts: Row, is_last: bool) -> None:
        """Give a model folder to each mirror that keeps models; see `Keeper.keep`."""
        for name, mirror in list(self._mirrors.items()):
            if isinstance(mirror, Keeper):
                self._guard(name, partial(mirror.keep, model, facts, is_last))

    def close_metrics(self) -> None:
        """Close metrics.jsonl: no row follows.

        Raises:
            MachineError: see `MetricsFile.sync`.
        """
        if self._metrics is not None:
            self._metrics.close()

    def finish(self, summary: Row) -> None:
        """Give the mirrors the run's summary and close everything; nothing follows."""
        for name, mirror in list(self._mirrors.items()):
            self._guard(name, partial(mirror.finish, summary))
        self.close_metrics()

    def _guard(self, name: str, action: Callable[[], T]) -> T | None:
        """The result of something done with a mirror; None, and no such mirror from now on, if it failed."""
        try:
            return action()
        except Exception as error:  # noqa: BLE001 (a mirror must not end a run, whatever it raises)
            self._mirrors.pop(name, None)
            why = " ".join(f"{type(error).__name__}: {error}".split())
            logger.warning("%s failed (%s); the run goes on without it, metrics.jsonl has everything", name, why)
            return None


def rename_for_display(row: Row) -> Row:
    """A row of metrics.jsonl under W&B's and TensorBoard's names: `loss` of a train row becomes `train/loss`.

    What the row of an epoch repeats of the validation is left out: it is there as `val/loss` and `val/top1`.
    """
    prefix = {"train": "train", "epoch": "epoch"}.get(row["event"], row.get("split", row["event"]))
    shared = {"step": "step", "epoch": "epoch", "samples_seen": "samples_seen", "lr": "lr"}
    performance = ("images_per_second", "data_wait_seconds", "data_wait_fraction", *MEMORY)
    shared |= {name: f"perf/{name}" for name in performance}
    left_out = {"event", "split", *(("val_loss", "val_top1") if row["event"] == "epoch" else ())}
    return {shared.get(key, f"{prefix}/{key}"): value for key, value in row.items() if key not in left_out}


def name_points(row: Row) -> Row:
    """A row as values by curve. `step` is the x-axis; `epoch` is a curve of train rows alone, lest points coincide."""
    left_out = {"step"} if row["event"] == "train" else {"step", "epoch"}
    return {name: value for name, value in rename_for_display(row).items() if name not in left_out}
