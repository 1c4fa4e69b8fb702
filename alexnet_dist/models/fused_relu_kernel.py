"""ReLU together with what stands beside it, on a GPU: one pass over the values in place of two."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024  # values of a program, eight for each thread of four warps


def add_bias_relu(maps: Tensor, bias: Tensor) -> None:
    """Make relu(maps + bias) of channels-last maps (B, C, H, W), in place; rounded before the ReLU, too."""
    if maps.numel():
        _add_bias_relu[_grid(maps)](maps, bias, maps.numel(), maps.shape[1], BLOCK)


def mask_gradient(grad: Tensor, made: Tensor, scale: float) -> Tensor:
    """The gradient of what a ReLU and then dropout made to that of the ReLU's input.

    What was dropped and what was not positive are both zeros of the output, so that it alone says what goes back.

    Args:
        grad: (B, C), of the output.
        made: (B, C), the output.
        scale: of what dropout kept.
    """
    grad = grad.contiguous()
    masked = torch.empty_like(grad)
    if grad.numel():
        _mask_gradient[_grid(grad)](grad, made, masked, scale, grad.numel(), BLOCK)
    return masked


def _grid(values: Tensor) -> tuple[int]:
    return (triton.cdiv(values.numel(), BLOCK),)


@triton.jit
def _add_bias_relu(map_ptr, bias_ptr, count, channels: tl.constexpr, block: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * block
    own = first + tl.arange(0, block)
    channel = ((first % channels).to(tl.int32) + tl.arange(0, block)) % channels
    values = tl.load(map_ptr + own, mask=own < count, other=0.0).to(tl.float32)
    values += tl.load(bias_ptr + channel).to(tl.float32)
    values = values.to(map_ptr.dtype.element_ty).to(tl.float32)
    made = tl.where(values <= 0.0, 0.0, values)  # NaN stays
    tl.store(map_ptr + own, made.to(map_ptr.dtype.element_ty), mask=own < count)


@triton.jit
def _mask_gradient(grad_ptr, made_ptr, masked_ptr, scale, count, block: tl.constexpr):
    own = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    grad = tl.load(grad_ptr + own, mask=own < count, other=0.0).to(tl.float32)
    made = tl.load(made_ptr + own, mask=own < count, other=0.0).to(tl.float32)
    masked = tl.where(made <= 0.0, 0.0, grad * scale)
    tl.store(masked_ptr + own, masked.to(masked_ptr.dtype.element_ty), mask=own < count)
