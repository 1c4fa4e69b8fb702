"""report.html of a run that goes on."""

from __future__ import annotations

import hashlib
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.past_runs import list_rows, make_run
from helpers.report_runs import make_full_run
from helpers.tiny import tiny_config

from alexnet_dist.base.errors import MachineError
from alexnet_dist.runs import report_tracker
from alexnet_dist.runs.ownership import is_own_table, owns
from alexnet_dist.runs.report_tracker import ReportTracker, refresh_report
from alexnet_dist.tracking.pictures import Judgment, Picture, Pictures

VEGA = "window.vegaEmbed=()=>0;window.vegaLite=0;"


class Linking:
    """A process that links the script, and is done when it is told to be."""

    code: int | None = None

    def poll(self) -> int | None:
        return self.code

    def wait(self, seconds: float | None = None) -> int:
        if self.code is None and seconds is not None:
            raise subprocess.TimeoutExpired("link", seconds)
        return 0

    def kill(self) -> None:
        self.code = -9


@pytest.fixture
def linking(monkeypatch: pytest.MonkeyPatch) -> Linking:
    process = Linking()
    monkeypatch.setattr(report_tracker, "begin_vega", lambda: process)
    monkeypatch.setattr(report_tracker, "find_vega", lambda: VEGA)
    monkeypatch.setattr(report_tracker, "load_vega", lambda: VEGA)
    return process


def test_the_page_is_made_at_the_end_of_epochs_and_of_the_run(tmp_path: Path, linking: Linking) -> None:
    folder = make_run(tmp_path / "a", status=None)
    page = folder / "report.html"
    tracker = ReportTracker(folder, [])
    first, second, third = (list_rows([0.5, 0.6, 0.7], 4)[part] for part in (slice(6), slice(6, 12), slice(12, 18)))
    for row in first:
        tracker.log(row)
    assert not page.exists()  # the script for its charts is on its way
    linking.code = 0
    for row in second[:-1]:
        tracker.log(row)
    assert not page.exists()
    tracker.log(second[-1])
    assert "The run is going on, epoch 2 of 2." in page.read_text()
    for row in third:
        tracker.log(row)
    tracker.finish({"status": "finished"})
    assert "The run is finished" in page.read_text()
    assert is_own_table(page)
    assert owns(page)


def watch_a_row(folder: Path) -> ReportTracker:
    """The tracker of a run that goes on, after the first row of this start."""
    *before, row = list_rows([0.5], 4)
    tracker = ReportTracker(folder, before)
    tracker.log(row)
    return tracker


