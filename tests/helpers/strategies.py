"""Strategies on some processes, and the tiny network cut as they say."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from alexnet_dist.assembly.learning import build_rule
from alexnet_dist.assembly.network import part_towers
from alexnet_dist.assembly.strategy import cut_network, replicate_network
from alexnet_dist.models import AlexNet, AlexNetSpec, build_model
from alexnet_dist.parallel.partition import Partition
from alexnet_dist.parallel.runtime import Runtime, start_runtime
from alexnet_dist.settings.schema import OptimizerConfig, ParallelConfig
from alexnet_dist.training.gate import BatchGate
from alexnet_dist.training.metrics import cross_entropy
from alexnet_dist.training.optim import optimizer_tensors, set_lr
from alexnet_dist.training.step import DeviceCounters, train_step
from alexnet_dist.training.update_rules import merged_norms
from helpers.tiny import tiny_loader, tiny_spec

NUM_IMAGES = 12
NUM_STEPS, BATCH_SIZE, TRAIN_IMAGES = 12, 12, 37  # the fourth batch of an epoch holds a single image
RULES: dict[str, dict[str, Any]] = {
    "sgd": {"lr": 0.02, "bias_lr_factor": 2.0, "bias_weight_decay": 0.0},
    "lars": {"lr": 1.0, "trust_coefficient": 0.02},
}


@dataclass(frozen=True)
class Case:
    """A strategy on some processes.

    Args:
        world_size: processes.
        parallel: the settings.
        spec: fields of the network beside the tiny one's; its dropout is 0.
        device: cpu or cuda.
    """

    world_size: int
    parallel: ParallelConfig
    spec: dict[str, Any] = field(default_factory=dict)
    device: str = "cpu"

    def __str__(self) -> str:
        settings = [str(value) for value in vars(self.parallel).values() if value not in (None, "all", "at_once")]
        return "-".join([str(self.world_size), *settings, *map(str, self.spec.values())])

    def alone(self) -> Case:
        """The same network on one device."""
        return replace(self, world_size=1, parallel=ParallelConfig(exchange_at=self.parallel.exchange_at))

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
    return start_runtime(case.device, "fp32", strategy=parallel.strategy, shard_size=parallel.shard_size)


def cut_tiny(case: Case, runtime: Runtime, dtype: torch.dtype) -> tuple[AlexNet, Partition]:
    """This process's part of the network."""
    model = build_model(case.make_spec(), seed=0)
    partition = cut_network(case.parallel, model, runtime)
    model = model.to(device=runtime.device, dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model, partition


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
    images, labels = (part.chunk(runtime.dp_size)[runtime.dp_rank].to(runtime.device) for part in draw_images(dtype))
    logits = forward(images)  # (b, classes)
    loss = cross_entropy(logits, labels).sum() / NUM_IMAGES
    runtime.backward(loss * runtime.dp_size)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert len(gradients) == 16
    found = partition.merge(gradients)
    copies = runtime.gather(logits.detach().cpu())
    found["logits"] = torch.cat(copies[:: 2 if case.parallel.strategy == "towers" else 1])
    found["loss"] = runtime.sum_over_replicas(loss.detach())
    return {name: tensor.cpu() for name, tensor in found.items()}


def train_three_epochs(case: Case, dtype: torch.dtype, rule: str, micro_batch_size: int) -> dict[str, Tensor]:
    """Weights, the optimizer's state and the sums of the metrics, merged, in the main process."""
    runtime = start_case(case)
    model, partition = cut_tiny(case, runtime, dtype)
    norms = merged_norms(partition.find_cut(model), runtime.sum_over_parts)
    settings = OptimizerConfig(name=rule, **RULES[rule])  # type: ignore[arg-type]
    optimizer = build_rule(settings, model, norms)
    set_lr(optimizer, settings.lr)
    accumulates = micro_batch_size * runtime.dp_size < BATCH_SIZE
    forward = replicate_network(
        case.parallel, model, partition, compiled=False, accumulates=accumulates, runtime=runtime
    )
    counters, gate = DeviceCounters.on(runtime.device), BatchGate(runtime, skip_bad_files=False)
    seen = 0
    for batch in tiny_loader(runtime, TRAIN_IMAGES, BATCH_SIZE, training=True).batches(0, NUM_STEPS):
        num_images = gate.admit(batch)
        seen += num_images
        batch = batch._replace(images=batch.images.to(dtype))
        train_step(
            runtime,
            forward,
            optimizer,
            batch,
            micro_batch_size=micro_batch_size,
            scale=runtime.dp_size / num_images,
            counters=counters,
        )
    assert seen == NUM_STEPS // 4 * TRAIN_IMAGES
    state = {**model.state_dict(), **optimizer_tensors(optimizer, model)}
    return {name: tensor.cpu() for name, tensor in {**partition.merge(state), "sums": counters.sums}.items()}
