from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from alexnet_dist.base.errors import MachineError
from alexnet_dist.base.ranks import rank_from_environment, world_size_from_environment
from alexnet_dist.cli import main as cli
from alexnet_dist.cli.launch import SUPERVISOR
from alexnet_dist.parallel.processes import guard as launch_guard
from alexnet_dist.parallel.processes.guard import (
    ORPHAN_EXIT_CODE,
    check_process_count,
    find_requests,
    is_elastic,
    was_launched,
)

LAUNCH = "/usr/bin/python3 /venv/bin/accelerate launch"
ALONE = "/usr/bin/python3 /venv/bin/accelerate-launch"


def split(*commands: str) -> list[list[str]]:
    """The words of command lines above this process, the nearest first."""
    return [command.split() for command in commands]


def requested(*commands: str) -> int:
    return max(count for count, _, _ in find_requests(split(*commands)))


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (f"{LAUNCH} --cpu --num_processes 2 launch/train.py --config smoke", 2),
        (f"{LAUNCH} --num_processes=4 launch/train.py", 4),
        (f"{LAUNCH} --num-processes 3 launch/train.py", 3),
        (f"{ALONE} --cpu --num-processes=3 --module alexnet_dist train", 3),
        ("python -m accelerate.commands.launch --num_processes 2 launch/train.py", 2),
        ("python -m accelerate.commands.accelerate_cli launch --num_processes 2 launch/train.py", 2),
        (f"python -m {SUPERVISOR} accelerate.commands.launch --cpu --num_processes 2 --module alexnet_dist train", 2),
        (f"{LAUNCH} launch/train.py --config smoke", 1),
        (f"{LAUNCH} launch/train.py --num_processes 9", 1),  # the script's own words are not the launcher's
        (f"{LAUNCH} --num_processes many launch/train.py", 1),
        (f"{LAUNCH} --num_processes", 1),
        ("bash -c launch/train.py --num_processes 2", 1),
        ("python launch/launch.py --num_processes 2 launch/train.py", 1),
        ("", 1),
    ],
)
def test_request_is_read_from_the_launchers_words(command: str, expected: int) -> None:
    assert requested(command) == expected
    assert requested("bash wrapper.sh", command, "zsh") == expected


@pytest.mark.parametrize("option", ["--config_file {}", "--config-file {}", "--config_file={}", "--config-file={}"])
@pytest.mark.parametrize(
    ("text", "expected"), [(None, 1), ("num_processes: 1", 1), ("num_processes: 2", 2), ("num_processes: 'two'", 1)]
)
def test_request_is_read_from_the_launchers_file(tmp_path: Path, option: str, text: str | None, expected: int) -> None:
    file = tmp_path / "cpu.yaml"
    if text is not None:
        file.write_text(ACCELERATE_CONFIG.format(text))
    assert requested(f"{LAUNCH} {option.format(file)} launch/train.py") == expected


@pytest.mark.parametrize(("words", "expected"), [("", 3), ("--cpu", 1), ("--num_processes 1", 1)])
def test_request_is_read_from_the_file_that_accelerate_config_wrote(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: str, expected: int
) -> None:
    from accelerate.commands.config import config_args

    file = tmp_path / "default_config.yaml"
    file.write_text(ACCELERATE_CONFIG.format("num_processes: 3"))
    monkeypatch.setattr(config_args, "default_config_file", str(file))
    assert requested(f"{LAUNCH} {words} launch/train.py") == expected


