"""Response normalization across channels on a GPU, eight channels a thread: the network's own shapes.

The kernels of normalization_kernel.py take any shape and load every value of a window by itself: some 275 instructions
a value backward. Here a thread loads aligned vectors of eight channels (its own, the one before, the one after), and a
shift along the channels gives registers another name: 33 instructions a value, and every load is of 16 bytes in bf16.

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
    inside, before, after, own = _place(vectors, per_group, block)
    c0, c1, c2, c3, c4, c5, c6, c7 = _load(x_ptr, own, inside, relu, block)
    _0, _1, _2, _3, _4, _5, p6, p7 = _load(x_ptr, own - 8, before, relu, block)
    n0, n1, _6, _7, _8, _9, _10, _11 = _load(x_ptr, own + 8, after, relu, block)
    q1, q2, q3, q4, q5, q6 = c1 * c1, c2 * c2, c3 * c3, c4 * c4, c5 * c5, c6 * c6
    before7, after0 = p7 * p7, n0 * n0
    s01, s23, s45, s67 = c0 * c0 + q1, q2 + q3, q4 + q5, q6 + c7 * c7
    y0 = c0 * _power(k + weight * (p6 * p6 + before7 + s01 + q2))
    y1 = c1 * _power(k + weight * (before7 + s01 + s23))
    y2 = c2 * _power(k + weight * (s01 + s23 + q4))
    y3 = c3 * _power(k + weight * (q1 + s23 + s45))
    y4 = c4 * _power(k + weight * (s23 + s45 + q6))
    y5 = c5 * _power(k + weight * (q3 + s45 + s67))
    y6 = c6 * _power(k + weight * (s45 + s67 + after0))
    y7 = c7 * _power(k + weight * (q5 + s67 + after0 + n1 * n1))
    made = _join(y0, y1, y2, y3, y4, y5, y6, y7, block)
    tl.store(y_ptr + own, made.to(y_ptr.dtype.element_ty), mask=inside[:, None])


@triton.jit
def _backward(
    x_ptr, g_ptr, dx_ptr, vectors, weight, k, per_group: tl.constexpr, relu: tl.constexpr, block: tl.constexpr
):
    inside, before, after, own = _place(vectors, per_group, block)
    c0, c1, c2, c3, c4, c5, c6, c7 = _load(x_ptr, own, inside, relu, block)
    _0, _1, _2, _3, p4, p5, p6, p7 = _load(x_ptr, own - 8, before, relu, block)
    n0, n1, n2, n3, _4, _5, _6, _7 = _load(x_ptr, own + 8, after, relu, block)
    g0, g1, g2, g3, g4, g5, g6, g7 = _load(g_ptr, own, inside, False, block)
    _8, _9, _10, _11, _12, _13, h6, h7 = _load(g_ptr, own - 8, before, False, block)
    m0, m1, _14, _15, _16, _17, _18, _19 = _load(g_ptr, own + 8, after, False, block)
    # Squares, and their sums by twos; u: of the vector before, w: of the one after.
    q1, q2, q3, q4, q5, q6, q7 = c1 * c1, c2 * c2, c3 * c3, c4 * c4, c5 * c5, c6 * c6, c7 * c7
    q0, u5, u7, w2 = c0 * c0, p5 * p5, p7 * p7, n2 * n2
    s01, s23, s45, s67, u67, w01 = q0 + q1, q2 + q3, q4 + q5, q6 + q7, p6 * p6 + u7, n0 * n0 + n1 * n1
    # Of each channel that a window reaches: s**-b, and g x s**(-b-1).
    _20, t_2 = _factor_and_term(p6, h6, k + weight * (p4 * p4 + u5 + u67 + q0))
    _21, t_1 = _factor_and_term(p7, h7, k + weight * (u5 + u67 + s01))
    f0, t0 = _factor_and_term(c0, g0, k + weight * (u67 + s01 + q2))
    f1, t1 = _factor_and_term(c1, g1, k + weight * (u7 + s01 + s23))
    f2, t2 = _factor_and_term(c2, g2, k + weight * (s01 + s23 + q4))
    f3, t3 = _factor_and_term(c3, g3, k + weight * (q1 + s23 + s45))
    f4, t4 = _factor_and_term(c4, g4, k + weight * (s23 + s45 + q6))
    f5, t5 = _factor_and_term(c5, g5, k + weight * (q3 + s45 + s67))
    f6, t6 = _factor_and_term(c6, g6, k + weight * (s45 + s67 + n0 * n0))
    f7, t7 = _factor_and_term(c7, g7, k + weight * (q5 + s67 + w01))
    _22, t8 = _factor_and_term(n0, m0, k + weight * (s67 + w01 + w2))
    _23, t9 = _factor_and_term(n1, m1, k + weight * (q7 + w01 + w2 + n3 * n3))
    t01, t23, t45, t67 = t0 + t1, t2 + t3, t4 + t5, t6 + t7
    crossed = -1.5 * weight  # -2 beta weight
    d0 = g0 * f0 + crossed * c0 * (t_2 + t_1 + t01 + t2)
    d1 = g1 * f1 + crossed * c1 * (t_1 + t01 + t23)
    d2 = g2 * f2 + crossed * c2 * (t01 + t23 + t4)
    d3 = g3 * f3 + crossed * c3 * (t1 + t23 + t45)
    d4 = g4 * f4 + crossed * c4 * (t23 + t45 + t6)
    d5 = g5 * f5 + crossed * c5 * (t3 + t45 + t67)
    d6 = g6 * f6 + crossed * c6 * (t45 + t67 + t8)
    d7 = g7 * f7 + crossed * c7 * (t5 + t67 + t8 + t9)
    made = _join(d0, d1, d2, d3, d4, d5, d6, d7, block)
    if relu:  # where it gave 0
        made = tl.where(_join(c0, c1, c2, c3, c4, c5, c6, c7, block) == 0.0, 0.0, made)
    tl.store(dx_ptr + own, made.to(dx_ptr.dtype.element_ty), mask=inside[:, None])


@triton.jit
def _place(vectors, per_group: tl.constexpr, block: tl.constexpr):
    """Which of a program's vectors are there, and have one before and one after them in their group; their places."""
    vector = tl.program_id(0) * block + tl.arange(0, block)
    inside = vector < vectors
    position = vector % per_group
    own = vector[:, None].to(tl.int64) * 8 + tl.arange(0, 8)[None, :]
    return inside, inside & (position > 0), inside & (position < per_group - 1), own


@triton.jit
def _load(ptr, places, there, relu: tl.constexpr, block: tl.constexpr):
    """Eight channels by name, in float32; 0 where there is no such vector."""
    values = tl.load(ptr + places, mask=there[:, None], other=0.0).to(tl.float32)  # (block, 8)
    if relu:
        values = tl.where(values <= 0.0, 0.0, values)  # what is no number stays none
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
    """(block, 8): what `_load` took apart."""
    even = tl.reshape(tl.join(tl.join(v0, v4), tl.join(v2, v6)), [block, 4])
    odd = tl.reshape(tl.join(tl.join(v1, v5), tl.join(v3, v7)), [block, 4])
    return tl.reshape(tl.join(even, odd), [block, 8])


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
    return factor, g * x * factor * (root * root)
