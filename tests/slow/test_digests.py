"""The imagenette pack as files, archives and parquet trains the same network to the last bit, also after a kill."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from helpers.archives import FORMS, read_files, write_forms
from helpers.dist_helper import run_processes, start_processes
from helpers.one_run import take_digest
from helpers.parquet_files import write_folder_as_parquet
from helpers.tiny import tiny_config

from alexnet_dist.cli.train import train
from alexnet_dist.tracking.trackers import read_rows

TEST_DATA = os.environ.get("ALEXNET_DIST_TEST_DATA")
LAST_STEP, KILLED_AT = 12, 5


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if TEST_DATA is None:
        pytest.skip("ALEXNET_DIST_TEST_DATA is not set")
    root: Path = tmp_path_factory.mktemp("pack")
    (root / "files").symlink_to(Path(TEST_DATA) / "imagenette224")
    for part in ("train", "val"):
        files = read_files(root / "files" / part)
        write_forms(root, part, files, 7)
        classes = sorted(path.name for path in (root / "files" / part).iterdir())
        write_folder_as_parquet(root / "files" / part, root / "parquet", classes, 3, part)
    return root


def train_form(root: Path, folder: Path, form: str, engine: str) -> None:
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (a child of the test: its messages are not the test's)
    values: dict[str, Any] = {
        "data__source": {"files": "folder", "parquet": "parquet"}.get(form, "tar"),
        "data__root": str(root / form),
        "data__val": "val",
        "data__engine": engine,
        "data__cache_dir": str(folder.parent / "cache"),
        "augment__resize": 72,
        "model__num_classes": None,
        "train__epochs": None,
        "train__max_steps": LAST_STEP,
    }
    train(tiny_config(folder, **values))


def has_reached(folder: Path, step: int) -> bool:
    path = folder / "metrics.jsonl"
    return path.is_file() and any(row["step"] >= step for row in read_rows(path))


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("engine", ["torchvision", "cache", "dali"])
def test_one_digest_of_a_thousand_pictures(pack: Path, tmp_path: Path, engine: str, processes: int) -> None:
    if engine == "dali":
        pytest.importorskip("nvidia.dali")
    digests = {}
    for form in ("files", *FORMS, "parquet"):
        folder = tmp_path / form / "run"
        if form in ("shards", "nested", "parquet"):
            group = start_processes(processes, train_form, pack, folder, form, engine)
            while not has_reached(folder, KILLED_AT) and not group.has_ended():
                time.sleep(0.02)
            group.kill(range(processes))
            assert -signal.SIGKILL in group.wait()
        run_processes(processes, train_form, pack, folder, form, engine)
        digests[form] = take_digest(folder)
    assert len(set(digests.values())) == 1, digests
