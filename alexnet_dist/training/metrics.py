"""Sums that are divided once: loss, top-1 and top-5 over counted images."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Loss of each image: (B, classes) logits and (B,) labels to (B,), in at least float32."""
    return F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), labels, reduction="none")


def count_correct(logits: Tensor, labels: Tensor, k: int) -> Tensor:
    """Whether the label is among the k largest logits: (B,) bool. With fewer classes than k it always is."""
    top = logits.topk(min(k, logits.shape[1]), dim=1).indices  # (B, k)
    return (top == labels[:, None]).any(dim=1)


def average_views(logits: Tensor, views: int) -> Tensor:
    """Logs of the softmax probabilities averaged over the views: (B * views, classes) to (B, classes).

    They serve as logits: their softmax is the averaged probabilities. The sum is taken on logs, in at least float32,
    so a probability too small for a float still has a finite loss.
    """
    logs = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(dim=1)
    return logs.view(-1, views, logs.shape[1]).logsumexp(dim=1) - math.log(views)  # (B, classes)


def is_finite(logits: Tensor, losses: Tensor) -> Tensor:
    """Whether an image's logits, of all its views, and its loss are finite: (B, n) and (B,) to (B,) bool."""
    return logits.isfinite().all(dim=1) & losses.isfinite()


@dataclass
class Totals:
    """Sums over images since some moment, on the host.

    Args:
        loss_sum: sum of the images' losses.
        num_correct: images whose label had the largest logit.
        num_images: images counted.
        num_steps: updates.
        wait_seconds: time spent waiting for data.
        seconds: time in all, evaluation and saving left out.
    """

    loss_sum: float = 0.0
    num_correct: float = 0.0
    num_images: int = 0
    num_steps: int = 0
    wait_seconds: float = 0.0
    seconds: float = 0.0

    def add(self, other: Totals) -> None:
        """Add another stretch of training."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    @property
    def loss(self) -> float:
        """Mean loss of an image."""
        return self.loss_sum / max(self.num_images, 1)

    @property
    def top1(self) -> float:
        """Part of the images that were right, 0 to 1."""
        return self.num_correct / max(self.num_images, 1)

    @property
    def images_per_second(self) -> float:
        """Images of all processes per second."""
        return self.num_images / self.seconds if self.seconds > 0 else 0.0
