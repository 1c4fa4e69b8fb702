"""Which process holds which part of which copy of the network: a grid of ranks.

A row of the grid holds one network together, a column holds the same part of every network:

    strategy   rows                  parts
    ddp        of one process        the whole network
    towers     of two                a tower
    hybrid     of shard_size         all convolutions, a shard of fc6 and fc7
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.distributed as dist

from alexnet_dist.base.errors import UsageError


@dataclass(frozen=True, eq=False)
class Mesh:
    """One process's place among the others. A group of one process is None.

    Args:
        strategy: ddp, towers or hybrid.
        rank: this process's number.
        world_size: processes in the job.
        dp_rank: which share of a batch this process gets.
        dp_size: shares of a batch; two towers work on the same one.
        part_rank: which part of the network this process holds.
        num_parts: parts of a network.
        part_group: the row, the processes that hold one network together.
        cut_group: the column, those that hold the same part; they average the gradients of what is cut.
        dp_group: those with the other shares of a batch; they average the gradients of what is whole.
    """

    strategy: str
    rank: int
    world_size: int
    dp_rank: int
    dp_size: int
    part_rank: int = 0
    num_parts: int = 1
    part_group: dist.ProcessGroup | None = None
    cut_group: dist.ProcessGroup | None = None
    dp_group: dist.ProcessGroup | None = None

    @property
    def tower_rank(self) -> int:
        """Which tower of its pair this process is; 0 where there are no towers."""
        return self.part_rank if self.strategy == "towers" else 0

    def __str__(self) -> str:
        if self.num_parts == 1:
            return self.strategy
        networks = self.world_size // self.num_parts
        part = "towers" if self.strategy == "towers" else "shards"
        return f"{self.strategy}: {networks} x {self.num_parts} {part}"


def build_mesh(rank: int, world_size: int, strategy: str = "ddp", shard_size: int | None = None) -> Mesh:
    """Join the groups of this process; all processes call it together.

    Args:
        rank: this process's number.
        world_size: processes in the job.
        strategy: ddp, towers or hybrid.
        shard_size: processes over which hybrid spreads fc6 and fc7; None = all.

    Raises:
        UsageError: a number of processes that the strategy cannot use.
    """
    num_parts = {"ddp": 1, "towers": 2, "hybrid": shard_size or world_size}[strategy]
    check_process_grid(strategy, world_size, num_parts)
    world = dist.group.WORLD if world_size > 1 else None
    if num_parts == 1:
        return Mesh(strategy, rank, world_size, rank, world_size, cut_group=world, dp_group=world)
    grid = torch.arange(world_size).view(-1, num_parts)  # (networks, parts)
    row, part_rank = divmod(rank, num_parts)
    part_group, cut_group = _join(grid.tolist()), _join(grid.T.tolist())
    is_pair = strategy == "towers"
    dp_rank, dp_size = (row, len(grid)) if is_pair else (rank, world_size)
    dp_group = cut_group if is_pair else world
    return Mesh(strategy, rank, world_size, dp_rank, dp_size, part_rank, num_parts, part_group, cut_group, dp_group)


def check_process_grid(strategy: str, world_size: int, num_parts: int) -> None:
    """Refuse a number of processes that does not fill the grid's rows.

    Raises:
        UsageError: it does not.
    """
    if strategy == "towers" and world_size == 1:
        raise UsageError(
            "parallel.strategy towers needs two processes",
            why="there is one",
            remedy="start 2, or train the same network merged on one device with --parallel.strategy ddp",
        )
    if world_size % num_parts == 0:
        return
    lower = world_size // num_parts * num_parts
    near = " or ".join(str(count) for count in (lower, lower + num_parts) if count)
    if strategy == "towers":
        raise UsageError(
            "parallel.strategy towers needs an even number of processes",
            why=f"there are {world_size}",
            remedy=f"start {near}",
        )
    sizes = [size for size in range(1, world_size + 1) if world_size % size == 0]
    nearest = " or ".join(str(size) for size in sorted(sizes, key=lambda size: abs(size - num_parts))[:2])
    raise UsageError(
        f"parallel.shard_size {num_parts} does not divide the {world_size} processes",
        remedy=f"use {nearest}, or start {near}",
    )


def _join(groups: Sequence[Sequence[int]]) -> dist.ProcessGroup | None:
    """The one of these groups that this process is in; None if it would be alone in it."""
    if len(groups[0]) == 1:
        return None
    mine, _ = dist.new_subgroups_by_enumeration([list(ranks) for ranks in groups])
    return cast(dist.ProcessGroup, mine)
