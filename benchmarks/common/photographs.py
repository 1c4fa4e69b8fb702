"""Folders of JPEG images that cost as much to decode as photographs do, made from a seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

SLOPE = 1.2  # amplitude falls with frequency to this power in photographs of natural scenes (Field 1987: 1.0 to 1.3)
CONTRAST, COLOR = 55.0, 15.0  # standard deviations of brightness and color on the 0-255 scale
QUALITY = 90  # with SLOPE: about 100 KB at 500x375, as ImageNet's files have
NUM_CLASSES = 4


def write_photographs(folder: Path, num_images: int, width: int, height: int) -> None:
    """Fill `folder`/train/CLASS with JPEG files of this size in pixels; equal arguments give equal pictures."""
    generator = np.random.default_rng(0)
    for number in range(num_images):
        path = folder / "train" / f"class-{number % NUM_CLASSES}" / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw_photograph(generator, width, height)).save(path, quality=QUALITY)


def draw_photograph(generator: np.random.Generator, width: int, height: int) -> npt.NDArray[np.uint8]:
    """Noise with a photograph's spectrum, uint8 (height, width, 3), much of it gray."""
    gray, red, blue = (_draw_plane(generator, width, height) for _ in range(3))  # (H, W) each
    colors = np.stack([red, -(red + blue) / 2, blue], axis=2)  # (H, W, 3)
    pixels = 128 + CONTRAST * gray[:, :, None] + COLOR * colors
    return np.clip(pixels, 0, 255).astype(np.uint8)


def _draw_plane(generator: np.random.Generator, width: int, height: int) -> npt.NDArray[np.float64]:
    frequencies = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])  # (H, W // 2 + 1)
    frequencies[0, 0] = np.inf  # no mean
    spectrum = generator.standard_normal(frequencies.shape) + 1j * generator.standard_normal(frequencies.shape)
    plane = np.fft.irfft2(spectrum / frequencies**SLOPE, (height, width))  # (H, W)
    return np.asarray(plane / plane.std())
