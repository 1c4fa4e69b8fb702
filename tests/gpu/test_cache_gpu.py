"""The cache engine on a GPU: a set that lies there, and crops that travel. Skipped where there is none."""

from __future__ import annotations

import dataclasses
import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny import tiny_config

from alexnet_dist.cli.train import train
from alexnet_dist.data.engines.cache import device as cache_device
from alexnet_dist.data.engines.cache.build import build_store
from alexnet_dist.data.engines.cache.engine import find_layout
from alexnet_dist.data.engines.choose import ENGINES
from alexnet_dist.data.engines.loader import Loader, Normalization
from alexnet_dist.data.plan import Augmentation, Plan
from alexnet_dist.data.sources.synthetic import synthetic_index

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

DEVICE = torch.device("cuda", 0)
FLIPS: dict[str, Any] = {"crop": "random", "horizontal_flip": 0.5, "vertical_flip": 0.5}
# Name: the recipe, and by how many gray levels a pixel may differ from the reference, which resizes on the CPU.
RECIPES = {
    "crops": (Augmentation(48, (60, 64), **FLIPS, lighting="source2012", random_erasing=0.5), 1e-3),
    "resized there": (Augmentation(100, 110, **FLIPS), 1.001),
    "ten views": (Augmentation(48, 60, views=10), 1e-3),
    "jitter": (Augmentation(48, (60, 64), **FLIPS, color_jitter=(0.4, 0.4, 0.4, 0.1)), 4.001),
}


def make_loader(folder: Path, recipe: Augmentation, **changes: Any) -> Loader:
    index = synthetic_index(30, 3, (80, 72), seed=1)
    loader = Loader(
        plan=Plan(index.sizes, recipe, 8, 1, shuffle=True),
        index=index,
        normalization=Normalization((0, 0, 0), (1, 1, 1)),
        channels=3,
        max_pixels=10**6,
        shard_id=0,
        num_shards=1,
        device=DEVICE,
        channels_last=True,
        workers=1,
        engine=ENGINES["cache"],
        cache_dir=folder,
    )
    build_store(find_layout(loader), workers=0, on_bad_file="fail", progress=False)
    return dataclasses.replace(loader, **changes)


@pytest.mark.parametrize("part", [0.4, 0.0])
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("name", RECIPES)
def test_batches_are_the_references(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, workers: int, part: float
) -> None:
    """With the set on the device, and with crops that travel."""
    monkeypatch.setattr(cache_device, "RESIDENT_PART", part)
    recipe, tolerance = RECIPES[name]
    loader = make_loader(tmp_path, recipe, workers=workers)
    expected = list(dataclasses.replace(loader, engine=ENGINES["torchvision"], workers=0).batches(0, 6))
    made = list(loader.batches(0, 6))
    assert len(made) == len(expected)
    for one, other in zip(made, expected, strict=True):
        assert one.images.device == DEVICE
        assert one.images.is_contiguous(memory_format=torch.channels_last)
        assert (one.images - other.images).abs().max() <= tolerance
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(one[1:4], other[1:4], strict=True))
        assert one[4:] == other[4:]


def test_a_batch_in_use_is_not_written_to(tmp_path: Path) -> None:
    loader = make_loader(tmp_path, RECIPES["crops"][0])
    batches = iter(loader.batches(0, 12))
    first = next(batches)
    kept = first.images.clone()
    rest = list(batches)
    torch.cuda.synchronize()
    assert len(rest) == 11
    assert torch.equal(first.images, kept)


def test_memory_on_the_device_goes_with_the_loader(tmp_path: Path) -> None:
    before = torch.cuda.memory_allocated(DEVICE)
    loader = make_loader(tmp_path, RECIPES["crops"][0])
    list(loader.batches(0, 2))
    assert torch.cuda.memory_allocated(DEVICE) - before >= find_layout(loader).total_bytes
    del loader
    gc.collect()
    assert torch.cuda.memory_allocated(DEVICE) == before


def test_a_run_learns_from_the_cache(tmp_path: Path) -> None:
    config = tiny_config(
        tmp_path / "run",
        device="cuda",
        data__engine="cache",
        data__cache_dir=str(tmp_path / "cache"),
        data__workers=1,
        train__epochs=15,
    )
    assert train(config)["engine"] == "cache"
