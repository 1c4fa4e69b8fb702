"""What is reckoned around the measurement of a network: FLOPs, shares of a ceiling, the largest batch, the verdict."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from common.ceilings import count_flops, percent_of_ceiling
from common.report import Report
from common.verdict import judge
from model import add_ceilings, find_largest, has_room

from alexnet_dist.models import make_spec
from alexnet_dist.runs.advice import Setup


def test_flops_are_those_of_the_papers_network() -> None:
    flops = count_flops(make_spec("paper"))
    assert flops["forward"] == pytest.approx(1.43e9, rel=0.03)
    assert flops["training"] == pytest.approx(2.86 * flops["forward"], rel=0.01)
    assert percent_of_ceiling({"bf16": 1e12}, "bf16", {"training": 4 * 10**9}, "step", 100.0) == pytest.approx(40)


@pytest.mark.parametrize(("room", "found"), [(600, 512), (512, 512), (511, 504), (20, 16), (8, 8), (3, 1), (0, 0)])
def test_largest_batch_that_fits_is_found(room: int, found: int) -> None:
    assert find_largest(lambda images: images <= room, 512) == found


def test_only_a_lack_of_memory_means_that_a_batch_does_not_fit() -> None:
    def fail() -> None:
        raise RuntimeError("a bug")

    def lack() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    assert has_room(lambda: None, torch.device("cpu"))
    assert not has_room(lack, torch.device("cpu"))
    with pytest.raises(RuntimeError, match="a bug"):
        has_room(fail, torch.device("cpu"))


def test_ceilings_have_their_units() -> None:
    report = Report({})
    add_ceilings(report, {"copy": 2e10, "bf16": 3e12})
    assert [(row.get("gb_per_s"), row.get("tflops")) for row in report.rows] == [(20.0, None), (None, 3.0)]


@pytest.mark.parametrize(
    ("speeds", "setup", "words"),
    [
        ((100.0, 50.0), {}, "The network limits the speed (67% of the cores' time): next is a GPU or more cores."),
        ((100.0, 50.0), {"computes_bf16": True}, "next is --precision bf16."),
        ((20.0, 50.0), {}, "The data loader limits the speed (71% of the cores' time): next is --data.engine cache."),
        ((50.0, 50.0), {"engine": "cache"}, "next is smaller files"),
        (
            (100.0, 50.0),
            {"on_gpu": True},
            "The network limits the speed (loader 100 images/s, network 50): next is --",
        ),
        ((50.0, 50.0), {"on_gpu": True, "is_compiled": True}, "next is more GPUs."),
        ((20.0, 50.0), {"on_gpu": True}, "The data loader limits the speed (loader 20 images/s, network 50): next is"),
    ],
)
def test_verdict_names_what_limits_and_the_setting_to_change(
    speeds: tuple[float, float], setup: dict[str, Any], words: str
) -> None:
    assert words in judge(*speeds, Setup(**setup))
