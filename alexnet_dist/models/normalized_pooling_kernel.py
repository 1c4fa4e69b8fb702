"""Response normalization and the max pooling behind it in one kernel each way: the normalized maps are never written.

Values, positions and gradients are those of normalization_vectors_kernel.py and pooling_kernel.py, one after the other,
to the bit: what they would have written between them is rounded to the type of the maps all the same. With two bytes a
value, N values of the maps and P pooled ones, the two kernels move 6 N + 3 P bytes forward and 8 N + 3 P bytes
backward; one kernel moves 2 N + 3 P and 4 N + 3 P. The backward pass computes the normalization again from the maps.

Forward, a thread walks down one column of pooled pixels, eight channels wide. The last row of a window is the first of
the next, so that six pixels are normalized for each pooled one, and not nine. Backward, a thread has two by two pixels:
four windows are all that reach them, and where a pixel lies in each window is known before the kernel is built.

For maps that both kernels take: `normalization.has_vectors` and `pooling.is_poolable`.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.library import triton_op, wrap_triton

from alexnet_dist.models.normalization_vectors_kernel import (
    differentiate_eight,
    find_eight,
    find_neighbors,
    name_eight,
    normalize_eight,
)
from alexnet_dist.models.pooling_kernel import allocate_pooled, locate
from alexnet_dist.models.vectors import CHANNELS

BLOCK = 128  # threads of a program
# Pooled rows that a thread walks down, at most. Each walk begins with one more row of the maps.
# The network has 27 and 13.
ROWS = 7


class NormalizePoolVectors(torch.autograd.Function):
    """(B, G*C, H, W) to (B, G*C, (H - 3) // 2 + 1, (W - 3) // 2 + 1), for maps that fit.

    Args:
        maps: (B, G*C, H, W).
        groups: G.
        weight: of the squares.
        k: constant term.
        relu_before: the ReLU before the normalization is computed here.
        relu_behind: the ReLU behind the pooling is computed here.
    """

    @staticmethod
    def forward(
        ctx: Any, maps: Tensor, groups: int, weight: float, k: float, relu_before: bool, relu_behind: bool
    ) -> Tensor:
        pooled, positions = allocate_pooled(maps)
        if pooled.numel():
            described = (*_describe(maps, pooled, groups, weight, k), relu_before, relu_behind, _count_rows(pooled))
            _forward[_grid_forward(pooled)](maps, pooled, positions, *described)
        ctx.save_for_backward(maps, positions)
        ctx.settings = (groups, weight, k, relu_before)
        return pooled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        maps, positions = ctx.saved_tensors
        *settings, relu_before = ctx.settings
        grad_maps = torch.empty_like(maps, memory_format=torch.channels_last)
        if grad_maps.numel():
            described = (*_describe(maps, grad, *settings), relu_before)
            _backward[_grid_backward(maps)](maps, _lay_out(grad), positions, grad_maps, *described)
        return grad_maps, None, None, None, None, None


def _grid_forward(pooled: Tensor) -> tuple[int]:
    images, channels, height, width = pooled.shape
    return (triton.cdiv(images * triton.cdiv(height, _count_rows(pooled)) * width * channels, CHANNELS * BLOCK),)


def _count_rows(pooled: Tensor) -> int:
    """Pooled rows that a thread walks down, about as many as every other."""
    rows: int = triton.cdiv(pooled.shape[2], triton.cdiv(pooled.shape[2], ROWS))
    return rows


def _grid_backward(maps: Tensor) -> tuple[int]:
    images, channels, height, width = maps.shape
    return (triton.cdiv(images * triton.cdiv(height, 2) * triton.cdiv(width, 2) * channels, CHANNELS * BLOCK),)


def _describe(maps: Tensor, pooled: Tensor, groups: int, weight: float, k: float) -> tuple[float, ...]:
    """Images; weight and k; height and width of the maps and of the pooled ones; vectors of a pixel and of a group."""
    images, channels, height, width = maps.shape
    sides = (height, width, *pooled.shape[2:])
    return images, weight, k, *sides, channels // CHANNELS, channels // groups // CHANNELS, BLOCK


def _lay_out(grad: Tensor) -> Tensor:
    return grad.contiguous(memory_format=torch.channels_last)


# For those who record what is computed, as in normalization_vectors_kernel.py.


@triton_op("alexnet_dist::normalize_pool_vectors", mutates_args=())
def normalize_pool_vectors(
    maps: Tensor, groups: int, weight: float, k: float, relu_before: bool, relu_behind: bool
) -> tuple[Tensor, Tensor]:
    """`NormalizePoolVectors` as one operator: the pooled maps, and the positions of their maxima."""
    pooled, positions = allocate_pooled(maps)
    if pooled.numel():
        described = (*_describe(maps, pooled, groups, weight, k), relu_before, relu_behind, _count_rows(pooled))
        wrap_triton(_forward)[_grid_forward(pooled)](maps, pooled, positions, *described)
    return pooled, positions


@triton_op("alexnet_dist::normalize_pool_vectors_backward", mutates_args=())
def normalize_pool_vectors_backward(
    maps: Tensor, grad: Tensor, positions: Tensor, groups: int, weight: float, k: float, relu_before: bool
) -> Tensor:
    """The gradient of `normalize_pool_vectors`."""
    grad_maps = torch.empty_like(maps, memory_format=torch.channels_last)
    if grad_maps.numel():
        described = (*_describe(maps, grad, groups, weight, k), relu_before)
        wrap_triton(_backward)[_grid_backward(maps)](maps, _lay_out(grad), positions, grad_maps, *described)
    return grad_maps


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(inputs[0], output[1])
    ctx.settings = inputs[1:5]


def _differentiate(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    maps, positions = ctx.saved_tensors
    grad_maps = normalize_pool_vectors_backward(maps, grad, positions, *ctx.settings)
    return grad_maps, None, None, None, None, None


normalize_pool_vectors.register_autograd(_differentiate, setup_context=_keep)


# -- the kernels ------------------------------------------------------------------------------------------------------


@triton.jit
def _forward(
    x_ptr,
    y_ptr,
    position_ptr,
    images,
    weight,
    k,
    height: tl.constexpr,
    width: tl.constexpr,
    pooled_height: tl.constexpr,
    pooled_width: tl.constexpr,
    per_pixel: tl.constexpr,
    per_group: tl.constexpr,
    block: tl.constexpr,
    relu_before: tl.constexpr,
    relu_behind: tl.constexpr,
    rows: tl.constexpr,
):
    thread = tl.program_id(0) * block + tl.arange(0, block)
    image, walk, x, channel = locate(thread, tl.cdiv(pooled_height, rows), pooled_width, per_pixel)
    y = walk * rows
    line = ((image.to(tl.int64) * height + 2 * y) * width + 2 * x) * per_pixel + channel
    own = ((image.to(tl.int64) * pooled_height + y) * pooled_width + x) * per_pixel + channel
    there = find_neighbors(channel, image < images, per_group)
    top, top_at = _pool_row(x_ptr, line, there, weight, k, per_pixel, block, relu_before, relu_behind)
    for row in range(rows):
        there = find_neighbors(channel, (image < images) & (y + row < pooled_height), per_group)
        line += width * per_pixel
        middle, middle_at = _pool_row(x_ptr, line, there, weight, k, per_pixel, block, relu_before, relu_behind)
        line += width * per_pixel
        bottom, bottom_at = _pool_row(x_ptr, line, there, weight, k, per_pixel, block, relu_before, relu_behind)
        best, position = _take_better(top, top_at, middle, 3 + middle_at, relu_before or relu_behind)
        best, position = _take_better(best, position, bottom, 6 + bottom_at, relu_before or relu_behind)
        if relu_behind:
            position = tl.where(best <= 0.0, 9, position)
            best = tl.where(best <= 0.0, 0.0, best)
        tl.store(y_ptr + find_eight(own), best.to(y_ptr.dtype.element_ty), mask=there[1][:, None])
        tl.store(position_ptr + find_eight(own), position.to(tl.uint8), mask=there[1][:, None])
        top, top_at = bottom, bottom_at
        own += pooled_width * per_pixel


@triton.jit
def _pool_row(
    x_ptr,
    line,
    there,
    weight,
    k,
    per_pixel: tl.constexpr,
    block: tl.constexpr,
    relu_before: tl.constexpr,
    relu_behind: tl.constexpr,
):
    """The largest of three normalized pixels of a row, rounded as they would lie in memory, and which it is."""
    kind: tl.constexpr = x_ptr.dtype.element_ty
    best = normalize_eight(x_ptr, line, there, weight, k, relu_before, block).to(kind).to(tl.float32)
    best_at = tl.zeros([block, 8], tl.int32)
    for at in tl.static_range(1, 3):
        value = normalize_eight(x_ptr, line + at * per_pixel, there, weight, k, relu_before, block)
        best, best_at = _take_better(best, best_at, value.to(kind).to(tl.float32), at, relu_before or relu_behind)
    return best, best_at


@triton.jit
def _take_better(best, best_at, value, at, has_relu: tl.constexpr):
    is_better = (value > best) | (value != value)  # the last NaN wins
    best_at = tl.where(is_better, at, best_at)
    if has_relu:  # then the sign of a 0 is nothing, and two channels are compared at once
        return tl.maximum(value, best, propagate_nan=tl.PropagateNan.ALL), best_at
    return tl.where(is_better, value, best), best_at


@triton.jit
def _backward(
    x_ptr,
    g_ptr,
    position_ptr,
    dx_ptr,
    images,
    weight,
    k,
    height: tl.constexpr,
    width: tl.constexpr,
    pooled_height: tl.constexpr,
    pooled_width: tl.constexpr,
    per_pixel: tl.constexpr,
    per_group: tl.constexpr,
    block: tl.constexpr,
    relu: tl.constexpr,
):
    thread = tl.program_id(0) * block + tl.arange(0, block)
    image, y, x, channel = locate(thread, tl.cdiv(height, 2), tl.cdiv(width, 2), per_pixel)
    before, inside, after = find_neighbors(channel, image < images, per_group)
    window = ((image.to(tl.int64) * pooled_height + y) * pooled_width + x) * per_pixel + channel
    corner = ((image.to(tl.int64) * height + 2 * y) * width + 2 * x) * per_pixel + channel
    line: tl.constexpr = pooled_width * per_pixel
    begins_row, begins_column = y < pooled_height, x < pooled_width
    windows = (window - line - per_pixel, window - line, window - per_pixel, window)
    has = ((y > 0) & (x > 0), (y > 0) & begins_column, begins_row & (x > 0), begins_row & begins_column)
    grads_before = _sum_windows(g_ptr, position_ptr, windows, has, before, -2, 2)
    grads = _sum_windows(g_ptr, position_ptr, windows, has, inside, 0, 8)
    grads_after = _sum_windows(g_ptr, position_ptr, windows, has, after, 8, 2)
    for pixel in tl.static_range(4):
        down, right = pixel // 2, pixel % 2
        own = corner + (down * width + right) * per_pixel
        there = find_neighbors(channel, inside & (2 * y + down < height) & (2 * x + right < width), per_group)
        two_before = tl.split(grads_before[pixel])
        eight = name_eight(grads[pixel], block)
        two_after = tl.split(grads_after[pixel])
        made = differentiate_eight(x_ptr, own, there, two_before, eight, two_after, weight, k, relu, block)
        tl.store(dx_ptr + find_eight(own), made.to(dx_ptr.dtype.element_ty), mask=there[1][:, None])


@triton.jit
def _sum_windows(g_ptr, position_ptr, windows, has, there, first: tl.constexpr, lanes: tl.constexpr):
    """The gradients of two by two normalized pixels from the four windows that reach them, rounded as they would lie.

    The windows stand in the order in which PyTorch adds: above and to the left, above, to the left, and the one that
    begins with the pixels. The lanes are so many channels from the vector's `first` on, (block, lanes).
    """
    g0, at0 = _load_window(g_ptr, position_ptr, windows[0], has[0] & there, first, lanes)
    g1, at1 = _load_window(g_ptr, position_ptr, windows[1], has[1] & there, first, lanes)
    g2, at2 = _load_window(g_ptr, position_ptr, windows[2], has[2] & there, first, lanes)
    g3, at3 = _load_window(g_ptr, position_ptr, windows[3], has[3] & there, first, lanes)
    both = 0.0 + tl.where(at0 == 8, g0, 0.0) + tl.where(at1 == 6, g1, 0.0)
    both = both + tl.where(at2 == 2, g2, 0.0) + tl.where(at3 == 0, g3, 0.0)
    right = 0.0 + tl.where(at1 == 7, g1, 0.0) + tl.where(at3 == 1, g3, 0.0)
    below = 0.0 + tl.where(at2 == 5, g2, 0.0) + tl.where(at3 == 3, g3, 0.0)
    across = 0.0 + tl.where(at3 == 4, g3, 0.0)
    kind: tl.constexpr = g_ptr.dtype.element_ty
    return (
        both.to(kind).to(tl.float32),
        right.to(kind).to(tl.float32),
        below.to(kind).to(tl.float32),
        across.to(kind).to(tl.float32),
    )


@triton.jit
def _load_window(g_ptr, position_ptr, window, there, first: tl.constexpr, lanes: tl.constexpr):
    places = window[:, None] * 8 + (first + tl.arange(0, lanes))[None, :]
    grad = tl.load(g_ptr + places, mask=there[:, None], other=0.0).to(tl.float32)
    return grad, tl.load(position_ptr + places, mask=there[:, None], other=255).to(tl.int32)
