"""Response normalization across channels on a GPU, eight channels a thread: the network's own shapes.

The kernels of normalization_kernel.py take any shape and load every value of a window by itself: some 275 instructions
a value backward. Here a thread loads aligned vectors of eight channels (its own, the one before, the one after), and a
shift along the channels gives registers another name: 37 instructions a value, and every load is of 16 bytes in bf16.

With `relu` the maps are what the ReLU before the normalization would get, and it costs no pass over them: values and
gradients are those of both layers, one after the other, to the bit.

For channels-last maps, groups of a multiple of 8 channels, a window of 5 and beta 0.75; `normalization` asks
`fits_vectors`. The mathematics is that of normalization_kernel.py; s**-0.75 is rsqrt(s) * sqrt(rsqrt(s)).
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


class NormalizeVectors(torch.autograd.Function):
    """As `normalization._Normalize`, for (B, G*C, H, W) maps that fit."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, groups: int, weight: float, k: float, relu: bool) -> Tensor:
        ctx.save_for_backward(x)
        ctx.settings = (groups, weight, k, relu)
        y = torch.empty_like(x, memory_format=torch.channels_last)
        if x.numel():
            _forward[_grid(x)](x, y, *_describe(x, *ctx.settings))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        grad_x = torch.empty_like(x, memory_format=torch.channels_last)
        if x.numel():
            _backward[_grid(x)](x, _lay_out(grad_y), grad_x, *_describe(x, *ctx.settings))
        return grad_x, None, None, None, None


def _grid(x: Tensor) -> tuple[int]:
    return (triton.cdiv(x.numel(), CHANNELS * BLOCK),)


def _describe(x: Tensor, groups: int, weight: float, k: float, relu: bool) -> tuple[int, float, float, int, bool, int]:
    return x.numel() // CHANNELS, weight, k, x.shape[1] // groups // CHANNELS, relu, BLOCK


def _lay_out(grad: Tensor) -> Tensor:
    return grad.contiguous(memory_format=torch.channels_last)


# For those who record what is computed: they see into an operator made of kernels. In eager code it would cost a launch
# some 100 us on the host.


@triton_op("alexnet_dist::normalize_vectors", mutates_args=())
def normalize_vectors(x: Tensor, groups: int, weight: float, k: float, relu: bool) -> Tensor:
    """`NormalizeVectors` as one operator."""
    y = torch.empty_like(x, memory_format=torch.channels_last)
    if x.numel():
        wrap_triton(_forward)[_grid(x)](x, y, *_describe(x, groups, weight, k, relu))
    return y


@triton_op("alexnet_dist::normalize_vectors_backward", mutates_args=())
def normalize_vectors_backward(x: Tensor, grad_y: Tensor, groups: int, weight: float, k: float, relu: bool) -> Tensor:
    """The gradient of `normalize_vectors`."""
    grad_x = torch.empty_like(x, memory_format=torch.channels_last)
    if x.numel():
        wrap_triton(_backward)[_grid(x)](x, _lay_out(grad_y), grad_x, *_describe(x, groups, weight, k, relu))
    return grad_x


def _keep_input(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0])
    ctx.settings = inputs[1:]


