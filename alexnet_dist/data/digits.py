"""The handwritten digits that come with scikit-learn, as a folder of images."""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path

import numpy as np
from filelock import FileLock
from PIL import Image

from alexnet_dist.data.kept_arrays import CACHE_SETTING
from alexnet_dist.durable import disk_errors_named

NUM_DIGITS = 1797

_JPEG_QUALITY = 95
_LARGEST_VALUE = 16  # the set counts the dark ones of 4x4 dots


def prepare_digits(cache_dir: Path) -> Path:
    """Write the 1,797 digits, 8x8 gray JPEGs, below `cache_dir` unless they are there.

    Returns:
        The folder `digits` with class folders 0 to 9; `7/digit-0042.jpg` is number 42 of the set. From here on it
        is a folder like any other.

    Raises:
        MachineError: the folder cannot be written.
    """
    folder = cache_dir / "digits"
    if _is_complete(folder):
        return folder
    with disk_errors_named(folder, CACHE_SETTING):
        cache_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(cache_dir / ".digits.lock"):
            if not _is_complete(folder):  # another process may have written it while this one waited
                _replace_digits(folder)
    return folder


def _is_complete(folder: Path) -> bool:
    """Whether all files are there and none is empty, as one is after a loss of power."""
    try:
        sizes = [image.stat().st_size for image in folder.glob("[0-9]/digit-*.jpg")]
    except OSError:
        return False
    return len(sizes) == NUM_DIGITS and min(sizes) > 0


def _replace_digits(folder: Path) -> None:
    """Write beside, then rename, so that a half-written folder never has the name."""
    suffix = f"{os.getpid()}.{secrets.token_hex(4)}"
    beside, old = (folder.with_name(f".digits.{kind}.{suffix}") for kind in ("new", "old"))
    try:
        _write_digits(beside)
        if folder.exists():
            os.rename(folder, old)
        os.rename(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _write_digits(folder: Path) -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    pictures = (digits.images * 255 / _LARGEST_VALUE + 0.5).astype(np.uint8)  # (1797, 8, 8)
    for label in range(10):
        (folder / str(label)).mkdir(parents=True)
    for number, (picture, label) in enumerate(zip(pictures, digits.target, strict=True)):
        path = folder / str(label) / f"digit-{number:04d}.jpg"
        Image.fromarray(picture).save(path, "JPEG", quality=_JPEG_QUALITY)
