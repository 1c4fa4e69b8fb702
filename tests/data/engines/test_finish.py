"""The last stage, in all its forms: on drawn recipes each engine's input is the reference's."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import loaders
from torch import Tensor

from alexnet_dist.data.engines import crop_kernel, finish
from alexnet_dist.data.engines.cache.build import build_store
from alexnet_dist.data.engines.cache.device import make_from_bands, make_from_resident, upload
from alexnet_dist.data.engines.cache.engine import find_layout
from alexnet_dist.data.engines.cache.store import open_store
from alexnet_dist.data.engines.choose import ENGINES, find_obstacle
from alexnet_dist.data.engines.loader import Loader, make_normalization
from alexnet_dist.data.plan import Augmentation
from alexnet_dist.data.sources.synthetic import synthetic_index

STEPS = 3  # the last is a short batch: some rows have no image
SIDE = 24
# Of float32, a product in the place of a division; of bfloat16, a number between two neighbors rounded either way.
TOLERANCES = {torch.float32: 1e-6, torch.bfloat16: 2**-6}


def draw_loader(seed: int, folder: Path) -> Loader:
    """A recipe, an input scale, a type and a layout, all drawn. Nothing is resized: each engine has its own way to."""
    dice = np.random.default_rng(seed)
    recipe = Augmentation(
        crop_size=SIDE,
        resize=None,
        crop="random",
        horizontal_flip=0.5,
        vertical_flip=float(dice.choice([0, 0.5])),
        lighting=[None, "source2012", "common"][dice.integers(3)],
        color_jitter=[None, (0.4, 0.4, 0.4, 0.1), (0.5, 0.0, 0.0, 0.0)][dice.integers(3)],
        random_erasing=float(dice.choice([0, 0.7])),
    )
    channels = int(dice.choice([1, 3]))
    return loaders.make_loader(
        synthetic_index(16, 2, (30, 27), seed=seed),
        recipe,
        engine="torchvision",
        global_batch_size=6,
        seed=seed,
        cache_dir=folder,
        channels=channels,
        normalization=make_normalization(channels, int(dice.choice([1, 255])), None, None),
        channels_last=bool(dice.integers(2)),
        dtype=[torch.float32, torch.float32, torch.bfloat16][dice.integers(3)],
    )


def run_engine(name: str, loader: Loader) -> Iterator[Tensor]:
    return (batch.images for batch in dataclasses.replace(loader, engine=ENGINES[name]).batches(0, STEPS))


def run_maker(make: Callable[..., list[Tensor]], loader: Loader) -> Iterator[Tensor]:
    for step in range(STEPS):
        rows = loader.plan.at(step)
        yield make(loader, rows, rows.ids >= 0)[0]


def run_from_bands(loader: Loader) -> Iterator[Tensor]:
    return run_maker(partial(make_from_bands, open_store(find_layout(loader)), ThreadPoolExecutor(1)), loader)


def run_resident(loader: Loader) -> Iterator[Tensor]:
    return run_maker(partial(make_from_resident, upload(open_store(find_layout(loader)), loader)), loader)


def run_kernel(loader: Loader) -> Iterator[Tensor]:
    """What a GPU runs, in Triton's interpreter where there is none."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finish, "cut_crops", crop_kernel.cut_crops)
        yield from run_from_bands(loader)


WAYS: dict[str, Callable[[Loader], Iterator[Tensor]]] = {
    "cache on a host": partial(run_engine, "cache"),
    "cache on a device": run_resident,
    "bytes that travel": run_from_bands,
    "kernel": run_kernel,
    **({} if find_obstacle("dali") else {"dali": partial(run_engine, "dali")}),
}


def largest_difference(loader: Loader, way: str, plan_seed: int) -> float:
    """Between a way and the reference, which carries out the plan of `plan_seed`."""
    build_store(find_layout(loader), workers=0, on_bad_file="fail", progress=False)
    reference = dataclasses.replace(loader, plan=dataclasses.replace(loader.plan, seed=plan_seed))
    largest = 0.0
    for images, expected in zip(WAYS[way](loader), run_engine("torchvision", reference), strict=True):
        assert (images.shape, images.dtype) == (expected.shape, expected.dtype)
        layout = torch.channels_last if loader.channels_last else torch.contiguous_format
        assert images.is_contiguous(memory_format=layout)
        largest = max(largest, float((images.float() - expected.float()).abs().max()))
    return largest


SEEDS = [*range(4), *(pytest.param(n, marks=pytest.mark.heavy if n < 8 else pytest.mark.slow) for n in range(4, 12))]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("way", WAYS)
def test_every_form_of_crops_ends_as_the_references_input(way: str, seed: int, tmp_path: Path) -> None:
    loader = draw_loader(seed, tmp_path)
    tolerance = TOLERANCES[loader.dtype] * 255 / min(loader.normalization.std)
    assert largest_difference(loader, way, seed) <= tolerance
    assert largest_difference(loader, way, seed + 1) > tolerance  # what another seed draws is noticed
