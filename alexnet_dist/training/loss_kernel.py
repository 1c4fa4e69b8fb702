"""Loss, correct images and the gradient of the logits on a GPU: two kernels in place of some thirty.

The first has an image a program. It computes what `metrics.cross_entropy` and `count_correct` do, in float32, and, as
the scale of the loss is known before the backward pass, at once the gradient: softmax minus one at the label, times the
scale. The second, of one program, adds the images up in one order, in float64.

Of equal logits the first one counts as the largest, as with torch.topk on a GPU, and NaN is larger than any number.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 1024  # images that are added up at a time


def score(logits: Tensor, labels: Tensor, mask: Tensor, scale: float | Tensor) -> tuple[Tensor, Tensor]:
    """What is asked of some logits.

    Args:
        logits: (B, classes).
        labels: (B,).
        mask: (B,), what each image counts.
        scale: of the loss; a () tensor on the device, or a number.

    Returns:
        (B, classes), the gradient of the loss times the scale; (2, B), loss and correctness of each image.
    """
    logits, (images, classes) = logits.detach().contiguous(), logits.shape
    grads = torch.empty_like(logits)  # (B, classes)
    rows = torch.empty(2, images, dtype=torch.promote_types(logits.dtype, torch.float32), device=logits.device)
    if images:
        block, reads_scale = triton.next_power_of_2(classes), isinstance(scale, Tensor)
        _score[(images,)](logits, labels, mask, scale, grads, rows, images, classes, block, reads_scale)
    return grads, rows


def count(rows: Tensor, sums: Tensor, diverged: Tensor) -> None:
    """Add what `score` gave to the counters of the step.

    Args:
        rows: (2, B), loss and correctness of each image.
        sums: (2,) float64, added to.
        diverged: (), becomes 1 if the sum of losses is not finite, else 0.
    """
    _count[(1,)](rows, sums, diverged, rows.shape[1], ROWS)


@triton.jit
def _score(
    logit_ptr,
    label_ptr,
    mask_ptr,
    scale,
    grad_ptr,
    row_ptr,
    images,
    classes,
    block: tl.constexpr,
    reads_scale: tl.constexpr,
):
    wide: tl.constexpr = tl.float64 if logit_ptr.dtype.element_ty == tl.float64 else tl.float32
    image, place = tl.program_id(0), tl.arange(0, block)
    own = image.to(tl.int64) * classes + place
    inside = place < classes
    label, weight = tl.load(label_ptr + image), tl.load(mask_ptr + image).to(wide)
    logits = tl.load(logit_ptr + own, mask=inside, other=float("-inf")).to(wide)
    is_label = place == label
    at_label = tl.sum(tl.where(is_label, logits, 0.0), 0)
    shifted = logits - tl.max(logits, 0)
    logs = shifted - tl.log(tl.sum(tl.exp(shifted), 0))
    tl.store(row_ptr + image, -tl.sum(tl.where(is_label, logs, 0.0), 0) * weight)
    is_nan, is_before = logits != logits, place < label
    is_larger = is_nan | (logits > at_label) | ((logits == at_label) & is_before)
    nans_before, larger = tl.sum((is_nan & is_before).to(tl.int32), 0), tl.sum(is_larger.to(tl.int32), 0)
    better = tl.where(tl.sum((is_nan & is_label).to(tl.int32), 0) > 0, nans_before, larger)
    tl.store(row_ptr + images + image, tl.where(better == 0, weight, 0.0))
    if reads_scale:
        weight *= tl.load(scale).to(wide)
    else:
        weight *= scale
    grad = tl.exp(logs) * weight - tl.where(is_label, weight, 0.0)
    tl.store(grad_ptr + own, grad.to(grad_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _count(row_ptr, sum_ptr, diverged_ptr, images, block: tl.constexpr):
    losses, correct = tl.zeros([block], tl.float64), tl.zeros([block], tl.float64)
    for first in range(0, images, block):
        place = first + tl.arange(0, block)
        losses += tl.load(row_ptr + place, mask=place < images, other=0.0).to(tl.float64)
        correct += tl.load(row_ptr + images + place, mask=place < images, other=0.0).to(tl.float64)
    loss_sum = tl.load(sum_ptr) + tl.sum(losses, 0)
    tl.store(sum_ptr, loss_sum)
    tl.store(sum_ptr + 1, tl.load(sum_ptr + 1) + tl.sum(correct, 0))
    tl.store(diverged_ptr, tl.where(loss_sum * 0.0 == 0.0, 0.0, 1.0))
