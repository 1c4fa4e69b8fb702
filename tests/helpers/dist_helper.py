"""N processes that train together: forked from the warm test process, or, on a GPU, started anew. No ports."""

from __future__ import annotations

import functools
import importlib
import multiprocessing
import os
import pkgutil
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

TIMEOUT_SECONDS = 200
GPU_TIMEOUT_SECONDS = 240


@dataclass(frozen=True)
class Group:
    """Processes that were started together.

    Args:
        children: their numbers, in order of rank.
        folder: where they leave their results.
    """

    children: list[int]
    folder: Path

    def has_ended(self) -> bool:
        """Whether one of them has ended."""
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return any(os.waitid(os.P_PID, child, flags) is not None for child in self.children)

    def kill(self, ranks: Iterable[int]) -> None:
        """SIGKILL some of them."""
        for rank in ranks:
            os.kill(self.children[rank], signal.SIGKILL)

    def wait(self, seconds: float = TIMEOUT_SECONDS) -> list[int]:
        """Their exit codes, once all have ended; those that take too long are killed."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not all(self._ended(child) for child in self.children):
            time.sleep(0.005)
        for child in self.children:
            if not self._ended(child):
                os.kill(child, signal.SIGKILL)
        return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in self.children]

    @staticmethod
    def _ended(child: int) -> bool:
        return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def start_processes(world_size: int, body: Callable[..., Any], *args: Any) -> Group:
    """Call `body(*args)` in `world_size` processes of one gloo group.

    Each process sees the environment a launcher would give it.
    """
    _warm_up()
    folder = Path(tempfile.mkdtemp(prefix="group-"))
    return Group([_fork(rank, world_size, folder, body, args) for rank in range(world_size)], folder)


def run_processes(world_size: int, body: Callable[..., Any], *args: Any) -> list[Any]:
    """The results of `start_processes`, in order of rank; they travel as files written by torch.save.

    Raises:
        AssertionError: a process failed or took too long.
    """
    group = start_processes(world_size, body, *args)
    try:
        statuses = group.wait()
        errors = [path.read_text() for path in sorted(group.folder.glob("error-*"))]
        assert statuses == [0] * world_size, f"exit statuses {statuses}\n" + "\n".join(errors)
        return [torch.load(group.folder / f"result-{rank}", weights_only=False) for rank in range(world_size)]
    finally:
        shutil.rmtree(group.folder)


@functools.cache
def _warm_up() -> None:
    """Import and make here, once, what every child would import and make for itself: more than half of a tiny run."""
    import alexnet_dist
    from alexnet_dist.settings.reader import new_parser, parse_arguments
    from alexnet_dist.settings.schema import Config, EvaluationConfig

    for module in pkgutil.walk_packages(alexnet_dist.__path__, "alexnet_dist."):
        if not module.name.endswith(("__main__", "_kernel")):
            importlib.import_module(module.name)
    for name in ("sklearn.model_selection", "torchvision.transforms.v2"):  # which ours import where they are used
        importlib.import_module(name)
    for settings in (Config, EvaluationConfig):
        parse_arguments([], new_parser(), settings)


def _fork(rank: int, world_size: int, folder: Path, body: Callable[..., Any], args: tuple[Any, ...]) -> int:
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        torch.set_num_threads(1)
        _forget_worker_server()
        _join(rank, world_size, folder)
        torch.save(body(*args), folder / f"result-{rank}")
        status = 0
    except BaseException:  # noqa: BLE001 (a child must never return into the test)
        (folder / f"error-{rank}").write_text(traceback.format_exc())
    finally:
        os._exit(status)


def run_gpu_processes(world_size: int, body: Callable[..., Any], *args: Any) -> list[Any]:
    """As `run_processes`, over NCCL and on one GPU, which no forked process could use.

    NCCL wants a GPU for each process of a machine. So each says that it is a machine of its own, and they talk through
    sockets: all is as it would be on several machines, but slow.

    Raises:
        AssertionError: a process failed or took too long.
    """
    context = multiprocessing.get_context("spawn")
    folder = Path(tempfile.mkdtemp(prefix="group-"))
    words = [(rank, world_size, folder, body, args) for rank in range(world_size)]
    children = [context.Process(target=_run_on_gpu, args=of_rank) for of_rank in words]
    try:
        for child in children:
            child.start()
        deadline = time.monotonic() + GPU_TIMEOUT_SECONDS
        for child in children:
            child.join(max(0.0, deadline - time.monotonic()))
        errors = [path.read_text() for path in sorted(folder.glob("error-*"))]
        statuses = [child.exitcode for child in children]
        assert statuses == [0] * world_size, f"exit statuses {statuses}\n" + "\n".join(errors)
        return [torch.load(folder / f"result-{rank}", weights_only=False) for rank in range(world_size)]
    finally:
        for child in children:
            child.kill()
            child.join()
        shutil.rmtree(folder)


def _run_on_gpu(rank: int, world_size: int, folder: Path, body: Callable[..., Any], args: tuple[Any, ...]) -> None:
    torch.backends.cudnn.allow_tf32 = False  # a convolution of PyTorch's default rounds to 10 bits
    os.environ.update({"NCCL_HOSTID": f"machine-{rank}", "NCCL_SOCKET_IFNAME": "lo", "NCCL_IB_DISABLE": "1"})
    try:
        if world_size > 1:
            _enter_environment(rank, world_size, local_rank=0, processes_here=1)
            store = f"file://{folder / 'store'}"
            torch.cuda.set_device(0)
            torch.distributed.init_process_group("nccl", init_method=store, rank=rank, world_size=world_size)
        torch.save(body(*args), folder / f"result-{rank}")
    except BaseException:
        (folder / f"error-{rank}").write_text(traceback.format_exc())
        raise


def _forget_worker_server() -> None:
    """The server that the test process may have started is not this child's."""
    from multiprocessing.forkserver import _forkserver

    _forkserver._forkserver_pid = _forkserver._forkserver_address = _forkserver._forkserver_alive_fd = None


def wait_for_step(folder: Path, step: int, process: subprocess.Popen[str]) -> None:
    """Wait until a run has logged this step; fail if its process ends before."""
    from alexnet_dist.tracking.trackers import read_rows

    deadline = time.monotonic() + 90
    while not any(row["step"] >= step for row in read_rows(folder / "metrics.jsonl")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def reset_accelerate() -> None:
    """Forget the process group, device and precision that Accelerate keeps in global state."""
    from accelerate.state import AcceleratorState, PartialState

    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()


def _join(rank: int, world_size: int, folder: Path) -> None:
    reset_accelerate()
    os.environ["ACCELERATE_USE_CPU"] = "true"
    if world_size == 1:
        return
    _enter_environment(rank, world_size, local_rank=rank, processes_here=world_size)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=world_size
    )


def _enter_environment(rank: int, world_size: int, *, local_rank: int, processes_here: int) -> None:
    """What a launcher says."""
    numbers = {"RANK": rank, "LOCAL_RANK": local_rank, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": processes_here}
    os.environ.update({key: str(value) for key, value in numbers.items()})
    os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", "GLOO_SOCKET_IFNAME": "lo"})
