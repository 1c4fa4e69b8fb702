"""The image files that are read, or made to be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alexnet_dist.assembly.sets import build_splits
from alexnet_dist.data.index import SampleIndex
from alexnet_dist.settings.schema import DataConfig
from common.photographs import write_photographs


def find_images(root: Path | None, folder: Path, num_images: int) -> SampleIndex:
    """The training images of a folder with train/CLASS/*.jpg or CLASS/*.jpg, or made ones.

    Args:
        root: the user's folder, below which nothing is written; None = make images.
        folder: for made images and for header scans.
        num_images: how many are made, of 500 x 375 pixels.
    """
    if root is None:
        root = folder / "photographs"
        write_photographs(root, num_images, width=500, height=375)
    train = "train" if (root / "train").is_dir() else "."
    data = DataConfig(root=str(root), train=train, val_fraction=0.0, cache_dir=str(folder / "cache"))
    return build_splits(data, seed=0, progress=False).train


def describe_images(index: SampleIndex, made: bool) -> dict[str, Any]:
    """What was decoded."""
    width, height = index.sizes.mean(axis=0).round().astype(int).tolist()
    kilobytes = round(float(index.byte_sizes.mean()) / 1000, 1)
    return {"made": made, "count": len(index), "mean_width": width, "mean_height": height, "mean_kilobytes": kilobytes}
