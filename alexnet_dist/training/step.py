"""One update, on one screen."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from alexnet_dist.base.spans import BACKWARD, FORWARD, LOSS, UPDATE, span
from alexnet_dist.data.engines.loader import Batch
from alexnet_dist.parallel.replicas import hold_gradients
from alexnet_dist.parallel.runtime import Runtime
from alexnet_dist.training.flat_update import FlatSGD
from alexnet_dist.training.objective import score, score_on_device


@dataclass(frozen=True, eq=False)
class DeviceCounters:
    """Sums that stay on the device between two log points.

    Args:
        sums: (2,) float64, loss and correct images over all replicas.
        diverged: () float32, 1 while the sum of losses is not finite, and then no update is made. Log points set the
            sums to 0 again, after they have looked at it.
    """

    sums: Tensor
    diverged: Tensor

    @classmethod
    def on(cls, device: torch.device) -> DeviceCounters:
        """Counters at zero."""
        return cls(torch.zeros(2, dtype=torch.float64, device=device), torch.zeros((), device=device))


def train_step(
    runtime: Runtime,
    model: nn.Module,
    optimizer: Optimizer,
    batch: Batch,
    *,
    micro_batch_size: int,
    scale: float | Tensor,
    counters: DeviceCounters,
    fused_loss: bool = False,
) -> None:
    """Make one update from the mean loss over the real images of the global batch. Never waits for the device.

    Args:
        runtime: this process among the others.
        model: the replicated network, in training mode.
        optimizer: with the rate of this update already set.
        batch: this replica's part of the global batch.
        micro_batch_size: images per forward; gradients accumulate over the parts.
        scale: what the losses' sum is multiplied by, replicas / real images of the global batch: DDP averages over the
            replicas, and what is wanted is the sum. A captured update (training/graph.py) reads it from the device.
        counters: what the log points read.
        fused_loss: by kernels of a GPU; not for fp16, whose loss is scaled again.
    """
    adds_directly = fused_loss and runtime.mesh.dp_group is None
    sums = counters.sums if adds_directly else torch.zeros_like(counters.sums)  # (2,)
    images, labels, mask = (torch.split(part, micro_batch_size) for part in (batch.images, batch.labels, batch.mask))
    for micro_step in range(len(images)):
        is_last = micro_step == len(images) - 1
        with torch.enable_grad() if is_last else hold_gradients(model):
            with span(FORWARD), runtime.autocast():
                logits = model(images[micro_step])  # (b, classes)
            scored = (logits, labels[micro_step], mask[micro_step], scale, sums)
            with span(LOSS):
                found = score_on_device(*scored, counters.diverged) if fused_loss else score(*scored)
            if is_last:  # in every process before DDP sends a gradient; the sums travel beside the backward pass
                end_sum = runtime.begin_sum_over_replicas(sums)
                if adds_directly and len(images) == 1 and isinstance(optimizer, FlatSGD):
                    optimizer.expect_backward(counters.diverged)
            with span(BACKWARD):
                if fused_loss:
                    logits.backward(found)
                else:
                    runtime.backward(found)

    if not adds_directly:
        counters.sums.add_(end_sum())
        # A sum that is not finite stays so, and 0 times it is not 0: two kernels, where torch.isfinite takes six.
        torch.ne(counters.sums[0] * 0, 0, out=counters.diverged)
    with span(UPDATE):
        runtime.update(optimizer, counters.diverged)
        optimizer.zero_grad(set_to_none=True)