ACCELERATE_CONFIG = """compute_environment: LOCAL_MACHINE
distributed_type: MULTI_CPU
machine_rank: 0
mixed_precision: 'no'
num_machines: 1
{}
use_cpu: true
"""


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ("PET_NNODES=2", 2),
        ("PET_NPROC_PER_NODE=4", 4),
        ("PET_NNODES=2 PET_NPROC_PER_NODE=4", 8),
        ("PET_NNODES=2 PET_NPROC_PER_NODE=auto", 2),
        ("PET_NNODES=2:4", 2),
        ("PET_NNODES=1:4 PET_NPROC_PER_NODE=gpu", 1),
        ("SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=2", 2),
        ("SLURM_PROCID=0 SLURM_NTASKS=2", 1),  # a batch script's own shell
        ("SLURM_NTASKS=2 SLURM_JOB_ID=7 SLURM_JOB_NUM_NODES=2", 1),  # a shell or a notebook inside a reservation
        ("SLURM_PROCID=0 SLURM_JOB_NUM_NODES=2", 2),  # a batch script that starts the program on its first node
        (
            "SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=1 SLURM_JOB_NUM_NODES=2",
            1,
        ),  # one of several steps, or a shell of salloc
        ("PET_NODE_RANK=0", 1),
        ("PET_NODE_RANK=1", 2),
        ("GROUP_RANK=1", 2),
        ("GROUP_WORLD_SIZE=2", 2),
        ("LOCAL_WORLD_SIZE=2", 2),
        ("OMPI_COMM_WORLD_SIZE=2", 2),  # under each of which torchrun has started a world of one
        ("PMI_SIZE=3", 3),
    ],
)
def test_requests_of_the_environment(monkeypatch: pytest.MonkeyPatch, variables: str, expected: int) -> None:
    for pair in variables.split():
        monkeypatch.setenv(*pair.split("="))
    assert requested() == expected


@pytest.mark.parametrize(
    ("variables", "command", "expected"),
    [
        ("", "", False),
        ("PET_NNODES=1:4", "", True),
        ("PET_NNODES=2", "", False),
        ("PET_NNODES=2:2", "", False),
        ("", "python /venv/bin/torchrun --nnodes=1:4 --nproc_per_node 2 launch/train.py", True),
        ("", "python -m torch.distributed.run --nnodes 2:3 launch/train.py", True),
        ("", f"python -m {SUPERVISOR} torch.distributed.run --nnodes 1:2 --module alexnet_dist train", True),
        ("", "python /venv/bin/torchrun --nnodes 2 launch/train.py", False),
        ("", "bash run.sh --nnodes 1:4", False),
    ],
)
def test_machines_that_may_come_and_go_are_told_in_a_range(
    monkeypatch: pytest.MonkeyPatch, variables: str, command: str, expected: bool
) -> None:
    for pair in variables.split():
        monkeypatch.setenv(*pair.split("="))
    assert is_elastic(split(command, "zsh")) == expected


@pytest.mark.parametrize(("each", "expected"), [("auto", 8), ("gpu", 8), ("cpu", 2)])
def test_a_process_for_each_gpu_is_a_request(monkeypatch: pytest.MonkeyPatch, each: str, expected: int) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("PET_NNODES", "2")
    monkeypatch.setenv("PET_NPROC_PER_NODE", each)
    assert requested() == expected


def test_ancestors_are_the_processes_above_the_nearest_first() -> None:
    above = [process.cmdline() for process in psutil.Process().parents()]
    assert list(launch_guard.list_ancestors()) == above[: launch_guard.GENERATIONS]
    assert above[0] == psutil.Process(os.getppid()).cmdline()


# -- counts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("requested", ["2", "3"])
def test_one_process_instead_of_several_is_refused(requested: str) -> None:
    commands = split(f"{LAUNCH} --cpu --num_processes {requested} launch/train.py")
    with pytest.raises(
        MachineError, match=f"started 1 process instead of {requested} .*--multi_gpu --num_processes {requested}"
    ):
        check_process_count(1, commands)


def test_strangers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    commands = split(f"{LAUNCH} --num_processes 2 launch/train.py")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(MachineError, match="2 processes that do not know each other"):
        check_process_count(1, commands)


@pytest.mark.parametrize(("world_size", "joined"), [(None, 1), ("1", 1), ("2", 2)])
def test_what_was_asked_for_is_fine(monkeypatch: pytest.MonkeyPatch, world_size: str | None, joined: int) -> None:
    commands = split(f"{LAUNCH} --num_processes {joined} launch/train.py")
    if world_size is not None:
        monkeypatch.setenv("WORLD_SIZE", world_size)
    check_process_count(joined, commands)


