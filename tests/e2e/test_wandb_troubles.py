"""Whatever happens to W&B, a run has the bits that it has without: weights, optimizer and rows."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from helpers.dist_helper import run_processes
from helpers.tiny import tiny_config

from alexnet_dist.base.errors import InterruptedRunError
from alexnet_dist.runs.session import train
from alexnet_dist.tracking.trackers import read_rows

pytest.importorskip("wandb")
pytestmark = pytest.mark.slow
TIMES = ("images_per_second", "data_wait_seconds", "data_wait_fraction", "seconds")
Trouble = Callable[[Path], None]


def train_in_trouble(folder: Path, mode: str, trouble: Trouble, stops: tuple[int, ...]) -> None:
    """Train to the end, stopped after some numbers of batches and started again."""
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (a child of the test: its messages are not the test's)
    os.environ.update(HOME=str(folder.parent), NETRC=str(folder.parent / "none"), XDG_CACHE_HOME=str(folder.parent))
    trouble(folder)
    changes: dict[str, Any] = {"tracking__wandb": mode, "tracking__log_model": "best", "checkpoint__keep": 100}
    config = tiny_config(folder, **changes, **({"log__plots": True} if mode != "disabled" else {}))
    for number in (*stops, None):
        asked = iter(range(10**6))

        def wants_to_stop(asked: Iterator[int] = asked, number: int | None = number) -> bool:
            return number is not None and next(asked) >= number

        try:
            train(config, stop=wants_to_stop)
        except InterruptedRunError:
            continue
        break


def nothing(folder: Path) -> None:
    pass


def kill_the_service(folder: Path) -> None:
    """As soon as there are some rows."""

    def kill() -> None:
        while not any(row["step"] >= 4 for row in read_rows(folder / "metrics.jsonl")):
            time.sleep(0.002)
        for child in psutil.Process().children():
            if child.name().startswith("wandb-core"):
                child.kill()

    threading.Thread(target=kill, daemon=True).start()


def point_to_nobody(folder: Path) -> None:
    os.environ.update(WANDB_BASE_URL="http://127.0.0.1:9", WANDB_API_KEY="0123456789" * 4)


@contextlib.contextmanager
def a_full_disk(folder: Path) -> Iterator[None]:
    """W&B's folder is a disk of its own, with room for a few records."""
    folder.mkdir(parents=True)
    words = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(words, capture_output=True).returncode:
        pytest.skip("only root mounts a small disk")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def keep_bits(row: dict[str, Any]) -> dict[str, Any]:
    """A row without its times and its memory."""
    return {key: value for key, value in row.items() if key not in TIMES and not key.endswith("_mib")}


def read_bits(folder: Path) -> tuple[dict[str, bytes], list[dict[str, Any]]]:
    """The weights of model/, all checkpoints' tensors, and the rows without their times."""
    paths = [*folder.glob("model/*.safetensors"), *folder.glob("checkpoints/step-*/*.safetensors")]
    rows = [keep_bits(row) for row in read_rows(folder / "metrics.jsonl")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}, rows


@pytest.fixture(scope="module")
def untracked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("untracked") / "run"
    run_processes(1, train_in_trouble, folder, "disabled", nothing, ())
    return folder


@pytest.mark.parametrize(
    ("mode", "trouble", "stops", "words"),
    [
        ("offline", nothing, (), "upload with"),
        ("offline", kill_the_service, (), "failed"),
        ("online", point_to_nobody, (), "cannot be reached"),
        ("offline", nothing, (5, 4, 6), "upload with"),
    ],
    ids=["sound", "killed service", "no server", "three resumes"],
)
def test_training_is_bit_identical(
    tmp_path: Path, untracked: Path, mode: str, trouble: Trouble, stops: tuple[int, ...], words: str
) -> None:
    run_processes(1, train_in_trouble, tmp_path / "run", mode, trouble, stops)
    assert_same_bits(tmp_path / "run", untracked)
    assert words in (tmp_path / "run" / "run.log").read_text()
    assert len(json.loads((tmp_path / "run" / "run.json").read_text())["starts"]) == 1 + len(stops)


def test_training_is_bit_identical_where_the_disk_of_wandb_is_full(tmp_path: Path, untracked: Path) -> None:
    run_processes(1, train_in_trouble, tmp_path / "run", "disabled", nothing, (3,))
    with a_full_disk(tmp_path / "run" / "wandb"):
        run_processes(1, train_in_trouble, tmp_path / "run", "offline", nothing, ())
    assert_same_bits(tmp_path / "run", untracked)


def assert_same_bits(tracked: Path, untracked: Path) -> None:
    (ours, rows), (theirs, expected) = read_bits(tracked), read_bits(untracked)
    assert rows == expected
    assert len(theirs) > 3
    assert {name for name, content in theirs.items() if ours.get(name) != content} == set()
