"""The launchers of one machine: a worker is killed, all start again, the weights are those of an undisturbed run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from helpers.one_run import has_checkpoint, list_starts, take_digest, write_settings
from helpers.waiting import wait_until

SECONDS = 200
TWICE = ("--max_restarts", "1")
LAUNCHERS = {
    "alexnet-dist launch": ("-m", "alexnet_dist", "launch", "--nproc_per_node", "2", *TWICE, "train"),
    "torchrun": ("-m", "torch.distributed.run", "--nproc_per_node", "2", *TWICE, "-m", "alexnet_dist", "train"),
    "accelerate launch": (
        *("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", *TWICE),
        *("--main_process_port", "0", "-m", "alexnet_dist", "train"),
    ),
}


@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_killed_worker_changes_no_bit(name: str, undisturbed: str, tmp_path: Path) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    command = [sys.executable, *LAUNCHERS[name], *write_settings(folder)]
    with log.open("w") as stream:
        run = psutil.Popen(
            command, stderr=stream, env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
        )
        wait_until(lambda: has_checkpoint(folder, 6) or run.poll() is not None, SECONDS)
        find_workers(run)[-1].kill()
        try:
            assert run.wait(SECONDS) == 0, log.read_text()
        except subprocess.TimeoutExpired:
            run.kill()
            raise
    first, second = list_starts(folder)
    assert first == 0 < second
    assert take_digest(folder) == undisturbed


def find_workers(run: psutil.Process) -> list[psutil.Process]:
    """The processes that train, in order of rank."""
    return [child for child in run.children() if "alexnet_dist" in child.cmdline()]
