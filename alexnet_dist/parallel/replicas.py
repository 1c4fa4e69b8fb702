"""DistributedDataParallel over the right processes: what is cut and what is whole are averaged over different ones."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import AbstractContextManager, ExitStack

import torch
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook, fp16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from alexnet_dist.parallel.mesh import Mesh

# A bucket for each layer of that size: a gradient travels while those of the layers before it are computed. PyTorch's
# 25 MiB would hold fc8 and all convolutions, and send nothing before the last of them is computed.
BUCKET_MIB = 1
COMPRESSION_HOOKS = {"bf16": bf16_compress_hook, "fp16": fp16_compress_hook}


def average_over_replicas(
    model: nn.Module,
    mesh: Mesh,
    device: torch.device,
    cut: Collection[Tensor] = (),
    compression: str | None = None,
    static_graph: bool = False,
) -> nn.Module:
    """Wrap a network once for each group of processes that average some of its gradients.

    Args:
        model: the network, or this process's part of it.
        mesh: this process among the others.
        device: where the network is.
        cut: its parameters that are parts: they are averaged over the processes that hold the same part.
        compression: bf16 or fp16, what gradients travel as; None = as they are.
        static_graph: every backward that averages has the same graph, and none before it only accumulates.
    """
    groups = {parameter: mesh.cut_group if parameter in cut else mesh.dp_group for parameter in model.parameters()}
    ids = [device.index] if device.type == "cuda" else None
    for group in dict.fromkeys(group for p, group in groups.items() if p.requires_grad and group is not None):
        # DDP reads the names of what it must leave to others from this attribute.
        names = [name for name, parameter in model.named_parameters() if groups[parameter] is not group]
        model._ddp_params_and_buffers_to_ignore = names  # type: ignore[assignment]
        model = DistributedDataParallel(
            model,
            device_ids=ids,
            process_group=group,
            bucket_cap_mb=BUCKET_MIB,
            gradient_as_bucket_view=True,
            static_graph=static_graph,
        )
        if compression is not None:
            model.register_comm_hook(group, COMPRESSION_HOOKS[compression])
    return model


def hold_gradients(model: nn.Module) -> AbstractContextManager[object]:
    """Accumulate gradients without averaging them, in each wrap of the network."""
    stack = ExitStack()
    while isinstance(model, DistributedDataParallel):
        stack.enter_context(model.no_sync())
        model = model.module
    return stack
