"""Joining again after a launcher restarted its workers."""

from __future__ import annotations

import itertools
import os

import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, TCPStore

from alexnet_dist.base.ranks import rank_from_environment, read_number, world_size_from_environment

_JOINS = itertools.count()  # of this process, which may train more than once


def join_restarted_group(on_gpu: bool) -> None:
    """Join the other processes under keys of their own where they met before; otherwise leave it to Accelerate.

    The launchers' static rendezvous, which is accelerate's default, hands restarted workers the store of the lost ones.
    A process that is quicker than its peer then finds the address of the peer's dead predecessor, and the restart
    fails. It is the same where processes have left their group and train again.
    """
    is_kept_by_launcher = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    rank, world_size = rank_from_environment(), world_size_from_environment()
    if world_size == 1 or dist.is_initialized():
        return
    restarts, joins = read_number("TORCHELASTIC_RESTART_COUNT", 0), next(_JOINS)
    if restarts + joins == 0 or not is_kept_by_launcher:
        return
    store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        store=PrefixStore(f"restart_{restarts}_{joins}", store),
        rank=rank,
        world_size=world_size,
    )
