"""The launchers people use: what they start, what they leave behind, what they say."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest
import torch
from helpers.dist_helper import wait_for_step
from helpers.tiny import tiny_config
from helpers.verbs import NOTHING_DRAWN
from helpers.waiting import is_alive, wait_until
from safetensors.torch import load_file

from alexnet_dist.settings.reader import dump_config

ROOT = Path(__file__).resolve().parents[2]
TRAIN = str(ROOT / "launch" / "train.py")
TWO_PROCESSES = ("--multi_gpu", "--num_processes", "2")


def launch(words: Sequence[str], use_cpu: bool = True) -> subprocess.Popen[str]:
    """Start `accelerate launch WORDS` in a process group of its own."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    if not use_cpu:
        environment.pop("ACCELERATE_USE_CPU")
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )


def write_config(folder: Path, **overrides: object) -> tuple[Path, Path]:
    """A tiny run's settings as a file, and its run folder."""
    run = folder / "run"
    path = folder / "tiny.yaml"
    path.write_text(dump_config(tiny_config(run, data__workers=1, **overrides)))
    return path, run


@pytest.mark.slow
def test_a_killed_launcher_takes_its_workers_along_and_the_run_goes_on(tmp_path: Path) -> None:
    config, run = write_config(tmp_path, train__epochs=40)
    words = [*TWO_PROCESSES, TRAIN, "--config", str(config)]
    process = launch(words)
    wait_for_step(run, 6, process)
    workers = psutil.Process(process.pid).children(recursive=True)
    assert len(workers) >= 6  # two that train, with a server and a decoder each
    os.kill(process.pid, signal.SIGKILL)
    wait_until(lambda: not any(map(is_alive, workers)), seconds=5)
    process.communicate(timeout=5)  # ends once nobody holds its pipes: no process is left that was not listed

    again = launch([*words, "--train.epochs", "5"])
    _, stderr = again.communicate(timeout=120)
    assert again.returncode == 0, stderr
    starts = json.loads((run / "run.json").read_text())["starts"]
    assert starts[-1]["step"] > 0
    assert starts[-1]["processes"] == 2

    undisturbed = launch([*words, "--train.epochs", "5", "--output_dir", str(tmp_path / "undisturbed")])
    assert undisturbed.wait(timeout=120) == 0
    name = "checkpoints/step-00000020/weights.safetensors"
    ours, theirs = load_file(run / name), load_file(tmp_path / "undisturbed" / name)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path: Path) -> None:
    config, run = write_config(tmp_path, train__epochs=1000, checkpoint__every_steps=100000)
    process = subprocess.Popen(
        [sys.executable, TRAIN, "--config", str(config)], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    wait_for_step(run, 4, process)
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130, stderr
    summary = json.loads((run / "summary.json").read_text())
    saved = f"Saved at step {summary['step']}."
    assert stderr.splitlines()[-1] == f"Stopped. {saved} Run the same command again to continue."
    assert not {"Traceback", "error"} & {word.strip(":") for word in stderr.split()}
    assert summary["status"] == "interrupted"


@pytest.mark.parametrize(
    ("words", "use_cpu", "line"),
    [
        pytest.param(
            ["--cpu", "--num_processes", "2"],
            True,
            "error: the launcher started 1 process instead of 2",
            id="one process",
        ),
        pytest.param(
            list(TWO_PROCESSES),
            False,
            "error: the launcher started 2 processes that do not know each other",
            id="strangers",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            [*TWO_PROCESSES, "--mixed_precision", "bf16"],
            True,
            "error: the launcher's --mixed_precision bf16",
            id="precision",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_launcher_that_gives_something_else_is_refused(
    tmp_path: Path, words: list[str], use_cpu: bool, line: str
) -> None:
    if torch.cuda.is_available() and not use_cpu:
        pytest.skip("with GPUs the processes do find each other")
    config, run = write_config(tmp_path)
    process = launch([*words, TRAIN, "--config", str(config), "--precision", "fp32"], use_cpu)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode != 0
    ours = [text for text in stderr.splitlines() if text.startswith("error: ")]
    assert len(ours) == 1
    assert ours[0].startswith(line)
    assert not run.exists()


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "hybrid"])
def test_smoke_reaches_what_it_promises_on_two_processes(tmp_path: Path, strategy: str) -> None:
    words = ["--config", "smoke", "--parallel.strategy", strategy, *NOTHING_DRAWN, "--data.workers", "0"]
    process = launch([*TWO_PROCESSES, TRAIN, *words, "--output_dir", str(tmp_path / "run")])
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["best_top1"] > 0.5  # chance is 0.25
