"""Where requests wait: the network works for one at a time, and only so many may wait."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from alexnet_dist.serving.refusal import BUSY, RefusedError

PLACES = 32  # requests that may be there at once; one that is read or waits holds memory, or a file

Result = TypeVar("Result")


class Desk:
    """One worker, and places for those who wait for it. All but the work happens in the thread of the event loop.

    Args:
        places: requests that may be there at once, with the one that is worked on.
    """

    def __init__(self, places: int = PLACES) -> None:
        self._places, self._taken = places, 0
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="network")

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """Holds a place; it is taken before the request's picture is read.

        Raises:
            RefusedError: there is none.
        """
        if self._taken >= self._places:
            raise RefusedError(BUSY, f"{self._places} requests are waiting already; try again in a moment")
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1

    async def run(self, work: Callable[[], Result]) -> Result:
        """What the work gives, when all that came before has been done."""
        return await asyncio.get_running_loop().run_in_executor(self._worker, work)

    def close(self) -> None:
        """Let the worker end with what it is at."""
        self._worker.shutdown(wait=False, cancel_futures=True)
