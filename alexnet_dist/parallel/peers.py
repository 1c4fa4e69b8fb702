"""Who takes part in a job: a view of every process, and the clocks' differences."""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from alexnet_dist.base.errors import MachineError
from alexnet_dist.base.machine import find_git_commit, list_versions
from alexnet_dist.base.ranks import local_rank_from_environment, machine_from_environment
from alexnet_dist.parallel.runtime import Runtime

CLOCK_ROUNDS = 7


@dataclass(frozen=True)
class Peer:
    """One process as it sees itself.

    Args:
        rank: its number.
        local_rank: its number on its machine.
        machine: number of its machine as the launcher counts them, else the machine's name.
        host: name of its machine.
        pid: of the process.
        device: what it computes on.
        threads: of PyTorch.
        versions: of Python and packages, and the commit of the checkout.
    """

    rank: int
    local_rank: int
    machine: str
    host: str
    pid: int
    device: str
    threads: int
    versions: dict[str, str]


def introduce(runtime: Runtime) -> list[Peer]:
    """Every process's view of itself, in order of rank. All processes must call this."""
    commit = find_git_commit()
    me = Peer(
        rank=runtime.rank,
        local_rank=local_rank_from_environment(),
        # Two launchers in one box (containers, namespaces) share its name; torch's launchers number themselves.
        machine=machine_from_environment() or platform.node(),
        host=platform.node(),
        pid=os.getpid(),
        device=_describe_device(runtime.device),
        threads=torch.get_num_threads(),
        versions={**list_versions(), **({"commit": commit} if commit else {})},
    )
    return runtime.gather(me)


def _describe_device(device: torch.device) -> str:
    if device.type != "cuda":
        return device.type
    return f"{device} {torch.cuda.get_device_name(device)}"


def list_machines(peers: Sequence[Peer]) -> list[list[int]]:
    """The ranks of each machine, in order of their first."""
    machines: dict[str, list[int]] = {}
    for peer in peers:
        machines.setdefault(peer.machine, []).append(peer.rank)
    return list(machines.values())


def check_same_code(runtime: Runtime) -> None:
    """Refuse machines that run other code than rank 0's. All processes must call this; one machine has nothing to tell.

    Raises:
        MachineError: see `check_versions`.
    """
    if runtime.world_size > runtime.processes_here:
        check_versions(introduce(runtime))


def check_versions(peers: Sequence[Peer]) -> None:
    """Refuse processes that run other code.

    Raises:
        MachineError: a version differs from rank 0's; a package that is missing on one side counts.
    """
    first = peers[0]
    for peer in peers[1:]:
        for name in {**first.versions, **peer.versions}:
            ours, theirs = first.versions.get(name, "missing"), peer.versions.get(name, "missing")
            if ours != theirs and not (name == "commit" and _may_be_one_commit(ours, theirs)):
                raise MachineError(
                    "versions differ between processes",
                    where=f"{peer.host}, rank {peer.rank}",
                    why=f"{name} is {_short(theirs)} there and {_short(ours)} on {first.host}, rank 0",
                    remedy="install the same everywhere",
                )


def _short(version: str) -> str:
    return re.sub(r"^([0-9a-f]{12})[0-9a-f]{28}", r"\1", version)


def _may_be_one_commit(ours: str, theirs: str) -> bool:
    """Whether two checkouts may hold the same code: where git is missing, nobody knows whether files were changed."""
    if "missing" in (ours, theirs):  # a wheel beside a checkout: alexnet_dist's version says enough
        return True
    return ours.rstrip("+?") == theirs.rstrip("+?") and "?" in (ours[-1:], theirs[-1:])


def measure_clocks(runtime: Runtime) -> list[tuple[float, float]]:
    """How far each process's clock is from rank 0's, in seconds, and how uncertain that is; in order of rank.

    Each process reads its clock while rank 0 waits, so the true difference lies within half of that wait. The round
    with the shortest wait counts.
    """
    rounds: list[tuple[float, list[float]]] = []
    for _ in range(CLOCK_ROUNDS):
        runtime.agree(0)
        start = time.time()
        clocks = runtime.gather(time.time())
        end = time.time()
        rounds.append(((end - start) / 2, [clock - (start + end) / 2 for clock in clocks]))
    half_wait, offsets = min(runtime.on_main(lambda: rounds))
    return [(offset, half_wait) for offset in offsets]
