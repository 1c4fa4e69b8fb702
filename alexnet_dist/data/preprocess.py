"""Evaluation's preprocessing for pictures in hand, one by one: the same pixels as the engines give, bit for bit."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import BinaryIO, TypeAlias, cast

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from alexnet_dist.base.errors import DataError
from alexnet_dist.data.decode import (
    DEFAULT_MAX_PIXELS,
    ImageSource,
    Pixels,
    UnreadableImageError,
    convert_picture,
    cut_window,
    decode_image,
)
from alexnet_dist.data.engines.torchvision import cut_pixels, flip_pixels, resize_pixels
from alexnet_dist.data.plan import Augmentation, Plan

Picture: TypeAlias = ImageSource | Image.Image | BinaryIO | npt.NDArray[np.uint8] | Tensor

_FILES = (str, os.PathLike, bytes, bytearray, memoryview)
_ACCEPTED = (
    'a path, the bytes of a file, a file opened with "rb", a picture of Pillow\'s, '
    "a uint8 array (H, W, C) or a uint8 tensor (C, H, W)"
)


def list_pictures(pictures: Picture | Iterable[Picture]) -> Iterable[Picture]:
    """One picture, or several, as several.

    Raises:
        TypeError: neither.
    """
    if isinstance(pictures, np.ndarray | Tensor):
        return pictures if pictures.ndim == 4 else [pictures]
    if isinstance(pictures, (*_FILES, Image.Image)) or hasattr(pictures, "read"):
        return cast(list[Picture], [pictures])
    if isinstance(pictures, Mapping) or not isinstance(pictures, Iterable):
        raise TypeError(f"a picture, or several, must be {_ACCEPTED}; got {type(pictures).__name__}")
    return pictures


def crop_pictures(
    pictures: Iterable[Picture], recipe: Augmentation, channels: int, max_pixels: int = DEFAULT_MAX_PIXELS
) -> Tensor:
    """Decode, resize and crop pictures.

    Args:
        pictures: paths, bytes of files, open files, pictures of Pillow's, or pixels.
        recipe: evaluation's resize and crop.
        channels: 3 (RGB) or 1 (gray).
        max_pixels: larger files are refused.

    Returns:
        (B, S, S, C) uint8.

    Raises:
        TypeError: something else; likewise.
        UnreadableImageError: a file that cannot be used; a note, as of `add_note`, says which of the pictures.
        DataError: a picture that is smaller than the crop; likewise.
    """
    crops = []
    for position, picture in enumerate(pictures):
        with _errors_noted(position, picture):
            crops.append(_crop_center(_decode(picture, channels, max_pixels), recipe))
    side = recipe.crop_size
    return torch.from_numpy(np.stack(crops) if crops else np.empty((0, side, side, channels), np.uint8))


@contextmanager
def _errors_noted(position: int, picture: Picture) -> Iterator[None]:
    try:
        yield
    except (UnreadableImageError, DataError, TypeError) as error:
        path = f": {os.fspath(picture)}" if isinstance(picture, str | os.PathLike) else ""
        error.add_note(f"pictures[{position}]{path}")
        raise


def _decode(picture: Picture, channels: int, max_pixels: int) -> Pixels:
    if isinstance(picture, Image.Image):
        return convert_picture(picture, channels)
    if isinstance(picture, np.ndarray | Tensor):
        return convert_picture(_take_pixels(picture), channels)
    if isinstance(picture, _FILES):
        return decode_image(picture, channels, max_pixels)
    read = getattr(picture, "read", None)
    if read is None:
        raise TypeError(f"a picture must be {_ACCEPTED}; got {type(picture).__name__}")
    data = read()
    if not isinstance(data, bytes):
        raise TypeError(f'a file of a picture must be opened with "rb"; reading gave {type(data).__name__}')
    return decode_image(data, channels, max_pixels)


def _take_pixels(pixels: npt.NDArray[np.uint8] | Tensor) -> Image.Image:
    """Pixels as a picture of Pillow's: gray, color, or color with transparency."""
    axes, shape = ("(C, H, W)" if isinstance(pixels, Tensor) else "(H, W, C)"), tuple(pixels.shape)
    channels = shape[2:] if axes == "(H, W, C)" else shape[:-2]
    if (
        str(pixels.dtype) not in ("uint8", "torch.uint8")
        or len(shape) not in (2, 3)
        or channels not in ((), (1,), (3,), (4,))
        or 0 in shape
    ):
        kind, dtype = type(pixels).__name__, str(pixels.dtype).removeprefix("torch.")
        wanted = f"uint8 {axes} of 1, 3 or 4 channels, or (H, W), and not empty"
        raise TypeError(f"the pixels of a picture must be {wanted}; got {kind} {dtype} {shape}")
    planes = pixels.detach().cpu().numpy() if isinstance(pixels, Tensor) else pixels
    if isinstance(pixels, Tensor) and channels:
        planes = np.moveaxis(planes, 0, -1)  # (H, W, C)
    return Image.fromarray(np.ascontiguousarray(planes[:, :, 0] if planes.shape[2:] == (1,) else planes))


def _crop_center(pixels: Pixels, recipe: Augmentation) -> Pixels:
    """(H, W, C) to (S, S, C), by a plan for this picture alone."""
    height, width = pixels.shape[:2]
    rows = Plan(np.array([[width, height]]), recipe, global_batch_size=1, seed=0, shuffle=False).at(0)
    wide, high = rows.resized[0].tolist()
    picture = resize_pixels(cut_window(pixels, rows.windows[0]), wide, high)
    return flip_pixels(cut_pixels(picture, rows, 0, recipe.crop_size), rows, 0)
