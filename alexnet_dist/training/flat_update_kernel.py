"""One update of SGD with momentum over all parameters, as one kernel on a GPU: each byte moves once.

PyTorch's fused SGD is called once for each group of settings and starts several kernels, and autocast then reads every
weight again to make its copy of 16 bits. Here a parameter takes 20 bytes: weight and velocity are read and written in
float32, the gradient is read and the copy for the next forward pass is written in bf16.

The arithmetic is that of PyTorch's kernel: in float64, rounded to the tensor's type wherever it keeps a value. The copy
is the new weight rounded once more, which is what autocast makes of it.

A program updates one block of the flat buffers, and a tensor begins with a block; see `flat_update`.
"""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

BLOCK = 2048  # values of a program, eight for each thread of eight warps
WARPS = 8
RATE, DECAY, MOMENTUM = range(3)  # columns of the terms


def update(
    weights: Tensor,
    velocities: Tensor | None,
    shadows: Tensor | None,
    grads: Sequence[Tensor],
    terms: Tensor,
    firsts: tuple[int, ...],
    *,
    blocked: Tensor | None = None,
    scale: Tensor | None = None,
) -> None:
    """Change the weights in place.

    Args:
        weights: (N,), parameters one behind the other, each filled up to whole blocks.
        velocities: (N,) in the same order; None = without momentum.
        shadows: (N,), copies of the weights in the type of the forward pass; None = there are none.
        grads: of each parameter, of one type, dense in memory in the order of its weights.
        terms: (parameters, 3) float64: rate, decay and momentum.
        firsts: the block with which each parameter begins.
        blocked: (), 1 = nothing is changed.
        scale: (), what the gradients are divided by.
    """
    _update[(weights.numel() // BLOCK,)](
        weights,
        weights if velocities is None else velocities,
        weights if shadows is None else shadows,
        tuple(grads),
        terms,
        terms if blocked is None else blocked,
        terms if scale is None else scale,
        firsts,
        tuple(grad.numel() for grad in grads),
        len(grads),
        BLOCK,
        velocities is not None,
        shadows is not None,
        blocked is not None,
        scale is not None,
        num_warps=WARPS,
    )


@triton.jit
def _update(
    weight_ptr,
    velocity_ptr,
    shadow_ptr,
    grads,
    term_ptr,
    blocked_ptr,
    scale_ptr,
    firsts: tl.constexpr,
    sizes: tl.constexpr,
    count: tl.constexpr,
    block: tl.constexpr,
    has_velocity: tl.constexpr,
    has_shadow: tl.constexpr,
    can_be_blocked: tl.constexpr,
    is_scaled: tl.constexpr,
):
    if can_be_blocked:  # noqa: SIM102 (known when the kernel is built: there may be nothing to load)
        if tl.load(blocked_ptr) != 0:
            return
    number = tl.program_id(0)
    grad_ptr = grads[0]
    place, begin, size = 0, 0, sizes[0]
    for later in tl.static_range(1, count):
        if number >= firsts[later]:
            place, begin, size = later, firsts[later], sizes[later]
            grad_ptr = grads[later]
    rate = tl.load(term_ptr + place * 3)
    decay = tl.load(term_ptr + place * 3 + 1)
    own = number.to(tl.int64) * block + tl.arange(0, block)
    weight = tl.load(weight_ptr + own)
    grad = _load_grad(grad_ptr, number - begin, size, block).to(weight.dtype)
    if is_scaled:
        grad = (grad.to(tl.float64) / tl.load(scale_ptr).to(tl.float64)).to(weight.dtype)
    if decay != 0.0:
        grad = (grad.to(tl.float64) + decay * weight.to(tl.float64)).to(weight.dtype)
    if has_velocity:
        momentum = tl.load(term_ptr + place * 3 + 2)
        velocity = tl.load(velocity_ptr + own)
        grad = (momentum * velocity.to(tl.float64) + grad.to(tl.float64)).to(weight.dtype)
        tl.store(velocity_ptr + own, grad)
    weight = (weight.to(tl.float64) - rate * grad.to(tl.float64)).to(weight.dtype)
    tl.store(weight_ptr + own, weight)
    if has_shadow:
        tl.store(shadow_ptr + own, weight.to(shadow_ptr.dtype.element_ty))


@triton.jit
def _load_grad(grad_ptr, number, size, block: tl.constexpr):
    """A block of a gradient; behind its end there are zeros."""
    own = number * block + tl.arange(0, block)
    if (number + 1) * block <= size:  # without a mask a thread loads 16 bytes at a time
        grad = tl.load(grad_ptr + own)
    else:
        grad = tl.load(grad_ptr + own, mask=own < size, other=0.0)
    return grad
