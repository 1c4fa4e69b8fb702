"""launch/slurm/train.sbatch on a SLURM cluster of two nodes, and tasks of srun without it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers.one_run import list_starts, take_digest, write_settings
from helpers.slurm import Cluster, find_obstacle, start_cluster

LAUNCHERS = ()  # two nodes with a launcher each, as the script has it
TASKS = ("--nodes=1", "--ntasks-per-node=2")  # two tasks that train, and no launcher


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    obstacle = find_obstacle()
    if obstacle is not None:
        pytest.skip(obstacle)
    with start_cluster() as running:
        yield running


def test_tasks_of_srun_train_together_without_a_launcher(cluster: Cluster, undisturbed: str, tmp_path: Path) -> None:
    words = write_settings(tmp_path / "run")
    done = cluster.run("srun", "--nodes=2", "--ntasks=2", "python", "-m", "alexnet_dist", "train", *words)
    assert done.returncode == 0, done.stderr
    assert "2 x cpu (ddp)" in done.stderr
    assert take_digest(tmp_path / "run") == undisturbed


DISTURBANCES: dict[str, tuple[tuple[str, ...], Callable[[Cluster, str], object], str]] = {
    "SIGTERM": (
        LAUNCHERS,
        lambda cluster, job: cluster.run("scancel", "--signal=TERM", job),
        "Stopped by SIGTERM. Saved",
    ),
    "a task is killed": (TASKS, lambda cluster, job: cluster.kill_task(1), "error: lost contact with rank 1 on n1"),
    "a node loses power": (LAUNCHERS, lambda cluster, job: cluster.cut_power("n2"), "DUE TO NODE FAILURE"),
}


@pytest.mark.parametrize("what", DISTURBANCES)
def test_a_disturbed_job_has_another_turn_and_ends_with_the_same_bits(
    cluster: Cluster, undisturbed: str, tmp_path: Path, what: str
) -> None:
    options, disturb, said = DISTURBANCES[what]
    folder, log = tmp_path / "run", tmp_path / "log"
    job = cluster.submit(*options, "--", *write_settings(folder), log=log)
    cluster.wait_for_step(job, folder, 6, log)
    disturb(cluster, job)
    record = cluster.wait(job, log)
    assert (record["JobState"], record["ExitCode"], record["Restarts"]) == ("COMPLETED", "0:0", "1"), log.read_text()
    assert said in log.read_text()
    first, second = list_starts(folder)
    assert first == 0 < second
    assert take_digest(folder) == undisturbed


def test_a_job_whose_time_is_over_has_another_turn_and_scancel_ends_it(cluster: Cluster, tmp_path: Path) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    only_when_stopped = ["--checkpoint.every_steps", "1000000"]
    job = cluster.submit(*TASKS, "--", *write_settings(folder, epochs=100_000), *only_when_stopped, log=log)
    cluster.wait_for_step(job, folder, 6, log)
    cluster.leave_minutes(job, 2)  # the script asks for SIGTERM two minutes before; SLURM looks every 30 seconds
    cluster.wait_for_turn(job, 1, log)
    saved = newest_step(folder)  # it waits some seconds for its next turn
    assert f"Stopped by SIGTERM. Saved at step {saved}." in log.read_text()
    cluster.leave_minutes(job, 60)
    cluster.wait_for_step(job, folder, saved + 2, log)
    assert cluster.run("scancel", job).returncode == 0
    record = cluster.wait(job, log)
    assert (record["JobState"], record["Restarts"]) == ("CANCELLED", "1")
    assert newest_step(folder) > saved


def newest_step(folder: Path) -> int:
    return max(int(path.name.removeprefix("step-")) for path in (folder / "checkpoints").glob("step-*"))


@pytest.mark.parametrize(
    ("options", "words", "code", "line"),
    [
        (LAUNCHERS, ["--data.root", "/no/images"], 3, "error: data.root is missing (/no/images)"),
        (TASKS, ["--train.epocs", "2"], 2, "error: unknown option --train.epocs"),
    ],
    ids=["launchers", "tasks"],
)
def test_a_mistake_is_the_jobs_exit_code_and_is_not_repeated(
    cluster: Cluster, tmp_path: Path, options: tuple[str, ...], words: list[str], code: int, line: str
) -> None:
    log = tmp_path / "log"
    job = cluster.submit(*options, "--", "--config", "imagenet_subset", *words, log=log)
    record = cluster.wait(job, log)
    assert (record["JobState"], record["ExitCode"], record["Restarts"]) == ("FAILED", f"{code}:0", "0"), log.read_text()
    assert next(said for said in log.read_text().splitlines() if said.startswith("error: ")).startswith(line)


@pytest.mark.parametrize(
    ("end", "turns", "code"),
    [
        ("exit 3", 20, 3),  # srun itself ends with 143, the largest of all
        ("exit 7", 20, 7),
        ("exit 5", 1, 5),
        ("kill -9 $$", 0, 137),
        ("exit 143", 0, 143),
    ],
)
def test_the_job_ends_as_the_task_that_failed_first(
    cluster: Cluster, tmp_path: Path, end: str, turns: int, code: int
) -> None:
    """Of four tasks the third fails, and the others take the signal of srun for one to stop."""
    log, stand_in = tmp_path / "log", tmp_path / "python"
    stand_in.write_text(
        f"#!/usr/bin/env bash\n[ $SLURM_PROCID != 2 ] || {{ sleep 0.3; {end}; }}\n"
        "trap 'kill $!; exit 143' TERM\nsleep 60 & wait\n"
    )
    stand_in.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    job = cluster.submit("--ntasks-per-node=2", "--", log=log, PATH=path, TURNS=str(turns))
    record = cluster.wait(job, log)
    restarts = turns if code == 5 else 0
    assert (record["JobState"], record["ExitCode"]) == ("FAILED", f"{code}:0"), log.read_text()
    assert record["Restarts"] == str(restarts)
