"""How a run ends, early or not, and that what is new in it survives a kill."""

from __future__ import annotations

import functools
import json
import math
import os
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.dist_helper import run_processes, start_processes
from helpers.tiny import tiny_config, tiny_spec, worst_difference
from safetensors.torch import load_file

from alexnet_dist.cli.train import train
from alexnet_dist.inference.checkpoints import list_checkpoints
from alexnet_dist.models import build_model, named_layers
from alexnet_dist.tracking.trackers import read_rows
from alexnet_dist.training import loop
from alexnet_dist.training import state as train_state
from alexnet_dist.training.evaluate import Evaluation
from alexnet_dist.training.state import TrainState


def train_tiny(folder: Path, overrides: dict[str, Any], kill_at: tuple[str, int] | None = None) -> None:
    """Train; with `kill_at`, die as soon as a part of the trainer has done its work at a step."""
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (a child of the test: its messages are not the test's)
    if kill_at is not None:
        _die_after(*kill_at)
    train(tiny_config(folder, **overrides))


def _die_after(method: str, step: int) -> None:
    plain: Callable[..., Any] = getattr(loop.Trainer, method)

    def act_and_die(trainer: loop.Trainer, *args: Any) -> Any:
        result = plain(trainer, *args)
        if trainer.state.step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(loop.Trainer, method, act_and_die)


def kill_tiny(folder: Path, overrides: dict[str, Any], method: str, step: int) -> None:
    assert start_processes(1, train_tiny, folder, overrides, (method, step)).wait() == [-signal.SIGKILL]


def read_summary(folder: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return summary


def resumed_steps(folder: Path) -> list[int]:
    return [start["step"] for start in json.loads((folder / "run.json").read_text())["starts"]]


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Weights and optimizer state of the newest checkpoint, and the best weights."""
    newest = list_checkpoints(folder / "checkpoints")[0]
    files = [newest / "weights.safetensors", newest / "optimizer.safetensors", folder / "model" / "model.safetensors"]
    return {f"{file.name}/{name}": tensor for file in files for name, tensor in load_file(file).items()}


def read_curve(folder: Path) -> list[tuple[Any, ...]]:
    """What metrics.jsonl says of the training, without the times."""
    kept = ("event", "step", "epoch", "samples_seen", "loss", "top1", "lr", "val_top1")
    return [tuple(row.get(key) for key in kept) for row in read_rows(folder / "metrics.jsonl")]


def assert_same_run(folder: Path, reference: Path) -> None:
    ours, theirs = read_tensors(folder), read_tensors(reference)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert read_curve(folder) == read_curve(reference)


# -- exact resume -----------------------------------------------------------------------------------------------------

KINDS = ("weight", "bias")
SHORT = {"train__epochs": 2, "checkpoint__every_steps": 3, "log__every_steps": 1}  # 8 updates, 4 in an epoch

# Settings by name, and the rate of the last update.
VARIANTS: dict[str, tuple[dict[str, Any], float]] = {
    "rmsprop, halved every 3 updates": (
        {
            "optimizer__name": "rmsprop",
            "optimizer__lr": 1e-3,
            "schedule__name": "halve_every",
            "schedule__halve_every_steps": 3,
        },
        0.25e-3,
    ),
    "lars, poly after a warm-up": (
        {
            "optimizer__name": "lars",
            "optimizer__lr": 1.0,
            "schedule__name": "poly",
            "schedule__warmup_steps": 2,
            "schedule__power": 3.0,
        },
        (1 / 6) ** 3,
    ),
    "sgd, layers frozen from epoch 1": (
        {
            "optimizer__lr": 0.02,
            "optimizer__freeze": ["conv1", "fc7"],
            "optimizer__freeze_from_epoch": 1,
            "optimizer__lr_factors.fc8": 3.0,
            "optimizer__bias_lr_constant": True,
            "schedule__name": "halve_every",
            "schedule__halve_every_steps": 4,
        },
        0.01,
    ),
    "adam, layers never learn": (
        {"optimizer__name": "adam", "optimizer__lr": 1e-3, "optimizer__freeze": ["conv1", "conv2"]},
        1e-3,
    ),
}


@pytest.fixture(scope="module")
def train_undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The run of a variant that nothing disturbed, trained once."""

    @functools.cache
    def train_variant(variant: str) -> Path:
        folder = tmp_path_factory.mktemp("undisturbed") / "run"
        run_processes(1, train_tiny, folder, SHORT | VARIANTS[variant][0])
        return folder

    return train_variant


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_killed_run_ends_with_the_same_bits(
    train_undisturbed: Callable[[str], Path], tmp_path: Path, variant: str
) -> None:
    settings, last_rate = VARIANTS[variant]
    overrides, killed = SHORT | settings, tmp_path / "killed"
    kill_tiny(killed, overrides, "_log_window", 5)  # inside the second epoch, two updates after a save
    run_processes(1, train_tiny, killed, overrides)
    assert resumed_steps(killed) == [0, 3]
    assert_same_run(killed, train_undisturbed(variant))
    rates = [row["lr"] for row in read_rows(killed / "metrics.jsonl") if row["event"] == "train"]
    assert (len(rates), rates[-1]) == (8, pytest.approx(last_rate, rel=1e-12))


def _forget_optimizer(folder: Path, overrides: dict[str, Any]) -> None:
    train_state.load_optimizer_tensors = lambda *args, **words: None  # type: ignore[assignment]
    train_tiny(folder, overrides)


def test_comparison_notices_a_forgotten_average_of_rmsprop(
    train_undisturbed: Callable[[str], Path], tmp_path: Path
) -> None:
    variant = "rmsprop, halved every 3 updates"
    overrides, killed = SHORT | VARIANTS[variant][0], tmp_path / "killed"
    kill_tiny(killed, overrides, "_log_window", 5)
    run_processes(1, _forget_optimizer, killed, overrides)
    with pytest.raises(AssertionError):
        assert_same_run(killed, train_undisturbed(variant))


def test_frozen_layers_keep_their_bits_in_the_run(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    overrides = SHORT | VARIANTS["sgd, layers frozen from epoch 1"][0]
    run_processes(1, train_tiny, folder, overrides | {"checkpoint__every_steps": 4, "checkpoint__keep": 2})
    end, middle = (load_file(path / "weights.safetensors") for path in list_checkpoints(folder / "checkpoints"))
    model = build_model(tiny_spec(), seed=0)
    frozen = [layer for name, layer in named_layers(model).items() if name in ("conv1", "fc7")]
    names = {f"{path}.{kind}" for path, module in model.named_modules() if module in frozen for kind in KINDS}
    assert {name for name in end if torch.equal(end[name], middle[name])} == names


def test_processes_agree_where_the_first_layers_never_learn(tmp_path: Path) -> None:
    overrides = SHORT | {"precision": "fp32", "model__dropout": 0.0, "optimizer__freeze": ["conv1", "conv2"]}
    for processes in (1, 2):
        run_processes(processes, train_tiny, tmp_path / str(processes), overrides)
    assert worst_difference(read_tensors(tmp_path / "2"), read_tensors(tmp_path / "1")) <= 1e-5


# -- early stop -------------------------------------------------------------------------------------------------------

# With this rate nothing is learned: the first evaluation stays the best, and two more end the run of five epochs.
STALLED = {"optimizer__lr": 1e-12, "train__early_stop": 2}
STOP_STEP = 12


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run that stopped early."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    run_processes(1, train_tiny, folder, STALLED)
    return folder


def test_a_run_that_stalls_ends_early_and_well(stopped: Path) -> None:
    summary = read_summary(stopped)
    ended = {key: summary[key] for key in ("status", "stopped_early", "step", "epoch", "best_epoch")}
    assert ended == {"status": "finished", "stopped_early": True, "step": STOP_STEP, "epoch": 3, "best_epoch": 1}
    assert list_checkpoints(stopped / "checkpoints")[0].name == f"step-{STOP_STEP:08d}"
    assert json.loads((stopped / "model" / "config.json").read_text())["source"]["epoch"] == 1
    events = [row["event"] for row in read_rows(stopped / "metrics.jsonl")]
    assert (events.count("eval"), events.count("epoch")) == (3, 3)
    assert f"early stop at step {STOP_STEP}: train.early_stop is 2" in (stopped / "run.log").read_text()


def test_a_limit_reached_by_the_last_evaluation_stops_nothing(tmp_path: Path) -> None:
    run_processes(1, train_tiny, tmp_path / "run", STALLED | {"train__epochs": 3})
    summary = read_summary(tmp_path / "run")
    assert (summary["stopped_early"], summary["step"]) == (False, STOP_STEP)


def test_starting_a_stopped_run_again_says_so_and_changes_nothing(stopped: Path) -> None:
    summary, tensors, curve = read_summary(stopped), read_tensors(stopped), read_curve(stopped)
    run_processes(1, train_tiny, stopped, STALLED)
    assert "this run is finished; it stopped early" in (stopped / "run.log").read_text()
    assert (resumed_steps(stopped), read_summary(stopped), read_curve(stopped)) == ([0, STOP_STEP], summary, curve)
    again = read_tensors(stopped)
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize(
    ("method", "save_steps"),
    [
        ("evaluate_val", 3),
        ("_save", 5),
        *(pytest.param(*one, marks=pytest.mark.slow) for one in (("_log_window", 5), ("_close_epoch", None))),
    ],
)
def test_a_kill_around_the_early_stop_leaves_no_trace(
    stopped: Path, tmp_path: Path, method: str, save_steps: int | None
) -> None:
    folder = tmp_path / "run"
    overrides = STALLED | {"checkpoint__every_steps": save_steps}
    kill_tiny(folder, overrides, method, STOP_STEP)
    assert not (folder / "summary.json").exists()
    run_processes(1, train_tiny, folder, overrides)
    assert read_summary(folder)["stopped_early"]
    assert_same_run(folder, stopped)


def _forget_the_stall(folder: Path, overrides: dict[str, Any]) -> None:
    read = TrainState.from_json
    TrainState.from_json = lambda values: read(values | {"stalled": 0})  # type: ignore[method-assign]
    train_tiny(folder, overrides)


def test_a_forgotten_stall_is_noticed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    kill_tiny(folder, STALLED, "_log_window", 10)
    run_processes(1, _forget_the_stall, folder, STALLED)
    assert read_summary(folder)["step"] == STOP_STEP + 4


def test_a_stop_before_the_last_evaluation_is_made_good(stopped: Path, tmp_path: Path) -> None:
    """SIGTERM between the update and its evaluation: the evaluation ends the run at the next start, and is saved."""
    folder = tmp_path / "run"
    group = start_processes(1, _stop_before_evaluation, folder)
    group.wait()
    assert read_summary(folder)["status"] == "interrupted"
    for _ in range(2):
        run_processes(1, train_tiny, folder, STALLED)
        assert (read_summary(folder)["status"], read_summary(folder)["stopped_early"]) == ("finished", True)
    assert resumed_steps(folder) == [0, STOP_STEP, STOP_STEP]
    assert "it stopped early" in (folder / "run.log").read_text()
    assert_same_run(folder, stopped)


def _stop_before_evaluation(folder: Path) -> None:
    evaluate = loop.evaluate

    def ask_to_stop(*parts: Any, **words: Any) -> Any:
        if sum(row["event"] == "eval" for row in read_rows(folder / "metrics.jsonl")) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*parts, **words)

    loop.evaluate = ask_to_stop
    train_tiny(folder, STALLED)


def test_all_processes_stop_together(stopped: Path, tmp_path: Path) -> None:
    run_processes(2, train_tiny, tmp_path / "run", STALLED)
    assert read_summary(tmp_path / "run")["step"] == STOP_STEP
    assert len(read_curve(tmp_path / "run")) == len(read_curve(stopped))


@pytest.mark.parametrize(("early_stop", "end"), [(3, STOP_STEP + 4), (None, 20)])
def test_more_patience_goes_on_and_without_a_limit_to_the_end(
    stopped: Path, tmp_path: Path, early_stop: int | None, end: int
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(stopped, folder)
    run_processes(1, train_tiny, folder, STALLED | {"train__early_stop": early_stop})
    summary = read_summary(folder)
    assert (resumed_steps(folder)[-1], summary["step"], summary["best_epoch"]) == (STOP_STEP, end, 1)
    assert summary["stopped_early"] is (early_stop is not None)
    changed = json.loads((folder / "run.json").read_text())["starts"][-1]["changed"]
    assert changed == {"output_dir": [str(stopped), str(folder)], "train.early_stop": [2, early_stop]}


def test_a_checkpoint_from_before_early_stop_is_read() -> None:
    values = asdict(TrainState(step=7, best_top1=0.5, stalled=3))
    del values["stalled"]
    assert TrainState.from_json(values) == TrainState(step=7, best_top1=0.5, stalled=0)


@pytest.mark.parametrize(("loss", "expected"), [(0.5, 0.9), (math.nan, None), (math.inf, None)])
def test_a_best_evaluation_that_was_not_finite_is_forgotten(loss: float, expected: float | None) -> None:
    values = asdict(TrainState(step=7, best_top1=0.9, best_top5=1.0, best_loss=loss, best_epoch=1, best_step=4))
    state = TrainState.from_json(values)
    assert (state.step, state.best_top1) == (7, expected)
    good = Evaluation(loss=2.0, top1=0.1, top5=1.0, num_examples=8)
    assert state.is_best(good) is (expected is None)


@pytest.mark.parametrize(
    ("top1", "loss", "expected"),
    [(0.51, 9.0, True), (0.49, 0.1, False), (0.5, 0.9, True), (0.5, 1.0, False), (0.5, 1.1, False)],
)
def test_of_equally_good_evaluations_the_lower_loss_is_the_best(top1: float, loss: float, expected: bool) -> None:
    state = TrainState(best_top1=0.5, best_loss=1.0, best_step=4)
    assert state.is_best(Evaluation(loss=loss, top1=top1, top5=1.0, num_examples=8)) is expected
    assert TrainState().is_best(Evaluation(loss=loss, top1=top1, top5=1.0, num_examples=8))


@pytest.mark.parametrize("world_size", [1, 2])
def test_starting_a_finished_run_again_changes_nothing_of_its_record(tmp_path: Path, world_size: int) -> None:
    folder, settings = tmp_path / "run", {"data__test": "test", "train__epochs": 2}
    run_processes(world_size, train_tiny, folder, settings)
    files = ("metrics.jsonl", "metrics.csv", "epochs.csv", "summary.json")
    before = {name: (folder / name).read_text() for name in files}
    assert '"event": "test"' in before["metrics.jsonl"]
    run_processes(world_size, train_tiny, folder, settings)
    assert {name: (folder / name).read_text() for name in files} == before


def test_a_run_that_goes_on_is_tested_anew(tmp_path: Path) -> None:
    for epochs in (2, 3):
        run_processes(1, train_tiny, tmp_path / "run", {"data__test": "test", "train__epochs": epochs})
    tests = [row for row in read_rows(tmp_path / "run" / "metrics.jsonl") if row["event"] == "test"]
    assert [row["epoch"] for row in tests] == [3]
