"""The handwritten digits that come with scikit-learn, as a folder of images."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
from pathlib import Path

import numpy as np
from filelock import FileLock
from PIL import Image

from alexnet_dist.base.durable import CACHE_SETTING, TEMPORARY, disk_errors_named, mark_name, refuse_link, tidy_folder
from alexnet_dist.base.errors import UsageError
from alexnet_dist.data.sources import folders
from alexnet_dist.data.sources.source import SourceOptions

NUM_DIGITS = 1797

_JPEG_QUALITY = 95
_LARGEST_VALUE = 16  # the set counts the dark ones of 4x4 dots


def prepare_digits(cache_dir: Path) -> Path:
    """Write the 1,797 digits, 8x8 gray JPEGs, below `cache_dir` unless they are there.

    Returns:
        The folder `digits` with class folders 0 to 9; `7/digit-0042.jpg` is number 42 of the set. From here on it
        is a folder like any other.

    Raises:
        UsageError: a folder of this name is there that holds something else.
        MachineError: the folder cannot be written.
    """
    folder = cache_dir / "digits"
    if _is_complete(folder):
        return folder
    with disk_errors_named(folder, CACHE_SETTING):
        cache_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(cache_dir / ".digits.lock"):
            if not _is_complete(folder):  # another process may have written it while this one waited
                _refuse_others(folder)
                _replace_digits(folder)
    return folder


def _refuse_others(folder: Path) -> None:
    """Refuse a folder with anything in it that is not a file of ours, before it is replaced.

    Raises:
        UsageError: there is something; the line names it.
    """
    refuse_link(folder)
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not re.fullmatch("[0-9]" if path.is_dir() else "[0-9]/digit-[0-9]{4}[.]jpg", name):
            what, remedy = "the folder for the digits holds something else", f"set --{CACHE_SETTING} to another folder"
            raise UsageError(what, where=str(folder), why=f"{name} is there", remedy=remedy)


def _is_complete(folder: Path) -> bool:
    """Whether all files are there and none is empty, as one is after a loss of power."""
    try:
        sizes = [image.stat().st_size for image in folder.glob("[0-9]/digit-*.jpg")]
    except OSError:
        return False
    return len(sizes) == NUM_DIGITS and min(sizes) > 0


def _replace_digits(folder: Path) -> None:
    """Write beside, then rename, so that a half-written folder never has the name."""
    tidy_folder(folder.parent, of=folder.name, alone=True)
    beside, old = mark_name(folder, TEMPORARY), mark_name(folder, TEMPORARY)
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


def _prepare(options: SourceOptions) -> SourceOptions:
    root = prepare_digits(options.rules.cache_dir) if options.root is None else options.root
    return dataclasses.replace(options, root=root)


def _count_classes(options: SourceOptions) -> tuple[int | None, str]:
    return 10, f"source {options.name}"


SOURCE = dataclasses.replace(folders.SOURCE, prepare=_prepare, count_classes=_count_classes)