def test_a_page_without_charts_is_better_than_none(
    tmp_path: Path, linking: Linking, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> str:
        raise MachineError("not installed")

    monkeypatch.setattr(report_tracker, "load_vega", fail)
    monkeypatch.setattr(report_tracker, "find_vega", lambda: None)
    folder = make_run(tmp_path / "a")
    for status in ("finished", "interrupted"):
        linking.code = None
        watch_a_row(folder).finish({"status": status})
        assert linking.code == -9
        text = (folder / "report.html").read_text()
        assert f"The run is {status}" in text
        assert "alexnet-dist report RUN writes the page with them" in text


def test_who_stops_a_run_waits_for_no_charts(tmp_path: Path, linking: Linking, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float | None] = []
    monkeypatch.setattr(Linking, "wait", lambda self, seconds=None: waited.append(seconds) or 0)
    monkeypatch.setattr(report_tracker, "load_vega", lambda: pytest.fail("linked in the run's own process"))
    watch_a_row(make_run(tmp_path / "a")).finish({"status": "interrupted"})
    assert waited == [3]


def test_a_start_links_no_charts(tmp_path: Path, linking: Linking, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[Linking] = []
    monkeypatch.setattr(report_tracker, "begin_vega", lambda: begun.append(linking) or linking)
    rows = list_rows([0.5, 0.6], 4)
    tracker = ReportTracker(make_run(tmp_path / "a"), rows[:4])
    assert begun == []
    for row in rows[4:]:
        tracker.log(row)
    assert begun == [linking]


def test_ninety_epochs_are_written_within_a_second(tmp_path: Path, linking: Linking) -> None:
    linking.code = 0
    rows = list_rows([0.5] * 90, 200)
    tracker = ReportTracker(make_run(tmp_path / "a", status=None), rows[:-1])
    began = time.process_time()
    tracker.log(rows[-1])
    assert time.process_time() - began < 1.0


def test_a_page_is_written_anew_where_there_is_one(
    tmp_path: Path, linking: Linking, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_run(tmp_path / "a")
    page = folder / "report.html"
    refresh_report(folder)
    assert not page.exists()  # log.report was false
    page.write_text("somebody else's")
    refresh_report(folder)
    assert page.read_text() == "somebody else's"
    page.unlink()
    watch_a_row(folder).finish({"status": "finished"})
    before = page.read_text()
    (folder / "plots").mkdir()
    (folder / "plots" / "classes.csv").write_text("class,count,top1,\nzebra,3,0.5,\n")
    refresh_report(folder)
    assert "zebra" not in before
    assert "zebra" in page.read_text()

    def fail(*_: object) -> None:
        raise MachineError("no space")

    monkeypatch.setattr(report_tracker, "write_report", fail)
    refresh_report(folder)
    assert "report.html is not written anew: no space" in caplog.text


BLANK = np.zeros((4, 4, 3), np.uint8)
NAMES = ("val/confusion", "val/worst", "train/inputs", "conv1/tower_1", "conv1/tower_2")


def show_step(tracker: ReportTracker, step: int) -> None:
    """What trackers are shown of a validation that had one image wrong."""
    wrong = Judgment(BLANK, f"{step}.jpg", "cat", "<b>dog</b>", 0.9, 0.05)
    tracker.show(Pictures(step, [Picture(name, BLANK) for name in NAMES], [wrong]))


def write_page(tracker: ReportTracker, folder: Path, status: str | None = None) -> str:
    """The page at the end of an epoch, or of the run."""
    if status is None:
        tracker.log(list_rows([0.5], 4)[-1])
    else:
        tracker.finish({"status": status})
    return (folder / "report.html").read_text()


@pytest.mark.heavy
def test_a_run_that_goes_on_shows_its_newest_pictures(tmp_path: Path, linking: Linking) -> None:
    linking.code = 0
    folder = make_full_run(tmp_path / "a")  # it had ended once, with figures, and is trained further
    tracker = watch_a_row(folder)
    at_first = write_page(tracker, folder)
    assert ("updates." in at_first, "table of classes" in at_first) == (False, True)
    for step in (4, 8):
        show_step(tracker, step)
    for page in (write_page(tracker, folder), write_page(tracker, folder, "interrupted")):
        assert (page.count("After 8 updates."), "After 4 updates." in page) == (4, False)  # inputs are of no step
        assert page.count("<img") == len(NAMES)
        assert ("8.jpg" in page, "4.jpg" in page, "&lt;b&gt;dog" in page) == (True, False, True)
        assert "table of classes" not in page  # it is older than the matrix
    tracker.show(Pictures(8, [Picture("plots/confusion", folder / "plots" / "confusion.png")]))
    ended = write_page(tracker, folder, "finished")
    assert ("updates." in ended, "8.jpg" in ended, ended.count("<img")) == (False, False, at_first.count("<img"))


@pytest.mark.parametrize("has_pictures", [True, False])
def test_pictures_are_drawn_for_the_page_where_they_are_wanted_and_not_at_first(
    tmp_path: Path, linking: Linking, monkeypatch: pytest.MonkeyPatch, has_pictures: bool
) -> None:
    linking.code = 0
    folder = make_run(tmp_path / "a", status=None)
    tracker = ReportTracker(folder, list_rows([0.5], 4), has_pictures)
    assert not tracker.shows_images
    monkeypatch.setattr(report_tracker, "FIRST_PICTURES_SECONDS", 0)
    assert tracker.shows_images == has_pictures
    assert "Figures are drawn where log.plots is true" in write_page(tracker, folder)
    show_step(tracker, 4)
    assert ("<img" in write_page(tracker, folder)) == has_pictures


@pytest.mark.heavy
def test_a_report_changes_no_bit_of_the_weights(
    tmp_path: Path, linking: Linking, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alexnet_dist.runs.session import train

    linking.code = 0
    monkeypatch.setattr(report_tracker, "FIRST_PICTURES_SECONDS", 0)
    digests = []
    for name, is_on in (("with", True), ("without", False)):
        train(tiny_config(tmp_path / name, train__epochs=2, log__report=is_on, log__plots=is_on))
        assert (tmp_path / name / "report.html").exists() == is_on
        digests.append(hashlib.sha256((tmp_path / name / "model" / "model.safetensors").read_bytes()).hexdigest())
    assert digests[0] == digests[1]


@pytest.mark.heavy
def test_a_stopped_run_has_a_page_with_pictures(
    tmp_path: Path, linking: Linking, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alexnet_dist.base.errors import InterruptedRunError
    from alexnet_dist.runs.session import train

    linking.code = 0
    monkeypatch.setattr(report_tracker, "FIRST_PICTURES_SECONDS", 0)
    calls: list[Any] = []
    with pytest.raises(InterruptedRunError):
        train(
            tiny_config(tmp_path / "a", log__report=True, log__plots=True),
            stop=lambda: calls.append(0) or len(calls) > 6,
        )
    page = (tmp_path / "a" / "report.html").read_text()
    assert "The run is interrupted" in page
    for words in ("Confusion matrix", "The worst predictions", "The first training images", "Filters of conv1"):
        assert words in page