def test_too_few_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("PET_NNODES", "2")
    monkeypatch.setenv("PET_NPROC_PER_NODE", "2")
    with pytest.raises(MachineError, match=r"started 2 processes instead of 4 .*start with alexnet-dist launch train"):
        check_process_count(2, [])


def test_a_reservation_is_named_and_not_refused(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    logger = logging.getLogger("alexnet_dist")
    monkeypatch.setattr(logger, "propagate", True)
    monkeypatch.setenv("SLURM_NTASKS", "2")
    check_process_count(1, [])
    assert caplog.records == []  # a login shell
    monkeypatch.setenv("SLURM_PROCID", "0")
    check_process_count(1, [])
    said = {record.getMessage() for record in caplog.records}
    assert said == {"SLURM reserved 2 tasks, and this run has 1; see launch/slurm/train.sbatch"}


# -- being launched -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["ACCELERATE_MIXED_PRECISION", "ACCELERATE_DYNAMO_MODE"], True),
        (["TORCHELASTIC_RUN_ID"], True),
        (["ACCELERATE_MIXED_PRECISION"], False),  # exported for good: a run in the background outlives its shell
    ],
)
def test_launchers_are_recognized(monkeypatch: pytest.MonkeyPatch, names: list[str], expected: bool) -> None:
    assert not was_launched()
    [monkeypatch.setenv(name, "no") for name in names]
    assert was_launched() == expected


def test_ranks_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (rank_from_environment(), world_size_from_environment()) == (0, 1)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert (rank_from_environment(), world_size_from_environment()) == (1, 2)


@pytest.mark.parametrize(
    ("rank", "launched", "waits"), [("0", True, []), ("1", True, [cli.SPEAK_SECONDS]), ("1", False, [])]
)
def test_rank_0_has_time_to_speak_before_a_launcher_ends_it(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    rank: str,
    launched: bool,
    waits: list[float],
) -> None:
    monkeypatch.setattr(cli, "was_launched", lambda: launched)
    monkeypatch.setattr(cli, "end_with_parent", lambda: None)
    slept: list[float] = []
    monkeypatch.setattr(cli, "time", SimpleNamespace(sleep=slept.append))  # threads of other tests may sleep, too
    monkeypatch.setenv("RANK", rank)
    assert cli.run("summary", ["--model.variant", "none"]) == 2
    assert slept == waits
    assert capsys.readouterr().err.startswith("error: ") == (rank == "0")


ORPHAN = """
import ctypes, os, time
from alexnet_dist.parallel.processes.guard import end_with_parent

ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: an orphan becomes a child of this process, which sees its end
reader, writer = os.pipe()
parent = os.fork()
if parent == 0:
    if os.fork():
        os.read(reader, 1)
        os._exit(0)  # the parent dies; its child must follow
    {guard}
    os.write(writer, b"x")
    time.sleep({seconds})
    os._exit(7)
os.waitpid(parent, 0)
print(os.waitstatus_to_exitcode(os.waitpid(-1, 0)[1]))
"""


@pytest.mark.heavy
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process adopt orphans")
@pytest.mark.parametrize(("guard", "seconds", "code"), [("end_with_parent()", 30, ORPHAN_EXIT_CODE), ("", 1, 7)])
def test_process_ends_with_its_parent(guard: str, seconds: int, code: int) -> None:
    program = ORPHAN.replace("{guard}", guard).replace("{seconds}", str(seconds))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == (f"{code}\n", "")


def test_a_rank_that_lets_the_first_one_speak_is_ended_in_silence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def end(seconds: float) -> None:
        raise KeyboardInterrupt  # the launcher's SIGTERM, as the handler makes it

    monkeypatch.setattr(cli.time, "sleep", end)
    monkeypatch.setattr(cli, "was_launched", lambda: True)
    monkeypatch.setenv("RANK", "1")
    assert cli._say(MachineError("what")) == 5
    assert capsys.readouterr().err == ""
