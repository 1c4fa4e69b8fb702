"""Runs whose updates are recorded: the bits of eager ones on one process or two, and on resume; what failed is kept."""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.dist_helper import run_processes
from helpers.graphs import PlainRecorder
from helpers.tiny import tiny_config
from safetensors.torch import load_file
from torch import Tensor

from alexnet_dist.assembly import graph as choosing
from alexnet_dist.base.errors import InterruptedRunError
from alexnet_dist.base.ranks import rank_from_environment
from alexnet_dist.runs import session
from alexnet_dist.training import graph
from alexnet_dist.training.optim import place_rates

RECIPE = {"precision": "fp32", "schedule__name": "cosine", "train__micro_batch_size": 3}


class LameRecorder(PlainRecorder):
    """The defect: the last process cannot record."""

    def record(self, call: Callable[[], None]) -> Callable[[], None]:
        if rank_from_environment() == 1:
            raise RuntimeError("operation not permitted when stream is capturing\nmore words")
        return super().record(call)


def build_placed(*args: Any) -> torch.optim.Optimizer:
    """An optimizer with its rates on the device, as on a GPU."""
    optimizer = real_build_rule(*args)
    place_rates(optimizer, torch.device("cpu"))
    return optimizer


real_build_rule = session.build_rule


def train_quietly(
    folder: Path, recorder: PlainRecorder | None = None, steps: int | None = None
) -> tuple[dict[str, Tensor], int]:
    """The weights at the end of a run, or of a start that is stopped before update `steps`; how many were replays."""
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (a child of the test: its messages are not the test's)
    graph.WARM_UP = 3
    session.build_rule = build_placed  # type: ignore[assignment]
    if recorder is not None:
        choosing._find_obstacle = lambda update: None
        session.build_recorder = lambda choice, device: recorder if choice.wanted else None
    left = iter(range(steps)) if steps is not None else None
    stop = None if left is None else lambda: next(left, None) is None
    try:
        session.train(tiny_config(folder, **RECIPE), stop=stop)
    except InterruptedRunError:
        assert steps is not None
    newest = max((folder / "checkpoints").glob("step-*"))
    return load_file(newest / "weights.safetensors"), recorder.num_replayed if recorder is not None else 0


def read_choice(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "run.json").read_text())["cuda_graph"]
    return found


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


@pytest.fixture(scope="module")
def train_eagerly(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], dict[str, Tensor]]:
    """Gives the weights at the end of the eager run of so many processes, which is trained once."""

    @functools.cache
    def train_once(world_size: int) -> dict[str, Tensor]:
        folder = tmp_path_factory.mktemp("eager") / "run"
        (weights, _), *_ = run_processes(world_size, train_quietly, folder)
        assert read_choice(folder) == {"wanted": False, "reason": "there is no GPU", "failure": None}
        return weights  # type: ignore[no-any-return]

    return train_once


@pytest.mark.parametrize("world_size", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_recorded_run_has_the_bits_of_an_eager_one_on_resume_too(
    tmp_path: Path, train_eagerly: Callable[[int], dict[str, Tensor]], world_size: int
) -> None:
    expected = train_eagerly(world_size)
    begins_at = 0
    for steps in (10, None):
        (found, replays), *_ = run_processes(world_size, train_quietly, tmp_path / "run", PlainRecorder(), steps)
        ended_at = json.loads((tmp_path / "run" / "summary.json").read_text())["step"]
        assert replays == ended_at - begins_at - 3 > 3
        begins_at = ended_at
    assert read_choice(tmp_path / "run") == {"wanted": True, "reason": "CUDA", "failure": None}
    assert_same(found, expected)


def test_where_one_process_cannot_record_all_stay_eager_and_later_starts_know(
    tmp_path: Path, train_eagerly: Callable[[int], dict[str, Tensor]]
) -> None:
    expected = train_eagerly(2)
    for steps in (10, None):
        (found, replays), *_ = run_processes(2, train_quietly, tmp_path / "run", LameRecorder(), steps)
        assert replays == 0
        failure = "RuntimeError: operation not permitted when stream is capturing"
        assert read_choice(tmp_path / "run")["failure"] == failure
    assert_same(found, expected)
    assert read_choice(tmp_path / "run")["reason"] == failure
    log = (tmp_path / "run" / "run.log").read_text()
    assert log.count(f"graph     all updates are eager: {failure}") == 1
