"""Standard input, output and error as verbs find them: closed, full, a pipe that nobody reads, of any encoding."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

from alexnet_dist.base.disk_errors import name_reason
from alexnet_dist.base.errors import MachineError
from alexnet_dist.base.text import LogFormatter, escape_text

BROKEN_PIPE_CODE = 128 + signal.SIGPIPE  # what a shell says of a program that wrote into a pipe nobody read


class _WatchedStream:
    """A stream that notes why it could not be written.

    Args:
        stream: what is written to.
        may_fail: whether what cannot be written is an error; else it is dropped. Such a stream is for results: what a
            terminal would obey is escaped. The other one moves the cursor of progress bars.
    """

    def __init__(self, stream: Any, may_fail: bool) -> None:
        self._stream, self._may_fail = stream, may_fail
        self.lost: OSError | None = None

    def write(self, text: str) -> int:
        shown = text if text.isprintable() or not self._may_fail else "\n".join(map(escape_text, text.split("\n")))
        self._note(lambda: self._stream.write(shown))
        return len(text)

    def flush(self) -> None:
        self._note(self._stream.flush)

    def complain(self) -> None:
        """Raise what was noted."""
        if self.lost is not None:
            raise self.lost

    def _note(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except OSError as error:
            self.lost = error
            if self._may_fail:
                raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def usable_streams() -> Iterator[None]:
    """Three streams that can be used whatever the caller closed; a letter that the terminal lacks becomes an escape."""
    open_closed_streams()
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(LogFormatter())  # of verbs that start no logging
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    with contextlib.redirect_stderr(_WatchedStream(sys.stderr, may_fail=False)):  # no training ends for it
        yield


def write_output(action: Callable[[], int]) -> int:
    """The exit code of something that prints, after what it printed has been handed over.

    Standard output that goes away ends it: a pipe that nobody reads in silence, as the shell's own programs.

    Raises:
        MachineError: standard output cannot be written.
    """
    output = _WatchedStream(sys.stdout, may_fail=True)
    try:
        with contextlib.redirect_stdout(output):
            try:
                return action()
            finally:  # also after --help, which ends with SystemExit, and whose author drops errors
                output.flush()
                output.complain()
    except OSError:
        if output.lost is None:
            raise
    _drop_output()
    if isinstance(output.lost, BrokenPipeError):
        return BROKEN_PIPE_CODE
    why = name_reason(output.lost)
    raise MachineError("cannot write to standard output", why=why, remedy="free some space, or send it elsewhere")


def writes_unicode() -> bool:
    """Whether standard output has every letter."""
    return (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"


def _drop_output() -> None:
    """Let nothing that waits to be written be tried again: the interpreter would do so at its end, and say so."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def open_closed_streams() -> None:
    """Put the null device where a stream was closed: the next file that is opened would take its place."""
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number, which is this one
        if getattr(sys, name) is None:  # what was opened since may have its number
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 (lives on)
