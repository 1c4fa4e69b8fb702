"""A limit on waiting for other processes to come: torch waits half an hour, and its waits cannot be interrupted."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from alexnet_dist.base.ending import leave, print_last, print_line
from alexnet_dist.base.errors import MachineError
from alexnet_dist.base.ranks import local_rank_from_environment, rank_from_environment, world_size_from_environment
from alexnet_dist.parallel.processes.network import advise_interface

JOIN_SECONDS = 120.0
NOTE_SECONDS = 15.0  # between lines that say who is waited for
REMEDY = "start the same command on each machine; each must reach that address, and the others at any port"
TURN_SECONDS = 2.0  # for a process to speak, before the next one of its machine does


@contextmanager
def limit_wait(seconds: float) -> Iterator[None]:
    """End this process with exit code 5 if the block, which waits for other processes, takes longer.

    Seconds are counted by a thread: a process that is suspended as a whole does not count them.

    Args:
        seconds: the limit.
    """
    done = threading.Event()
    if world_size_from_environment() > 1:
        threading.Thread(target=_count, args=(seconds, done), name="waiting", daemon=True).start()
    try:
        yield
    finally:
        done.set()


def _count(seconds: float, done: threading.Event) -> None:
    rank, world_size = rank_from_environment(), world_size_from_environment()
    place = f"{os.environ.get('MASTER_ADDR', '')} port {os.environ.get('MASTER_PORT', '')}"
    waited, local_rank = 0.0, local_rank_from_environment()
    while waited < seconds + TURN_SECONDS * local_rank:  # nobody knows whether the first of the machine still lives
        turn = min(NOTE_SECONDS, max(seconds - waited, TURN_SECONDS))
        if done.wait(turn):
            return
        waited += turn
        if waited < seconds and local_rank == 0:
            print_line(
                f"waiting for the other processes since {waited:.0f} s (rank {rank} of {world_size}, at {place})"
            )
    error = MachineError(
        f"not every process came within {seconds:g} s",
        where=f"rank {rank} of {world_size}",
        why=f"they meet at {place}",
        remedy=advise_interface() or REMEDY,
    )
    print_last(f"error: {error}")
    leave(error.exit_code)
