"""The reference engine's batches on a GPU, and the choice between engines there. Skipped where there is none."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from helpers.images import save_jpeg

from alexnet_dist.data.engines import choose as engines
from alexnet_dist.data.engines.choose import ENGINES, compare_engines, find_obstacle
from alexnet_dist.data.engines.loader import Loader, make_normalization
from alexnet_dist.data.plan import Augmentation, Plan
from alexnet_dist.data.sources.folders import scan_folder

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

RECIPE = Augmentation(20, None, "random_resized", horizontal_flip=0.5, lighting="source2012", random_erasing=0.5)


@pytest.fixture
def loader(tmp_path: Path) -> Loader:
    for number in range(40):
        save_jpeg(tmp_path / "train" / f"class-{number % 2}" / f"{number}.jpg", 40, 24 + number)
    index = scan_folder(tmp_path / "train", classes=None, on_bad_file="fail", cache_dir=tmp_path / "cache")
    return Loader(
        plan=Plan(index.sizes, RECIPE, 8, seed=0, shuffle=True),
        index=index,
        normalization=make_normalization(3, 1, None, None),
        channels=3,
        max_pixels=10**6,
        shard_id=0,
        num_shards=1,
        device=torch.device("cuda", 0),
        channels_last=True,
        workers=0,
        engine=ENGINES["torchvision"],
    )


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("channels_last", [True, False])
def test_batches_are_those_of_the_cpu(loader: Loader, workers: int, channels_last: bool) -> None:
    """More batches than there are slots: none may be written over before its copy has left."""
    here = dataclasses.replace(loader, device=torch.device("cpu"), channels_last=channels_last)
    there = dataclasses.replace(loader, workers=workers, channels_last=channels_last)
    made = list(there.batches(0, 17))
    for ours, expected in zip(made, here.batches(0, 17), strict=True):
        assert ours.images.device.type == "cuda"
        assert ours.images.stride() == expected.images.stride()
        torch.testing.assert_close(ours.images.cpu(), expected.images, rtol=1e-6, atol=1e-6)
        assert torch.equal(ours.labels.cpu(), expected.labels)
        assert torch.equal(ours.mask.cpu(), expected.mask)


def test_engines_are_compared_on_the_gpu(loader: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "SECONDS", 0.2)
    names = ["torchvision", *["dali"] * (find_obstacle("dali") is None)]
    speeds = compare_engines(loader, names)
    assert list(speeds) == names
    assert min(speeds.values()) > 0
