"""DALI decoding on a GPU. Skipped, saying so, where there is none; what runs on a CPU is in tests/data/engines/dali."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.dali_pictures import draw_detail, make_zoo, scan
from helpers.images import encode

from alexnet_dist.data.engines.choose import ENGINES
from alexnet_dist.data.engines.dali import engine as dali_engine
from alexnet_dist.data.engines.loader import Batch, Loader, Normalization
from alexnet_dist.data.index import SampleIndex
from alexnet_dist.data.plan import Augmentation, Plan

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(dali_engine.find_dali() is not None, reason="DALI is not installed"),
]

SIDE = 24
CUT = Augmentation(SIDE, None, "random", horizontal_flip=0.5, vertical_flip=0.5)
RECIPES = {
    "no resize": CUT,
    "shorter side": Augmentation(SIDE, 28, "random", horizontal_flip=0.5, lighting="source2012", random_erasing=0.5),
    "random resized": Augmentation(SIDE, None, "random_resized", vertical_flip=0.5),
    "ten views": Augmentation(SIDE, 28, views=10),
}
# In gray levels. PNG is decoded on the CPU, so only the resize differs. JPEG is decoded by the GPU, whose inverse
# transform rounds otherwise: bounds to hold, not measured figures.
BOUNDS = {"png": (2.0, 0.2), "jpg": (24.0, 1.0)}


@pytest.fixture(autouse=True)
def _release_memory() -> Iterator[None]:
    yield
    gc.collect()
    torch.cuda.empty_cache()


def make_index(root: Path, ending: str) -> SampleIndex:
    dice = np.random.default_rng(3)
    for number, (width, height) in enumerate([(40, 32), (64, 64), (120, 75), (51, 200), (90, 91), (33, 30)]):
        image = draw_detail(dice, width, height, grain=8)
        options: dict[str, Any] = {"format": "PNG"} if ending == "png" else {"format": "JPEG", "quality": 92}
        path = root / "train" / "abc"[number % 3] / f"{number}.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(image, **options))
    return scan(root)


def make_loader(index: SampleIndex, recipe: Augmentation, **changes: Any) -> Loader:
    channels = changes.get("channels", 3)
    values: dict[str, Any] = {
        "plan": Plan(index.sizes, recipe, 4, seed=2, shuffle=True),
        "index": index,
        "normalization": Normalization((0.0,) * channels, (1.0,) * channels),
        "channels": channels,
        "max_pixels": 10**6,
        "shard_id": 0,
        "num_shards": 1,
        "device": torch.device("cuda", torch.cuda.current_device()),
        "channels_last": True,
        "workers": 2,
        "engine": ENGINES["dali"],
    }
    return Loader(**(values | changes))


def check_equal(loader: Loader, stop: int, largest: float, mean: float) -> list[Batch]:
    """DALI's batches on the GPU are those of the reference on the CPU, within these differences."""
    reference = replace(loader, engine=ENGINES["torchvision"], workers=0, device=torch.device("cpu"))
    made = list(loader.batches(0, stop))
    for ours, theirs in zip(made, reference.batches(0, stop), strict=True):
        assert ours.images.device == loader.device
        assert torch.equal(ours.ids, theirs.ids)
        assert torch.equal(ours.labels.cpu(), theirs.labels)
        assert torch.equal(ours.mask.cpu(), theirs.mask)
        assert ours[4:] == theirs[4:]
        difference = (ours.images.cpu() - theirs.images).abs()
        assert difference.max() <= largest
        assert difference.mean() <= mean
    return made


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("ending", BOUNDS)
@pytest.mark.parametrize("name", RECIPES)
def test_batches_are_those_of_the_reference(tmp_path: Path, name: str, ending: str, channels: int) -> None:
    check_equal(make_loader(make_index(tmp_path, ending), RECIPES[name], channels=channels), 4, *BOUNDS[ending])


def test_jitter_on_the_device(tmp_path: Path) -> None:
    recipe = replace(CUT, color_jitter=(0.4, 0.4, 0.4, 0.0))
    check_equal(make_loader(make_index(tmp_path, "png"), recipe), 4, largest=4.0, mean=1.0)


@pytest.mark.parametrize("channels_last", [True, False])
def test_layout(tmp_path: Path, channels_last: bool) -> None:
    loader = make_loader(make_index(tmp_path, "jpg"), CUT, channels_last=channels_last)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert all(batch.images.is_contiguous(memory_format=layout) for batch in loader.batches(0, 2))


@pytest.mark.parametrize("prefetch", [1, 3])
def test_batches_that_are_kept_stay_as_they_are(tmp_path: Path, prefetch: int) -> None:
    loader = make_loader(make_index(tmp_path, "jpg"), CUT, prefetch=prefetch)
    kept = [(batch.images, batch.images.clone()) for batch in loader.batches(0, 12)]
    torch.cuda.synchronize()
    assert all(torch.equal(images, copy) for images, copy in kept)


def test_a_batch_is_read_before_dali_writes_the_next(tmp_path: Path) -> None:
    """The network's work is queued behind a long wait, as it is in training; the host runs ahead."""
    loader = make_loader(make_index(tmp_path, "jpg"), CUT, prefetch=1)
    expected = [batch.images.sum().item() for batch in loader.batches(0, 12)]
    sums = []
    for batch in loader.batches(0, 12):
        torch.cuda._sleep(20_000_000)
        sums.append(batch.images.sum())
        del batch
    assert [value.item() for value in sums] == expected


def test_runs_repeat_to_the_bit(tmp_path: Path) -> None:
    loader = make_loader(make_index(tmp_path, "jpg"), RECIPES["random resized"])
    whole, tail = list(loader.batches(0, 6)), list(loader.batches(3, 6))
    assert all(torch.equal(one.images, other.images) for one, other in zip(whole[3:], tail, strict=True))


def test_odd_kinds_get_the_verdict_of_the_reference(tmp_path: Path) -> None:
    loader = make_loader(make_zoo(tmp_path), Augmentation(SIDE, (28, 44), "random"))
    made = check_equal(loader, loader.plan.steps_per_epoch, *BOUNDS["jpg"])
    assert sum(len(batch.bad_files) for batch in made) >= 8


def cut_off(data: bytes) -> bytes:
    return data[: len(data) * 6 // 10]


def overwrite_head(data: bytes) -> bytes:
    return b"junk" * 5 + data[20:]


@pytest.mark.parametrize("change", [cut_off, overwrite_head])
@pytest.mark.parametrize("ending", BOUNDS)
def test_a_file_that_breaks_is_masked_and_listed(tmp_path: Path, ending: str, change: Any) -> None:
    index = make_index(tmp_path, ending)
    path = index.root / index.paths[2]
    path.write_bytes(change(path.read_bytes()))
    made = check_equal(make_loader(index, CUT), 4, *BOUNDS[ending])
    assert {os.path.basename(bad.path) for batch in made for bad in batch.bad_files} == {path.name}
