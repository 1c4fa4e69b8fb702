"""SIGINT and SIGTERM as a request to stop at the next step boundary."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType

PATIENCE_SECONDS = 2.0  # a terminal and a launcher may both pass on the same Ctrl-C


class StopRequest:
    """Remembers the first signal; a second one after two seconds ends the process at once.

    Nothing else happens in the handler: acting there, on one process alone, would leave the others waiting.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._time = 0.0

    def listen(self) -> None:
        """Take over SIGINT and SIGTERM."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received, self._time = number, time.monotonic()
        elif time.monotonic() - self._time > PATIENCE_SECONDS:
            os._exit(128 + number)

    def counts(self) -> tuple[int, int]:
        """(1 or 0 for SIGINT, 1 or 0 for SIGTERM), to be summed over the processes."""
        return int(self.received == signal.SIGINT), int(self.received == signal.SIGTERM)
