"""Our evaluation picture is what torchvision's own transforms make of the same file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from images import save_jpeg
from PIL import Image
from torchvision.transforms import v2

from alexnet_dist.data.loader import make_normalization
from alexnet_dist.data.plan import IMAGENET_MEAN, IMAGENET_STD, Augmentation, Plan
from alexnet_dist.data.samples import scan_folder
from alexnet_dist.data.torchvision_engine import PixelBatch, PixelBatches

TEST_DATA = os.environ.get("ALEXNET_DIST_TEST_DATA")
SHAPES = [(40, 24), (24, 40), (33, 33), (31, 58), (97, 64), (24, 25)]
REAL_IMAGES = 6
NORMALIZED_TOLERANCE = 1e-6  # of values up to 2.7: a few float32 roundings


def evaluate_pixels(folder: Path, cache: Path, side: int, resize: int | tuple[int, int] | None) -> PixelBatch:
    index = scan_folder(folder, classes=None, on_bad_file="fail", cache_dir=cache)
    plan = Plan(index.sizes, Augmentation(side, resize).for_evaluation(), len(index), seed=0, shuffle=False)
    return PixelBatches(plan, index, channels=3, max_pixels=10**8, shard_id=0, num_shards=1)[0]


def torchvision_pixels(folder: Path, side: int, resize: int | tuple[int, int] | None, antialias: bool) -> torch.Tensor:
    """(B, 3, side, side) uint8, in the order of the index: by class, then by name."""
    steps = [] if resize is None else [v2.Resize(resize, antialias=antialias)]
    transform = v2.Compose([*steps, v2.CenterCrop(side)])
    images = [Image.open(path).convert("RGB") for path in sorted(folder.glob("*/*"))]
    return torch.stack([transform(v2.functional.pil_to_tensor(image)) for image in images])


@pytest.fixture
def small_images(tmp_path: Path) -> Path:
    for number, (width, height) in enumerate(SHAPES):
        save_jpeg(tmp_path / "train" / f"class{number % 2}" / f"{number}.jpg", width, height)
    return tmp_path / "train"


@pytest.fixture
def real_images(tmp_path: Path) -> Path:
    if TEST_DATA is None:
        pytest.skip("ALEXNET_DIST_TEST_DATA is not set")
    found = sorted(Path(TEST_DATA).glob("imagenet_sample/*/*.JPEG"))[:: 1000 // REAL_IMAGES]
    if not found:
        pytest.skip("ALEXNET_DIST_TEST_DATA has no imagenet_sample")
    for number, path in enumerate(found):
        copy = tmp_path / "real" / f"class{number % 2}" / path.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    return tmp_path / "real"


@pytest.mark.parametrize(("side", "resize"), [(24, None), (20, 24), (20, 23), (21, 24), (24, (30, 40)), (20, 50)])
def test_made_images_equal_torchvisions_bit_for_bit(
    small_images: Path, tmp_path: Path, side: int, resize: int | tuple[int, int] | None
) -> None:
    ours = evaluate_pixels(small_images, tmp_path, side, resize).pixels.permute(0, 3, 1, 2)
    assert torch.equal(ours, torchvision_pixels(small_images, side, resize, antialias=True))


def test_real_images_equal_torchvisions_bit_for_bit(real_images: Path, tmp_path: Path) -> None:
    ours = evaluate_pixels(real_images, tmp_path, 224, 256).pixels.permute(0, 3, 1, 2)
    assert torch.equal(ours, torchvision_pixels(real_images, 224, 256, antialias=True))


def test_resize_without_antialias_is_noticed(small_images: Path, tmp_path: Path) -> None:
    ours = evaluate_pixels(small_images, tmp_path, 20, 24).pixels.permute(0, 3, 1, 2)
    assert not torch.equal(ours, torchvision_pixels(small_images, 20, 24, antialias=False))


def test_normalized_input_equals_torchvisions(small_images: Path, tmp_path: Path) -> None:
    made = evaluate_pixels(small_images, tmp_path, 20, 24)
    ours = make_normalization(3, 1, None, None)(made.pixels, made.shifts, channels_last=True)
    scaled = v2.functional.to_dtype(torchvision_pixels(small_images, 20, 24, antialias=True), torch.float32, scale=True)
    theirs = v2.functional.normalize(scaled, list(IMAGENET_MEAN), list(IMAGENET_STD))
    torch.testing.assert_close(ours, theirs, atol=NORMALIZED_TOLERANCE, rtol=0)
    assert (ours - v2.functional.normalize(scaled, list(IMAGENET_MEAN), [0.23] * 3)).abs().max() > NORMALIZED_TOLERANCE
