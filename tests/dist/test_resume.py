"""A run that is killed, anywhere and several times, ends with the bits of one that was not."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.dist_helper import Group, run_processes, start_processes
from helpers.tiny import tiny_config
from safetensors.torch import load_file

from alexnet_dist.base import durable
from alexnet_dist.base.durable import is_marked
from alexnet_dist.cli.train import train
from alexnet_dist.inference.checkpoints import list_checkpoints
from alexnet_dist.runs import folder as run_folder
from alexnet_dist.runs import session
from alexnet_dist.tracking.trackers import read_rows
from alexnet_dist.training import state
from alexnet_dist.training.checkpoint import load_checkpoint, save_checkpoint

LAST_STEP = 20
SHORT = {"train__epochs": 2}


def train_tiny(folder: Path, overrides: dict[str, Any], defect: str | None = None) -> None:
    if defect is not None:
        DEFECTS[defect]()
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (a child of the test: its messages are not the test's)
    train(tiny_config(folder, **overrides))


def forget_momentum() -> None:
    state.load_optimizer_tensors = lambda *args, **words: None  # type: ignore[assignment]


def forget_step() -> None:
    restore = session.restore

    def restore_one_short(*args: Any) -> state.TrainState:
        restored = restore(*args)
        restored.step -= 1
        return restored

    session.restore = restore_one_short


def forget_dropout_seed() -> None:
    from alexnet_dist.parallel.runtime import Runtime

    Runtime.seed_dropout = lambda self, seed, step: None  # type: ignore[method-assign]


DEFECTS: dict[str, Callable[[], None]] = {
    "momentum": forget_momentum,
    "step": forget_step,
    "dropout": forget_dropout_seed,
}
OTHERS = [
    (2, "momentum"),
    (1, "step"),
    (2, "step"),
    (1, "dropout"),
]  # noticed, too: among the slow


def final_state(folder: Path) -> dict[str, torch.Tensor]:
    """Weights, optimizer state and best weights at the end of a run."""
    newest = list_checkpoints(folder / "checkpoints")[0]
    assert newest.name == f"step-{LAST_STEP:08d}"
    files = [newest / "weights.safetensors", newest / "optimizer.safetensors", folder / "model" / "model.safetensors"]
    return {f"{file.name}/{name}": tensor for file in files for name, tensor in load_file(file).items()}


def learning_curve(folder: Path) -> list[tuple[Any, ...]]:
    """What metrics.jsonl says of the training, without the times."""
    kept = ("event", "step", "epoch", "samples_seen", "loss", "top1", "lr", "train_loss", "val_top1", "num_examples")
    return [tuple(row.get(key) for key in kept) for row in read_rows(folder / "metrics.jsonl")]


def assert_same_run(folder: Path, reference: Path) -> None:
    ours, theirs = final_state(folder), final_state(reference)
    assert ours.keys() == theirs.keys()
    different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert different == []
    assert learning_curve(folder) == learning_curve(reference)


def resumed_steps(folder: Path) -> list[int]:
    return [start["step"] for start in json.loads((folder / "run.json").read_text())["starts"]]


@pytest.fixture(scope="module", params=[1, 2], ids=["one process", "two processes"])
def reference(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path]:
    """An undisturbed run, and its number of processes."""
    folder = tmp_path_factory.mktemp("reference") / "run"
    run_processes(request.param, train_tiny, folder, {})
    assert json.loads((folder / "summary.json").read_text())["status"] == "finished"
    return request.param, folder


@pytest.mark.parametrize("draw", [0, *(pytest.param(draw, marks=pytest.mark.slow) for draw in range(1, 6))])
def test_kills_at_random_moments_leave_no_trace(reference: tuple[int, Path], tmp_path: Path, draw: int) -> None:
    world_size, undisturbed = reference
    dice = random.Random(1000 * world_size + draw)
    folder, settings = tmp_path / "run", {"checkpoint__background": draw % 2 == 1}
    hits = 0
    for least in (4, 1, 1):  # at the first kill there is a checkpoint to go on from
        group = start_processes(world_size, train_tiny, folder, settings)
        wait_for_step(folder, group, dice.randrange(least, LAST_STEP - 2))
        time.sleep(dice.uniform(0, 0.15))
        ranks = range(world_size) if dice.random() < 0.5 else [dice.randrange(world_size)]
        group.kill(ranks)
        hits += -signal.SIGKILL in group.wait(seconds=30)
    assert hits > 0, "every kill came after the end of the run"
    run_processes(world_size, train_tiny, folder, settings)
    assert max(resumed_steps(folder)) > 0
    assert_same_run(folder, undisturbed)


def train_until_write(folder: Path, number: int, background: bool) -> None:
    """Train, and be killed when so many files and folders have been written, before the last one has its name."""
    count = itertools.count(1)

    def die_or(rename: Callable[[Path, Path], None]) -> Callable[[Path, Path], None]:
        def act(source: Path, target: Path) -> None:
            if is_marked(Path(source).name) and next(count) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            rename(source, target)

        return act

    os.replace, os.rename = die_or(os.replace), die_or(os.rename)  # type: ignore[assignment]  # in a child of the test
    train_tiny(folder, {"checkpoint__background": background, **SHORT})


def train_untidily(folder: Path) -> None:
    """A seeded defect."""
    for module in (durable, run_folder):
        module.tidy_folder = lambda *args, **keywords: None  # type: ignore[attr-defined]
    train_tiny(folder, SHORT)


@pytest.mark.parametrize(
    ("number", "is_untidy", "background"),
    [
        *((n, False, False) for n in (1, 3, 7, 12)),
        (7, True, False),
        (12, False, True),
        *(pytest.param(n, False, False, marks=pytest.mark.slow) for n in (5, 9)),
        *(pytest.param(n, False, True, marks=pytest.mark.slow) for n in (5, 7, 9)),
    ],
)
def test_a_kill_in_a_write_leaves_nothing_behind(
    tmp_path: Path, number: int, is_untidy: bool, background: bool
) -> None:
    folder = tmp_path / "run"
    group = start_processes(1, train_until_write, folder, number, background)
    assert group.wait() == [-signal.SIGKILL]
    assert any(is_marked(path.name) for path in folder.rglob("*"))
    run_processes(1, train_untidily if is_untidy else train_tiny, folder, *([] if is_untidy else [SHORT]))
    assert any(is_marked(path.name) for path in folder.rglob("*")) == is_untidy
    assert len(list_checkpoints(folder / "checkpoints")) == 2
    assert json.loads((folder / "summary.json").read_text())["status"] == "finished"


def wait_for_step(folder: Path, group: Group, step: int) -> None:
    """Until the run has logged a step, or ended."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if any(row["step"] >= step for row in read_rows(folder / "metrics.jsonl")) or group.has_ended():
            return
        time.sleep(0.01)
    raise AssertionError(f"step {step} never came")


