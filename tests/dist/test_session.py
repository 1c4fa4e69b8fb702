"""A start of a run, called by a program."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock, Timeout
from helpers.dist_helper import run_processes
from helpers.tiny import tiny_config

from alexnet_dist.base.errors import UsageError
from alexnet_dist.runs.session import train

SHORT: dict[str, Any] = {"train__epochs": 1, "data__test": "test"}


def train_in_a_thread(folder: Path) -> tuple[dict[str, Any], bool]:
    """The summary, and whether the program's own handlers of signals are left to it."""
    found: list[dict[str, Any]] = []
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    thread = threading.Thread(target=lambda: found.append(train(tiny_config(folder, **SHORT))))
    thread.start()
    thread.join()
    return found[0], handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_run_needs_no_main_thread(tmp_path: Path, world_size: int) -> None:
    results = run_processes(world_size, train_in_a_thread, tmp_path / "run")
    assert [(summary["status"], summary["step"], is_left) for summary, is_left in results] == [
        ("finished", 4, True)
    ] * world_size


def count_plans(folder: Path) -> int:
    from alexnet_dist.data.plan import Plan

    built, build = [], Plan.__post_init__
    Plan.__post_init__ = lambda plan: built.append(plan) or build(plan)  # type: ignore[method-assign, func-returns-value]
    train(tiny_config(folder, **SHORT, train__global_batch_size=20))  # the preflight takes a smaller batch
    return sum(plan.shuffle and plan.global_batch_size == 20 for plan in built)


def test_the_plan_of_a_set_is_made_once(tmp_path: Path) -> None:
    assert run_processes(1, count_plans, tmp_path / "run") == [1]


def fail_and_lock(folder: Path) -> str:
    """A program that goes on after an error can start again: the folder is free."""
    train(tiny_config(folder, **SHORT))
    try:
        train(tiny_config(folder, **SHORT, seed=1))
    except UsageError as error:
        try:
            FileLock(folder / ".lock").acquire(timeout=0).lock.release()
        except Timeout:
            return "held"
        return str(error)
    return "no error"


def test_a_start_that_fails_lets_go_of_the_folder(tmp_path: Path) -> None:
    assert "seed was 0, is 1" in run_processes(1, fail_and_lock, tmp_path / "run")[0]
