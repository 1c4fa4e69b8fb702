"""What a measurement must know of an engine: how many batches it has made ahead, and what must be built first."""

from __future__ import annotations

from alexnet_dist.base.machine import available_cores
from alexnet_dist.data.engines.cache.build import build_store
from alexnet_dist.data.engines.cache.engine import find_layout
from alexnet_dist.data.engines.choose import ENGINES
from alexnet_dist.data.engines.dali.engine import lets_dali_scale
from alexnet_dist.data.engines.loader import Loader

PREFETCH = 2  # batches that each decoding process makes ahead


def count_ahead(loader: Loader) -> int:
    """Batches that are made before they are asked for."""
    if loader.engine is ENGINES["torchvision"]:
        return PREFETCH * loader.workers
    is_finished_ahead = loader.engine is ENGINES["dali"] and not lets_dali_scale(loader.device)
    return loader.prefetch + is_finished_ahead


def build_cache(loader: Loader) -> None:
    """Decode all images of a loader into its cache, as a run does at its start; nothing for another engine."""
    if loader.engine is ENGINES["cache"]:
        build_store(find_layout(loader), workers=available_cores(), on_bad_file="fail", progress=False)
