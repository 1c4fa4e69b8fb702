"""Loss, top-1 and top-5 over a set: each image counted exactly once, on any number of processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from alexnet_dist.data.loader import Batch, Loader
from alexnet_dist.parallel.runtime import Runtime
from alexnet_dist.training.metrics import average_views, count_correct, cross_entropy
from alexnet_dist.training.predictions import Predictions, rate_images


@dataclass(frozen=True)
class Evaluation:
    """Means over a set.

    Args:
        loss: mean cross-entropy.
        top1: part of the images whose label has the largest logit (several views: averaged probability), 0 to 1.
        top5: part whose label is among the five largest.
        num_examples: images counted.
    """

    loss: float
    top1: float
    top5: float
    num_examples: int


def evaluate(
    runtime: Runtime,
    model: nn.Module,
    loader: Loader,
    admit: Callable[[Batch], object],
    observe: Callable[[Predictions], object] | None = None,
) -> Evaluation:
    """Run the network over a loader's whole set.

    Where the plan makes several views of an image, their softmax probabilities are averaged, as 2012's LogregCostLayer
    does, and loss, top-1 and top-5 are taken from the averages.

    Args:
        runtime: this process among the others.
        model: the network, not replicated; it is left in the mode it was in.
        loader: of the set, unshuffled.
        admit: called with every batch before it is used; raises (in all processes together) to stop.
        observe: called with what the network says of each image of this process; the device is then waited for.
    """
    was_training = model.training
    model.eval()
    sums = torch.zeros(3, dtype=torch.float64, device=runtime.device)  # loss, top-1, top-5
    visits = torch.zeros(loader.plan.num_images, dtype=torch.int64)
    num_examples, views = 0, loader.plan.augmentation.views
    try:
        for batch in loader.batches(0, loader.plan.steps_per_epoch):
            admit(batch)
            ids, labels, mask = batch.ids[::views], batch.labels[::views], batch.mask[::views]  # (B,) each
            scores = _score_batch(runtime, model, batch, views)
            sums += _sum_batch(scores, labels, mask)
            if observe is not None:
                observe(rate_images(ids, scores, labels, mask))
            visits += torch.bincount(ids[ids >= 0], minlength=len(visits))
            num_examples += batch.num_images
    finally:
        model.train(was_training)
    loss_sum, num_top1, num_top5 = runtime.sum_over_replicas(sums).tolist()
    (count,) = runtime.agree(runtime.count_once(num_examples))
    assert bool((runtime.sum_on_host(visits * runtime.count_once(1)) == 1).all()), (
        "evaluation did not visit each image exactly once"
    )
    return Evaluation(loss_sum / max(count, 1), num_top1 / max(count, 1), num_top5 / max(count, 1), count)


def _score_batch(runtime: Runtime, model: nn.Module, batch: Batch, views: int) -> Tensor:
    with torch.no_grad():
        with runtime.autocast():
            logits: Tensor = model(batch.images)  # (B * views, classes)
        return logits if views == 1 else average_views(logits, views)  # (B, classes)


def _sum_batch(scores: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    loss = (cross_entropy(scores, labels) * mask).sum()
    correct = [(count_correct(scores, labels, k) * mask).sum() for k in (1, 5)]
    return torch.stack([loss, *correct]).double()
