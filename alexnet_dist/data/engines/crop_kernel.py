"""Cut, flip and normalize the crops of a batch in one pass on a GPU: a byte is read once, a value written once."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


def cut_crops(pixels: Tensor, places: Any, side: int, scale: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
    """As `finish.cut_crops`, for tensors on a GPU."""
    rows, channels = bias.shape
    made = torch.empty((rows, side, side, channels), dtype=dtype, device=pixels.device)
    blocks = triton.cdiv(side * side * channels, BLOCK)  # of a row
    # The kernel reads all tensors as dense. Its grid has one axis, as CUDA allows 65,535 programs on the others.
    dense = [part.contiguous() for part in (places.starts, places.strides, places.flips, scale, bias)]
    if rows:
        _cut[(rows * blocks,)](pixels.contiguous(), made, *dense, blocks, side, channels, BLOCK)
    return made


@triton.jit
def _cut(
    pixels_ptr,
    made_ptr,
    starts_ptr,
    strides_ptr,
    flips_ptr,
    scale_ptr,
    bias_ptr,
    blocks,
    side: tl.constexpr,
    channels: tl.constexpr,
    block: tl.constexpr,
):
    row = (tl.program_id(0) // blocks).to(tl.int64)
    size: tl.constexpr = side * side * channels
    place = (tl.program_id(0) % blocks) * block + tl.arange(0, block)
    inside = place < size
    channel = place % channels
    x, y = (place // channels) % side, place // (channels * side)
    x = tl.where(tl.load(flips_ptr + 2 * row) != 0, side - 1 - x, x)
    y = tl.where(tl.load(flips_ptr + 2 * row + 1) != 0, side - 1 - y, y)
    start = tl.load(starts_ptr + row)  # -1: there is no image
    source = start + y * tl.load(strides_ptr + row) + x * channels + channel
    value = tl.load(pixels_ptr + source, mask=inside & (start >= 0), other=0).to(tl.float32)
    value = value * tl.load(scale_ptr + channel) + tl.load(bias_ptr + row * channels + channel)
    tl.store(made_ptr + row * size + place, value.to(made_ptr.dtype.element_ty), mask=inside)
