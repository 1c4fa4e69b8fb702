"""Evaluation's preprocessing for pictures in hand, one by one: the same pixels as the engines give, bit for bit."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from alexnet_dist.data.decode import (
    DEFAULT_MAX_PIXELS,
    ImageSource,
    Pixels,
    UnreadableImageError,
    convert_picture,
    cut_window,
    decode_image,
)
from alexnet_dist.data.plan import Augmentation, Plan
from alexnet_dist.data.torchvision_engine import cut_pixels, resize_pixels
from alexnet_dist.errors import DataError

Picture: TypeAlias = ImageSource | Image.Image


def crop_pictures(
    pictures: Iterable[Picture], recipe: Augmentation, channels: int, max_pixels: int = DEFAULT_MAX_PIXELS
) -> Tensor:
    """Decode, resize and crop pictures.

    Args:
        pictures: paths, bytes of files, or pictures of Pillow's.
        recipe: evaluation's resize and crop.
        channels: 3 (RGB) or 1 (gray).
        max_pixels: larger files are refused.

    Returns:
        (B, S, S, C) uint8.

    Raises:
        UnreadableImageError: a file that cannot be used; a note, as of `add_note`, says which of the pictures.
        DataError: a picture that is smaller than the crop; likewise.
    """
    crops = []
    for position, picture in enumerate(pictures):
        with _errors_noted(position, picture):
            crops.append(_crop_centre(_decode(picture, channels, max_pixels), recipe))
    side = recipe.crop_size
    return torch.from_numpy(np.stack(crops) if crops else np.empty((0, side, side, channels), np.uint8))


@contextmanager
def _errors_noted(position: int, picture: Picture) -> Iterator[None]:
    try:
        yield
    except (UnreadableImageError, DataError) as error:
        path = f": {os.fspath(picture)}" if isinstance(picture, str | os.PathLike) else ""
        error.add_note(f"pictures[{position}]{path}")
        raise


def _decode(picture: Picture, channels: int, max_pixels: int) -> Pixels:
    if isinstance(picture, Image.Image):
        return convert_picture(picture, channels)
    return decode_image(picture, channels, max_pixels)


def _crop_centre(pixels: Pixels, recipe: Augmentation) -> Pixels:
    """(H, W, C) to (S, S, C), by a plan for this picture alone."""
    height, width = pixels.shape[:2]
    rows = Plan(np.array([[width, height]]), recipe, global_batch_size=1, seed=0, shuffle=False).at(0)
    wide, high = rows.resized[0].tolist()
    return cut_pixels(resize_pixels(cut_window(pixels, rows.windows[0]), wide, high), rows, 0, recipe.crop_size)
