"""What other processes do comes when it comes."""

from __future__ import annotations

import time
from collections.abc import Callable

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