@pytest.mark.parametrize(
    ("reference", "defect"),
    [(1, "momentum"), (2, "dropout"), *(pytest.param(*pair, marks=pytest.mark.slow) for pair in OTHERS)],
    indirect=["reference"],
)
def test_comparison_notices_what_a_resume_forgets(reference: tuple[int, Path], tmp_path: Path, defect: str) -> None:
    world_size, undisturbed = reference
    folder = tmp_path / "run"
    group = start_processes(world_size, train_tiny, folder, {})
    wait_for_step(folder, group, 8)
    group.kill(range(world_size))
    group.wait()
    run_processes(world_size, train_tiny, folder, {}, defect)
    assert max(resumed_steps(folder)) > 0
    with pytest.raises(AssertionError):
        assert_same_run(folder, undisturbed)


def test_another_number_of_processes_goes_on_with_the_same_images(tmp_path: Path) -> None:
    quiet = {"model__dropout": 0.0, "train__epochs": 5, "precision": "fp32"}  # auto is bf16 on a CPU with AMX
    run_processes(1, train_tiny, tmp_path / "alone", quiet)
    folder = tmp_path / "changing"
    for world_size in (2, 3, 1):
        group = start_processes(world_size, train_tiny, folder, quiet)
        wait_for_step(folder, group, 4 * len(resumed_steps(folder)) if (folder / "run.json").exists() else 4)
        group.kill(range(world_size))
        group.wait()
    run_processes(2, train_tiny, folder, quiet)
    assert max(resumed_steps(folder)) > 0
    ours, theirs = final_state(folder), final_state(tmp_path / "alone")
    for name in theirs:
        assert float((ours[name] - theirs[name]).norm()) <= 1e-5 * float(theirs[name].norm()), name


