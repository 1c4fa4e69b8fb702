"""Color jitter carried out: crop by crop with torchvision's functions, or a whole batch on a device."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from alexnet_dist.data.crop_ops.color_jitter import BRIGHTNESS, CONTRAST, HUE, SATURATION
from alexnet_dist.data.draws import FloatArray

JITTERS: dict[int, Callable[[Tensor, float], Tensor]] = {
    BRIGHTNESS: transforms.adjust_brightness,
    CONTRAST: transforms.adjust_contrast,
    SATURATION: transforms.adjust_saturation,
    HUE: transforms.adjust_hue,
}


def jitter_one_by_one(crops: Tensor, drawn: FloatArray) -> Tensor:
    """Change the colors of crops (n, S, S, C) uint8 in host memory; the definition."""
    return torch.stack([_jitter_crop(crop, steps) for crop, steps in zip(crops, drawn.tolist(), strict=True)])


def _jitter_crop(crop: Tensor, steps: list[tuple[float, float]]) -> Tensor:
    planes = crop.permute(2, 0, 1).contiguous()  # (C, S, S)
    # The mean gray of contrast is a sum of whole numbers: up to 256 x 256 pixels it stays below 2**24 and float32 holds
    # it exactly, in whatever order threads add.
    for operation, factor in steps:
        planes = JITTERS[int(operation)](planes, factor)
    return planes.permute(1, 2, 0)


def jitter_batch(crops: Tensor, drawn: FloatArray) -> Tensor:
    """As `jitter_one_by_one`, in a few kernels for all crops; each operation within 1 of torchvision's."""
    planes = crops.permute(0, 3, 1, 2).clone()  # (n, C, S, S)
    for step in range(drawn.shape[1]):
        operations, strengths = drawn[:, step, 0].astype(np.int64), drawn[:, step, 1]  # (n,) each
        for operation in np.unique(operations).tolist():
            rows = np.flatnonzero(operations == operation)
            there = torch.from_numpy(rows).to(planes.device)
            factor = torch.from_numpy(strengths[rows]).to(planes.device)[:, None, None, None]  # (m, 1, 1, 1) float64
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
    red, green, blue = (planes / 255).unbind(dim=1)  # (m, S, S) each, 0..1
    value = torch.maximum(torch.maximum(red, green), blue)
    spread = value - torch.minimum(torch.minimum(red, green), blue)
    divisor = spread.where(spread > 0, 1)
    of_red, of_green, of_blue = (green - blue) / divisor, 2 + (blue - red) / divisor, 4 + (red - green) / divisor
    sixths = (
        torch.where(value == red, of_red, torch.where(value == green, of_green, of_blue)) + 6 * factor[:, 0].float()
    )
    starts = torch.tensor([5.0, 3.0, 1.0], device=planes.device)[:, None, None]  # of red, green and blue
    places = (sixths[:, None] + starts).remainder(6)  # (m, 3, S, S)
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