def _differentiate(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
    (x,) = ctx.saved_tensors
    return normalize_vectors_backward(x, grad_y, *ctx.settings), None, None, None, None


normalize_vectors.register_autograd(_differentiate, setup_context=_keep_input)


# -- the kernels ------------------------------------------------------------------------------------------------------


@triton.jit
def _forward(x_ptr, y_ptr, vectors, weight, k, per_group: tl.constexpr, relu: tl.constexpr, block: tl.constexpr):
    vector, there = _place(vectors, per_group, block)
    made = normalize_eight(x_ptr, vector, there, weight, k, relu, block)
    tl.store(y_ptr + find_eight(vector), made.to(y_ptr.dtype.element_ty), mask=there[1][:, None])


@triton.jit
def _backward(
    x_ptr, g_ptr, dx_ptr, vectors, weight, k, per_group: tl.constexpr, relu: tl.constexpr, block: tl.constexpr
):
    vector, there = _place(vectors, per_group, block)
    _0, _1, _2, _3, _4, _5, h6, h7 = _load(g_ptr, vector - 1, there[0], False, block)
    grads = _load(g_ptr, vector, there[1], False, block)
    m0, m1, _6, _7, _8, _9, _10, _11 = _load(g_ptr, vector + 1, there[2], False, block)
    made = differentiate_eight(x_ptr, vector, there, (h6, h7), grads, (m0, m1), weight, k, relu, block)
    tl.store(dx_ptr + find_eight(vector), made.to(dx_ptr.dtype.element_ty), mask=there[1][:, None])


@triton.jit
def _place(vectors, per_group: tl.constexpr, block: tl.constexpr):
    """A program's vectors, and which of them are `there`, as `find_neighbors` has it."""
    vector = tl.program_id(0) * block + tl.arange(0, block)
    return vector.to(tl.int64), find_neighbors(vector, vector < vectors, per_group)


# -- what normalized_pooling_kernel.py shares -------------------------------------------------------------------------


@triton.jit
def normalize_eight(x_ptr, vector, there, weight, k, relu: tl.constexpr, block: tl.constexpr):
    """(block, 8) in float32: the vectors, normalized."""
    c0, c1, c2, c3, c4, c5, c6, c7 = _load(x_ptr, vector, there[1], relu, block)
    _0, _1, _2, _3, _4, _5, p6, p7 = _load(x_ptr, vector - 1, there[0], relu, block)
    n0, n1, _6, _7, _8, _9, _10, _11 = _load(x_ptr, vector + 1, there[2], relu, block)
    u67, s01, s23 = _add_squares(p6, p7), _add_squares(c0, c1), _add_squares(c2, c3)
    s45, s67, w01 = _add_squares(c4, c5), _add_squares(c6, c7), _add_squares(n0, n1)
    y0 = c0 * _power(_scale(u67 + s01, c2, weight, k))
    y1 = c1 * _power(_scale(s01 + s23, p7, weight, k))
    y2 = c2 * _power(_scale(s01 + s23, c4, weight, k))
    y3 = c3 * _power(_scale(s23 + s45, c1, weight, k))
    y4 = c4 * _power(_scale(s23 + s45, c6, weight, k))
    y5 = c5 * _power(_scale(s45 + s67, c3, weight, k))
    y6 = c6 * _power(_scale(s45 + s67, n0, weight, k))
    y7 = c7 * _power(_scale(s67 + w01, c5, weight, k))
    return _join(y0, y1, y2, y3, y4, y5, y6, y7, block)


@triton.jit
def differentiate_eight(
    x_ptr, vector, there, grads_before, grads, grads_after, weight, k, relu: tl.constexpr, block: tl.constexpr
):
    """(block, 8) in float32: the gradient of the vectors.

    `grads_before`, `grads` and `grads_after` are the gradients of the normalized maps by name, in float32: of the two
    channels before the eight, of these, and of the two after them.
    """
    c0, c1, c2, c3, c4, c5, c6, c7 = _load(x_ptr, vector, there[1], relu, block)
    _0, _1, _2, _3, p4, p5, p6, p7 = _load(x_ptr, vector - 1, there[0], relu, block)
    n0, n1, n2, n3, _4, _5, _6, _7 = _load(x_ptr, vector + 1, there[2], relu, block)
    g0, g1, g2, g3, g4, g5, g6, g7 = grads
    h6, h7 = grads_before
    m0, m1 = grads_after
    # Sums of two squares; u: of the vector before, w: of the one after.
    u45, u67, s01, s23 = _add_squares(p4, p5), _add_squares(p6, p7), _add_squares(c0, c1), _add_squares(c2, c3)
    s45, s67, w01, w23 = _add_squares(c4, c5), _add_squares(c6, c7), _add_squares(n0, n1), _add_squares(n2, n3)
    # Of each channel that a window reaches: s**-b, and g x s**(-b-1).
    _8, t_2 = _factor_and_term(p6, h6, _scale(u45 + u67, c0, weight, k))
    _9, t_1 = _factor_and_term(p7, h7, _scale(u67 + s01, p5, weight, k))
    f0, t0 = _factor_and_term(c0, g0, _scale(u67 + s01, c2, weight, k))
    f1, t1 = _factor_and_term(c1, g1, _scale(s01 + s23, p7, weight, k))
    f2, t2 = _factor_and_term(c2, g2, _scale(s01 + s23, c4, weight, k))
    f3, t3 = _factor_and_term(c3, g3, _scale(s23 + s45, c1, weight, k))
    f4, t4 = _factor_and_term(c4, g4, _scale(s23 + s45, c6, weight, k))
    f5, t5 = _factor_and_term(c5, g5, _scale(s45 + s67, c3, weight, k))
    f6, t6 = _factor_and_term(c6, g6, _scale(s45 + s67, n0, weight, k))
    f7, t7 = _factor_and_term(c7, g7, _scale(s67 + w01, c5, weight, k))
    _10, t8 = _factor_and_term(n0, m0, _scale(s67 + w01, n2, weight, k))
    _11, t9 = _factor_and_term(n1, m1, _scale(w01 + w23, c7, weight, k))
    t01, t23, t45, t67 = t0 + t1, t2 + t3, t4 + t5, t6 + t7
    crossed = -1.5 * weight  # -2 beta weight
    d0 = tl.fma(g0, f0, crossed * c0 * (t_2 + t_1 + t01 + t2))
    d1 = tl.fma(g1, f1, crossed * c1 * (t01 + t23 + t_1))
    d2 = tl.fma(g2, f2, crossed * c2 * (t01 + t23 + t4))
    d3 = tl.fma(g3, f3, crossed * c3 * (t23 + t45 + t1))
    d4 = tl.fma(g4, f4, crossed * c4 * (t23 + t45 + t6))
    d5 = tl.fma(g5, f5, crossed * c5 * (t45 + t67 + t3))
    d6 = tl.fma(g6, f6, crossed * c6 * (t45 + t67 + t8))
    d7 = tl.fma(g7, f7, crossed * c7 * (t8 + t9 + t67 + t5))
    made = _join(d0, d1, d2, d3, d4, d5, d6, d7, block)
    if relu:  # where it gave 0
        made = tl.where(_join(c0, c1, c2, c3, c4, c5, c6, c7, block) == 0.0, 0.0, made)
    return made


@triton.jit
def find_neighbors(place, inside, per_group: tl.constexpr):
    """Whether the group has a vector before this one, this one, and one after it; `place` counts a pixel's vectors."""
    in_group = place % per_group
    return inside & (in_group > 0), inside, inside & (in_group < per_group - 1)


@triton.jit
def find_eight(vector):
    """(block, 8): the places of the vectors' channels."""
    return vector[:, None].to(tl.int64) * 8 + tl.arange(0, 8)[None, :]


@triton.jit
def _load(ptr, vector, there, relu: tl.constexpr, block: tl.constexpr):
    """Eight channels by name, in float32; 0 where there is no such vector."""
    values = tl.load(ptr + find_eight(vector), mask=there[:, None], other=0.0).to(tl.float32)  # (block, 8)
    if relu:
        values = tl.maximum(values, 0.0, propagate_nan=tl.PropagateNan.ALL)
    return name_eight(values, block)


@triton.jit
def name_eight(values, block: tl.constexpr):
    """The columns of (block, 8)."""
    even, odd = tl.split(tl.reshape(values, [block, 4, 2]))
    e04, e26 = tl.split(tl.reshape(even, [block, 2, 2]))
    o15, o37 = tl.split(tl.reshape(odd, [block, 2, 2]))
    v0, v4 = tl.split(e04)
    v2, v6 = tl.split(e26)
    v1, v5 = tl.split(o15)
    v3, v7 = tl.split(o37)
    return v0, v1, v2, v3, v4, v5, v6, v7


@triton.jit
def _join(v0, v1, v2, v3, v4, v5, v6, v7, block: tl.constexpr):
    """(block, 8): what `name_eight` took apart."""
    even = tl.reshape(tl.join(tl.join(v0, v4), tl.join(v2, v6)), [block, 4])
    odd = tl.reshape(tl.join(tl.join(v1, v5), tl.join(v3, v7)), [block, 4])
    return tl.reshape(tl.join(even, odd), [block, 8])


# Where a product is added to something, the sum is an fma by name, or the product is one, with 0 added. A compiler that
# chose by itself what to melt would choose otherwise in each kernel, and their last bits would differ.


@triton.jit
def _add_squares(x, y):
    return tl.fma(x, x, y * y)


@triton.jit
def _scale(four, x, weight, k):
    """k + weight * the sum of the window's squares, of which four are added already."""
    return tl.fma(weight, tl.fma(x, x, four), k)


@triton.jit
def _power(scale):
    """scale ** -0.75."""
    root = tl.rsqrt(scale)
    return root * tl.sqrt(root)


@triton.jit
def _factor_and_term(x, g, scale):
    """scale ** -0.75, and g x scale ** -1.75."""
    root = tl.rsqrt(scale)
    factor = root * tl.sqrt(root)
    return factor, tl.fma(g * x * factor, root * root, 0.0)
