"""Pictures, recipes and comparisons for the DALI engine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from alexnet_dist.data.engines.choose import ENGINES
from alexnet_dist.data.engines.loader import Batch, Loader
from alexnet_dist.data.index import SampleIndex
from alexnet_dist.data.plan import Augmentation
from alexnet_dist.data.sources.folders import scan_folder
from helpers import loaders
from helpers.images import bad_images, encode, good_images

SIDE = 20
SIZES = [(40, 24), (24, 40), (33, 33), (25, 60), (24, 24), (101, 67), (300, 31), (52, 211)]
CUT = Augmentation(SIDE, resize=None, crop="random", horizontal_flip=0.5, vertical_flip=0.5)
RESIZED = {
    "shorter side": Augmentation(SIDE, resize=22, crop="random", horizontal_flip=0.5),
    "both sides": Augmentation(SIDE, resize=(23, 41), crop="random", vertical_flip=0.5),
    "larger": Augmentation(SIDE, resize=90, crop="random"),
    "centre": Augmentation(SIDE, resize=SIDE),
    "random resized": Augmentation(SIDE, None, "random_resized", horizontal_flip=0.5, vertical_flip=0.5),
    "ten views": Augmentation(SIDE, resize=24, views=10),
}


def draw_detail(dice: np.random.Generator, width: int, height: int, grain: int) -> Image.Image:
    """A picture with much detail, right up to its edges; `grain` pixels are one detail."""
    coarse = dice.integers(0, 256, (height // grain + 2, width // grain + 2, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def make_index(root: Path, sizes: list[tuple[int, int]] = SIZES) -> SampleIndex:
    """Two classes; of each size a JPEG and a PNG with much detail, right up to the edges."""
    dice = np.random.default_rng(5)
    for number, (width, height) in enumerate(sizes):
        image = draw_detail(dice, width, height, grain=6)
        for name, options in (("cat/{}.jpg", {"format": "JPEG", "quality": 90}), ("dog/{}.png", {"format": "PNG"})):
            path = root / "train" / name.format(number)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode(image, **options))
    return scan(root)


def scan(root: Path) -> SampleIndex:
    return scan_folder(root / "train", classes=None, on_bad_file="skip", cache_dir=root / "cache")


def make_loader(index: SampleIndex, recipe: Augmentation, **changes: Any) -> Loader:
    """On the scale of pixels, so that differences are gray levels."""
    normalization = loaders.gray_levels(changes.get("channels", 3))
    settings = {"engine": "dali", "workers": 1, "global_batch_size": 6, "normalization": normalization, **changes}
    return loaders.make_loader(index, recipe, **settings)


def make_both(loader: Loader, start: int, stop: int) -> tuple[list[Batch], list[Batch]]:
    """The batches of DALI and of the reference."""
    reference = replace(loader, engine=ENGINES["torchvision"], workers=0)
    return list(loader.batches(start, stop)), list(reference.batches(start, stop))


def check_equal(ours: list[Batch], theirs: list[Batch], largest: float = 0.0, mean: float = 0.0) -> None:
    """Everything but the pixels is equal; these differ by no more than this."""
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one.ids, other.ids)
        assert torch.equal(one.labels, other.labels)
        assert torch.equal(one.mask, other.mask)
        assert one[4:] == other[4:]
        assert one.images.shape == other.images.shape
    if ours:
        difference = torch.cat([(one.images - other.images).abs() for one, other in zip(ours, theirs, strict=True)])
        assert difference.max() <= largest
        assert difference.mean() <= mean or difference.max() == 0


def make_zoo(root: Path) -> SampleIndex:
    """Every kind that can be decoded, and those with a good header that cannot."""
    for label, images in (("good", good_images()), ("bad", [bad for bad in bad_images() if bad.has_good_header])):
        (root / "train" / label).mkdir(parents=True)
        for image in images:
            (root / "train" / label / image.name).write_bytes(image.data)
    return scan(root)
