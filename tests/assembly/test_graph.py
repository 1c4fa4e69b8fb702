"""Whether an update is captured as a CUDA graph: where it cannot be, where it is not wanted, and what failed before."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from alexnet_dist.assembly import graph
from alexnet_dist.assembly.graph import (
    OLDER,
    GraphChoice,
    Update,
    build_recorder,
    check_graph,
    choose_graph,
    find_failure_before,
    settle_rates,
)
from alexnet_dist.base.errors import MachineError

CPU, GPU = torch.device("cpu"), torch.device("cuda")
UPDATE = Update(GPU, "bf16")


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_a_gpu_captures(precision: str) -> None:
    update = replace(UPDATE, precision=precision)
    assert choose_graph("auto", update) == GraphChoice(True, "CUDA")
    assert choose_graph(True, update) == GraphChoice(True, "asked for")
    assert choose_graph(False, update) == GraphChoice(False, "train.cuda_graph is false")


@pytest.mark.parametrize("setting", ["auto", True])
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"device": CPU}, "there is no GPU"),
        ({"strategy": "towers"}, "parallel.strategy is towers"),
        ({"strategy": "hybrid"}, "parallel.strategy is hybrid"),
        ({"compiled": True}, "compile is true"),
        ({"precision": "fp16"}, "precision is fp16, which scales its losses"),
        ({"profiled": True}, "--profile looks into each update"),
    ],
)
def test_what_cannot_be_captured_says_why(setting: Any, changes: dict[str, Any], reason: str) -> None:
    choice = choose_graph(setting, replace(UPDATE, **changes), "other bits")
    assert choice == GraphChoice(False, reason, "other bits")  # a later start still knows of the failure
    assert build_recorder(choice, GPU) is None


def test_what_has_failed_is_tried_again_when_it_is_asked_for() -> None:
    expected = GraphChoice(False, "other bits", "other bits")
    assert choose_graph("auto", UPDATE, "other bits") == expected
    assert choose_graph(True, UPDATE, "other bits") == GraphChoice(True, "asked for")


def test_without_a_gpu_it_cannot_be_asked_for() -> None:
    for setting in ("auto", False):
        check_graph(setting, CPU)  # type: ignore[arg-type]
    check_graph(True, GPU)
    with pytest.raises(MachineError, match=r"train.cuda_graph true needs a GPU: there is no CUDA device; set"):
        check_graph(True, CPU)


@pytest.mark.parametrize(
    ("recorded", "goes_on", "failure"),
    [
        (None, False, None),
        (None, True, OLDER),
        ({"failure": None}, True, None),
        ({"failure": "other bits"}, True, "other bits"),
        ({"failure": OLDER}, False, OLDER),
    ],
)
def test_a_run_of_an_older_version_stays_as_it_was_computed(
    recorded: dict[str, Any] | None, goes_on: bool, failure: str | None
) -> None:
    found = find_failure_before(recorded, goes_on)
    assert found == failure
    assert choose_graph("auto", UPDATE, found).wanted == (failure is None)
    placed: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph, "place_rates", lambda *values: placed.append(values))
        for device in (CPU, GPU):
            settle_rates(choose_graph("auto", UPDATE, found), torch.optim.SGD([torch.zeros(1)]), device)
    assert [device for _, device in placed] == ([] if failure == OLDER else [GPU])
