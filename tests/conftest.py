"""For every test: one thread, no environment of a launcher or of W&B, no cache of the user's, nothing left behind."""

from __future__ import annotations

import errno
import gc
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from multiprocessing.util import Finalize

import psutil
import pytest

FOREIGN_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
FOREIGN_PREFIXES = ("ACCELERATE_", "TORCHELASTIC_", "WANDB_")
HELPERS = ("resource_tracker", "forkserver", "wandb")  # live as long as the interpreter; multiprocessing's and W&B's
GRACE_SECONDS = 5


def pytest_configure() -> None:
    """Before torch is imported anywhere."""
    for name in [n for n in os.environ if n in FOREIGN_VARIABLES or n.startswith(FOREIGN_PREFIXES)]:
        del os.environ[name]
    os.environ.update(OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME="lo")
    import torch

    torch.set_num_threads(1)
    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported: its kernels then run on the CPU, in Python


@pytest.fixture(scope="session", autouse=True)
def _cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _temporary_files_of_its_own() -> Iterator[None]:
    """Processes that a test kills cannot remove theirs. Not below pytest's folder: a socket's path must be short."""
    folder = tempfile.mkdtemp(prefix="alexnet-")
    Finalize(None, shutil.rmtree, args=(folder, True), exitpriority=-200)  # after multiprocessing's own, at -100
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", folder)
        patch.setattr(tempfile, "tempdir", folder)
        yield


@pytest.fixture(autouse=True)
def _fresh_accelerate() -> None:
    """No device, precision or process group of an earlier test."""
    if "accelerate" in sys.modules:
        from helpers.dist_helper import reset_accelerate

        reset_accelerate()


@pytest.fixture(autouse=True)
def _no_process_left() -> Iterator[None]:
    """Fail a test that leaves a process behind, and end the process."""
    me = psutil.Process()
    before = {child.pid for child in me.children()}
    yield
    left = [child for child in me.children() if child.pid not in before]
    if not left:
        return
    gc.collect()  # a loader that was not read to its end stops its workers when it is collected
    _, alive = psutil.wait_procs([child for child in left if not _is_helper(child)], timeout=GRACE_SECONDS)
    for child in alive:
        child.kill()
    assert not alive, f"processes left behind: {alive}"


def _is_helper(process: psutil.Process) -> bool:
    try:
        return any(name in " ".join(process.cmdline()) for name in HELPERS)
    except psutil.Error:
        return False


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every write fails when it should become durable."""
    from alexnet_dist.base import durable

    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(durable.os, "fsync", fail)
