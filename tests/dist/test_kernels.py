"""Runs in every form of the convolutions: the same training, on one process or several, and the same bits on resume."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.dist_helper import run_processes
from helpers.interpreter import rounding_to_nearest
from helpers.tiny import tiny_config
from safetensors.torch import load_file
from torch import Tensor

from alexnet_dist.assembly import kernels
from alexnet_dist.base.errors import InterruptedRunError
from alexnet_dist.runs.session import train

APART = {"kernels__groups": "apart", "kernels__conv1": "space_to_depth", "kernels__maps": "reference"}
SHORT = {"train__epochs": 2, "precision": "fp32"}
FLAT = {"precision": "bf16", "kernels__update": "flat", "kernels__loss": "fused"}
ON_CPU = {"maps": "joined", "groups": "grouped", "conv1": "direct"} | {
    "relu": "reference",
    "update": "reference",
    "loss": "reference",
}


def train_quietly(folder: Path, overrides: dict[str, Any], steps: int | None = None) -> dict[str, Tensor]:
    """The weights at the end of a run, or of a start that is stopped before update `steps`."""
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (a child of the test: its messages are not the test's)
    left = iter(range(steps)) if steps is not None else None
    try:
        stop = None if left is None else lambda: next(left, None) is None
        train(tiny_config(folder, **(SHORT | overrides)), stop=stop)
    except InterruptedRunError:
        assert steps is not None
    newest = max((folder / "checkpoints").glob("step-*"))
    return load_file(newest / "weights.safetensors")


def train_interpreted(*how: Any) -> dict[str, Tensor]:
    """The same with kernels for a GPU, in Triton's interpreter."""
    kernels._has_kernels = lambda _: True  # (in a child of the test)
    with rounding_to_nearest():
        return train_quietly(*how)


def read_kernels(folder: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads((folder / "run.json").read_text())["kernels"]
    return found


def difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).norm() / other[name].norm()) for name in one)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    folder = tmp_path_factory.mktemp("plain") / "run"
    (weights,) = run_processes(1, train_quietly, folder, {"model__dropout": 0.0})
    assert read_kernels(folder) == ON_CPU | {"reason": "the fastest on CPUs"}
    return weights  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("world_size", "strategy"),
    [(1, "ddp"), (2, "hybrid"), *(pytest.param(2, name, marks=pytest.mark.slow) for name in ("ddp", "towers"))],
)
def test_a_form_trains_the_same_network(
    plain: dict[str, Tensor], tmp_path: Path, world_size: int, strategy: str
) -> None:
    overrides = APART | {"model__dropout": 0.0, "parallel__strategy": strategy}
    weights = run_processes(world_size, train_quietly, tmp_path / "run", overrides)[0]
    assert 0 < difference(weights, plain) < 1e-5
    assert read_kernels(tmp_path / "run")["groups"] == "apart"


def test_a_run_goes_on_in_the_form_that_it_began_with(tmp_path: Path) -> None:
    """Asked for at its beginning alone."""
    (expected,) = run_processes(1, train_quietly, tmp_path / "one", APART)
    run_processes(1, train_quietly, tmp_path / "two", APART, 3)
    (found,) = run_processes(1, train_quietly, tmp_path / "two", {})
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    kept = {"maps": "reference", "groups": "apart", "conv1": "space_to_depth", "reason": "chosen when the run began"}
    assert read_kernels(tmp_path / "two") == ON_CPU | kept


def test_another_form_on_the_way_is_noticed(tmp_path: Path) -> None:
    (expected,) = run_processes(1, train_quietly, tmp_path / "one", {})
    run_processes(1, train_quietly, tmp_path / "two", APART, 3)
    (found,) = run_processes(1, train_quietly, tmp_path / "two", {"kernels__groups": "grouped"})
    assert any(not torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.slow  # the interpreter takes its time
@pytest.mark.parametrize(("world_size", "micro_batch_size"), [(1, None), (1, 6), (2, None)])
def test_a_flat_update_trains_as_torchs_and_goes_on(
    tmp_path: Path, world_size: int, micro_batch_size: int | None
) -> None:
    """With its own bf16 weights, and where those are not for it: micro batches, processes."""
    pytest.importorskip("triton")
    size = {"train__micro_batch_size": micro_batch_size}
    (plain, *_) = run_processes(world_size, train_quietly, tmp_path / "plain", {"precision": "bf16", **size})
    (whole, *_) = run_processes(world_size, train_interpreted, tmp_path / "one", FLAT | size)
    run_processes(world_size, train_interpreted, tmp_path / "two", FLAT | size, 3)
    (found, *_) = run_processes(world_size, train_interpreted, tmp_path / "two", {"precision": "bf16", **size})
    kept = read_kernels(tmp_path / "two")
    assert (kept["update"], kept["loss"]) == ("flat", "fused")
    assert all(torch.equal(found[name], whole[name]) for name in whole)
    assert 0 < difference(whole, plain) < 1e-3  # float64 in the rule, float32 on a CPU
