"""A Ray cluster of three nodes on this machine: the bits of a launcher's processes, whatever is killed on the way."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from helpers.one_run import has_checkpoint, take_digest, write_settings
from helpers.waiting import wait_until

pytest.importorskip("ray", reason="Ray is not installed")

LAUNCH = Path(__file__).parents[2] / "launch"
SECONDS = 200


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Three nodes of one core each: two for the workers, and one in reserve."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")  # of workers, too: nodes give them their environment
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "disabled")
        from ray.cluster_utils import Cluster

        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        for _ in range(2):
            made.add_node(num_cpus=1)
        yield made
        made.shutdown()


def start(cluster: Any, folder: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(LAUNCH / "ray_train.py"), *write_settings(folder)]
    return subprocess.Popen(
        [*command, "--workers", "2", "--address", cluster.address, *words],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finish(started: subprocess.Popen[str]) -> tuple[int, str]:
    """Its exit code and its last words on stderr that are not a worker's."""
    _, errors = started.communicate(timeout=SECONDS)
    own = [line for line in errors.splitlines() if line.strip() and "pid=" not in line]
    return started.returncode, own[-1]


def find_workers() -> list[psutil.Process]:
    return [p for p in psutil.process_iter(["cmdline"]) if "RayTrainWorker" in " ".join(p.info["cmdline"] or [])]


def find_node_of_a_worker(cluster: Any) -> psutil.Process:
    """The process that is a node, and not the head of the cluster, which nothing replaces."""
    head = cluster.head_node.all_processes["raylet"][0].process.pid
    parents = [worker.parent() for worker in find_workers()]
    return next(parent for parent in parents if parent is not None and parent.pid != head)


def test_a_stopped_run_goes_on_with_the_bits_of_a_launchers(cluster: Any, tmp_path: Path, undisturbed: str) -> None:
    folder = tmp_path / "run"
    first = start(cluster, folder)
    wait_until(lambda: has_checkpoint(folder, 6) or first.poll() is not None, SECONDS)
    first.send_signal(signal.SIGTERM)
    code, line = finish(first)
    assert (code, line[:34]) == (143, "Stopped by SIGTERM. Saved at step "), line
    assert finish(start(cluster, folder))[0] == 0
    assert take_digest(folder) == undisturbed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "run.yaml"]  # nothing of Ray's own


def test_what_no_new_start_would_mend_ends_at_once(cluster: Any, tmp_path: Path) -> None:
    code, line = finish(start(cluster, tmp_path / "odd", "--train.global_batch_size", "31"))
    assert code == 2
    assert line.startswith("error: ")
    code, line = finish(start(cluster, tmp_path / "many", "--workers", "9"))
    assert code == 5
    assert re.match(r"error: the Ray cluster lacks \d CPUs: 9 workers need 9, and it has ", line)
    assert not (tmp_path / "many").exists()


def test_lost_workers_and_lost_nodes_change_no_bit(cluster: Any, tmp_path: Path, undisturbed: str) -> None:
    folder = tmp_path / "run"
    run = start(cluster, folder)
    wait_until(lambda: has_checkpoint(folder, 6) or run.poll() is not None, SECONDS)
    find_workers()[-1].kill()
    wait_until(lambda: has_checkpoint(folder, 30) or run.poll() is not None, SECONDS)
    find_node_of_a_worker(cluster).kill()
    assert finish(run)[0] == 0
    assert take_digest(folder) == undisturbed
