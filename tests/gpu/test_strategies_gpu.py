"""Towers, hybrid and data parallel over NCCL. The processes share one GPU, each as a machine of its own."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.dist_helper import reset_accelerate, run_gpu_processes
from helpers.strategies import Case, backward_once, ddp, hybrid, towers, train_three_epochs
from helpers.tiny import tiny_config, worst_difference
from torch import Tensor

from alexnet_dist.cli.train import train
from alexnet_dist.costs.probe import probe_links
from alexnet_dist.parallel.peers import introduce, list_machines
from alexnet_dist.parallel.runtime import start_runtime
from alexnet_dist.tracking.trackers import read_rows

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5}
CASES = [
    ddp(2),
    towers(2),
    towers(2, "none"),
    hybrid(2),
    hybrid(2, None, "batch_by_batch", variant="torchvision", conv_groups=None),
    ddp(4),
    towers(4),
    hybrid(4),
    hybrid(4, 2),
    hybrid(4, 4, "batch_by_batch"),
]
NARROW = [
    ddp(2).with_settings(gradient_compression="bf16"),
    towers(2).with_settings(exchange="fp16"),
    hybrid(2).with_settings(exchange="bf16"),
    towers(4).with_settings(gradient_compression="fp16"),
    hybrid(4, 2).with_settings(exchange="bf16", gradient_compression="bf16"),
]


def call_for_each(body: Callable[..., Any], cases: Sequence[Case], *args: Any) -> list[Any]:
    """The results for some cases, in one process: it takes seconds to start one with a GPU."""
    results = []
    for case in cases:
        reset_accelerate()
        results.append(body(replace(case, device="cuda"), *args))
    return results


@cache
def find_all(body: Callable[..., Any], world_size: int, *args: Any) -> dict[str, dict[str, Tensor]]:
    """What the main process finds for each case of so many processes; for 1, what one device finds for all of them."""
    cases = [*CASES, *NARROW]
    if world_size == 1:
        cases = list({str(case.alone()): case.alone() for case in cases}.values())
    cases = [case for case in cases if case.world_size == world_size]
    results = run_gpu_processes(world_size, call_for_each, body, cases, *args)[0]
    return {str(case): result for case, result in zip(cases, results, strict=True)}


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_logits_loss_and_gradients_are_those_of_one_device(case: Case, dtype: torch.dtype) -> None:
    expected = find_all(backward_once, 1, dtype)[str(case.alone())]
    found = find_all(backward_once, case.world_size, dtype)[str(case)]
    assert worst_difference(found, expected) <= TOLERANCES[dtype]


@pytest.mark.parametrize("case", NARROW, ids=str)
def test_narrow_exchanges_round_a_little(case: Case) -> None:
    expected = find_all(backward_once, 1, torch.float32)[str(case.alone())]
    found = find_all(backward_once, case.world_size, torch.float32)[str(case)]
    assert 1e-5 < worst_difference(found, expected) < 0.05


@pytest.mark.parametrize("rule", ["sgd", "lars"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_three_epochs_give_the_weights_of_one_device(case: Case, rule: str) -> None:
    expected = find_all(train_three_epochs, 1, torch.float64, rule, 3)[str(case.alone())]
    found = find_all(train_three_epochs, case.world_size, torch.float64, rule, 3)[str(case)]
    assert worst_difference(found, expected) <= TOLERANCES[torch.float64]


def overflow_in_one_part(strategy: str) -> tuple[bool, float, float]:
    runtime = start_runtime("cuda", "fp16", strategy=strategy)
    assert runtime.scaler is not None
    before = runtime.scaler.get_scale()
    weight = torch.ones(3, device="cuda", requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.1, fused=True)
    runtime.backward((weight * (float("inf") if runtime.rank == 1 else 1.0)).sum())
    runtime.update(optimizer, torch.zeros((), device="cuda"))
    return bool((weight == 1).all()), before, runtime.scaler.get_scale()


@pytest.mark.parametrize("strategy", ["towers", "hybrid"])
def test_an_overflow_of_fp16_in_one_part_blocks_the_update_of_all(strategy: str) -> None:
    for is_unchanged, before, after in run_gpu_processes(2, overflow_in_one_part, strategy):
        assert is_unchanged
        assert after < before


def train_on_gpu(folder: Path, max_steps: int, settings: dict[str, Any]) -> None:
    config = {"device": "cuda", "model__dropout": 0.0, "train__epochs": None, "train__max_steps": max_steps}
    train(tiny_config(folder, **config, **settings))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("strategy", ["ddp", "towers", "hybrid"])
def test_a_run_learns_stops_and_goes_on(tmp_path: Path, strategy: str, precision: str) -> None:
    settings = {"parallel__strategy": strategy, "precision": precision, "model__conv_channels": [16] * 5}
    settings |= {"optimizer__name": "adam", "optimizer__lr": 0.001, "optimizer__momentum": 0.9}
    for max_steps in (30, 60):
        run_gpu_processes(2, train_on_gpu, tmp_path / "run", max_steps, settings)
    losses = [row["loss"] for row in read_rows(tmp_path / "run" / "metrics.jsonl") if row["event"] == "train"]
    assert statistics.median(losses[-10:]) < 0.8 * losses[0]
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (facts["device"], facts["precision"]) == ("cuda", precision)
    assert [start["step"] for start in facts["starts"]] == [0, 30]


def probe_cable() -> dict[str, Any]:
    runtime = start_runtime("cuda", "bf16")
    return {
        kind: vars(probe) for kind, probe in probe_links(runtime.device, list_machines(introduce(runtime)), 0.5).items()
    }


def test_the_probe_measures_the_cable() -> None:
    first, second = run_gpu_processes(2, probe_cable)
    assert first == second
    (probe,) = first.values()
    assert 1e6 < probe["bus_bytes_per_second"] < 1e12
    assert probe["busy_seconds_per_byte"] == 0  # a GPU's memory is sent without the cores
