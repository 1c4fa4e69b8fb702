"""What SLURM tells a task of srun, in the words of torch's launchers."""

from __future__ import annotations

import pytest

from alexnet_dist.base import machine
from alexnet_dist.base.ranks import expand_counts, find_first_host, ranks_of_srun, tasks_of_srun

# Of the third of four tasks on two nodes, as SLURM 22.05 sets them.
TASK = {
    "SLURM_PROCID": "2",
    "SLURM_STEP_NUM_TASKS": "3",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "2,1",
    "SLURM_STEP_NODELIST": "n[1-2]",
    "SLURM_JOB_ID": "700",
    "SLURM_STEP_ID": "3",
}


def enter(patch: pytest.MonkeyPatch, **changes: str | None) -> None:
    for name, value in (TASK | changes).items():
        if value is not None:
            patch.setenv(name, value)


def test_a_task_of_srun_is_one_process_of_several(monkeypatch: pytest.MonkeyPatch) -> None:
    enter(monkeypatch)
    place = {"RANK": "2", "WORLD_SIZE": "3", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "GROUP_RANK": "1"}
    assert ranks_of_srun() == place | {"MASTER_ADDR": "n1", "MASTER_PORT": str(10000 + (31 * 700 + 3) % 20000)}


@pytest.mark.parametrize(
    "changes",
    [
        {"SLURM_STEP_NUM_TASKS": "1"},  # srun --pty bash, and the shell of salloc
        {"SLURM_STEP_NUM_TASKS": None, "SLURM_NTASKS": "4"},  # a batch script's own shell
        {"SLURM_PROCID": None},
    ],
)
def test_what_runs_beside_srun_is_alone(monkeypatch: pytest.MonkeyPatch, changes: dict[str, str | None]) -> None:
    enter(monkeypatch, **changes)
    assert (tasks_of_srun(), ranks_of_srun()) == (1, {})


@pytest.mark.parametrize(
    ("text", "counts"),
    [("4", [4]), ("2(x3),1", [2, 2, 2, 1]), ("1,2(x2)", [1, 2, 2]), ("", []), ("2(x", []), ("2,two", [])],
)
def test_counts_are_written_out(text: str, counts: list[int]) -> None:
    assert expand_counts(text) == counts


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("n1", "n1"),
        ("n1,n2", "n1"),
        ("n[1-2]", "n1"),
        ("gpu-[08-11,15],m1", "gpu-08"),
        ("gpu[3,5]", "gpu3"),
        ("rack[2-3]node[07-09].site.org", "rack2node07.site.org"),  # each combination of the two
    ],
)
def test_the_first_machine_is_read_from_slurms_list(nodes: str, first: str) -> None:
    assert find_first_host(nodes) == first


@pytest.mark.parametrize(
    ("changes", "cores", "share"),
    [
        ({"SLURM_PROCID": None}, 16, 8),
        ({}, 16, 8),  # not bound
        ({}, 8, 8),  # bound
        ({"SLURM_STEP_TASKS_PER_NODE": "1(x2)"}, 8, 4),  # a launcher's processes, of which the launcher is bound
    ],
)
def test_a_task_that_is_bound_has_its_cores_for_itself(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, str | None], cores: int, share: int
) -> None:
    two_of_four = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_TASKS_PER_NODE": "2(x2)", "SLURM_CPUS_ON_NODE": "16"}
    enter(monkeypatch, **(two_of_four | changes))
    monkeypatch.setattr(machine, "available_cores", lambda: cores)
    assert machine.share_of_cores(2) == share
