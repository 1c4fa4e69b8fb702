"""Processes that cannot meet, machines that do not share a run folder or a version, and machines that come and go."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from helpers.dist_helper import run_processes
from helpers.ports import taken_port
from helpers.tiny import tiny_config

from alexnet_dist.base.errors import AlexNetDistError, MachineError
from alexnet_dist.cli.train import train
from alexnet_dist.parallel import peers
from alexnet_dist.parallel.runtime import start_runtime
from alexnet_dist.runs import shared_folder
from alexnet_dist.tracking.trackers import read_rows


def join(variables: dict[str, str]) -> tuple[int, str]:
    os.environ.update(variables)
    try:
        start_runtime("cpu", "fp32", wait_seconds=20)
    except MachineError as error:
        return error.exit_code, str(error)
    return 0, ""


@pytest.mark.parametrize(
    ("rank", "host", "line"),
    [
        (0, "127.0.0.1", "the port cannot be used (127.0.0.1 port PORT): "),
        (1, "no host", "no host 'no host' can be found (MASTER_ADDR): "),
    ],
)
def test_processes_that_cannot_meet_say_why(rank: int, host: str, line: str) -> None:
    with taken_port() as number:
        port = str(number)
        variables = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": host, "MASTER_PORT": port}
        ((code, found),) = run_processes(1, join, variables)
    assert code == 5
    assert found.startswith(line.replace("PORT", port))


def train_elsewhere(folders: list[Path], version: str | None) -> str:
    """Train on what looks like two machines, each with a folder of its own; the error's line."""
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (a child of the test: its messages are not the test's)
    os.environ |= {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    shared_folder.LOOK_SECONDS = 0.3
    rank = int(os.environ["RANK"])
    if version is not None and rank == 1:
        peers.list_versions = lambda: {"torch": version}
    os.chdir(folders[rank])
    try:
        train(tiny_config(Path("run"), train__epochs=1))
    except AlexNetDistError as error:
        return f"{error.exit_code} {error}"
    return ""


@pytest.mark.parametrize(
    ("is_shared", "version", "line"),
    [
        (True, None, ""),
        (False, None, "5 the run folder is not shared ({}/b/run on "),
        (True, "1.0", "5 versions differ between processes ("),
    ],
    ids=["alike", "folders", "versions"],
)
def test_machines_share_a_run_folder_and_a_version(
    tmp_path: Path, is_shared: bool, version: str | None, line: str
) -> None:
    folders = [tmp_path / "a", tmp_path / ("a" if is_shared else "b")]
    for folder in folders:
        folder.mkdir(exist_ok=True)
    first, second = run_processes(2, train_elsewhere, folders, version)
    assert first == second
    assert first.startswith(line.format(tmp_path))
    assert (first == "") == (line == "")
    if first == "":
        assert [path.name for path in (tmp_path / "a" / "run").iterdir() if path.name.startswith("shared")] == []
    elif not is_shared:
        assert "what rank 0 writes in it is not there; set --output_dir to a folder on a disk" in first


def train_on(folder: Path, machines: str, epochs: int) -> str:
    """Train as a worker of so many machines; the error's line."""
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (a child of the test: its messages are not the test's)
    os.environ["PET_NNODES"] = machines
    try:
        train(tiny_config(folder, train__epochs=epochs, train__global_batch_size=9, log__every_steps=1))
    except AlexNetDistError as error:
        return f"{error.exit_code} {error}"
    return ""


def test_machines_that_come_and_go_share_any_batch_and_say_so(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    wanted = (
        "2 train.global_batch_size 9 cannot be shared by 2 processes; use 8 or 10, or another number of processes: "
    )
    assert run_processes(2, train_on, folder, "2", 1) == [f"{wanted}1, 3, 9"] * 2
    batches = []
    for processes, epochs in ((2, 1), (1, 2)):
        assert run_processes(processes, train_on, folder, "1:4", epochs) == [""] * processes
        batches.append(json.loads((folder / "run.json").read_text())["batch"])
    assert batches == [
        "9 = up to 5 x 2 replicas x 1 accumulation",
        "9 = up to 5 x 1 replicas x 2 accumulation",  # no more images at once than there were
    ]
    log = (folder / "run.log").read_text()
    assert "processes 1 instead of 2; each update has as many images as before" in log
    assert "batch     9 (up to 5 per process x 2 processes x 1 accumulation step)" in log
    rows = [row for row in read_rows(folder / "metrics.jsonl") if row["event"] == "train"]
    assert [row["samples_seen"] for row in rows] == [9, 18, 27, 36, 40, 49, 58, 67, 76, 80]
