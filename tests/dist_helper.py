"""N processes that train together, forked from the warm test process: a file store, no ports."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

TIMEOUT_SECONDS = 90


def run_processes(world_size: int, body: Callable[..., Any], *args: Any) -> list[Any]:
    """Call `body(*args)` in `world_size` processes of one gloo group; their results in order of rank.

    Each process sees the environment a launcher would give it. Results travel as files written by torch.save.

    Raises:
        AssertionError: a process failed or took too long.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        children = [_fork(rank, world_size, folder, body, args) for rank in range(world_size)]
        statuses = _wait(children)
        errors = [path.read_text() for path in sorted(folder.glob("error-*"))]
        assert statuses == [0] * world_size, f"exit statuses {statuses}\n" + "\n".join(errors)
        return [torch.load(folder / f"result-{rank}", weights_only=False) for rank in range(world_size)]


def _fork(rank: int, world_size: int, folder: Path, body: Callable[..., Any], args: tuple[Any, ...]) -> int:
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        torch.set_num_threads(1)
        _join(rank, world_size, folder)
        torch.save(body(*args), folder / f"result-{rank}")
        status = 0
    except BaseException:  # noqa: BLE001 (a child must never return into the test)
        (folder / f"error-{rank}").write_text(traceback.format_exc())
    finally:
        os._exit(status)


def _join(rank: int, world_size: int, folder: Path) -> None:
    from accelerate.state import AcceleratorState, PartialState

    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()
    os.environ["ACCELERATE_USE_CPU"] = "true"
    if world_size == 1:
        return
    local = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
    os.environ.update({key: str(value) for key, value in local.items()})
    os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "GLOO_SOCKET_IFNAME": "lo"})
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=world_size
    )


def _wait(children: list[int]) -> list[int]:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    statuses: dict[int, int] = {}
    while len(statuses) < len(children) and time.monotonic() < deadline:
        for child in children:
            if child not in statuses:
                found, status = os.waitpid(child, os.WNOHANG)
                if found:
                    statuses[child] = os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    for child in children:
        if child not in statuses:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            statuses[child] = -signal.SIGKILL
    return [statuses[child] for child in children]
