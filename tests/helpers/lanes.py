"""Which tests belong to which lane (`make fast`, `make test`, `make test-slow`), and who starts a process."""

from __future__ import annotations

import multiprocessing.process
import multiprocessing.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

TESTS = Path(__file__).resolve().parents[1]
MARKS = {
    "parity": "heavy",
    "dist": "heavy",
    "e2e": "heavy",
    "gpu": "heavy",
    "cluster": "slow",
    "slow": "slow",
}  # by folder of tests/
LASTING = ("resource_tracker", "forkserver", "wandb")  # live as long as the interpreter; multiprocessing's and W&B's
EVENTS = ("os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.system", "subprocess.Popen")

HARMLESS = ("fc-list",)  # with which matplotlib looks for fonts, once a cache

started: list[str] = []  # what started a process in this one, since somebody cleared the list


def mark_of(path: Path) -> str | None:
    """The lane that the folder of a test file stands for."""
    return MARKS.get(path.relative_to(TESTS).parts[0])


def note_starts() -> None:
    """From now on `started` tells of each process that this one starts."""
    here = os.getpid()

    def hear(event: str, args: tuple[Any, ...]) -> None:
        if event in EVENTS and os.getpid() == here and not (args and args[0] in HARMLESS):
            started.append(event)

    sys.addaudithook(hear)
    # These two start processes behind Python's audit: the servers of multiprocessing, and what they fork.
    _precede(multiprocessing.util, "spawnv_passfds")
    _precede(multiprocessing.process.BaseProcess, "start")


def _precede(holder: Any, name: str) -> None:
    call: Callable[..., Any] = getattr(holder, name)

    def noting(*args: Any, **more: Any) -> Any:
        started.append(f"multiprocessing {name}")
        return call(*args, **more)

    setattr(holder, name, noting)


def is_lasting(process: psutil.Process) -> bool:
    """Whether a process may outlive the test that started it."""
    try:
        return any(name in " ".join(process.cmdline()) for name in LASTING)
    except psutil.Error:
        return False


def count_autograd_threads() -> int:
    """Threads that PyTorch keeps for the gradients of devices. What is forked beside them can compute no gradient."""
    try:
        tasks = list(Path("/proc/self/task").iterdir())
    except OSError:  # not Linux
        return 0
    return sum(_name_of(task).startswith("pt_autograd") for task in tasks)


def _name_of(task: Path) -> str:
    try:
        return (task / "comm").read_text()
    except OSError:  # it has ended
        return ""
