"""A limit on a wait that has none of its own."""

from __future__ import annotations

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
