"""The environment never changes the arithmetic, and what is malformed ends the start at once."""

from __future__ import annotations

import os
import unittest.mock
from collections.abc import Iterator
from pathlib import Path

import pytest
from accelerate import Accelerator
from helpers.tiny import tiny_config
from helpers.verbs import call

from alexnet_dist.base.errors import MachineError
from alexnet_dist.base.ranks import is_first_here
from alexnet_dist.cli.main import run
from alexnet_dist.cli.train import train
from alexnet_dist.parallel.processes.environment import REFUSED, check_environment, is_cpu_wanted
from alexnet_dist.parallel.runtime import build_accelerator, start_runtime

MEETING = "MASTER_ADDR=127.0.0.1 MASTER_PORT=29500"
OPEN_MPI = "OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_LOCAL_RANK=1 OMPI_COMM_WORLD_LOCAL_SIZE=2"
SRUN = (
    "SLURM_PROCID=3 SLURM_STEP_NUM_TASKS=4 SLURM_LOCALID=1 SLURM_NODEID=1 SLURM_STEP_TASKS_PER_NODE=2(x2) "
    "SLURM_STEP_NODELIST=n[1-2] SLURM_JOB_ID=7 SLURM_STEP_ID=0"
)


@pytest.fixture(autouse=True)
def _adopted_ranks_are_given_up() -> Iterator[None]:
    with unittest.mock.patch.dict(os.environ):
        yield


def set_variables(monkeypatch: pytest.MonkeyPatch, variables: str) -> None:
    for pair in variables.split():
        monkeypatch.setenv(*pair.split("="))


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ("RANK=", "RANK is ''"),
        ("RANK=0 WORLD_SIZE=x", "WORLD_SIZE is 'x'"),
        ("RANK=-1 WORLD_SIZE=1", "RANK is '-1'"),
        ("RANK=0 WORLD_SIZE=0", "WORLD_SIZE is '0'.*from 1"),
        ("LOCAL_WORLD_SIZE=0", "LOCAL_WORLD_SIZE is '0'"),
        ("LOCAL_RANK=\u0662", "LOCAL_RANK"),  # a digit that int() takes
        ("MASTER_PORT=abc", "MASTER_PORT is 'abc'"),
        ("MASTER_PORT=70000", "MASTER_PORT is '70000'.*65535"),
        ("TORCHELASTIC_RESTART_COUNT=x", "TORCHELASTIC_RESTART_COUNT is 'x'"),
        ("RANK=0", "RANK set, WORLD_SIZE not"),
        ("WORLD_SIZE=2", "WORLD_SIZE set, RANK, MASTER_ADDR, MASTER_PORT not"),
        ("LOCAL_RANK=0", "LOCAL_RANK set, RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT not"),
        ("RANK=0 WORLD_SIZE=2 LOCAL_RANK=0", "MASTER_ADDR, MASTER_PORT not"),
        ("RANK=0 WORLD_SIZE=2 LOCAL_RANK=0 MASTER_PORT=1 MASTER_ADDR=", "MASTER_ADDR not"),
        (f"RANK=2 WORLD_SIZE=2 {MEETING}", "RANK is 2 and WORLD_SIZE is 2.*at most 1"),
        (f"RANK=1 WORLD_SIZE=2 LOCAL_RANK=1 LOCAL_WORLD_SIZE=1 {MEETING}", "LOCAL_RANK is 1 and LOCAL_WORLD_SIZE is 1"),
        (f"RANK=0 WORLD_SIZE=2 LOCAL_WORLD_SIZE=3 {MEETING}", "LOCAL_WORLD_SIZE is 3 and WORLD_SIZE is 2"),
        ("SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=two", "SLURM_STEP_NUM_TASKS is 'two'"),
        ("SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=2", "RANK, WORLD_SIZE set, MASTER_ADDR, MASTER_PORT not"),
        ("OMPI_COMM_WORLD_SIZE=two", "OMPI_COMM_WORLD_SIZE is 'two'"),
        (OPEN_MPI, "1 process of 2 .*MASTER_ADDR, MASTER_PORT not set; start with accelerate launch"),
        ("PMI_SIZE=2 PMI_RANK=0", "1 process of 2"),
        ("MV2_COMM_WORLD_SIZE=2", "1 process of 2 .*MV2_COMM_WORLD_RANK, MASTER_ADDR"),
        ("ACCELERATE_USE_CPU=perhaps", "expected yes or no"),
        ("USE_TORCH_XLA=", "USE_TORCH_XLA is ''"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS=4", "STEPS is 4 .*train.micro_batch_size"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS=", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS is "),
        ("ACCELERATE_USE_DEEPSPEED=true", "ACCELERATE_USE_DEEPSPEED is true"),
        ("ACCELERATE_USE_FSDP=True", "ACCELERATE_USE_FSDP is True"),
        ("ACCELERATE_DYNAMO_BACKEND=INDUCTOR", "--compile true"),
        ("ACCELERATE_TORCH_DEVICE=meta", "--device"),
        ("ACCELERATE_TORCH_DEVICE=", "--device"),
        ("ONEDNN_DEFAULT_FPMATH_MODE=BF16", "--precision"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, variables: str, words: str) -> None:
    set_variables(monkeypatch, variables)
    with pytest.raises(MachineError, match=words) as error:
        check_environment()
    assert len(str(error.value)) <= 200


@pytest.mark.parametrize("variables", [f"RANK=1 WORLD_SIZE=1 {MEETING}", "RANK=1"])
def test_a_rank_without_a_first_one_speaks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], variables: str
) -> None:
    set_variables(monkeypatch, variables)
    assert run("train", ["--config", "smoke"]) == 5
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert "RANK" in line


