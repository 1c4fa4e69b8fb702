"""A limit on waiting for pictures: a decoding process that is stopped, or a disk that hangs, is never silence."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from alexnet_dist.base.errors import MachineError
from alexnet_dist.base.progress import say
from alexnet_dist.base.text import escape_text

logger = logging.getLogger("alexnet_dist")

NOTE_SECONDS = 10  # between lines that say who is waited for
LIMIT_SECONDS = 120
LIMIT_SECONDS_PER_IMAGE = 0.1  # a large batch from a slow disk takes its time
TURN_SECONDS = 1.0


class Patience:
    """Counts the seconds of each wait by itself, says so now and then, and ends it at a limit.

    A thread counts: a process that is suspended as a whole does not count.

    Args:
        num_images: that each wait is for.
        describe: says what is waited for.
        give_up: ends the wait, if it can, and says whether it did; called in the thread.
    """

    def __init__(self, num_images: int, describe: Callable[[], str], give_up: Callable[[], bool]) -> None:
        self.limit = int(LIMIT_SECONDS + LIMIT_SECONDS_PER_IMAGE * num_images)
        self.reason = ""  # why the wait was ended; empty as long as it was not
        self._describe, self._give_up = describe, give_up
        self._is_waiting, self._turn = False, 0  # which wait it is: many short ones are no long one
        self._stop = threading.Event()

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count in this block."""
        threading.Thread(target=self._count, name="patience", daemon=True).start()
        try:
            yield
        finally:
            self._stop.set()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """This block waits."""
        self._turn += 1
        self._is_waiting = True
        try:
            yield
        finally:
            self._is_waiting = False

    def explain(self, is_local: bool = False) -> MachineError:
        """The error for a wait that was ended."""
        what, remedy = f"no pictures for {self.limit} s", "see to the process or its disk, then start again"
        return MachineError(what, why=self.reason, remedy=remedy, is_local=is_local)

    def _count(self) -> None:
        seconds, turn = 0, 0
        while not self._stop.wait(TURN_SECONDS):
            seconds, turn = (seconds + 1 if self._is_waiting and turn == self._turn else 0), self._turn
            if seconds and seconds % NOTE_SECONDS == 0:
                _say(f"waiting for pictures since {seconds} s ({self._describe()})")
            if seconds >= self.limit:
                self.reason = self._describe()
                if self._give_up():
                    return
                seconds = 0


def describe_process(pid: int, root: Path) -> str:
    """What a decoding process is doing: "worker 7 is stopped, reading train/a/1.jpg"."""
    try:
        process = psutil.Process(pid)
        state = process.status()
        files = [file.path for file in process.open_files() if Path(file.path).is_relative_to(root)]
    except psutil.Error:
        return f"worker {pid} is gone"
    reading = f", reading {escape_text(str(Path(files[0]).relative_to(root)))}" if files else ""
    return f"worker {pid} is {state}{reading}"


def _say(line: str) -> None:
    """Processes other than the first keep silent in the log; nobody else knows of this."""
    if all(isinstance(handler, logging.NullHandler) for handler in logger.handlers):
        say(line)
    else:
        logger.warning(line)
