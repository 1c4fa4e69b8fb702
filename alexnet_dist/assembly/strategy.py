"""From parallel.* to a network that is cut, and to what averages its gradients."""

from __future__ import annotations

import torch
from torch import nn

from alexnet_dist.models import AlexNet, AlexNetSpec
from alexnet_dist.parallel.partition import Partition
from alexnet_dist.parallel.replicas import average_over_replicas
from alexnet_dist.parallel.runtime import Runtime
from alexnet_dist.settings.schema import ParallelConfig


def check_strategy(parallel: ParallelConfig, spec: AlexNetSpec, runtime: Runtime) -> None:
    """Refuse a network that the strategy cannot cut.

    Raises:
        UsageError: it cannot.
    """
    if parallel.strategy == "towers":
        from alexnet_dist.parallel.towers import check_towers  # with it comes torch.compile: a second of a start

        check_towers(spec)
    if parallel.strategy == "hybrid":
        from alexnet_dist.parallel.hybrid import check_hybrid

        check_hybrid(spec, runtime.mesh.num_parts)


def cut_network(parallel: ParallelConfig, model: AlexNet, runtime: Runtime) -> Partition:
    """Cut the whole network in place, as the strategy says; build the optimizer afterwards.

    Args:
        parallel: the settings.
        model: the whole network with its weights, on the CPU.
        runtime: this process among the others.
    """
    if parallel.strategy == "ddp":
        return Partition(runtime.mesh)
    from alexnet_dist.parallel.collectives import WIRE_DTYPES

    exchange = WIRE_DTYPES[parallel.exchange] if parallel.exchange is not None else None
    if parallel.strategy == "towers":
        from alexnet_dist.parallel.towers import cut_into_towers

        return cut_into_towers(model, runtime.mesh, exchange)
    from alexnet_dist.parallel.hybrid import cut_into_shards

    return cut_into_shards(model, runtime.mesh, exchange, parallel.hybrid_schedule)


def replicate_network(
    parallel: ParallelConfig,
    model: nn.Module,
    partition: Partition,
    *,
    compiled: bool,
    accumulates: bool,
    runtime: Runtime,
) -> nn.Module:
    """The network that a step calls: compiled, then replicated.

    Args:
        parallel: the settings.
        model: this process's part of the network, on its device.
        partition: what `cut_network` gave.
        compiled: by torch.compile.
        accumulates: several forwards make an update.
        runtime: this process among the others.
    """
    forward: nn.Module = torch.compile(model) if compiled else model  # type: ignore[assignment]
    cut = partition.find_cut(model)
    # DDP takes its static graph from the first backward; one that only accumulates would mislead it.
    return average_over_replicas(
        forward, runtime.mesh, runtime.device, cut, parallel.gradient_compression, static_graph=not accumulates
    )
