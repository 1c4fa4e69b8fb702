"""Our pictures are what torchvision's own transforms make of the same files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.images import save_jpeg
from PIL import Image
from torchvision.transforms import v2

from alexnet_dist.data.engines.finish import scale_pixels
from alexnet_dist.data.engines.loader import make_normalization
from alexnet_dist.data.engines.torchvision import PixelBatch, PixelBatches
from alexnet_dist.data.plan import IMAGENET_MEAN, IMAGENET_STD, Augmentation, Plan, StepPlan
from alexnet_dist.data.sources.folders import scan_folder

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
    shifts = torch.from_numpy(made.rows.shifts).float()
    ours = scale_pixels(make_normalization(3, 1, None, None), made.pixels, shifts, channels_last=True)
    scaled = v2.functional.to_dtype(torchvision_pixels(small_images, 20, 24, antialias=True), torch.float32, scale=True)
    theirs = v2.functional.normalize(scaled, list(IMAGENET_MEAN), list(IMAGENET_STD))
    torch.testing.assert_close(ours, theirs, atol=NORMALIZED_TOLERANCE, rtol=0)
    assert (ours - v2.functional.normalize(scaled, list(IMAGENET_MEAN), [0.23] * 3)).abs().max() > NORMALIZED_TOLERANCE


# -- the training picture, with color jitter -------------------------------------------------------------------------

JITTER_NAMES = ("brightness", "contrast", "saturation", "hue")
STRENGTHS = [(0.4, 0.4, 0.4, 0.1), (1.5, 1.5, 1.5, 0.5), (0.0, 0.8, 0.0, 0.2), (0.6, 0.0, 0.0, 0.0)]
EPOCHS = 4  # so many draws for each image


def train_pixels(folder: Path, cache: Path, recipe: Augmentation) -> list[tuple[torch.Tensor, StepPlan]]:
    """Each epoch's (B, 3, side, side) uint8 in the order of the index, and the plan behind them."""
    index = scan_folder(folder, classes=None, on_bad_file="fail", cache_dir=cache)
    plan = Plan(index.sizes, recipe, len(index), seed=0, shuffle=False)
    batches = PixelBatches(plan, index, channels=3, max_pixels=10**8, shard_id=0, num_shards=1)
    return [(batches[epoch].pixels.permute(0, 3, 1, 2), plan.at(epoch)) for epoch in range(EPOCHS)]


def torchvision_jitter(rows: StepPlan, row: int, strengths: tuple[float, ...], reverse: bool) -> v2.ColorJitter:
    """torchvision's transform, made to draw what our plan says."""
    jitter = v2.ColorJitter(*strengths)
    steps = rows.drawn["color_jitter"][row].tolist()
    order = [int(number) for number, _ in steps]
    left_out = [number for number in range(4) if number not in order]
    params: dict[str, Any] = {f"{name}_factor": None for name in JITTER_NAMES}
    for number, factor in steps:
        params[f"{JITTER_NAMES[int(number)]}_factor"] = factor
    params["fn_idx"] = torch.tensor([*(order[::-1] if reverse else order), *left_out])
    jitter.make_params = lambda flat_inputs: params  # type: ignore[method-assign]
    return jitter


def torchvision_training_pixels(
    folder: Path, rows: StepPlan, recipe: Augmentation, reverse: bool = False
) -> torch.Tensor:
    """(B, 3, side, side) uint8: resize, crop and flip where our plan says, then ColorJitter."""
    crops = []
    for row, path in enumerate(sorted(folder.glob("*/*"))):
        planes = v2.functional.pil_to_tensor(Image.open(path).convert("RGB"))
        planes = v2.Resize(recipe.resize, antialias=True)(planes)
        left, top = rows.corners[row].tolist()
        crop = v2.functional.crop(planes, top, left, recipe.crop_size, recipe.crop_size)
        crop = v2.functional.horizontal_flip(crop) if rows.flips[row, 0] else crop
        crop = v2.functional.vertical_flip(crop) if rows.flips[row, 1] else crop
        crops.append(torchvision_jitter(rows, row, recipe.color_jitter or (), reverse)(crop))
    return torch.stack(crops)


def make_recipe(side: int, resize: int, strengths: tuple[float, ...]) -> Augmentation:
    rates = {"horizontal_flip": 0.5, "vertical_flip": 0.5}
    return Augmentation(side, resize, "random", color_jitter=strengths, **rates)  # type: ignore[arg-type]


@pytest.mark.parametrize("strengths", STRENGTHS)
def test_jittered_images_equal_torchvisions_bit_for_bit(
    small_images: Path, tmp_path: Path, strengths: tuple[float, ...]
) -> None:
    recipe = make_recipe(20, 24, strengths)
    for ours, rows in train_pixels(small_images, tmp_path, recipe):
        assert torch.equal(ours, torchvision_training_pixels(small_images, rows, recipe))


def test_jittered_real_images_equal_torchvisions_bit_for_bit(real_images: Path, tmp_path: Path) -> None:
    recipe = make_recipe(224, 256, STRENGTHS[0])
    ours, rows = train_pixels(real_images, tmp_path, recipe)[0]
    assert torch.equal(ours, torchvision_training_pixels(real_images, rows, recipe))


def test_jitter_in_another_order_is_noticed(small_images: Path, tmp_path: Path) -> None:
    recipe = make_recipe(20, 24, STRENGTHS[0])
    ours, rows = train_pixels(small_images, tmp_path, recipe)[0]
    assert not torch.equal(ours, torchvision_training_pixels(small_images, rows, recipe, reverse=True))


def test_jitter_is_distributed_as_torchvisions() -> None:
    strengths, count = (0.4, 1.5, 0.8, 0.3), 3000
    plan = Plan(np.full((count, 2), 8), Augmentation(8, None, color_jitter=strengths), count, seed=2, shuffle=False)
    operations, factors = np.moveaxis(plan.at(0).drawn["color_jitter"], 2, 0)
    ours = np.take_along_axis(factors, operations.argsort(axis=1), axis=1)  # (count, 4), by component
    torch.manual_seed(0)
    drawn = [v2.ColorJitter(*strengths).make_params([]) for _ in range(count)]
    theirs = np.array([[params[f"{name}_factor"] for name in JITTER_NAMES] for params in drawn])
    tolerance = 5 * np.ptp(theirs, axis=0) / np.sqrt(12 * count)  # five standard errors of a uniform's mean
    assert (abs(ours.mean(axis=0) - theirs.mean(axis=0)) < np.sqrt(2) * tolerance).all()
    assert (abs(ours.std(axis=0) - theirs.std(axis=0)) < tolerance).all()
    np.testing.assert_allclose(ours.min(axis=0), theirs.min(axis=0), atol=0.01)
    np.testing.assert_allclose(ours.max(axis=0), theirs.max(axis=0), atol=0.01)
