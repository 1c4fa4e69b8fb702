"""TensorBoard's event files as a mirror of metrics.jsonl."""

from __future__ import annotations

import logging
import textwrap
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from alexnet_dist.base.extras import import_extra
from alexnet_dist.base.nested import flatten
from alexnet_dist.base.text import quote_word
from alexnet_dist.tracking.pictures import Pictures
from alexnet_dist.tracking.trackers import Kind, Row, Run, Start, name_points

logger = logging.getLogger("alexnet_dist")

COMPARED = ("val/top1", "val/loss", "test/top1", "train/loss")  # what HParams puts beside the settings
NOT_COMPARED = ("tracking.", "log.", "checkpoint.", "output_dir")


class TensorboardMirror:
    """TensorBoard: one curve a metric over `step`, pictures, and the settings as text and in the tab HParams.

    Values are single-precision, as everywhere in TensorBoard. The event files are made anew at each start, so that a
    resume leaves nothing twice and nothing out; all points of earlier starts then carry the time of the last one.

    Args:
        folder: where the event files go; those of this run's earlier starts are removed.
        run_id: of the run, part of the files' names: others in the folder are its user's.
        settings: the run's settings as YAML.
        hparams: settings by dotted name, for the tab HParams.
        rows: what metrics.jsonl holds already.

    Raises:
        Exception: whatever TensorBoard raises.
    """

    def __init__(
        self, *, folder: Path, run_id: str, settings: str, rows: list[Row], hparams: Mapping[str, Any] | None = None
    ) -> None:
        self._folder = folder
        suffix = f".alexnet_dist-{run_id}"
        for old in folder.glob(f"events.out.tfevents.*{suffix}"):
            old.unlink()
        _hush_writing_thread()
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), filename_suffix=suffix)
        self._writer.add_text("settings", textwrap.indent(settings, "    "), 0)  # indented: code, in Markdown
        if hparams:
            self._add_hparams(hparams)
        self._writer.flush()
        for row in rows:
            self.log(row)

    def log(self, row: Row) -> None:
        """Add the points of a row, and make them visible."""
        for name, value in name_points(row).items():
            self._writer.add_scalar(name, value, row["step"])
        self._writer.flush()

    def show(self, pictures: Pictures) -> None:
        """Add pictures."""
        for picture in pictures.pictures:
            content = picture.content
            pixels = np.asarray(Image.open(content).convert("RGB")) if isinstance(content, Path) else content
            self._writer.add_image(picture.name, pixels, pictures.step, dataformats="HWC")
        self._writer.flush()

    def _add_hparams(self, hparams: Mapping[str, Any]) -> None:
        """As `SummaryWriter.add_hparams`, which would make a run of its own beside this one."""
        from torch.utils.tensorboard import summary as summaries

        untyped: Any = summaries
        writer: Any = self._writer.file_writer
        for summary in untyped.hparams(dict(hparams), dict.fromkeys(COMPARED, 0.0)):
            writer.add_summary(summary)

    def finish(self, summary: Row) -> None:
        """Close the event file and say how to look at it."""
        self._writer.close()
        logger.info("TensorBoard: tensorboard --logdir %s", quote_word(self._folder))


def pick_hparams(settings: Mapping[str, Any]) -> Row:
    """The settings that make a difference between runs, by dotted name, as numbers and texts."""
    flat = {key: value for key, value in flatten(settings).items() if not key.startswith(NOT_COMPARED)}
    return {key: value if isinstance(value, int | float) else str(value) for key, value in flat.items()}


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
    words: dict[str, Any] = {"run_id": run.run_id, "settings": run.settings_text, "hparams": pick_hparams(run.settings)}
    return lambda rows: TensorboardMirror(folder=folder, rows=rows, **words)


TENSORBOARD = Kind(_prepare, lambda tracking: bool(tracking["tensorboard"]), _check_installed, is_for_sets=True)
