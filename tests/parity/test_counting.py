"""A pass over a set holds every image exactly once, whatever its size, the batch, the processes and the engine."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools

import numpy as np
import pytest
import torch
from helpers import loaders
from helpers.images import save_jpeg

from alexnet_dist.data.engines.cache import build as cache_build
from alexnet_dist.data.engines.cache.engine import find_layout
from alexnet_dist.data.engines.choose import ENGINES
from alexnet_dist.data.engines.loader import Loader
from alexnet_dist.data.index import SampleIndex
from alexnet_dist.data.plan import Augmentation, Plan
from alexnet_dist.data.sources.folders import scan_folder

MAX_IMAGES, BATCHES, PROCESSES = 40, (1, 2, 3, 7, 16), (1, 2, 3, 4)  # a batch is that of one process
RECIPE = Augmentation(crop_size=16, resize=18)


def list_ids(plan: Plan, shards: int) -> list[int]:
    """The images of a pass, as the plan gives them to all shards together."""
    rows = [plan.at(step).shard(shard, shards) for step in range(plan.steps_per_epoch) for shard in range(shards)]
    return sorted(int(sample_id) for part in rows for sample_id in part.ids if sample_id >= 0)


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize(("batch", "processes"), list(itertools.product(BATCHES, PROCESSES)))
def test_the_plan_holds_every_image_once(batch: int, processes: int, shuffle: bool) -> None:
    for count in range(1, MAX_IMAGES + 1):
        plan = Plan(np.full((count, 2), 20), RECIPE, batch * processes, seed=count, shuffle=shuffle)
        assert list_ids(plan, processes) == list(range(count))
        assert sum(plan.count(step) for step in range(plan.steps_per_epoch)) == count


def test_a_plan_that_repeats_an_image_is_noticed() -> None:
    class RepeatingPlan(Plan):
        def at(self, step: int):  # type: ignore[no-untyped-def]
            rows = super().at(step)
            return rows._replace(ids=np.maximum(rows.ids, 0))  # the filling counts as the first image

    plan = RepeatingPlan(np.full((5, 2), 20), RECIPE, 4, seed=0, shuffle=False)
    assert list_ids(plan, 2) != list(range(5))


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> SampleIndex:
    folder = tmp_path_factory.mktemp("counting")
    for number in range(MAX_IMAGES):
        save_jpeg(folder / "train" / "cat" / f"{number:02d}.jpg", 20 + number, 20)
    return scan_folder(folder / "train", classes=None, on_bad_file="fail", cache_dir=folder / "cache")


def make_loader(index: SampleIndex, engine: str, batch: int, processes: int) -> Loader:
    loader = loaders.make_loader(
        index,
        RECIPE,
        engine=engine,
        global_batch_size=batch * processes,
        shuffle=False,
        num_shards=processes,
        cache_dir=index.root.parent / "cache",
    )
    if engine == "cache":
        cache_build.build_store(find_layout(loader), workers=0, on_bad_file="fail", progress=False)
    return loader


@pytest.mark.parametrize("cases", [12, pytest.param(40, marks=pytest.mark.slow)])
@pytest.mark.parametrize("engine", sorted(ENGINES))
def test_each_engine_counts_every_image_once_in_drawn_cases(index: SampleIndex, engine: str, cases: int) -> None:
    if engine == "dali" and importlib.util.find_spec("nvidia") is None:
        pytest.skip("nvidia-dali is not installed")
    dice = np.random.default_rng(0)
    for _ in range(cases):
        count, batch, processes = dice.integers(1, MAX_IMAGES + 1), dice.choice(BATCHES), dice.choice(PROCESSES)
        loader = make_loader(index.subset(range(count)), engine, int(batch), int(processes))
        shards = [dataclasses.replace(loader, shard_id=shard) for shard in range(processes)]
        batches = [made for shard in shards for made in shard.batches(0, loader.plan.steps_per_epoch)]
        ids = torch.cat([made.ids[made.mask.bool()] for made in batches])
        assert sorted(ids.tolist()) == list(range(count))
        assert sum(made.num_images for made in batches) == count
