"""SIGINT, SIGTERM and SIGHUP: they end a process at once. One that trains they ask to stop at the next step.

Only what is quick to import stands here, because it comes before everything else.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

from alexnet_dist.base.ending import end_in_order, leave, leave_line
from alexnet_dist.base.errors import InterruptedRunError, describe_stop
from alexnet_dist.base.ranks import rank_from_environment, world_size_from_environment
from alexnet_dist.base.streams import open_closed_streams

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # the last one comes when a terminal is closed
PATIENCE_SECONDS = 2.0  # a terminal and a launcher may both pass on the same Ctrl-C
GRACE_SECONDS = 2.0  # for a main thread to end by itself


class Stopped(KeyboardInterrupt):
    """A signal came while there was nothing to save.

    Args:
        ending: says so, once.
        number: of the signal.
    """

    def __init__(self, ending: Ending, number: int) -> None:
        super().__init__()
        self.ending, self.number = ending, number


class Ending:
    """Ends a process by a signal: with a line, with exit code 128 + its number, and with nothing left behind.

    The main thread raises `Stopped`, so that what it holds is closed. While it imports it would be caught or would
    leave half a module, and the process just ends. A second thread sees to it that the process ends even if the main
    thread is in the network, or does not come back.
    """

    def __init__(self) -> None:
        self._said = threading.Lock()
        self._first: int | None = None
        self.is_over = False  # the verb has ended

    def receive(self, number: int, frame: FrameType | None) -> None:
        """The handler of all these signals."""
        if self.is_over or _is_importing(frame):
            self.end(number)
        if self._first is None:
            self._first = number
            raise Stopped(self, number)

    def end(self, number: int) -> None:
        """End the process now."""
        self.say(number)
        leave(128 + number)

    def say(self, number: int) -> None:
        """Print the line; the first process speaks for all, and only once."""
        if self._said.acquire(blocking=False) and rank_from_environment() == 0 and not self.is_over:
            with contextlib.suppress(OSError, ValueError):
                if leave_line(describe_stop(number)):
                    return
                clear = "\r\x1b[K" if os.isatty(2) else ""  # a line that moves may stand there
                line = f"{clear}{describe_stop(number)}\n"
                sys.stderr.flush()
                os.write(2, line.encode())

    def watch(self, reader: int) -> None:
        """End the process where its main thread does not. Signals come through a pipe, whatever that thread does."""
        first: float | None = None
        while True:
            numbers = [number for number in os.read(reader, 64) if number in SIGNALS]
            if not numbers:
                continue
            if signal.getsignal(numbers[0]) == self.receive:  # not training
                time.sleep(GRACE_SECONDS)
                self.end(numbers[0])
            if first is None:
                first = time.monotonic()
            elif time.monotonic() - first > PATIENCE_SECONDS:
                leave(128 + numbers[0])


@contextlib.contextmanager
def ending_at_once() -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP end this program, until `StopRequest.listen`, and again when the verb has ended."""
    is_held = isinstance(getattr(signal.getsignal(signal.SIGTERM), "__self__", None), Ending)
    if is_held or threading.current_thread() is not threading.main_thread():
        yield
        return
    open_closed_streams()  # else the pipe below is taken for one of them
    ending = Ending()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))  # a child's signals are not ours
    threading.Thread(target=ending.watch, args=(reader,), name="signals", daemon=True).start()
    try:
        _take(ending.receive)
        yield
    except Stopped as stopped:  # before a verb was there to take it
        stopped.ending.end(stopped.number)
    except SystemExit as end:
        ending.is_over = True
        if world_size_from_environment() > 1 and isinstance(end.code, int):
            end_in_order(end.code)
        raise
    finally:
        ending.is_over = True
        _take(ending.receive)


def _take(handler: object) -> None:
    for number in SIGNALS:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
            signal.signal(number, handler)  # type: ignore[arg-type]


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


class StopRequest:
    """Remembers the first signal; a second one after two seconds ends the process at once.

    Nothing else happens in the handler: acting there, on one process alone, would leave the others waiting.

    Args:
        is_wanted: asked before each batch: whether the program wants the run to stop. Signals do not reach each thread.
    """

    def __init__(self, is_wanted: Callable[[], object] | None = None) -> None:
        self.received: int | None = None
        self._time = 0.0
        self._is_wanted = is_wanted

    def listen(self) -> None:
        """Take over SIGINT, SIGTERM and SIGHUP, where signals reach this thread at all."""
        if threading.current_thread() is threading.main_thread():
            _take(self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received, self._time = number, time.monotonic()
        elif time.monotonic() - self._time > PATIENCE_SECONDS:
            leave(128 + number)

    def counts(self) -> tuple[int, int, int]:
        """1 or 0 each for SIGINT, SIGTERM (which SIGHUP counts as) and the program, to be summed over the processes."""
        is_ended = self.received in (signal.SIGTERM, signal.SIGHUP)
        is_wanted = self._is_wanted is not None and bool(self._is_wanted())
        return int(self.received == signal.SIGINT), int(is_ended), int(is_wanted)


def raise_stopped(counts: Sequence[int]) -> None:
    """End the run where some process was asked to.

    Args:
        counts: those of `StopRequest.counts`, summed over the processes.

    Raises:
        InterruptedRunError: some process was asked to stop.
    """
    for count, number in zip(counts, (signal.SIGINT, signal.SIGTERM, None), strict=True):
        if count:
            raise InterruptedRunError(number)
