"""Waits that have no limit of their own: one is set, or nobody waits."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


def call_with_deadline(action: Callable[[], T], seconds: float) -> T | None:
    """The result of `action`, or None if it takes longer. It then goes on in a thread that nothing waits for.

    Raises:
        Exception: whatever `action` raised in time.
    """
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.extend((action(), None))
        except Exception as error:  # noqa: BLE001 (handed to the caller)
            outcome.extend((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        return None
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]  # type: ignore[no-any-return]


class Aside:
    """Does things one after another in a thread of its own, so that nobody waits for them.

    Args:
        name: of the thread.
        most: things that may wait; more are left out.
    """

    def __init__(self, name: str, most: int = 8) -> None:
        self._queue: queue.Queue[Callable[[], object]] = queue.Queue(most)
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)

    def do(self, action: Callable[[], object]) -> bool:
        """Do something soon; it must not raise. Whether there was room for it."""
        if self._thread.ident is None:
            self._thread.start()
        try:
            self._queue.put_nowait(action)
        except queue.Full:
            return False
        return True

    def wait(self) -> None:
        """Wait until everything is done."""
        self._queue.join()

    def _work(self) -> None:
        while True:
            action = self._queue.get()
            try:
                action()
            finally:
                self._queue.task_done()
