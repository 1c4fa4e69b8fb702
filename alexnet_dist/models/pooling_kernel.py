"""Max pooling over 3x3 windows, two pixels apart, on a GPU: eight channels a thread, one byte a position.

PyTorch keeps where a maximum was as 8 bytes beside its 2, and fills the gradient with zeros before it adds to it. Here
a position is the number of the pixel in its window, and the backward pass asks the up to four windows of a pixel for
it, so that every byte moves once. Values, positions and sums are PyTorch's to the bit: the first of equal maxima wins,
the last NaN wins, and gradients are added in float32, window after window.

With `relu` the ReLU before or behind the pooling, which give the same, costs no pass over the maps. Where a window has
nothing above 0, its position is one that no pixel has, and no gradient goes back.

For channels-last maps of a multiple of 8 channels; `pooling` asks `fits_vectors`.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.library import triton_op, wrap_triton

from alexnet_dist.models.vectors import CHANNELS

BLOCK = 128  # vectors of a program, one for each thread of four warps


class PoolVectors(torch.autograd.Function):
    """(B, C, H, W) to (B, C, (H - 3) // 2 + 1, (W - 3) // 2 + 1), for maps that fit."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, relu: bool) -> Tensor:
        pooled, positions = allocate_pooled(maps)
        if pooled.numel():
            _forward[_grid(pooled)](maps, pooled, positions, *_describe(pooled, maps), relu)
        ctx.save_for_backward(positions)
        ctx.shape = maps.shape
        return pooled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (positions,) = ctx.saved_tensors
        grad_maps = _allocate_like(grad, ctx.shape[2], ctx.shape[3])
        if grad_maps.numel():
            _backward[_grid(grad_maps)](_lay_out(grad), positions, grad_maps, *_describe(grad_maps, grad, turned=True))
        return grad_maps, None


def allocate_pooled(maps: Tensor) -> tuple[Tensor, Tensor]:
    """The pooled maps and the positions of their maxima, both to be filled."""
    height, width = (maps.shape[2] - 3) // 2 + 1, (maps.shape[3] - 3) // 2 + 1
    pooled = _allocate_like(maps, height, width)
    return pooled, torch.empty_like(pooled, dtype=torch.uint8, memory_format=torch.channels_last)


def _allocate_like(maps: Tensor, height: int, width: int) -> Tensor:
    shape = (maps.shape[0], height, width, maps.shape[1])
    return torch.empty(shape, dtype=maps.dtype, device=maps.device).permute(0, 3, 1, 2)


def _lay_out(grad: Tensor) -> Tensor:
    return grad.contiguous(memory_format=torch.channels_last)


def _grid(made: Tensor) -> tuple[int]:
    return (triton.cdiv(made.numel(), CHANNELS * BLOCK),)


def _describe(made: Tensor, other: Tensor, turned: bool = False) -> tuple[int, ...]:
    """How many vectors are made; height and width of the maps and of the pooled ones; vectors of a pixel."""
    large, small = (made, other) if turned else (other, made)
    return made.numel() // CHANNELS, *large.shape[2:], *small.shape[2:], made.shape[1] // CHANNELS, BLOCK


# For those who record what is computed, as in normalization_vectors_kernel.py.


@triton_op("alexnet_dist::pool_vectors", mutates_args=())
def pool_vectors(maps: Tensor, relu: bool) -> tuple[Tensor, Tensor]:
    """`PoolVectors` as one operator: the pooled maps, and the positions of their maxima."""
    pooled, positions = allocate_pooled(maps)
    if pooled.numel():
        wrap_triton(_forward)[_grid(pooled)](maps, pooled, positions, *_describe(pooled, maps), relu)
    return pooled, positions


@triton_op("alexnet_dist::pool_vectors_backward", mutates_args=())
def pool_vectors_backward(grad: Tensor, positions: Tensor, height: int, width: int) -> Tensor:
    """The gradient of `pool_vectors`."""
    grad_maps = _allocate_like(grad, height, width)
    if grad_maps.numel():
        described = _describe(grad_maps, grad, turned=True)
        wrap_triton(_backward)[_grid(grad_maps)](_lay_out(grad), positions, grad_maps, *described)
    return grad_maps


def _keep_positions(ctx: Any, inputs: tuple[Tensor, bool], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1])
    ctx.side = inputs[0].shape[2:]


