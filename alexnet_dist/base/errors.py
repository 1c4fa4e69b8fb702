"""The errors a user can meet, each with its exit code.

An error is one line on stderr, `error: WHAT (WHERE): WHY; REMEDY`. Anything that is not an `AlexNetDistError` is a bug
of ours and keeps its traceback (exit code 1).
"""

from __future__ import annotations

import signal
from typing import Any

from alexnet_dist.base.text import escape_text, shorten

LONGEST_LINE = 200  # characters with a short path; a longer line loses the middle of its longest parts
_COMMON_PATH, _LONGEST_PATH = 40, 240  # a path of more than the first makes the line longer; it is to be copied whole
_SHORTEST_PART, _LONGEST_REMEDY = 60, 300


class AlexNetDistError(Exception):
    """An error that a user can mend.

    Args:
        what: what went wrong, without a full stop ("unknown key 'optimizer.lrr'").
        where: the file, line, key or command it concerns.
        why: the reason.
        remedy: what to do about it.
        is_local: the other processes of the run do not know of it, so this one must say it.

    The parts may hold names and values from anywhere, of any length: the line is made printable and is cut here.
    """

    exit_code = 1
    is_local = False  # see the arguments
    is_shared = False  # True: every process has it, and the first one says it
    is_said = False  # True: another process says it

    def __init__(self, what: str, *, where: str = "", why: str = "", remedy: str = "", is_local: bool = False) -> None:
        self.parts = (what, where, why, remedy)
        super().__init__(_join_parts(*self.parts))
        if is_local:
            self.is_local = True

    def set_remedy(self, remedy: str) -> None:
        """Give another remedy, where more is known than at the place of the fault."""
        self.parts = (*self.parts[:3], remedy)
        self.args = (_join_parts(*self.parts),)

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows (IPython asks for it): the line, and no way through the library."""
        return [f"{type(self).__name__}: {self}"]

    def __reduce__(self) -> tuple[Any, ...]:
        """Errors travel between processes, whatever their constructor takes."""
        return _rebuild, (type(self), str(self), self.__dict__)


class UsageError(AlexNetDistError):
    """A setting or a command line that cannot be meant."""

    exit_code = 2


class DataError(AlexNetDistError):
    """Images, labels or folders that are missing, empty, contradictory or damaged."""

    exit_code = 3


class CheckpointError(AlexNetDistError):
    """A checkpoint or weights file that is damaged or does not fit."""

    exit_code = 4


class MachineError(AlexNetDistError):
    """A device, package, disk, permission or launcher that does not give what was asked for."""

    exit_code = 5


class DivergedError(AlexNetDistError):
    """The loss is not finite."""

    exit_code = 6


class MemoryExhaustedError(AlexNetDistError):
    """The device or the machine has no memory left."""

    exit_code = 7


class InterruptedRunError(AlexNetDistError):
    """A signal or the program stopped the run at a step boundary; it can be resumed. Its line is no error.

    Args:
        signal_number: SIGINT (exit code 130) or SIGTERM (143); None = the program asked (143).
        step: at which the state was saved; None = there was nothing to save.
    """

    def __init__(self, signal_number: int | None, step: int | None = None) -> None:
        super().__init__(describe_stop(signal_number, step))
        self.signal_number, self.step = signal_number, step
        self.exit_code = 128 + (signal_number or signal.SIGTERM)

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


def describe_stop(signal_number: int | None, step: int | None = None) -> str:
    """What a stopped program says: Ctrl-C is what its user did, another signal has a name; None = the program asked."""
    if signal_number is None:
        by = " by the program"
    else:
        by = "" if signal_number == signal.SIGINT else f" by {signal.Signals(signal_number).name}"
    saved = "" if step is None else f" Saved at step {step}."
    return f"Stopped{by}.{saved} Run the same command again to continue."


def _join_parts(*texts: str) -> str:
    """`WHAT (WHERE): WHY; REMEDY` of the parts that are not empty, in about LONGEST_LINE characters."""
    what, where, why, remedy = (escape_text(" ".join(text.split())) for text in texts)
    where = escape_text(texts[1])  # a path keeps its line breaks, as escapes
    where, remedy = shorten(where, _LONGEST_PATH), shorten(remedy, _LONGEST_REMEDY)
    limit = LONGEST_LINE + max(0, len(where) - _COMMON_PATH)
    others = len(f"{what} ({where}): ; {remedy}")
    why = shorten(why, max(_SHORTEST_PART, limit - others))
    what = shorten(what, max(_SHORTEST_PART, limit - others + len(what) - len(why)))
    return what + (f" ({where})" if where else "") + (f": {why}" if why else "") + (f"; {remedy}" if remedy else "")


def _rebuild(kind: type[AlexNetDistError], line: str, state: dict[str, Any]) -> AlexNetDistError:
    error = kind.__new__(kind)
    Exception.__init__(error, line)
    error.__dict__.update(state)
    return error