def test_sigterm_saves_and_the_run_goes_on(reference: tuple[int, Path], tmp_path: Path) -> None:
    world_size, undisturbed = reference
    folder = tmp_path / "run"
    group = start_processes(world_size, train_tiny, folder, {"checkpoint__every_steps": 1000})
    wait_for_step(folder, group, 8)
    os.kill(group.children[-1], signal.SIGTERM)
    group.wait()
    assert json.loads((folder / "summary.json").read_text())["status"] == "interrupted"
    run_processes(world_size, train_tiny, folder, {"checkpoint__every_steps": 3})
    assert resumed_steps(folder)[-1] >= 8
    assert_same_run(folder, undisturbed)


@pytest.mark.parametrize("reference", [1], indirect=True)
def test_more_epochs_go_on_from_the_end(reference: tuple[int, Path], tmp_path: Path) -> None:
    _, undisturbed = reference
    for epochs in (3, 5):
        run_processes(1, train_tiny, tmp_path / "short", {"train__epochs": epochs})
    assert resumed_steps(tmp_path / "short") == [0, 12]
    assert_same_run(tmp_path / "short", undisturbed)


@pytest.mark.parametrize("reference", [pytest.param(1, marks=pytest.mark.slow), 2], indirect=True)
def test_a_damaged_checkpoint_is_passed_over(reference: tuple[int, Path], tmp_path: Path) -> None:
    world_size, undisturbed = reference
    folder = tmp_path / "run"
    group = start_processes(world_size, train_tiny, folder, {})
    wait_for_step(folder, group, 10)
    group.kill(range(world_size))
    group.wait()
    newest, previous = list_checkpoints(folder / "checkpoints")[:2]
    weights = newest / "weights.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    weights.write_bytes(damaged)
    run_processes(world_size, train_tiny, folder, {})
    assert resumed_steps(folder)[-1] == int(previous.name[5:])
    assert_same_run(folder, undisturbed)


def keep_each_model(folder: Path) -> None:
    state.TrainState.is_best = lambda stands, result: True  # type: ignore[method-assign]
    train_tiny(folder, {"train__epochs": 2})


def test_best_figures_are_those_of_the_weights_in_model(tmp_path: Path) -> None:
    """Killed between model/ and the next checkpoint, then trained again to a worse evaluation than an earlier best."""
    folder = tmp_path / "run"
    run_processes(1, keep_each_model, folder)
    newest, before = list_checkpoints(folder / "checkpoints")[:2]
    shutil.rmtree(newest)
    checkpoint = load_checkpoint(before)
    checkpoint.state["train"]["best_top1"] = 2.0
    save_checkpoint(folder / "checkpoints", 6, checkpoint, keep=3)
    run_processes(1, train_tiny, folder, {"train__epochs": 2})
    summary = json.loads((folder / "summary.json").read_text())
    source = json.loads((folder / "model" / "config.json").read_text())["source"]
    assert resumed_steps(folder)[-1] == 6
    assert (source["step"], source["epoch"]) == (8, 2)
    assert (summary["best_epoch"], summary["best_top1"]) == (source["epoch"], source["val_top1"])
