"""Ray's metrics: evaluations and epochs from every process, under the names of the other mirrors."""

from __future__ import annotations

import errno
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from alexnet_dist.assembly.trackers import open_trackers
from alexnet_dist.settings.schema import Config
from alexnet_dist.tracking.mirrors import prepare_mirrors
from alexnet_dist.tracking.ray import find_report
from alexnet_dist.tracking.trackers import MetricsFile, Run, Trackers


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What is reported to a stand-in of `ray.train` in a worker."""
    rows: list[dict[str, Any]] = []
    context = SimpleNamespace(get_world_rank=lambda: 1)
    monkeypatch.setitem(sys.modules, "ray.train", SimpleNamespace(get_context=lambda: context, report=rows.append))
    return rows


def test_a_process_that_writes_no_files_reports_what_was_evaluated(
    tmp_path: Path, reported: list[dict[str, Any]]
) -> None:
    settings = {"tracking": {"tensorboard": True, "wandb": "off"}}
    trackers = Trackers(None, prepare_mirrors(Run(tmp_path, "5e6f7a8b", settings, ""), is_main=False))
    trackers.log({"event": "train", "step": 2, "loss": 1.5})
    trackers.log({"event": "eval", "split": "val", "step": 4, "top1": 0.5})
    trackers.finish({"status": "finished"})
    assert reported == [{"step": 4, "val/top1": 0.5}]
    assert not list(tmp_path.iterdir())


def test_the_main_process_reports_where_earlier_rows_cannot_be_read(
    tmp_path: Path,
    reported: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The other processes' reports wait for its own."""

    def fail(metrics: MetricsFile) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(MetricsFile, "rows", fail)
    trackers = open_trackers(Config(), tmp_path, 0, "5e6f7a8b")
    trackers.log({"event": "eval", "split": "val", "step": 4, "top1": 0.5})
    trackers.finish({"status": "finished"})
    assert reported == [{"step": 4, "val/top1": 0.5}]
    (line,) = caplog.messages
    assert line.startswith("metrics.csv")
    assert "Ray" not in line
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_outside_of_ray_nothing_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "ray.train", raising=False)
    assert find_report() is None

    def fail() -> None:
        raise RuntimeError("not in a worker")

    monkeypatch.setitem(sys.modules, "ray.train", SimpleNamespace(get_context=fail))
    assert find_report() is None
