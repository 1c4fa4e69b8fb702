"""report.html of a run: written when an epoch ends, when the run does, and when its figures are drawn again."""

from __future__ import annotations

import logging
import subprocess
import time
from pathlib import Path

from alexnet_dist.base.errors import MachineError
from alexnet_dist.figures.vega import begin_vega, find_vega, load_vega
from alexnet_dist.runs.ownership import is_own_table
from alexnet_dist.runs.past_runs import clean_rows, read_past_run
from alexnet_dist.runs.report import REPORT, write_report
from alexnet_dist.runs.report_pictures import Newest
from alexnet_dist.tracking.pictures import Pictures
from alexnet_dist.tracking.trackers import Row, Start

logger = logging.getLogger("alexnet_dist")

WAIT_SECONDS, STOPPED_SECONDS = 60, 3  # at a run's end, for the script that draws charts; where it was stopped
FIRST_PICTURES_SECONDS = 200  # of a run, before they are drawn for the page alone: they take up to 4 s, 2 % of that


class ReportTracker:
    """Keeps report.html true. In the first seconds of a user's first run, the script for its charts is not there yet.

    Args:
        folder: the run folder.
        rows: what metrics.jsonl holds already.
        has_pictures: whether the page of a run that goes on has some.
    """

    def __init__(self, folder: Path, rows: list[Row], has_pictures: bool = True) -> None:
        self._folder, self._rows = folder, clean_rows(rows)
        self._newest, self._has_pictures, self._began = Newest(), has_pictures, time.monotonic()
        self._linking: subprocess.Popen[bytes] | None = None
        self._has_begun = False

    def log(self, row: Row) -> None:
        """Take a row; one that ends an epoch makes the page new."""
        self._rows.append(row)
        if not self._has_begun:  # not before the first updates: the start of a run has enough to do
            self._has_begun, self._linking = True, begin_vega()
        if row["event"] == "epoch" and (self._linking is None or self._linking.poll() is not None):
            self._write(find_vega(), "running")

    @property
    def shows_images(self) -> bool:
        """Whether validations are to be drawn for the page; those that another tracker wants are shown in it anyway."""
        return self._has_pictures and time.monotonic() - self._began >= FIRST_PICTURES_SECONDS

    def show(self, pictures: Pictures) -> None:
        """Take what there is to see of a step, for the next page."""
        if self._has_pictures:
            self._newest.take(pictures)

    def finish(self, summary: Row) -> None:
        """Write the page of the end. Whoever stops a run does not wait for charts."""
        has_ended = summary["status"] == "finished"
        if self._linking is not None:
            try:
                self._linking.wait(WAIT_SECONDS if has_ended else STOPPED_SECONDS)
            except subprocess.TimeoutExpired:
                self._linking.kill()
                self._linking.wait()
        self._write(_load_vega() if has_ended else find_vega(), str(summary["status"]))

    def _write(self, vega: str | None, state: str) -> None:
        newest = None if state == "finished" else self._newest  # then plots/ has the figures of the end
        run = read_past_run(self._folder, given_rows=self._rows, given_state=state, given_pictures=newest)
        write_report(self._folder / REPORT, [run], vega)


def _load_vega() -> str | None:
    try:
        return load_vega()
    except MachineError as error:
        logger.info("%s has no charts: %s", REPORT, error)
        return None


def prepare_report(folder: Path, has_pictures: bool) -> Start:
    """What starts the tracker of a run; see `ReportTracker`."""
    return lambda rows: ReportTracker(folder, rows, has_pictures)


def refresh_report(folder: Path) -> None:
    """Write the page of a run anew, where there is one. What hinders it costs a warning.

    Args:
        folder: the run folder.
    """
    page = folder / REPORT
    if not page.is_file() or not is_own_table(page):
        return
    try:
        write_report(page, [read_past_run(folder)], _load_vega())
    except MachineError as error:
        logger.warning("%s is not written anew: %s", page, error)
    else:
        logger.info("report: %s", page)
