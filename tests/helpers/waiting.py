"""What other processes do comes when it comes."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Sequence

import psutil


def wait_until(has_come: Callable[[], object], seconds: float = 60) -> None:
    """Wait until this is true; fail if it takes longer."""
    deadline = time.monotonic() + seconds
    while not has_come():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_alive(process: psutil.Process) -> bool:
    """Whether a process runs. One that ended may have an entry until its parent, or init, asks for its exit code."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def read_errors(processes: Sequence[subprocess.Popen[str]], seconds: float) -> list[str]:
    """What each has written to stderr when all have ended.

    Fail if that takes longer, with what they wrote, and where they were if PYTHONFAULTHANDLER was set for them.
    """
    deadline = time.monotonic() + seconds
    try:
        return [process.communicate(timeout=deadline - time.monotonic())[1] for process in processes]
    except subprocess.TimeoutExpired:
        for process in [psutil.Process(process.pid) for process in processes if process.poll() is None]:
            for one in (*process.children(recursive=True), process):
                one.send_signal(signal.SIGABRT)
        ends = [f"{process.communicate()[1]}exit code {process.returncode}" for process in processes]
        raise AssertionError(f"not at an end after {seconds} s:\n" + "\n".join(ends)) from None
