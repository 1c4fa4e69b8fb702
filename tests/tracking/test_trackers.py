from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from helpers.refusals import refused

from alexnet_dist.assembly.trackers import open_trackers
from alexnet_dist.base.durable import format_json, write_json
from alexnet_dist.base.errors import DivergedError, MachineError
from alexnet_dist.settings.schema import Config, TrackingConfig
from alexnet_dist.tracking.mirrors import KINDS
from alexnet_dist.tracking.trackers import Kind, MetricsFile, Row, Run, Start, read_rows, rename_for_display
from alexnet_dist.tracking.wandb_account import PROJECT


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_json_does_not_know_is_named_and_not_written(tmp_path: Path, value: float) -> None:
    with pytest.raises(DivergedError, match=r"not finite \(loss of metrics.jsonl\)"):
        MetricsFile(tmp_path / "metrics.jsonl", 0).log({"event": "eval", "top1": 0.9, "loss": value})
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""
    with pytest.raises(DivergedError, match=r"lr of a\.json"):
        write_json(tmp_path / "a.json", {"settings": [{"lr": value}]})
    assert not (tmp_path / "a.json").exists()
    assert format_json({"loss": 1.5}, "a") == '{"loss": 1.5}'


def test_metrics_after_the_restored_step_are_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(path, 0)
    metrics.log({"event": "train", "step": 1})
    size = metrics.sync()
    metrics.log({"event": "train", "step": 2})
    metrics.close()
    again = MetricsFile(path, size)
    again.log({"event": "train", "step": 2, "again": True})
    again.close()
    assert [row["step"] for row in read_rows(path)] == [1, 2]
    assert read_rows(path)[1]["again"]


def test_metrics_that_somebody_removed_are_not_filled_with_zeros(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path / "metrics.jsonl", 500)
    metrics.log({"event": "train", "step": 9})
    metrics.close()
    assert read_rows(tmp_path / "metrics.jsonl") == [{"event": "train", "step": 9}]


def test_metrics_that_go_while_they_are_written_are_written_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, rows = tmp_path / "metrics.jsonl", [{"event": "train", "step": step} for step in range(4)]
    metrics = MetricsFile(path, 0)
    for row in rows[:3]:
        metrics.log(row)
        path.unlink()
        size = metrics.sync()
    metrics.log(rows[3])
    metrics.close()
    assert read_rows(path) == rows
    assert path.stat().st_size > size
    assert [f"{path} was removed" in text for text in caplog.messages] == [True] * 3


def test_metrics_that_are_cut_while_they_are_written_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(path, 0)
    for step in (1, 2):
        metrics.log({"event": "train", "step": step})
        if step == 1:
            path.write_bytes(b"")
    assert metrics.sync() == path.stat().st_size
    metrics.close()
    assert ["rows may be missing" in text for text in caplog.messages] == [True]


def test_another_file_in_the_place_of_metrics_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(path, 0)
    path.unlink()
    path.write_text("mine")
    assert "another file took the place" in refused(metrics.sync, MachineError)
    assert path.read_text() == "mine"


def test_a_second_name_of_metrics_keeps_what_it_has(tmp_path: Path) -> None:
    path, backup = tmp_path / "metrics.jsonl", tmp_path / "backup.jsonl"
    path.write_text('{"event": "train", "step": 1}\n')
    backup.hardlink_to(path)
    MetricsFile(path, 0).log({"event": "train", "step": 2})
    assert [row["step"] for row in read_rows(backup)] == [1]
    assert [row["step"] for row in read_rows(path)] == [2]


def test_damaged_lines_are_named_and_the_others_mirrored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "metrics.jsonl"
    good = '{"event": "train", "step": 1}\n'
    path.write_bytes(f"{good}{{\n[1]\n{good}".encode() + b"\xff\n" + b"[" * 10**5 + b"\n")
    assert len(MetricsFile(path, 10**6).rows()) == 2
    assert [text.endswith("left out of its mirrors: 2, 3, 5, 6") for text in caplog.messages] == [True]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ('{"event": "a"}\n', [{"event": "a"}]),
        ('{"event": "a"}\n{"event": "b"', [{"event": "a"}]),
        ('{"event"', []),
    ],
)
def test_torn_last_row_is_left_out(tmp_path: Path, text: str, expected: list[dict[str, str]]) -> None:
    (tmp_path / "metrics.jsonl").write_text(text)
    assert read_rows(tmp_path / "metrics.jsonl") == expected


def test_missing_metrics_have_no_rows(tmp_path: Path) -> None:
    assert read_rows(tmp_path / "metrics.jsonl") == []


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            {"event": "train", "step": 3, "loss": 1.0, "top1": 0.5, "lr": 0.1, "images_per_second": 9.0},
            {"step": 3, "train/loss": 1.0, "train/top1": 0.5, "lr": 0.1, "perf/images_per_second": 9.0},
        ),
        (
            {"event": "eval", "split": "val", "step": 3, "top1": 0.5, "num_examples": 7},
            {"step": 3, "val/top1": 0.5, "val/num_examples": 7},
        ),
        ({"event": "test", "step": 3, "top5": 1.0}, {"step": 3, "test/top5": 1.0}),
        ({"event": "epoch", "epoch": 1, "train_loss": 2.0, "val_loss": 1.0}, {"epoch": 1, "epoch/train_loss": 2.0}),
    ],
)
def test_rows_have_their_names_in_views(row: dict[str, Any], expected: dict[str, Any]) -> None:
    assert rename_for_display(row) == expected


class Steps:
    """A tracker as one would add it."""

    def __init__(self, run: Run, rows: list[Row]) -> None:
        self._path = run.folder / f"steps-{run.run_id}-{run.tracking['project']}"
        self._steps = [row["step"] for row in rows]

    def log(self, row: Row) -> None:
        self._steps.append(row["step"])

    def finish(self, summary: Row) -> None:
        self._path.write_text(f"{self._steps} {summary['status']}")


@pytest.mark.parametrize("is_wanted", [True, False])
def test_a_tracker_is_a_kind_and_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_wanted: bool) -> None:
    def prepare(run: Run) -> Start | None:
        return partial(Steps, run) if is_wanted else None

    monkeypatch.setitem(KINDS, "steps", Kind(prepare))
    before = MetricsFile(tmp_path / "metrics.jsonl", 0)
    before.log({"event": "train", "step": 1})
    trackers = open_trackers(Config(), tmp_path, before.sync(), "5e6f7a8b")
    trackers.log({"event": "train", "step": 2})
    trackers.finish({"status": "finished"})
    written = {path.name: path.read_text() for path in tmp_path.glob("steps*")}
    assert written == ({"steps-5e6f7a8b-alexnet_dist": "[1, 2] finished"} if is_wanted else {})
    assert (tmp_path / "metrics.csv").is_file()


def test_the_default_project_is_that_of_the_settings() -> None:
    assert TrackingConfig().project == PROJECT  # it alone yields to W&B's own settings
