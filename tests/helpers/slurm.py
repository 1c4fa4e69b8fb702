"""A SLURM cluster of two nodes on this machine, and what becomes of a job there."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from alexnet_dist.tracking.trackers import read_rows

ROOT = Path(__file__).resolve().parents[2]
SBATCH = ROOT / "launch" / "slurm" / "train.sbatch"
NAMESPACES = ("unshare", "--mount", "--uts", "--pid", "--fork", "--mount-proc", "--kill-child")
PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "scontrol", "unshare")
START_SECONDS, JOB_SECONDS = 30, 300
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL", "TIMEOUT")


@dataclass(frozen=True)
class Cluster:
    """A cluster that runs.

    Args:
        folder: its state and its logs.
        process: from which all of its processes come.
    """

    folder: Path
    process: int

    def run(self, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        """One of SLURM's commands, at a terminal with the environment active."""
        return subprocess.run(words, env=self._environment(more), capture_output=True, text=True, timeout=JOB_SECONDS)

    def submit(self, *words: str, log: Path, **more: str) -> str:
        """Submit the shipped script, with tasks and GPUs for this small cluster; the job's number.

        Args:
            words: options of sbatch, then "--", then the words after the script.
            log: where the job's output goes.
            more: of the environment.
        """
        at = words.index("--")
        small = ("--gpus-per-node=1", "--cpus-per-task=1", f"--output={log}", *words[:at])
        done = self.run("sbatch", "--parsable", *small, str(SBATCH), *words[at + 1 :], **more)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def wait_for_step(self, job: str, folder: Path, step: int, log: Path) -> None:
        """Wait until the run of a job has logged this step."""
        deadline = time.monotonic() + JOB_SECONDS
        while not any(row["step"] >= step for row in read_rows(folder / "metrics.jsonl")):
            record = self.record(job)
            is_late = record["JobState"] in ENDED or time.monotonic() > deadline
            assert not is_late, f"{record}\n{log.read_text() if log.exists() else ''}"
            time.sleep(0.02)

    def record(self, job: str) -> dict[str, str]:
        """What SLURM knows of a job."""
        done = self.run("scontrol", "show", "job", job)
        assert done.returncode == 0, done.stderr
        return dict(re.findall(r"(\S+?)=(\S*)", done.stdout))

    def wait(self, job: str, log: Path) -> dict[str, str]:
        """The record of a job that has ended, and waits for no other turn."""
        deadline = time.monotonic() + JOB_SECONDS
        while (record := self.record(job))["JobState"] not in ENDED:
            assert time.monotonic() < deadline, f"{record}\n{log.read_text() if log.exists() else ''}"
            time.sleep(0.2)
        return record

    def wait_for_turn(self, job: str, turn: int, log: Path) -> None:
        """Wait until a job is to begin again, for so many times."""
        deadline = time.monotonic() + JOB_SECONDS
        while (record := self.record(job))["Restarts"] != str(turn) or record["JobState"] == "COMPLETING":
            assert time.monotonic() < deadline, f"{record}\n{log.read_text()}"
            time.sleep(0.2)

    def leave_minutes(self, job: str, minutes: int) -> None:
        """Change a job's time limit, so that up to so many minutes are left of it."""
        hours, gone, _ = self.record(job)["RunTime"].split(":")
        limit = 60 * int(hours) + int(gone) + minutes
        done = self.run("scontrol", "update", f"JobId={job}", f"TimeLimit={limit}")
        assert done.returncode == 0, done.stderr

    def cut_power(self, node: str) -> None:
        """All processes of a node end at once; the cluster's watch, or its administrator, sees it; it starts again."""
        off = self.folder / f"{node}.off"
        off.touch()
        (daemon,) = self._find(lambda process: process.cmdline() == ["slurmd", "-D", "-N", node])
        daemon.kill()  # the first process of a namespace
        done = self.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=power")
        assert done.returncode == 0, done.stderr
        off.unlink()

    def kill_task(self, rank: int) -> None:
        """SIGKILL one of the tasks that srun started."""
        variables = {"SLURM_PROCID": str(rank), "SLURM_STEP_ID": "0"}
        tasks = self._find(lambda process: variables.items() <= process.environ().items())
        tasks[0].kill()

    def _find(self, is_meant: Callable[[psutil.Process], bool]) -> list[psutil.Process]:
        found = []
        for process in psutil.Process(self.process).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                found += [process] if is_meant(process) else []
        return found

    def is_ready(self) -> bool:
        """Whether both nodes wait for jobs."""
        return self.run("sinfo", "--noheader", "--format=%T %D").stdout.split() == ["idle", "2"]

    def _environment(self, more: dict[str, str]) -> dict[str, str]:
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        ours = {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": path, "PYTHONPATH": str(ROOT)}
        return {**os.environ, **ours, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", **more}


def find_obstacle() -> str | None:
    """Why no cluster can run here; None where one can."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"no {', '.join(missing)}: apt-get install slurm-wlm munge"
    if os.geteuid() != 0:
        return "a cluster's own namespaces need root"
    done = subprocess.run([*NAMESPACES, "true"], capture_output=True, text=True)
    return f"no namespaces here: {done.stderr.strip()}" if done.returncode else None


@contextlib.contextmanager
def start_cluster() -> Iterator[Cluster]:
    """A cluster of the nodes n1 and n2, each with two GPUs that are none."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # a socket's path must be short
    words = [*NAMESPACES, str(ROOT / "tests" / "cluster" / "cluster.sh"), str(folder), *map(str, _find_ports(3))]
    with (folder / "cluster.log").open("w") as log:
        process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=log, stderr=log)
    cluster = Cluster(folder, process.pid)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not cluster.is_ready():
            logs = "\n".join(path.read_text()[-2000:] for path in sorted(folder.glob("*.log")))
            assert process.poll() is None, logs
            assert time.monotonic() < deadline, logs
            time.sleep(0.2)
        yield cluster
    finally:
        process.kill()  # its namespace, and all that is in it, ends with it
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _find_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]
