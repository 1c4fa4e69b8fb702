"""`alexnet-dist launch`: what goes to accelerate and what to the verb."""

from __future__ import annotations

from pathlib import Path

import pytest

from alexnet_dist.cli.launch import ACCELERATE, SUPERVISOR, TORCH, build_command, find_launch_file
from alexnet_dist.cli.main import run

ROOT = Path(__file__).resolve().parents[2]


ALL_GPUS = str(ROOT / "launch" / "accelerate" / "all_gpus.yaml")
VERB = ["--module", "alexnet_dist", "train", "--config", "smoke", "--nnodes", "9"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["all_gpus", "--num_processes", "4"], [ACCELERATE, "--config_file", ALL_GPUS, "--num_processes", "4"]),
        (["accelerate", "--multi_gpu"], [ACCELERATE, "--multi_gpu"]),
        (["torchrun", "--nnodes", "2"], [TORCH, "--nnodes", "2"]),
        (["--nnodes", "1:4"], [TORCH, "--nnodes", "1:4"]),
        ([], [TORCH]),
    ],
)
def test_words_before_the_verb_go_to_the_launcher(words: list[str], expected: list[str]) -> None:
    assert build_command([*words, *VERB[2:]]) == ["-m", SUPERVISOR, *expected, *VERB]


@pytest.mark.parametrize("name", ["one_gpu", "one_gpu.yaml", str(ROOT / "launch" / "accelerate" / "one_gpu.yaml")])
def test_a_launch_file_is_found_by_path_or_name(name: str) -> None:
    assert find_launch_file(name).samefile(ROOT / "launch" / "accelerate" / "one_gpu.yaml")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["all_gpu", "train"], "error: no launch file 'all_gpu': neither a file nor a name that we ship; did you mean"),
        (["all_gpus", "--num_processes", "2"], "error: no verb to launch (command line); give one of train, evaluate"),
        (["torchrn", "train"], "error: no launch file 'torchrn'"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("launch", words) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(message)
    assert printed.err.count("\n") == 1


def test_help_names_the_launch_files(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("launch", ["--help"]) == 0
    printed = capsys.readouterr().out
    for path in (ROOT / "launch" / "accelerate").glob("*.yaml"):
        assert path.stem in printed
