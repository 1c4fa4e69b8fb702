"""Two machines in small, and what somebody types at each: tests/dist/two_machines.sh, kept open."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from helpers.pages import ROOT
from helpers.waiting import wait_until

SCRIPT = ROOT / "tests" / "dist" / "two_machines.sh"
NOT_ALLOWED = 77
COPIED = ("alexnet_dist", "configs", "launch")
WAITING = "sleep"  # what runs at a machine while nothing is typed
SECONDS = 200


@dataclass(frozen=True)
class Typed:
    """A command that somebody typed at a machine.

    Args:
        process: the command itself, in a session of its own.
        log: where its output goes.
    """

    process: subprocess.Popen[bytes]
    log: Path

    def press_ctrl_c(self) -> None:
        """What a terminal does: the processes of the command get SIGINT."""
        os.killpg(self.process.pid, signal.SIGINT)

    def read(self) -> str:
        """What it has said so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def read_last(self) -> str:
        """The last line of it."""
        return self.read().rstrip().rpartition("\n")[2]

    def wait(self, seconds: float = SECONDS) -> int:
        """Its exit code."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(self.read()) from None

    def wait_for(self, text: str) -> None:
        """Wait until it has said this."""
        wait_until(lambda: text in self.read() or self.process.poll() is not None, SECONDS)
        assert text in self.read(), self.read()


@dataclass(frozen=True)
class Machine:
    """One of the two.

    Args:
        namespace: of its network.
        name: of itself.
        core: the only one it has.
        folder: its own copy of the program, in which commands are typed.
    """

    namespace: str
    name: str
    core: int
    folder: Path

    def type(self, line: str) -> Typed:
        """Type a line, with the environment active, and go on at once."""
        log = self.folder / f"typed-{len(list(self.folder.glob('typed-*')))}.log"
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        theirs = {name: value for name, value in os.environ.items() if name != "GLOO_SOCKET_IFNAME"}
        theirs |= {"PATH": path, "PYTHONPATH": str(self.folder)}
        shell = ["unshare", "--uts", "bash", "-c", f"hostname {self.name} && exec taskset -c {self.core} env {line}"]
        with log.open("wb") as stream:
            words = ["ip", "netns", "exec", self.namespace, *shell]
            process = subprocess.Popen(
                words, cwd=self.folder, env=theirs, stdout=stream, stderr=stream, start_new_session=True
            )
        return Typed(process, log)

    def cut_power(self) -> None:
        """All of its processes end at once."""
        for process in self._processes():
            with contextlib.suppress(psutil.Error):
                process.kill()

    def pull_cable(self) -> None:
        """Nothing comes or goes, and nobody is told."""
        subprocess.run(["ip", "-n", self.namespace, "link", "set", "eth0", "down"], check=True)

    def plug_in_cable(self) -> None:
        """The opposite."""
        subprocess.run(["ip", "-n", self.namespace, "link", "set", "eth0", "up"], check=True)

    def _processes(self) -> list[psutil.Process]:
        found = subprocess.run(["ip", "netns", "pids", self.namespace], capture_output=True, text=True, check=True)
        mine = []
        for pid in found.stdout.split():
            with contextlib.suppress(psutil.Error):
                mine += [process] if (process := psutil.Process(int(pid))).name() != WAITING else []
        return mine


@contextlib.contextmanager
def start_machines(folder: Path) -> Iterator[list[Machine]]:
    """node-a and node-b, each with a copy of the program below `folder`; what was typed there ends with them.

    Raises:
        PermissionError: there can be no namespaces here; why.
    """
    words = [str(SCRIPT), "unlimited", "bash", "-c", f"touch {folder}/MACHINE_RANK; exec {WAITING} infinity"]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    machines, cores = [], sorted(os.sched_getaffinity(0))
    try:
        wait_until(lambda: all((folder / rank).exists() for rank in "01") or process.poll() is not None)
        if process.poll() == NOT_ALLOWED:
            raise PermissionError(process.communicate()[1].strip())
        for rank, name in enumerate(("node-a", "node-b")):
            for part in COPIED:
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(ROOT / part, folder / name / part, ignore=ignored)
            core = cores[rank % len(cores)]
            machines.append(Machine(f"alexnet-{process.pid}-{rank}", name, core, folder / name))
        yield machines
    finally:
        for machine in machines:
            machine.cut_power()
        process.terminate()
        process.communicate()
