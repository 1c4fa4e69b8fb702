"""Named stretches of an update. They cost nothing until `train --profile` records them; see training/profile.py."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TypeAlias

DATA_WAIT, COPIES, FORWARD, LOSS = "data wait", "copies", "forward", "loss"
BACKWARD, UPDATE, COMMUNICATION, REST = "backward", "update", "communication", "rest"

Recorder: TypeAlias = Callable[[str], AbstractContextManager[None]]

_NOTHING = nullcontext()
_recorder: Recorder | None = None


def span(name: str) -> AbstractContextManager[None]:
    """A stretch of this name; what lies in an inner one does not count in the outer one. For the training thread."""
    return _NOTHING if _recorder is None else _recorder(name)


def record_spans(recorder: Recorder | None) -> None:
    """From now on `span` is what `recorder` gives; None = nothing is recorded."""
    global _recorder
    _recorder = recorder
