"""Color jitter: brightness, contrast, saturation and hue in a random order, as torchvision's ColorJitter.

It is K operations on a crop, K being the number of strengths above 0. Each takes the bytes of the flipped crop and
gives bytes, held to 0..255 and cut to an integer, as torchvision's `adjust_brightness`, `adjust_contrast`,
`adjust_saturation` and `adjust_hue` do. With gray = 0.2989 R + 0.587 G + 0.114 B, cut to an integer, or the only
channel, an operation with the factor f is:

- BRIGHTNESS (0): f * pixel; f >= 0, 1 changes nothing.
- CONTRAST (1): f * pixel + (1 - f) * the crop's mean gray; f >= 0.
- SATURATION (2): f * pixel + (1 - f) * the pixel's gray; f >= 0; nothing for one channel.
- HUE (3): the hue of HSV turned by f of a whole turn, -0.5 <= f <= 0.5; the channels on the scale 0..1 become
  bytes as floor(255.999 * channel); nothing for one channel.

It comes after the crop because that is the smallest picture on the way: the network's input, and not one pixel more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from alexnet_dist.data.draws import FloatArray

if TYPE_CHECKING:
    from torch import Tensor

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)  # the order of augment.color_jitter


def draw_jitter(strengths: tuple[float, ...], uniforms: Callable[[int], FloatArray], side: int) -> FloatArray:
    """(B, K, 2) operations in a random order, and their factors.

    Factors are uniform in [max(0, 1 - strength), 1 + strength], the hue's in [-strength, strength], and the order is
    any of the K! with equal probability, as in torchvision's ColorJitter. The draws of one operation do not depend on
    the strengths of the others.
    """
    active = np.flatnonzero(strengths)
    draws = uniforms(8)
    lows = np.array([-strength if op == HUE else max(0.0, 1 - strength) for op, strength in enumerate(strengths)])
    highs = np.array([strength if op == HUE else 1 + strength for op, strength in enumerate(strengths)])
    factors = lows + draws[:, :4] * (highs - lows)  # (B, 4)
    order = active[draws[:, 4:][:, active].argsort(axis=1)]  # (B, K)
    return np.stack([order, np.take_along_axis(factors, order, axis=1)], axis=2)


def jitter_crops(crops: Tensor, drawn: FloatArray) -> Tensor:
    """Change the colors of crops (n, S, S, C) uint8 as (n, K, 2) operations and factors say.

    On a host each by torchvision's functions; on a device all by a few kernels, within 1 of these.
    """
    from alexnet_dist.data.crop_ops.color_jitter_pixels import jitter_batch, jitter_one_by_one

    return jitter_one_by_one(crops, drawn) if crops.device.type == "cpu" else jitter_batch(crops, drawn)