def _differentiate(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor, None]:
    (positions,) = ctx.saved_tensors
    return pool_vectors_backward(grad, positions, *ctx.side), None


pool_vectors.register_autograd(_differentiate, setup_context=_keep_positions)


# -- the kernels ------------------------------------------------------------------------------------------------------


@triton.jit
def _forward(
    x_ptr,
    y_ptr,
    position_ptr,
    vectors,
    height: tl.constexpr,
    width: tl.constexpr,
    pooled_height: tl.constexpr,
    pooled_width: tl.constexpr,
    per_pixel: tl.constexpr,
    block: tl.constexpr,
    relu: tl.constexpr,
):
    vector = tl.program_id(0) * block + tl.arange(0, block)
    inside = vector < vectors
    image, y, x, channel = locate(vector, pooled_height, pooled_width, per_pixel)
    corner = ((image.to(tl.int64) * height + 2 * y) * width + 2 * x) * per_pixel + channel
    lane = tl.arange(0, 8)[None, :]
    best = tl.full([block, 8], float("-inf"), tl.float32)
    position = tl.zeros([block, 8], tl.int32)
    for down in tl.static_range(3):
        for right in tl.static_range(3):
            place = (corner + (down * width + right) * per_pixel)[:, None] * 8 + lane
            value = tl.load(x_ptr + place, mask=inside[:, None], other=0.0).to(tl.float32)
            is_better = (value > best) | (value != value)  # the last NaN wins
            best = tl.where(is_better, value, best)
            position = tl.where(is_better, down * 3 + right, position)
    if relu:
        position = tl.where(best <= 0.0, 9, position)
        best = tl.where(best <= 0.0, 0.0, best)
    own = vector[:, None].to(tl.int64) * 8 + lane
    tl.store(y_ptr + own, best.to(y_ptr.dtype.element_ty), mask=inside[:, None])
    tl.store(position_ptr + own, position.to(tl.uint8), mask=inside[:, None])


@triton.jit
def _backward(
    g_ptr,
    position_ptr,
    dx_ptr,
    vectors,
    height: tl.constexpr,
    width: tl.constexpr,
    pooled_height: tl.constexpr,
    pooled_width: tl.constexpr,
    per_pixel: tl.constexpr,
    block: tl.constexpr,
):
    vector = tl.program_id(0) * block + tl.arange(0, block)
    inside = vector < vectors
    image, y, x, channel = locate(vector, height, width, per_pixel)
    lane = tl.arange(0, 8)[None, :]
    total = tl.zeros([block, 8], tl.float32)
    for up in tl.static_range(1, -1, -1):  # the window above comes first, and the one to the left, as PyTorch adds
        for left in tl.static_range(1, -1, -1):
            pooled_y, pooled_x = y // 2 - up, x // 2 - left
            down, right = y - 2 * pooled_y, x - 2 * pooled_x  # where the pixel lies in that window
            is_row = (pooled_y >= 0) & (pooled_y < pooled_height) & (down < 3)
            there = inside & is_row & (pooled_x >= 0) & (pooled_x < pooled_width) & (right < 3)
            pixel = (image.to(tl.int64) * pooled_height + pooled_y) * pooled_width + pooled_x
            place = (pixel * per_pixel + channel)[:, None] * 8 + lane
            position = tl.load(position_ptr + place, mask=there[:, None], other=255).to(tl.int32)
            grad = tl.load(g_ptr + place, mask=there[:, None], other=0.0).to(tl.float32)
            total += tl.where(position == (down * 3 + right)[:, None], grad, 0.0)
    own = vector[:, None].to(tl.int64) * 8 + lane
    tl.store(dx_ptr + own, total.to(dx_ptr.dtype.element_ty), mask=inside[:, None])


@triton.jit
def locate(vector, height: tl.constexpr, width: tl.constexpr, per_pixel: tl.constexpr):
    """Image, row, column and place among a pixel's vectors."""
    pixel = vector // per_pixel
    return pixel // (width * height), (pixel // width) % height, pixel % width, vector % per_pixel
