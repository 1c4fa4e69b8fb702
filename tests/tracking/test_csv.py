"""metrics.csv says what metrics.jsonl says, and a mirror that breaks takes nothing with it."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.tables import read_table

from alexnet_dist.base.errors import DivergedError, MachineError
from alexnet_dist.tracking.csv import COLUMNS, CsvMirror
from alexnet_dist.tracking.trackers import MetricsFile, Row, Trackers, read_rows

TRAIN = {"event": "train", "step": 2, "epoch": 0, "samples_seen": 24, "loss": 0.1 + 0.2, "lr": 1e-05, "top1": 1 / 3}
EVAL = {"event": "eval", "split": "val", "step": 4, "epoch": 1, "loss": 5e-324, "top1": 0.0, "num_examples": 7}
EPOCH = {"event": "epoch", "step": 4, "epoch": 1, "train_loss": 1e300, "val_loss": 2.0, "seconds": 1.5}
LATER = {"event": "train", "step": 6, "epoch": 1, "loss": 9.0}


def open_both(folder: Path, size: int = 0, makes_anew: bool = True) -> Trackers:
    path = folder / "metrics.csv"

    def start(rows: list[Row]) -> CsvMirror:
        before = path.read_bytes() if path.exists() else b""
        table = CsvMirror(path, rows)
        if not makes_anew:
            path.write_bytes(before or path.read_bytes())
        return table

    return Trackers(MetricsFile(folder / "metrics.jsonl", size), {"metrics.csv": start})


def restart_after_rows_that_were_lost(folder: Path, makes_anew: bool = True) -> None:
    """A run that wrote two rows, was saved, wrote two more, was killed, and resumed."""
    trackers = open_both(folder)
    trackers.log(TRAIN)
    trackers.log(EVAL)
    size = trackers.sync()
    trackers.log(EPOCH)
    trackers.log(LATER)
    again = open_both(folder, size, makes_anew)
    again.log(EPOCH)
    again.finish({})


def test_cells_are_the_numbers_of_metrics_jsonl(tmp_path: Path) -> None:
    trackers = open_both(tmp_path)
    for row in (TRAIN, EVAL, EPOCH, LATER):
        trackers.log(row)
    assert read_table(tmp_path / "metrics.csv") == [TRAIN, EVAL, EPOCH, LATER]  # before it is closed
    assert (tmp_path / "metrics.csv").read_text().splitlines()[0] == ",".join(COLUMNS)


@pytest.mark.parametrize("value", [None, 1e-300, 2**53 - 1])
def test_odd_numbers_survive(tmp_path: Path, value: float | None) -> None:
    open_both(tmp_path).log({**TRAIN, "loss": value})
    (row,) = read_table(tmp_path / "metrics.csv")
    assert repr(row.get("loss")) == repr(value if value is None else float(value))


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_number_that_is_none_reaches_neither(tmp_path: Path, value: float) -> None:
    trackers = open_both(tmp_path)
    with pytest.raises(DivergedError, match=r"loss of metrics\.jsonl"):
        trackers.log({**TRAIN, "loss": value})
    assert read_rows(tmp_path / "metrics.jsonl") == read_table(tmp_path / "metrics.csv") == []


def test_table_equals_metrics_after_a_resume(tmp_path: Path) -> None:
    restart_after_rows_that_were_lost(tmp_path)
    assert read_rows(tmp_path / "metrics.jsonl") == [TRAIN, EVAL, EPOCH]
    assert read_table(tmp_path / "metrics.csv") == [TRAIN, EVAL, EPOCH]


def test_table_that_is_not_made_anew_would_differ(tmp_path: Path) -> None:
    restart_after_rows_that_were_lost(tmp_path, makes_anew=False)
    assert read_table(tmp_path / "metrics.csv") != read_rows(tmp_path / "metrics.jsonl")


def test_a_key_without_a_column_is_not_lost_silently(tmp_path: Path) -> None:
    table = CsvMirror(tmp_path / "metrics.csv", [])
    with pytest.raises(ValueError, match="surprise"):
        table.log({**TRAIN, "surprise": 1})


# -- several mirrors as one -------------------------------------------------------------------------------------------


class Notebook:
    """A mirror that keeps its rows, and fails at the calls it is told to.

    Args:
        rows: rows of earlier starts.
        fails_at: names of methods that raise.
    """

    def __init__(self, rows: list[Row], *fails_at: str) -> None:
        self.rows, self.fails_at, self.summary = list(rows), fails_at, Row()
        self.calls: list[str] = []

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name in self.fails_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def log(self, row: Row) -> None:
        self._call("log")
        self.rows.append(row)

    def finish(self, summary: Row) -> None:
        self._call("finish")
        self.summary = summary


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


@pytest.fixture(autouse=True)
def _messages_reach_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("alexnet_dist"), "propagate", True)


@pytest.mark.parametrize(("method", "calls"), [("log", ["log"]), ("finish", ["log", "log", "finish"])])
def test_broken_mirror_is_dropped_with_one_line(
    tmp_path: Path, method: str, calls: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    broken, sound = Notebook([], method), Notebook([])
    metrics = MetricsFile(tmp_path / "metrics.jsonl", 0)
    trackers = Trackers(metrics, {"Broken": lambda rows: broken, "Sound": lambda rows: sound})
    trackers.log(TRAIN)
    trackers.log(EVAL)
    trackers.finish({"status": "finished"})
    assert broken.calls == calls
    assert sound.rows == read_rows(tmp_path / "metrics.jsonl") == [TRAIN, EVAL]
    assert sound.summary == {"status": "finished"}
    (warning,) = warnings_of(caplog)
    assert warning.startswith("Broken failed (OSError: [Errno 28] No space left on device)")


def test_mirror_that_cannot_start_is_dropped_with_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def start(rows: list[Row]) -> Notebook:
        raise TypeError("two\nlines")

    trackers = Trackers(MetricsFile(tmp_path / "metrics.jsonl", 0), {"Broken": start, "Sound": Notebook})
    trackers.log(TRAIN)
    assert read_rows(tmp_path / "metrics.jsonl") == [TRAIN]
    (warning,) = warnings_of(caplog)
    assert warning.startswith("Broken failed (TypeError: two lines)")


def test_mirrors_start_from_the_rows_that_were_kept(tmp_path: Path) -> None:
    restart_after_rows_that_were_lost(tmp_path)
    started: list[Row] = []
    Trackers(MetricsFile(tmp_path / "metrics.jsonl", 10**6), {"Any": lambda rows: Notebook(started.extend(rows) or [])})
    assert started == [TRAIN, EVAL, EPOCH]


@pytest.mark.parametrize("call", [lambda trackers: trackers.log(TRAIN), Trackers.sync], ids=["log", "sync"])
def test_an_error_of_metrics_jsonl_is_the_error_of_the_run(
    tmp_path: Path, call: Callable[[Trackers], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    mirror = Notebook([])
    metrics = MetricsFile(tmp_path / "metrics.jsonl", 0)
    trackers = Trackers(metrics, {"Any": lambda rows: mirror})
    metrics._file.close()
    monkeypatch.setattr(metrics, "_file", SimpleNamespace(write=fail, fileno=lambda: 0))
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(MachineError, match=r"cannot write metrics\.jsonl .*free some space"):
        call(trackers)
    assert mirror.rows == []
