"""What a forward pass came to: the loss, the images that are right, and where the backward pass begins."""

from __future__ import annotations

import torch
from torch import Tensor

from alexnet_dist.training.metrics import count_correct, cross_entropy

MOST_CLASSES = 16_384  # that a program of the kernel holds


def score(logits: Tensor, labels: Tensor, mask: Tensor, scale: float | Tensor, sums: Tensor) -> Tensor:
    """The scaled loss, for a backward pass to begin at.

    Args:
        logits: (B, classes), of the network.
        labels: (B,).
        mask: (B,), what each image counts: 1, and 0 for what fills the batch up.
        scale: of the sum of losses.
        sums: (2,) float64; loss and correct images are added, not scaled.
    """
    loss_sum = (cross_entropy(logits, labels) * mask).sum()  # ()
    correct = (count_correct(logits.detach(), labels, 1) * mask).sum()  # ()
    sums += torch.stack([loss_sum.detach(), correct])
    return loss_sum * scale


def score_on_device(
    logits: Tensor, labels: Tensor, mask: Tensor, scale: float | Tensor, sums: Tensor, diverged: Tensor
) -> Tensor:
    """The same by kernels of a GPU, for up to MOST_CLASSES; the gradient of the logits, in their place.

    Args:
        logits, labels, mask, scale, sums: see `score`.
        diverged: (), becomes 1 if the sum of losses is not finite, else 0.
    """
    from alexnet_dist.training.loss_kernel import count, score  # Triton is not everywhere

    gradient, rows = score(logits, labels, mask, scale)
    count(rows, sums, diverged)
    return gradient
