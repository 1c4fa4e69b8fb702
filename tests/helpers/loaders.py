"""Loaders of tests: one process on the CPU, everything made when it is asked for."""

from __future__ import annotations

from typing import Any

import torch

from alexnet_dist.data.engines.choose import ENGINES
from alexnet_dist.data.engines.loader import Loader, Normalization, make_normalization
from alexnet_dist.data.index import SampleIndex
from alexnet_dist.data.plan import Augmentation, Plan


def gray_levels(channels: int) -> Normalization:
    """None: batches hold pixels from 0 to 255, so that differences are gray levels."""
    return Normalization((0.0,) * channels, (1.0,) * channels)


def make_loader(
    index: SampleIndex,
    recipe: Augmentation,
    *,
    engine: str = "torchvision",
    global_batch_size: int = 4,
    seed: int = 1,
    shuffle: bool = True,
    **changes: Any,
) -> Loader:
    """A loader of an index; `changes` replace its other fields, whose defaults are those of a plain run."""
    values: dict[str, Any] = {
        "plan": Plan(index.sizes, recipe, global_batch_size, seed, shuffle),
        "index": index,
        "normalization": make_normalization(changes.get("channels", 3), 1, None, None),
        "channels": 3,
        "max_pixels": 10**6,
        "shard_id": 0,
        "num_shards": 1,
        "device": torch.device("cpu"),
        "channels_last": True,
        "workers": 0,
        "engine": ENGINES[engine],
    }
    return Loader(**(values | changes))
