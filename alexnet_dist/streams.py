"""Standard input, output and error as verbs find them: closed, full, a pipe that nobody reads, of any encoding."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

from alexnet_dist.errors import MachineError

BROKEN_PIPE_CODE = 128 + signal.SIGPIPE  # what a shell says of a program that wrote into a pipe nobody read


class _UnfailingStream:
    """Standard error that may be lost: what cannot be written is dropped, and no training ends for it."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def usable_streams() -> Iterator[None]:
    """Three streams that can be used whatever the caller closed; a letter that the terminal lacks becomes an escape."""
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    with contextlib.redirect_stderr(_UnfailingStream(sys.stderr)):
        yield


def write_output(action: Callable[[], int]) -> int:
    """The exit code of something that prints, after what it printed has been handed over.

    Standard output that goes away ends it: a pipe that nobody reads in silence, as the shell's own programs.

    Raises:
        MachineError: standard output cannot be written.
    """
    try:
        try:
            return action()
        finally:  # also after --help, which ends with SystemExit
            sys.stdout.flush()
    except OSError:
        lost = _drop_lost_output()
        if lost is None:
            raise
        if isinstance(lost, BrokenPipeError):
            return BROKEN_PIPE_CODE
        why = lost.strerror or str(lost)
        remedy = "free some space, or send it elsewhere"
        raise MachineError("cannot write to standard output", why=why, remedy=remedy) from None


def _drop_lost_output() -> OSError | None:
    """Why standard output cannot be written, if so; what waits to be written is then dropped."""
    try:
        sys.stdout.flush()
    except OSError as error:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())  # else the interpreter tries again at its end, and says so
        os.close(nowhere)
        return error
    return None


def _open_closed_streams() -> None:
    """Put the null device where a stream was closed: the next file that is opened would take its place."""
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115 (lives on)
