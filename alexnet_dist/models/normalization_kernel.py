"""Response normalization across channels on a GPU: one Triton kernel forward, one backward.

In eager PyTorch the window's shifted sums pass over the maps some thirty times, and on a GPU they take most of the
network's time. Here each value is read from memory and written once; neighbors come from the core's cache.

A thread's value lies at `place`; the next channel of the same pixel lies `step` further: 1 for channels-last maps, the
size of a map for contiguous ones. With the window w(.) over channels of the same group and s = k + weight * w(x**2):
y = x * s**-beta, and dx = g * s**-beta - 2 * beta * weight * x * w(g * x * s**(-beta - 1)).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 256  # of 256 to 2048 the fastest on an H100


class NormalizeOnDevice(torch.autograd.Function):
    """As `normalization._Normalize`, for (B, G*C, ...) maps that are dense in either memory format."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, groups: int, reach: int, weight: float, beta: float, k: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.settings = (x.shape[1] // groups, reach, weight, beta, k)
        y = torch.empty_like(x)
        _launch(_normalize, x, (x, y), ctx.settings)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        grad_x = torch.empty_like(x)
        _launch(_normalize_backward, x, (x, _lay_like(grad_y, x), grad_x), ctx.settings)
        return grad_x, None, None, None, None, None


def lay_dense(x: Tensor) -> Tensor:
    """The maps in a memory format that the kernel walks through: as they are, where that is one."""
    return x if _is_channels_last(x) else x.contiguous()


def _lay_like(grad: Tensor, x: Tensor) -> Tensor:
    return grad.contiguous(memory_format=torch.channels_last) if _is_channels_last(x) else grad.contiguous()


def _is_channels_last(x: Tensor) -> bool:
    return x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)


def _launch(
    kernel: Any, x: Tensor, tensors: tuple[Tensor, ...], settings: tuple[int, int, float, float, float]
) -> None:
    step = 1 if _is_channels_last(x) else math.prod(x.shape[2:])
    if not x.numel():
        return
    grid = (triton.cdiv(x.numel(), BLOCK),)
    group, reach, weight, beta, k = settings
    kernel[grid](*tensors, x.numel(), step, x.shape[1], weight, k, beta, group, reach, BLOCK)


@triton.jit
def _normalize(
    x_ptr,
    y_ptr,
    size,
    step,
    channels,
    weight,
    k,
    beta: tl.constexpr,
    group: tl.constexpr,
    reach: tl.constexpr,
    block: tl.constexpr,
):
    place = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = place < size
    position = ((place // step) % channels) % group  # of the channel in its group
    scale = _scale(x_ptr, place, inside, position, 0, step, weight, k, group, reach)
    x = tl.load(x_ptr + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(y_ptr + place, (x * _power(scale, beta)).to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _normalize_backward(
    x_ptr,
    g_ptr,
    dx_ptr,
    size,
    step,
    channels,
    weight,
    k,
    beta: tl.constexpr,
    group: tl.constexpr,
    reach: tl.constexpr,
    block: tl.constexpr,
):
    place = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = place < size
    position = ((place // step) % channels) % group
    x = tl.load(x_ptr + place, mask=inside, other=0.0).to(tl.float32)
    own = tl.zeros([block], tl.float32)  # g * s**-beta
    crossed = tl.zeros([block], tl.float32)  # w(g * x * s**(-beta - 1))
    for shift in tl.static_range(-reach, reach + 1):
        there = inside & (position + shift >= 0) & (position + shift < group)
        scale = _scale(x_ptr, place, inside, position, shift, step, weight, k, group, reach)
        factor = _power(scale, beta)
        value = tl.load(x_ptr + place + shift * step, mask=there, other=0.0).to(tl.float32)
        grad = tl.load(g_ptr + place + shift * step, mask=there, other=0.0).to(tl.float32)
        crossed += grad * value * factor / scale
        if shift == 0:
            own = grad * factor
    dx = own - 2 * beta * weight * x * crossed
    tl.store(dx_ptr + place, dx.to(dx_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _scale(
    x_ptr, place, inside, position, shift: tl.constexpr, step, weight, k, group: tl.constexpr, reach: tl.constexpr
):
    """k + weight * the squares in the window of the channel that is `shift` away."""
    squares = tl.zeros_like(place).to(tl.float32)
    for offset in tl.static_range(-reach, reach + 1):
        channel = position + shift + offset
        there = inside & (channel >= 0) & (channel < group)
        value = tl.load(x_ptr + place + (shift + offset) * step, mask=there, other=0.0).to(tl.float32)
        squares += value * value
    return k + weight * squares


@triton.jit
def _power(scale, beta: tl.constexpr):
    """scale ** -beta; two roots cost less than a general power."""
    if beta == 0.75:
        root = 1.0 / tl.sqrt(scale)
        return root * tl.sqrt(root)
    return tl.exp(-beta * tl.log(scale))
