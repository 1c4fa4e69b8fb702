"""Random erasing: a rectangle of the network's input becomes 0, as torchvision's RandomErasing does it.

The defaults are torchvision's: the rectangle takes 2 to 33 % of the area, its height is 0.3 to 3.3 times its width, and
0 is a value after the normalization: the mean color. Source: Zhong et al., "Random Erasing Data Augmentation", 2017.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from alexnet_dist.data.draws import FloatArray

if TYPE_CHECKING:
    from torch import Tensor

SCALE, RATIO = (0.02, 0.33), (0.3, 3.3)  # part of the area, height / width
TRIES = 10  # torchvision's number


def draw_rectangles(
    probability: float,
    uniforms: Callable[[int], FloatArray],
    side: int,
    scale: tuple[float, float] = SCALE,
    ratio: tuple[float, float] = RATIO,
) -> FloatArray:
    """(B, 4) x, y, width, height in pixels; zeros where nothing is erased.

    The first of ten drawn shapes that is smaller than the crop is taken; if none is, nothing is erased. The draws do
    not depend on the probability: a larger one erases more images, and leaves the others' rectangles as they are.
    """
    draws = uniforms(2 * TRIES + 3)
    area = side**2 * (scale[0] + draws[:, :TRIES] * (scale[1] - scale[0]))  # (B, tries)
    low, high = np.log(ratio)
    shape = np.exp(low + draws[:, TRIES : 2 * TRIES] * (high - low))  # height / width
    sizes = np.rint(np.sqrt(np.stack([area / shape, area * shape], axis=2)))  # (B, tries, 2) width, height
    fits = (sizes < side).all(axis=2)  # (B, tries)
    size = sizes[np.arange(len(sizes)), fits.argmax(axis=1)]  # (B, 2)
    corner = np.floor(draws[:, 2 * TRIES : 2 * TRIES + 2] * (side - size + 1))  # (B, 2)
    is_erased = fits.any(axis=1) & (draws[:, -1] < probability)
    return np.where(is_erased[:, None], np.concatenate([corner, size], axis=1), 0.0)


def erase_rectangles(images: Tensor, rectangles: FloatArray) -> Tensor:
    """Set rectangles (n, 4) of images (n, C, S, S) to 0, in their place."""
    if images.device.type == "cpu":
        return erase_one_by_one(images, rectangles)
    return erase_at_once(images, rectangles)


def erase_one_by_one(images: Tensor, rectangles: FloatArray) -> Tensor:
    """On a host: nothing but the rectangles is touched, a plane at a time, as torch leaves small ones to one thread."""
    for image, (x, y, width, height) in zip(images, rectangles.astype(np.int64).tolist(), strict=True):
        for plane in image if width and height else ():
            plane[y : y + height, x : x + width] = 0
    return images


def erase_at_once(images: Tensor, rectangles: FloatArray) -> Tensor:
    """On a device: a few kernels for all images, where to start one for each takes longer than to pass over them."""
    import torch

    bounds = torch.from_numpy(rectangles).to(images.device, non_blocking=True)[:, :, None]  # (n, 4, 1)
    places = torch.arange(images.shape[-1], device=images.device)
    is_column, is_line = (  # (n, S) each
        (bounds[:, axis] <= places) & (places < bounds[:, axis] + bounds[:, axis + 2]) for axis in (0, 1)
    )
    return images.masked_fill_((is_line[:, :, None] & is_column[:, None, :])[:, None], 0)
