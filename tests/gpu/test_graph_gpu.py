"""A whole update as a CUDA graph: the bits of eager ones, on one device, over NCCL, and on resume."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.dist_helper import reset_accelerate, run_gpu_processes
from helpers.tiny import tiny_config
from safetensors.torch import load_file
from torch import Tensor

from alexnet_dist.base.errors import InterruptedRunError
from alexnet_dist.runs.session import train
from alexnet_dist.training import graph
from alexnet_dist.training.flat_update import FlatSGD, SideStream

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
STEPS = {"train__epochs": None, "train__max_steps": 30, "schedule__name": "cosine"}
FIRST = graph.WARM_UP + 1  # update that is made twice


def train_on_gpu(folder: Path, overrides: dict[str, Any], polls: int | None = None) -> dict[str, Tensor]:
    """The weights at the end of a run, or of a start that is stopped."""
    reset_accelerate()
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    left = iter(range(polls)) if polls is not None else None
    try:
        stop = None if left is None else lambda: next(left, None) is None
        train(tiny_config(folder, device="cuda", **(STEPS | overrides)), stop=stop)
    except InterruptedRunError:
        assert polls is not None
    finally:
        sys.stderr = sys.__stderr__
    newest = max((folder / "checkpoints").glob("step-*"))
    return load_file(newest / "weights.safetensors")


def read_graph(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "run.json").read_text())["cuda_graph"]
    return found


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


CASES: list[dict[str, Any]] = [
    {"precision": "bf16"},
    {"precision": "fp32"},
    {"precision": "bf16", "kernels__maps": "reference"},
    {"precision": "bf16", "model__conv_channels": [16] * 5},
    {"precision": "bf16", "channels_last": False},
    {"precision": "bf16", "train__micro_batch_size": 5},
    *({"precision": "bf16", "optimizer__name": rule, "optimizer__lr": 0.001} for rule in ("adam", "rmsprop", "lars")),
    {"precision": "bf16", "optimizer__freeze": ["conv1"], "optimizer__freeze_from_epoch": 3},
]


@pytest.mark.parametrize("overrides", CASES, ids=str)
def test_replays_have_the_bits_of_eager_updates(tmp_path: Path, overrides: dict[str, Any]) -> None:
    if "train__micro_batch_size" in overrides:
        overrides = overrides | {"train__global_batch_size": 10}
    expected = train_on_gpu(tmp_path / "eager", overrides | {"train__cuda_graph": False})
    found = train_on_gpu(tmp_path / "graph", overrides)
    assert read_graph(tmp_path / "graph") == {"wanted": True, "reason": "CUDA", "failure": None}
    assert "captured" in (tmp_path / "graph" / "run.log").read_text()
    assert_same(found, expected)


def test_a_run_that_was_stopped_has_the_bits_of_one_that_was_not(tmp_path: Path) -> None:
    """Some updates of the second start are eager which the first would have replayed."""
    expected = train_on_gpu(tmp_path / "one", {})
    train_on_gpu(tmp_path / "two", {}, polls=FIRST + 5)
    assert_same(train_on_gpu(tmp_path / "two", {}), expected)


@pytest.mark.parametrize("compression", [None, "bf16"])
def test_over_nccl_the_graph_holds_the_sums(tmp_path: Path, compression: str | None) -> None:
    overrides = {"precision": "bf16", "parallel__gradient_compression": compression}
    eager = overrides | {"train__cuda_graph": False}
    expected = run_gpu_processes(2, train_on_gpu, tmp_path / "eager", eager)[0]
    found = run_gpu_processes(2, train_on_gpu, tmp_path / "graph", overrides)[0]
    assert read_graph(tmp_path / "graph")["failure"] is None
    assert "captured" in (tmp_path / "graph" / "run.log").read_text()
    assert_same(found, expected)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("cuda_graph", [False, "auto"])
def test_an_update_beside_the_backward_pass_has_the_bits_of_one_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, cuda_graph: Any
) -> None:
    """Also where it comes late: a stream that sleeps before its work shows whether it is waited for."""
    overrides = {"precision": precision, "train__cuda_graph": cuda_graph, "model__fc_width": 1024}
    with monkeypatch.context() as patch:
        patch.setattr(FlatSGD, "expect_backward", lambda *_: None)
        expected = train_on_gpu(tmp_path / "after", overrides)
    start, started = SideStream.start, list[int]()

    def start_after(self: SideStream, work: Callable[[], None], cycles: int) -> None:
        started.append(cycles)
        start(self, lambda: (torch.cuda._sleep(cycles), work())[1])

    for cycles in (1, 10_000_000):
        monkeypatch.setattr(SideStream, "start", lambda *how, cycles=cycles: start_after(*how, cycles))
        assert_same(train_on_gpu(tmp_path / str(cycles), overrides), expected)
        # One of the updates from FIRST on is eager and recorded; the others are replays.
        assert started.count(cycles) == (30 if cuda_graph is False else FIRST + 1)
        if cuda_graph == "auto":
            assert "captured" in (tmp_path / str(cycles) / "run.log").read_text()


def test_what_cannot_be_captured_leaves_the_run_eager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The defect: the step waits for the device. No gradient of the broken capture may be left."""
    expected = train_on_gpu(tmp_path / "eager", {"train__cuda_graph": False})
    real = graph.StepGraph._capture

    def capture(self: graph.StepGraph, *args: Any) -> Any:
        step = self._step
        monkeypatch.setattr(self, "_step", lambda *inputs: (step(*inputs), torch.cuda.synchronize()))
        try:
            return real(self, *args)
        finally:
            self._step = step

    monkeypatch.setattr(graph.StepGraph, "_capture", capture)
    found = train_on_gpu(tmp_path / "graph", {})
    assert read_graph(tmp_path / "graph")["failure"]
    assert_same(found, expected)
