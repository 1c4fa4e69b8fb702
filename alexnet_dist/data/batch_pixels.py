"""Cut, resize and jitter whole batches of bytes where they lie, on a GPU as a rule: a few kernels for all images."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from alexnet_dist.data.draws import FloatArray, IntArray
from alexnet_dist.data.plan import BRIGHTNESS, CONTRAST, HUE, SATURATION


def cut_batch(pictures: Tensor, images: Tensor, corners: IntArray, flips: npt.NDArray[np.bool_], side: int) -> Tensor:
    """Crop and flip pictures that lie in one tensor.

    Args:
        pictures: (N, H, W, C).
        images: (B,) which picture each row takes, on the same device.
        corners: (B, 2) x, y of each crop.
        flips: (B, 2) left-right, top-bottom.
        side: of the crops.

    Returns:
        (B, side, side, C).
    """
    steps = np.arange(side)
    columns, lines = (
        torch.from_numpy(corners[:, [axis]] + np.where(flips[:, [axis]], side - 1 - steps, steps)).to(pictures.device)
        for axis in (0, 1)
    )  # (B, side) each
    return pictures[images[:, None, None], lines[:, :, None], columns[:, None, :]]


def flip_batch(pixels: Tensor, flips: npt.NDArray[np.bool_]) -> Tensor:
    """(B, S, S, C) flipped row by row as (B, 2) left-right, top-bottom say."""
    for axis, turned in ((2, flips[:, 0]), (1, flips[:, 1])):
        if turned.any():
            is_turned = torch.from_numpy(turned).to(pixels.device)[:, None, None, None]
            pixels = torch.where(is_turned, pixels.flip(axis), pixels)
    return pixels


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
