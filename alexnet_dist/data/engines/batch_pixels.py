"""Cut, resize and jitter whole batches of bytes where they lie, on a GPU as a rule: a few kernels for all images."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from alexnet_dist.base.machine import can_build_kernels
from alexnet_dist.data.draws import FloatArray, IntArray
from alexnet_dist.data.plan import BRIGHTNESS, CONTRAST, HUE, SATURATION


class Crops(NamedTuple):
    """Where the crops of B rows lie among bytes, on the device of these. A pixel's channels lie side by side."""

    starts: Tensor  # (B,) int64 first byte; -1 = there is no image
    strides: Tensor  # (B,) int64 bytes from one line to the next
    flips: Tensor  # (B, 2) bool left-right, top-bottom


def locate_crops(starts: IntArray, strides: IntArray, flips: npt.NDArray[np.bool_], device: torch.device) -> Crops:
    """Crops on a device, from numbers on the host; see `Crops`."""
    numbers = torch.from_numpy(np.stack([starts, strides])).to(device, non_blocking=True)  # one copy for both
    return Crops(numbers[0], numbers[1], torch.from_numpy(flips).to(device, non_blocking=True))


def cut_crops(pixels: Tensor, crops: Crops, side: int, scale: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
    """Cut and flip crops, and make pixel * scale + bias of them; a row without image has pixels of 0.

    Args:
        pixels: (bytes,) uint8.
        crops: where they lie.
        side: of the crops in pixels.
        scale: (C,) float32.
        bias: (B, C) float32.
        dtype: of the result.

    Returns:
        (B, side, side, C).
    """
    if pixels.device.type == "cuda" and can_build_kernels():
        from alexnet_dist.data.engines.cache import crop_kernel

        return crop_kernel.cut_crops(pixels, crops, side, scale, bias, dtype)
    steps = torch.arange(side, device=pixels.device)
    columns, lines = (torch.where(crops.flips[:, [axis]], side - 1 - steps, steps) for axis in (0, 1))  # (B, side)
    channels = torch.arange(bias.shape[1], device=pixels.device)
    places = (crops.starts[:, None] + lines * crops.strides[:, None])[:, :, None, None]  # (B, side, 1, 1)
    places = places + columns[:, None, :, None] * bias.shape[1] + channels  # (B, side, side, C)
    is_image = (crops.starts >= 0)[:, None, None, None]
    cut = pixels[places * is_image] * is_image  # (B, side, side, C) uint8
    return torch.addcmul(bias[:, None, None], cut, scale).to(dtype)


def resize_batch(pictures: Tensor, height: int, width: int) -> Tensor:
    """(N, H, W, C) uint8 to (N, height, width, C): on a CPU bit by bit the reference's resize, on a GPU within 1."""
    planes = transforms.resize(pictures.permute(0, 3, 1, 2), [height, width], antialias=True)  # (N, C, H', W')
    resized: Tensor = planes.permute(0, 2, 3, 1)
    return resized


def jitter_batch(pixels: Tensor, jitters: IntArray, factors: FloatArray) -> Tensor:
    """Change the colours of each image as its row of the plan says; within 1 of torchvision's operations.

    Args:
        pixels: (B, S, S, C) uint8.
        jitters: (B, K) operations in their order; see `StepPlan`.
        factors: (B, K) of these operations.
    """
    if not jitters.shape[1]:
        return pixels
    planes = pixels.permute(0, 3, 1, 2).clone()  # (B, C, S, S)
    for operations, strengths in zip(jitters.T, factors.T, strict=True):  # (B,) each
        for operation in np.unique(operations).tolist():
            rows = np.flatnonzero(operations == operation)
            there = torch.from_numpy(rows).to(planes.device)
            factor = torch.from_numpy(strengths[rows]).to(planes.device)[:, None, None, None]  # (n, 1, 1, 1) float64
            planes[there] = _OPERATIONS[operation](planes[there], factor)
    return planes.permute(0, 2, 3, 1)


def _change_brightness(planes: Tensor, factor: Tensor) -> Tensor:
    return _cut_to_bytes(planes * factor.float())


def _change_contrast(planes: Tensor, factor: Tensor) -> Tensor:
    # The gray values are whole: their sum is exact below 2**24, as it is in the reference.
    return _blend(planes, _to_gray(planes).mean(dim=(1, 2, 3), keepdim=True), factor)


def _change_saturation(planes: Tensor, factor: Tensor) -> Tensor:
    return planes if planes.shape[1] == 1 else _blend(planes, _to_gray(planes), factor)


def _turn_hue(planes: Tensor, factor: Tensor) -> Tensor:
    """A turn of the hue in HSV, without leaving RGB: the channels are the value less a trapezoid of the hue."""
    if planes.shape[1] == 1:
        return planes
    red, green, blue = (planes / 255).unbind(dim=1)  # (n, S, S) each, 0..1
    value = torch.maximum(torch.maximum(red, green), blue)
    spread = value - torch.minimum(torch.minimum(red, green), blue)
    divisor = spread.where(spread > 0, 1)
    of_red, of_green, of_blue = (green - blue) / divisor, 2 + (blue - red) / divisor, 4 + (red - green) / divisor
    sixths = (
        torch.where(value == red, of_red, torch.where(value == green, of_green, of_blue)) + 6 * factor[:, 0].float()
    )
    starts = torch.tensor([5.0, 3.0, 1.0], device=planes.device)[:, None, None]  # of red, green and blue
    places = (sixths[:, None] + starts).remainder(6)  # (n, 3, S, S)
    turned = value[:, None] - spread[:, None] * torch.minimum(places, 4 - places).clamp(0, 1)
    return (turned * 255.999).to(torch.uint8)


def _blend(planes: Tensor, others: Tensor, factor: Tensor) -> Tensor:
    return _cut_to_bytes(torch.addcmul(planes * factor.float(), others, (1 - factor).float()))


def _to_gray(planes: Tensor) -> Tensor:
    gray: Tensor = planes if planes.shape[1] == 1 else transforms.rgb_to_grayscale(planes)
    return gray.float()


def _cut_to_bytes(values: Tensor) -> Tensor:
    return values.clamp_(0, 255).to(torch.uint8)


_OPERATIONS: dict[int, Callable[[Tensor, Tensor], Tensor]] = {
    BRIGHTNESS: _change_brightness,
    CONTRAST: _change_contrast,
    SATURATION: _change_saturation,
    HUE: _turn_hue,
}
