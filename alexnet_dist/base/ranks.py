"""Which process of how many this is, as its launcher says it in the environment: the one place that reads it.

parallel/processes/environment.py refuses values that cannot be meant before a run begins. What cannot be read counts as
not set here: these questions are also asked to say that very error.
"""

from __future__ import annotations

import os


def rank_from_environment() -> int:
    """This process's rank; 0 without a launcher."""
    return read_number("RANK", 0)


def world_size_from_environment() -> int:
    """The number of processes; 1 without a launcher."""
    return read_number("WORLD_SIZE", 1)


def local_rank_from_environment() -> int:
    """This process's number on its machine; 0 without a launcher."""
    return read_number("LOCAL_RANK", 0)


def local_world_size_from_environment(without: int = 1) -> int:
    """The number of processes on this machine; `without` a launcher that says it, this number."""
    return read_number("LOCAL_WORLD_SIZE", without)


def machine_from_environment() -> str | None:
    """The number of this machine as torch's launchers count them; None without such a launcher."""
    return os.environ.get("GROUP_RANK")


def is_first_here(without: int = -1) -> bool:
    """Whether this process is the first of its machine, or would be if the rank `without` were gone."""
    local_rank = local_rank_from_environment()
    first_rank = rank_from_environment() - local_rank
    return local_rank == (1 if without == first_rank else 0)


def list_announced() -> list[tuple[str, int]]:
    """Variables with which torchrun's agent tells a worker of others, and how many processes there are at least."""
    numbers = {name: read_number(name, 0) for name in ("GROUP_RANK", "GROUP_WORLD_SIZE", "LOCAL_WORLD_SIZE")}
    return [(name, number + ("SIZE" not in name)) for name, number in numbers.items()]  # rank 1 is of two


def read_number(name: str, default: int) -> int:
    """A whole number in the environment; `default` where there is none."""
    text = os.environ.get(name, "")
    return int(text) if text.isascii() and text.isdigit() else default
