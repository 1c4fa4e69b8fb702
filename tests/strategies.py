"""Strategies on some processes, and the tiny network cut as they say."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from tiny import tiny_spec
from torch import Tensor

from alexnet_dist.commands.network import part_towers
from alexnet_dist.commands.strategy import cut_network, replicate_network
from alexnet_dist.config import ParallelConfig
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
        spec: fields of the network beside the tiny one's; its dropout is 0.
    """

    world_size: int
    parallel: ParallelConfig
    spec: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        settings = [str(value) for value in vars(self.parallel).values() if value not in (None, "all", "at_once")]
        return "-".join([str(self.world_size), *settings, *map(str, self.spec.values())])

    def alone(self) -> Case:
        """The same network on one device."""
        return Case(1, ParallelConfig(exchange_at=self.parallel.exchange_at), self.spec)

    def with_settings(self, **settings: Any) -> Case:
        """The same with other settings."""
        return replace(self, parallel=replace(self.parallel, **settings))

    def make_spec(self) -> AlexNetSpec:
        """The whole network."""
        return part_towers(tiny_spec(**{"dropout": 0.0, **self.spec}), self.parallel.exchange_at)


def towers(world_size: int, exchange_at: Any = "all", **spec: Any) -> Case:
    """Pairs of towers."""
    return Case(world_size, ParallelConfig(strategy="towers", exchange_at=exchange_at), spec)


def hybrid(world_size: int, shard_size: int | None = None, schedule: Any = "at_once", **spec: Any) -> Case:
    """Shards of fc6 and fc7."""
    parallel = ParallelConfig(strategy="hybrid", shard_size=shard_size, hybrid_schedule=schedule)
    return Case(world_size, parallel, spec)


def ddp(world_size: int, **spec: Any) -> Case:
    """Replicas."""
    return Case(world_size, ParallelConfig(), spec)


def start_case(case: Case) -> Runtime:
    """This process among the others."""
    parallel = case.parallel
    return start_runtime("cpu", "fp32", strategy=parallel.strategy, shard_size=parallel.shard_size)


def cut_tiny(case: Case, runtime: Runtime, dtype: torch.dtype) -> tuple[AlexNet, Partition]:
    """This process's part of the network."""
    model = build_model(case.make_spec(), seed=0)
    partition = cut_network(case.parallel, model, runtime)
    return model.to(dtype=dtype, memory_format=torch.channels_last), partition  # type: ignore[call-overload]


def draw_images(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Images and labels of a global batch."""
    generator = torch.Generator().manual_seed(7)
    images = torch.randn(NUM_IMAGES, 3, 64, 64, generator=generator).to(dtype)  # (B, 3, S, S)
    return images.contiguous(memory_format=torch.channels_last), torch.arange(NUM_IMAGES) % 3


def backward_once(case: Case, dtype: torch.dtype, runtime: Runtime | None = None) -> dict[str, Tensor]:
    """Logits, loss and every gradient, merged, in the main process."""
    runtime = runtime or start_case(case)
    model, partition = cut_tiny(case, runtime, dtype)
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
