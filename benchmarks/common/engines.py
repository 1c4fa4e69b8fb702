"""What a measurement must know of an engine: how many batches it has made ahead, and what must be built first."""

from __future__ import annotations

from alexnet_dist.base.machine import available_cores
from alexnet_dist.data.engines.cache.build import build_store
from alexnet_dist.data.engines.cache.engine import find_layout
from alexnet_dist.data.engines.choose import ENGINES
from alexnet_dist.data.engines.loader import Loader

PREFETCH = 2  # batches that each decoding process makes ahead


def count_ahead(loader: Loader) -> int:
    """Batches that are made before they are asked for."""
    return PREFETCH * loader.workers if loader.engine is ENGINES["torchvision"] else loader.prefetch


def build_cache(loader: Loader) -> None:
    """Decode all images of a loader into its cache, as a run does at its start; nothing for another engine."""
    if loader.engine is ENGINES["cache"]:
        build_store(find_layout(loader), workers=available_cores(), on_bad_file="fail", progress=False)
