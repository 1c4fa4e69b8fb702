"""TensorBoard's event files as a mirror of metrics.jsonl."""

from __future__ import annotations

import logging
import textwrap
import threading
from pathlib import Path

from alexnet_dist.base.extras import import_extra
from alexnet_dist.base.text import quote_word
from alexnet_dist.tracking.trackers import Kind, Row, Run, Start, rename_for_display

logger = logging.getLogger("alexnet_dist")


class TensorboardMirror:
    """TensorBoard: one curve a metric over `step`, and the settings as text.

    Values are single-precision, as everywhere in TensorBoard. The event files are made anew at each start, so that a
    resume leaves nothing twice and nothing out; all points of earlier starts then carry the time of the last one.

    Args:
        folder: where the event files go; those of this run's earlier starts are removed.
        run_id: of the run, part of the files' names: others in the folder are its user's.
        settings: the run's settings as YAML.
        rows: what metrics.jsonl holds already.

    Raises:
        Exception: whatever TensorBoard raises.
    """

    def __init__(self, *, folder: Path, run_id: str, settings: str, rows: list[Row]) -> None:
        self._folder = folder
        suffix = f".alexnet_dist-{run_id}"
        for old in folder.glob(f"events.out.tfevents.*{suffix}"):
            old.unlink()
        _hush_writing_thread()
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), filename_suffix=suffix)
        self._writer.add_text("settings", textwrap.indent(settings, "    "), 0)  # indented: code, in Markdown
        self._writer.flush()
        for row in rows:
            self.log(row)

    def log(self, row: Row) -> None:
        """Add the points of a row, and make them visible."""
        for name, value in name_points(row).items():
            self._writer.add_scalar(name, value, row["step"])
        self._writer.flush()

    def finish(self, summary: Row) -> None:
        """Close the event file and say how to look at it."""
        self._writer.close()
        logger.info("TensorBoard: tensorboard --logdir %s", quote_word(self._folder))


def name_points(row: Row) -> Row:
    """A row as values by curve. `step` is the x-axis; `epoch` is a curve of train rows alone, lest points coincide."""
    left_out = {"step"} if row["event"] == "train" else {"step", "epoch"}
    return {name: value for name, value in rename_for_display(row).items() if name not in left_out}


def _check_installed() -> None:
    import_extra("tensorboard.summary.writer.event_file_writer", "tensorboard")


def _hush_writing_thread() -> None:
    """Keep the traceback of TensorBoard's writing thread off the screen: our next call raises the same error."""
    speak = threading.excepthook

    def hush(failure: threading.ExceptHookArgs) -> None:
        if type(failure.thread).__module__.split(".")[0] != "tensorboard":
            speak(failure)

    threading.excepthook = hush


def _prepare(run: Run) -> Start | None:
    if not run.tracking["tensorboard"]:
        return None
    folder = run.folder / "tensorboard"
    return lambda rows: TensorboardMirror(folder=folder, run_id=run.run_id, settings=run.settings_text, rows=rows)


TENSORBOARD = Kind(_prepare, lambda tracking: bool(tracking["tensorboard"]), _check_installed)
