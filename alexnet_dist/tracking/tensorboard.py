"""TensorBoard's event files as a mirror of metrics.jsonl."""

from __future__ import annotations

import logging
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from alexnet_dist.base.extras import import_extra
from alexnet_dist.base.text import quote_word
from alexnet_dist.tracking.trackers import Row, rename_for_display

logger = logging.getLogger("alexnet_dist")


class TensorboardMirror:
    """TensorBoard through Accelerate's tracker: one curve a metric over `step`, and the settings as text.

    Values are single-precision, as everywhere in TensorBoard. The event files are made anew at each start, so that a
    resume leaves nothing twice and nothing out; all points of earlier starts then carry the time of the last one.

    Args:
        start: makes Accelerate's tracker for a folder; its files' names end as it is told.
        folder: where the event files go; those of this run's earlier starts are removed.
        run_id: of the run, part of the files' names: others in the folder are its user's.
        settings: the run's settings as YAML.
        rows: what metrics.jsonl holds already.

    Raises:
        Exception: whatever TensorBoard raises.
    """

    def __init__(
        self, start: Callable[[Path, str], Any], *, folder: Path, run_id: str, settings: str, rows: list[Row]
    ) -> None:
        self._folder = folder
        suffix = f".alexnet_dist-{run_id}"
        for old in folder.glob(f"events.out.tfevents.*{suffix}"):
            old.unlink()
        _hush_writing_thread()
        self._tracker = start(folder, suffix)
        self._tracker.log({"settings": textwrap.indent(settings, "    ")}, step=0)  # indented: code, in Markdown
        for row in rows:
            self.log(row)

    def log(self, row: Row) -> None:
        """Add the points of a row, and make them visible."""
        self._tracker.log(name_points(row), step=row["step"])

    def finish(self, summary: Row) -> None:
        """Close the event file and say how to look at it."""
        self._tracker.finish()
        logger.info("TensorBoard: tensorboard --logdir %s", quote_word(self._folder))


def name_points(row: Row) -> Row:
    """A row as values by curve. `step` is the x-axis; `epoch` is a curve of train rows alone, lest points coincide."""
    left_out = {"step"} if row["event"] == "train" else {"step", "epoch"}
    return {name: value for name, value in rename_for_display(row).items() if name not in left_out}


def check_tensorboard_installed() -> None:
    """See to it that the package is there and can be imported.

    Raises:
        MachineError: it is not, or cannot.
    """
    import_extra("tensorboard.summary.writer.event_file_writer", "tensorboard")


def _hush_writing_thread() -> None:
    """Keep the traceback of TensorBoard's writing thread off the screen: our next call raises the same error."""
    speak = threading.excepthook

    def hush(failure: threading.ExceptHookArgs) -> None:
        if type(failure.thread).__module__.split(".")[0] != "tensorboard":
            speak(failure)

    threading.excepthook = hush
