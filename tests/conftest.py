"""For every test: one thread, no environment of a launcher or of W&B, no cache of the user's, nothing left behind."""

from __future__ import annotations

import errno
import gc
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.util import Finalize
from pathlib import Path

import psutil
import pytest
from helpers import lanes

FOREIGN_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
FOREIGN_PREFIXES = ("ACCELERATE_", "PET_", "SLURM_", "TORCHELASTIC_", "WANDB_")
GRACE_SECONDS = 5


def pytest_configure(config: pytest.Config) -> None:
    """Before torch is imported anywhere."""
    if not any("gpu" in Path(argument).parts for argument in config.args):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # with a GPU in use no child could be forked; see `make test-gpu`
    for name in [n for n in os.environ if n in FOREIGN_VARIABLES or n.startswith(FOREIGN_PREFIXES)]:
        del os.environ[name]
    os.environ.update(OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME="lo")
    if config.getoption("numprocesses", 0) and not hasattr(config, "workerinput"):
        return  # it runs no test: its workers come here, too
    import torch

    torch.set_num_threads(1)
    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported: its kernels then run on the CPU, in Python
        # The first gradient decides which threads PyTorch has for devices. torch.compile and torch.export pretend that
        # there are some: if they came first, no child that is forked from here could compute a gradient.
        torch.ones((), requires_grad=True).backward()
    lanes.note_starts()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A folder may stand for a lane, from which `-m` chooses after this. The longest files come first, and not last."""
    for item in items:
        if mark := lanes.mark_of(item.path):
            item.add_marker(mark)
    items.sort(key=lambda item: ("slow", "heavy", None).index(lanes.mark_of(item.path)))


def pytest_collection_finish() -> None:
    gc.freeze()  # a million objects of libraries and test modules, which no later collection has to walk


@pytest.fixture(scope="session", autouse=True)
def _cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """It has the functions in C, which else the first test that trains would compile."""
    from alexnet_dist.base.errors import MachineError
    from alexnet_dist.data.engines.cache.device import load_copier
    from alexnet_dist.models.joined_pooling import load_functions

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        with suppress(MachineError):
            load_functions()
            load_copier()
        lanes.started.clear()
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


@pytest.fixture(scope="session", autouse=True)
def _no_wait_for_the_disk() -> Iterator[None]:
    """Files of tests need not outlast a power cut: a third of a tiny run. Programs that a test starts anew do wait."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(autouse=True)
def _fresh_accelerate() -> None:
    """No device, precision or process group of an earlier test."""
    if "accelerate" in sys.modules:
        from helpers.dist_helper import reset_accelerate

        reset_accelerate()


@pytest.fixture(scope="session")
def _known_processes() -> set[int]:
    """Children of this process that no test has to end: they last, or belong to a fixture that several tests share."""
    lanes.started.clear()  # what imports started
    return {child.pid for child in psutil.Process().children()}


@pytest.fixture(autouse=True)
def _nothing_left(request: pytest.FixtureRequest, _known_processes: set[int]) -> Iterator[None]:
    """Fail a test that starts a process in the fast lane, or leaves one, or a thread that hinders forks, behind."""
    import torch

    me = psutil.Process()
    if lanes.started:  # by a fixture that several tests share
        _known_processes.update(child.pid for child in me.children())
    yield
    started = list(lanes.started)
    lanes.started.clear()
    if started:
        _end_children(me, _known_processes)
    if started and not any(map(request.node.get_closest_marker, ("heavy", "slow"))):
        pytest.fail(f"a test of `make fast` starts a process ({started[0]}): mark it heavy")
    if not torch.cuda.is_available() and lanes.count_autograd_threads():
        pytest.fail("threads of autograd are left behind: compute these gradients in a child")


def _end_children(me: psutil.Process, known: set[int]) -> None:
    left = [child for child in me.children() if child.pid not in known]
    if not left:
        return
    gc.collect()  # a loader that was not read to its end stops its workers when it is collected
    lasting = [child for child in left if lanes.is_lasting(child)]
    known.update(child.pid for child in lasting)
    _, alive = psutil.wait_procs([child for child in left if child not in lasting], timeout=GRACE_SECONDS)
    for child in alive:
        child.kill()
    assert not alive, f"processes left behind: {alive}"


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every write fails when it should become durable."""
    from alexnet_dist.base import durable

    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(durable.os, "fsync", fail)
