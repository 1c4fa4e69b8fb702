"""The fast lane notices who starts a process, and the folders of tests are those of the package."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import lanes

ROOMS = lanes.TESTS.parent / "alexnet_dist"


def _fork() -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)


def _start_process(way: str) -> Callable[[], None]:
    def start() -> None:
        process = multiprocessing.get_context(way).Process(target=int)
        process.start()
        process.join()

    return start


STARTS: dict[str, Callable[[], object]] = {
    "fork": _fork,
    "subprocess": lambda: subprocess.run([sys.executable, "-c", ""], check=True),
    "multiprocessing": _start_process("fork"),
    "spawn": _start_process("spawn"),
    "system": lambda: os.system("true"),
}


@pytest.mark.heavy
@pytest.mark.parametrize("way", STARTS)
def test_whoever_starts_a_process_is_noticed(way: str) -> None:
    assert lanes.started == []
    STARTS[way]()
    assert lanes.started != []


def test_folders_mirror_the_package() -> None:
    folders = {path.parent.relative_to(lanes.TESTS) for path in lanes.TESTS.rglob("test_*.py")}
    others = {folder for folder in folders if not (ROOMS / folder).is_dir()}
    assert others <= {Path(name) for name in (*lanes.MARKS, "benchmarks")}
