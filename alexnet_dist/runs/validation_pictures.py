"""What trackers are shown of a validation while a run goes on: the confusion matrix, and the worst predictions.

With the first of them come the training images as the network sees them: whoever looks for a mistake in the
augmentation does not wait for the run's end.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from alexnet_dist.data.engines.choose import REFERENCE
from alexnet_dist.inference.model_folder import ModelCard
from alexnet_dist.runs.recording import MODEL
from alexnet_dist.runs.start import Start
from alexnet_dist.tracking.pictures import Pictures
from alexnet_dist.tracking.trackers import Trackers
from alexnet_dist.training.predictions import Predictions, join_predictions

logger = logging.getLogger("alexnet_dist")

SHARE = 0.02  # of a run's time, at most; the first validation is always shown


class ValidationPictures:
    """Watches validations, and shows them to trackers that have a place for pictures.

    Args:
        start: of the run.
        trackers: of this process.
        describe: gives the card of the network as it is.
    """

    def __init__(self, start: Start, trackers: Trackers, describe: Callable[[], ModelCard]) -> None:
        self._start, self._trackers, self._describe = start, trackers, describe
        self._parts: list[Predictions] = []
        self._has_inputs = False  # whether they have been shown
        self._next = 0.0  # when pictures have taken no more than their share

    def begin(self) -> bool:
        """Whether the validation that begins is to be watched; the same in each process. All of them call this."""
        self._parts = []
        return self._start.runtime.on_main(lambda: self._trackers.shows_images and time.monotonic() >= self._next)

    def observe(self, rows: Predictions) -> None:
        """Take what the network says of a batch of this process."""
        self._parts.append(rows)

    def show(self, step: int) -> None:
        """Show what was watched, at a number of updates. All processes call this."""
        runtime = self._start.runtime
        found = runtime.gather(self._parts if runtime.count_once(1) else [])
        if runtime.is_main:
            began = time.monotonic()
            try:
                self._draw(join_predictions([part for parts in found for part in parts]), step)
            except Exception as error:  # noqa: BLE001 (pictures must not end a run)
                logger.warning("validation at step %d: no pictures (%s: %s)", step, type(error).__name__, error)
            ended = time.monotonic()
            self._next = ended + (ended - began) / SHARE

    def _draw(self, rows: Predictions, step: int) -> None:
        # matplotlib, where it is wanted
        from alexnet_dist.runs.plots import Judged, Subject, draw_first_inputs, draw_judged

        start, folder = self._start, self._start.folder
        assert start.splits.val is not None
        # Beside the run's own loader, the one that needs neither a process nor memory of a device.
        subject = Subject(folder, folder / MODEL, self._describe(), start.config, start.runtime.alone(), REFERENCE)
        judged = Judged("val", start.splits.val, rows)
        inputs = [] if self._has_inputs else draw_first_inputs(subject, start.splits.train)
        self._has_inputs = True
        self._trackers.show(Pictures(step, [*inputs, *draw_judged(subject, judged)], judged.worst))
