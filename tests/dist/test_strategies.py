"""Towers and hybrid are the network of one device, cut: same logits, loss, gradients and weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from dist_helper import run_processes
from tiny import tiny_spec
from torch import Tensor, nn

from alexnet_dist.commands.network import part_towers
from alexnet_dist.commands.strategy import cut_network, replicate_network
from alexnet_dist.config import ParallelConfig
from alexnet_dist.data.loader import Batch
from alexnet_dist.models import AlexNet, AlexNetSpec, build_model
from alexnet_dist.parallel.partition import Partition
from alexnet_dist.parallel.runtime import Runtime, start_runtime
from alexnet_dist.training.metrics import cross_entropy

NUM_IMAGES = 12


@dataclass(frozen=True)
class Case:
    """A strategy on some processes.

    Args:
        world_size: processes.
        parallel: the settings.
        spec: fields of the network beside the tiny one's.
    """

    world_size: int
    parallel: ParallelConfig
    spec: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        settings = [str(value) for value in vars(self.parallel).values() if value not in (None, "all", "at_once")]
        return "-".join([str(self.world_size), *settings, *map(str, self.spec.values())])


def towers(world_size: int, exchange_at: Any = "all", **spec: Any) -> Case:
    return Case(world_size, ParallelConfig(strategy="towers", exchange_at=exchange_at), spec)


def hybrid(world_size: int, shard_size: int | None = None, schedule: Any = "at_once", **spec: Any) -> Case:
    parallel = ParallelConfig(strategy="hybrid", shard_size=shard_size, hybrid_schedule=schedule)
    return Case(world_size, parallel, spec)


CASES = [
    Case(2, ParallelConfig()),
    towers(2),
    towers(4),
    towers(2, "fc_only"),
    towers(2, "none"),
    towers(2, variant="source2012"),
    hybrid(2),
    hybrid(4),
    hybrid(4, 2),
    hybrid(4, 4, "batch_by_batch"),
    hybrid(2, None, "batch_by_batch", variant="torchvision", conv_groups=None),
    hybrid(3, fc_width=18),
]


def cut_tiny(case: Case, dtype: torch.dtype) -> tuple[Runtime, AlexNet, Partition]:
    parallel = case.parallel
    runtime = start_runtime("cpu", "fp32", strategy=parallel.strategy, shard_size=parallel.shard_size)
    model = build_model(make_spec(case), seed=0)
    partition = cut_network(parallel, model, runtime)
    return runtime, model.to(dtype=dtype, memory_format=torch.channels_last), partition  # type: ignore[call-overload]


def make_spec(case: Case) -> AlexNetSpec:
    return part_towers(tiny_spec(**{"dropout": 0.0, **case.spec}), case.parallel.exchange_at)


def draw_images(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    images = torch.randn(NUM_IMAGES, 3, 64, 64, generator=generator).to(dtype)
    return images.contiguous(memory_format=torch.channels_last), torch.arange(NUM_IMAGES) % 3


def backward_once(case: Case, dtype: torch.dtype) -> dict[str, Tensor]:
    """Logits, loss and every gradient, merged."""
    runtime, model, partition = cut_tiny(case, dtype)
    forward = replicate_network(case.parallel, model, partition, compiled=False, accumulates=False, runtime=runtime)
    images, labels = (part.chunk(runtime.dp_size)[runtime.dp_rank] for part in draw_images(dtype))
    logits = forward(images)  # (b, classes)
    loss = cross_entropy(logits, labels).sum() / NUM_IMAGES
    runtime.backward(loss * runtime.dp_size)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert len(gradients) == 16
    found = partition.merge(gradients)
    found["logits"] = torch.cat(runtime.gather(logits.detach())[:: 2 if case.parallel.strategy == "towers" else 1])
    found["loss"] = runtime.sum_over_replicas(loss.detach())
    return found


def worst_difference(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).norm() / theirs[name].norm()) for name in ours)


def alone(case: Case) -> Case:
    return Case(1, ParallelConfig(exchange_at=case.parallel.exchange_at), case.spec)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_logits_loss_and_gradients_are_those_of_one_device(case: Case, dtype: torch.dtype, tolerance: float) -> None:
    (expected,) = run_processes(1, backward_once, alone(case), dtype)
    found = run_processes(case.world_size, backward_once, case, dtype)[0]
    assert worst_difference(found, expected) <= tolerance
