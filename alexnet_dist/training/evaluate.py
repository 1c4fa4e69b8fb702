"""Loss, top-1 and top-5 over a set: each image counted exactly once, on any number of processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from alexnet_dist.base.errors import DataError, DivergedError
from alexnet_dist.base.progress import Progress
from alexnet_dist.data.engines.loader import Batch, Loader
from alexnet_dist.parallel.runtime import Runtime
from alexnet_dist.training.metrics import average_views, count_correct, cross_entropy, is_finite
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
    *,
    name: str = "evaluating",
    where: str = "evaluation",
    remedy: str = "use weights of an earlier step",
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
        name: of the work, where it is shown.
        where, remedy: for the message where the network's outputs are not finite.

    Raises:
        DivergedError: an image has a logit or a loss that is not finite; in all processes alike.
        DataError: no image of the set could be read; likewise.
    """
    was_training = model.training
    model.eval()
    sums = torch.zeros(4, dtype=torch.float64, device=runtime.device)  # loss, top-1, top-5, images not finite
    visits = torch.zeros(loader.plan.num_images, dtype=torch.int64)
    num_examples, plan, views = 0, loader.plan, loader.plan.augmentation.views
    try:
        with Progress(name, plan.num_images, shown=runtime.is_main) as progress:
            for step, batch in enumerate(loader.batches(0, plan.steps_per_epoch)):
                admit(batch)
                ids, labels, mask = batch.ids[::views], batch.labels[::views], batch.mask[::views]  # (B,) each
                logits = _run_network(runtime, model, batch.images)  # (B * views, classes)
                scores = logits if views == 1 else average_views(logits, views)  # (B, classes)
                sums += _sum_batch(logits.view(len(scores), -1), scores, labels, mask)
                if observe is not None:
                    observe(rate_images(ids, scores, labels, mask))
                visits += torch.bincount(ids[ids >= 0], minlength=len(visits))
                num_examples += batch.num_images
                progress.advance(plan.count(step))
    finally:
        model.train(was_training)
    count, num_broken = runtime.agree(runtime.count_once(num_examples), runtime.count_once(int(sums[3].item())))
    loss_sum, num_top1, num_top5, _ = runtime.sum_over_replicas(sums).tolist()
    assert bool((runtime.sum_on_host(visits * runtime.count_once(1)) == 1).all()), (
        "evaluation did not visit each image exactly once"
    )
    if num_broken:
        why = f"{num_broken} of {count} images"
        raise DivergedError("the network's outputs are not finite", where=where, why=why, remedy=remedy)
    if count == 0:
        raise DataError("no image could be read", where=where, remedy="bring the files back and start again")
    return Evaluation(loss_sum / count, num_top1 / count, num_top5 / count, count)


def check_outputs(runtime: Runtime, model: nn.Module, batch: Batch, num_rows: int, where: str) -> None:
    """Refuse a network whose outputs for a training batch are not finite: what is not validated is looked at here.

    Args:
        runtime: this process among the others; all of them call this.
        model: the network, not replicated; it is left in the mode it was in.
        batch: of this process.
        num_rows: images that fit into a forward; more are not looked at.
        where: for the message.

    Raises:
        DivergedError: an output is not finite; in all processes alike.
    """
    was_training = model.training
    model.eval()
    try:
        logits = _run_network(runtime, model, batch.images[:num_rows])  # (B, classes)
    finally:
        model.train(was_training)
    is_broken = ~logits.isfinite().all(dim=1) & batch.mask[:num_rows].bool()
    (num_broken,) = runtime.agree(int(is_broken.sum().item()))
    if num_broken:
        why = "an update with a finite loss broke the network"
        raise DivergedError("the network's outputs are not finite", where=where, why=why)


def _run_network(runtime: Runtime, model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad(), runtime.autocast():
        logits: Tensor = model(images)
        return logits


def _sum_batch(logits: Tensor, scores: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """Sums over real images: loss, top-1, top-5, not finite; `logits` are those of all views in one row, (B, n)."""
    losses = cross_entropy(scores, labels)
    columns = (losses, *(count_correct(scores, labels, k) for k in (1, 5)), ~is_finite(logits, losses))  # (B,) each
    # In float64: a sum of finite losses is finite. What fills a batch up may be anything, and counts nowhere.
    return torch.stack([column.double().where(mask.bool(), 0).sum() for column in columns])
