"""HOW a plan is carried out from the image cache: no file is decoded, and memory is passed over as seldom as may be.

On a CPU each row goes from the cache to the network's input in one pass: cut, flip, convert, scale and shift. What
happens on a GPU is in device.py.

One thread makes batches ahead of the network, on a GPU in a stream beside the network's; with `workers` 0 each is made
when it is asked for.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial
from typing import TypeAlias, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from alexnet_dist.data.engines.cache.device import choose_maker
from alexnet_dist.data.engines.cache.store import (
    Layout,
    Mask,
    Store,
    check_cacheable,
    lay_out,
    load_picture,
    open_store,
)
from alexnet_dist.data.engines.finish import HostCrops, find_images, find_targets, finish
from alexnet_dist.data.engines.loader import Batch, Loader
from alexnet_dist.data.engines.to_device import SideStream
from alexnet_dist.data.index import BadFile
from alexnet_dist.data.plan import StepPlan

T = TypeVar("T")
Maker: TypeAlias = Callable[[Loader, StepPlan, Mask], list[Tensor]]
"""Makes images (B, C, S, S), labels and weights of a batch; rows without mask are black before the color shift."""

# Opened once for each loader, and gone with it.
_MAKERS: WeakKeyDictionary[Loader, tuple[Store, Maker]] = WeakKeyDictionary()


def iterate_batches(loader: Loader, start: int, stop: int) -> Iterator[Batch]:
    """The batches of steps start to stop - 1, finished on the device.

    Raises:
        UsageError: a recipe that needs the original images.
        DataError: there is no cache, or it is damaged or foreign.
    """
    if loader not in _MAKERS:
        _MAKERS[loader] = _open(loader)
    make = partial(_make_batch, loader, *_MAKERS[loader])
    steps, depth = range(start, stop), loader.prefetch if loader.workers else 0
    if depth and loader.device.type == "cuda":
        return _run_beside(make, steps, depth, loader.device)
    return run_ahead(make, steps, depth)


def _run_beside(
    make: Callable[[int], Batch], steps: Sequence[int], depth: int, device: torch.device
) -> Iterator[Batch]:
    """As `run_ahead`, in a stream beside the network's."""
    beside = SideStream(device)
    with closing(run_ahead(lambda step: beside.run(partial(make, step)), steps, depth)) as batches:
        for batch, is_made in batches:
            yield beside.hand_over(batch, is_made)


def run_ahead(make: Callable[[int], T], steps: Sequence[int], depth: int) -> Generator[T]:
    """What `make` returns for each step, made by a thread that is up to `depth` steps ahead; 0 = no thread."""
    if not depth:
        yield from map(make, steps)
        return
    pool = ThreadPoolExecutor(1, thread_name_prefix="cache-engine")
    waiting: deque[Future[T]] = deque()
    try:
        for step in steps:
            waiting.append(pool.submit(make, step))
            if len(waiting) > depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def find_layout(loader: Loader) -> Layout:
    """Where the images of a loader are cached.

    Raises:
        UsageError: a recipe that needs the original images.
    """
    recipe = loader.plan.augmentation
    check_cacheable(recipe.crop)
    return lay_out(loader.cache_dir, loader.index, recipe.resize, loader.channels, loader.max_pixels)


def _open(loader: Loader) -> tuple[Store, Maker]:
    layout = find_layout(loader)
    store = open_store(layout)
    # Together once, for they are looked up at each step.
    store = dataclasses.replace(store, bad_files=loader.plan.unfit | store.bad_files)
    return store, partial(make_on_host, store) if loader.device.type == "cpu" else choose_maker(store, loader)


def _make_batch(loader: Loader, store: Store, maker: Maker, step: int) -> Batch:
    rows = loader.plan.at(step).shard(loader.shard_id, loader.num_shards)
    mask, bad_files = _judge_rows(loader, store, rows)
    images, labels, weights = maker(loader, rows, mask)
    num_images = int(mask.sum()) // loader.plan.augmentation.views
    return Batch(images, labels, weights, torch.from_numpy(rows.ids), num_images, bad_files)


def _judge_rows(loader: Loader, store: Store, rows: StepPlan) -> tuple[Mask, list[BadFile]]:
    """(B,) which rows have an image, and the images that do not fit or could not be decoded for the cache."""
    mask = rows.ids >= 0
    if not store.bad_files:
        return mask, []
    mask &= ~np.isin(rows.ids, list(store.bad_files))
    index, images = loader.index, rows.ids[:: loader.plan.augmentation.views].tolist()
    bad_ids = [sample for sample in images if sample in store.bad_files]
    return mask, [BadFile(str(index.root / index.paths[sample]), store.bad_files[sample]) for sample in bad_ids]


def make_on_host(store: Store, loader: Loader, rows: StepPlan, mask: Mask) -> list[Tensor]:
    """Images (B, C, S, S), labels and weights in host memory."""
    images = finish(loader, HostCrops([_iterate_crops(store, loader, rows, mask)]), rows, mask)
    return [images, *find_targets(loader, rows, mask)]


def _iterate_crops(store: Store, loader: Loader, rows: StepPlan, mask: Mask) -> Iterator[tuple[int, Tensor]]:
    """Row and crop uint8 (S, S, C), as it lies in the cache, for each row with an image."""
    side, views = loader.plan.augmentation.crop_size, loader.plan.augmentation.views
    corners = rows.corners.tolist()
    for first in find_images(loader, mask):
        picture = load_picture(store, rows, first)  # the views of an image share it
        for row in range(first, first + views):
            left, top = corners[row]
            yield row, torch.from_numpy(picture[top : top + side, left : left + side])