@pytest.mark.parametrize(
    "variables",
    [
        "",
        "RANK=0 WORLD_SIZE=1",
        f"RANK=1 WORLD_SIZE=2 LOCAL_RANK=1 LOCAL_WORLD_SIZE=2 {MEETING} TORCHELASTIC_RESTART_COUNT=0",
        "MASTER_ADDR=10.0.0.1 MASTER_PORT=29500",  # exported for good; one process meets nobody
        "OMPI_COMM_WORLD_SIZE=1 OMPI_COMM_WORLD_RANK=0",
        "SLURM_NTASKS=2 SLURM_PROCID=0",
        f"RANK=0 WORLD_SIZE=1 LOCAL_RANK=0 LOCAL_WORLD_SIZE=1 NODE_RANK=0 ACCELERATE_TORCH_DEVICE=cpu {MEETING}",  # Ray
        "ACCELERATE_USE_CPU=on ACCELERATE_USE_FSDP=false ACCELERATE_DYNAMO_BACKEND=NO ACCELERATE_FP8_BACKEND=NO",
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS=1 FSDP_OFFLOAD_PARAMS=true PARALLELISM_CONFIG_TP_SIZE=2",
    ],
)
def test_whole_and_harmless_environments_are_fine(monkeypatch: pytest.MonkeyPatch, variables: str) -> None:
    set_variables(monkeypatch, variables)
    check_environment()


NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GROUP_RANK")


@pytest.mark.parametrize(
    ("variables", "found"),
    [
        (f"{OPEN_MPI} {MEETING}", "1 2 1 2 127.0.0.1 29500"),
        (f"PMI_SIZE=4 PMI_RANK=2 MPI_LOCALRANKID=0 MPI_LOCALNRANKS=2 {MEETING}", "2 4 0 2 127.0.0.1 29500"),
        (f"MV2_COMM_WORLD_SIZE=2 MV2_COMM_WORLD_RANK=0 {MEETING}", "0 2 0 1 127.0.0.1 29500"),
        (SRUN, "3 4 1 2 n1 10217 1"),
        (f"{SRUN} PMI_RANK=3 PMI_SIZE=4", "3 4 1 2 n1 10217 1"),  # srun --mpi=pmi2
        (f"{SRUN} MASTER_ADDR=10.0.0.1 LOCAL_RANK=0", "3 4 1 2 10.0.0.1 10217 1"),
        (f"{SRUN} {OPEN_MPI} {MEETING}", "1 2 1 2 127.0.0.1 29500"),  # srun started mpirun's daemons
        (f"{SRUN} RANK=0 WORLD_SIZE=1 {MEETING}", "0 1 - - 127.0.0.1 29500"),  # a launcher in a task
    ],
)
def test_ranks_of_srun_and_of_an_mpi_are_honored_where_the_processes_can_meet(
    monkeypatch: pytest.MonkeyPatch, variables: str, found: str
) -> None:
    set_variables(monkeypatch, variables)
    check_environment()
    assert " ".join(os.environ.get(name, "-") for name in NAMES).removesuffix(" -") == found


def test_one_rule_says_what_the_cpu_variable_means(monkeypatch: pytest.MonkeyPatch) -> None:
    for text, wanted in (("1", True), ("Yes", True), ("true", True), ("0", False), ("False", False)):
        monkeypatch.setenv("ACCELERATE_USE_CPU", text)
        assert is_cpu_wanted() == wanted
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "cpu")
    assert is_cpu_wanted()
    monkeypatch.delenv("ACCELERATE_TORCH_DEVICE")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    with pytest.raises(MachineError, match=r"device is cuda and .*ACCELERATE_USE_CPU"):
        start_runtime("cuda", "fp32")


@pytest.mark.parametrize(
    ("variables", "without", "expected"),
    [
        ("", -1, True),
        ("RANK=1 LOCAL_RANK=1", -1, False),
        ("RANK=1 LOCAL_RANK=1", 0, True),
        ("RANK=2 LOCAL_RANK=0", 0, True),
    ],
)
def test_who_speaks_on_a_machine(monkeypatch: pytest.MonkeyPatch, variables: str, without: int, expected: bool) -> None:
    set_variables(monkeypatch, variables)
    assert is_first_here(without) == expected


def test_gradients_are_what_the_settings_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where the refusal is forgotten; Accelerate left to itself divides by the variable."""
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    assert build_accelerator(True, "fp32").gradient_accumulation_steps == 1
    assert Accelerator(cpu=True).gradient_accumulation_steps == 4


def test_an_accelerator_of_another_kind_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "meta")
    with pytest.raises(MachineError, match="Accelerate chose NO on meta"):
        build_accelerator(True, "fp32")


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_each_refused_variable_is_named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "surely")
    with pytest.raises(MachineError, match=rf"^{name} is surely \(environment\)"):
        check_environment()


@pytest.mark.heavy
def test_a_run_is_refused_and_not_begun(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in REFUSED:
        monkeypatch.setenv(name, "surely")
    code, errors, _ = call("summary")
    assert code == 0  # it joins nobody and computes nothing
    code, errors, _ = call("train", "--config", "smoke", "--output_dir", tmp_path / "run")
    assert (code, len(errors)) == (5, 1)
    assert " is surely (environment)" in errors[0]
    assert not (tmp_path / "run").exists()


def test_python_users_are_held_to_it_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    with pytest.raises(MachineError, match="ACCELERATE_GRADIENT_ACCUMULATION_STEPS"):
        train(tiny_config(tmp_path / "run"))
