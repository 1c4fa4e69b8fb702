"""Joining again after a launcher restarted its workers."""

from __future__ import annotations

import os

import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, TCPStore

from alexnet_dist.base.ranks import rank_from_environment, read_number, world_size_from_environment


def join_restarted_group(on_gpu: bool) -> None:
    """Join the other processes under keys of their own, if this is a restart; otherwise leave it to Accelerate.

    The launchers' static rendezvous, which is accelerate's default, hands restarted workers the store of the lost ones.
    A process that is quicker than its peer then finds the address of the peer's dead predecessor, and the restart
    fails.
    """
    count = read_number("TORCHELASTIC_RESTART_COUNT", 0)
    is_kept_by_launcher = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if count == 0 or not is_kept_by_launcher or dist.is_initialized():
        return
    rank, world_size = rank_from_environment(), world_size_from_environment()
    if world_size == 1:
        return
    store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        store=PrefixStore(f"restart_{count}", store),
        rank=rank,
        world_size=world_size,
    )
