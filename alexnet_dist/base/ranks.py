"""Which process of how many this is, as its launcher says it in the environment: the one place that reads it.

parallel/processes/environment.py refuses values that cannot be meant before a run begins. What cannot be read counts as
not set here: these questions are also asked to say that very error.
"""

from __future__ import annotations

import os
import re

# What torch's launchers call a process of several, and what SLURM calls it in a task of `srun`.
SLURM_NAMES = {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_STEP_NUM_TASKS", "LOCAL_RANK": "SLURM_LOCALID"}
_FIRST_PORT, _PORTS, _STEPS = 10000, 20000, 31  # below the ports that Linux gives to whoever asks for any


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


def is_of_several_machines() -> bool:
    """Whether other machines have processes of this job, too."""
    return world_size_from_environment() > local_world_size_from_environment()


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


def tasks_of_srun() -> int:
    """The tasks of the `srun` that this process is one of; 1 elsewhere, as in a batch script or in salloc's shell."""
    return read_number("SLURM_STEP_NUM_TASKS", 1) if "SLURM_PROCID" in os.environ else 1


def ranks_of_srun() -> dict[str, str]:
    """What one of torch's launchers would say to this task of `srun`; nothing where it is the only one.

    The tasks meet on the first machine of the step, at a port that no other step of that time has (srun(1), OUTPUT
    ENVIRONMENT VARIABLES).
    """
    if tasks_of_srun() == 1:
        return {}
    ranks = {ours: os.environ[theirs] for ours, theirs in SLURM_NAMES.items() if theirs in os.environ}
    node = read_number("SLURM_NODEID", 0)
    tasks = expand_counts(os.environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
    if node < len(tasks):
        ranks |= {"GROUP_RANK": str(node), "LOCAL_WORLD_SIZE": str(tasks[node])}
    nodes = os.environ.get("SLURM_STEP_NODELIST", "")
    if nodes:
        number = _STEPS * read_number("SLURM_JOB_ID", 0) + read_number("SLURM_STEP_ID", 0)
        ranks |= {"MASTER_ADDR": find_first_host(nodes), "MASTER_PORT": str(_FIRST_PORT + number % _PORTS)}
    return ranks


def cores_of_srun(processes_here: int) -> int:
    """The cores that a job of SLURM has on this machine, where each of so many processes is a task; 0 elsewhere."""
    is_task = ranks_of_srun().get("LOCAL_WORLD_SIZE") == str(processes_here)
    return read_number("SLURM_CPUS_ON_NODE", 0) if is_task else 0


def expand_counts(text: str) -> list[int]:
    """SLURM's counts for each machine, in order: "2(x3),1" is [2, 2, 2, 1]; [] for what is none."""
    found = [re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part, re.ASCII) for part in text.split(",")]
    return [int(part[1]) for part in found if part for _ in range(int(part[2] or 1))] if all(found) else []


def find_first_host(nodes: str) -> str:
    """The first name of SLURM's list of machines: "n[08-11,15],m1" begins with n08."""
    return re.sub(r"\[([^],-]*)[^]]*\]", r"\1", nodes).partition(",")[0]
