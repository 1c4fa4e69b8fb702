"""From what DALI gives to the batch: on a CPU of windows, on a GPU of crops that it has scaled.

Pictures that DALI was not given join here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from alexnet_dist.data.crop_ops.operations import change_rows, changes_bytes
from alexnet_dist.data.decode import Pixels
from alexnet_dist.data.engines.dali.feed import Feed
from alexnet_dist.data.engines.finish import (
    Crops,
    CutCrops,
    HostCrops,
    Mask,
    ScaledCrops,
    find_images,
    find_targets,
    finish,
    scale_pixels,
)
from alexnet_dist.data.engines.loader import Batch, Loader
from alexnet_dist.data.engines.to_device import send
from alexnet_dist.data.engines.torchvision import cut_views, flip_pixels

IMAGES_AT_ONCE = 4  # that a thread resizes before it takes more


def finish_windows(loader: Loader, feed: Feed, windows: Sequence[Pixels], pool: ThreadPoolExecutor) -> Batch:
    """A batch in host memory.

    Args:
        loader: plan, normalization, layout, index.
        feed: the step.
        windows: (H, W, C) of its n images that were in the pipeline.
        pool: whose threads resize; this must not run in one of them.
    """
    found = list(zip(find_images(loader, feed.in_dali), windows, strict=True))
    # Operations on bytes are torch's, which spreads them over threads by itself.
    at_once = len(found) if changes_bytes(loader.plan.augmentation) else IMAGES_AT_ONCE
    starts = range(0, len(found), max(1, at_once))
    parts = [_cut_windows(loader, feed, found[start : start + at_once]) for start in starts]
    crops = HostCrops([_list_others(feed), *parts], pool.map)
    images = finish(loader, crops, feed.rows, feed.mask)
    return _join_batch(loader, feed, images, *find_targets(loader, feed.rows, feed.mask))


def finish_crops(loader: Loader, feed: Feed, outputs: list[Tensor]) -> Batch:
    """A batch on the device, of what `take_crops` gives; no outputs where no row was in the pipeline."""
    numbers = [*find_targets(loader, feed.rows, feed.mask), *feed.edges]
    labels, weights, *edges = send(numbers, loader.device)
    images = finish(loader, _take_crops(loader, feed, outputs, edges), feed.rows, feed.mask)
    return _join_batch(loader, feed, images, labels, weights)


def _join_batch(loader: Loader, feed: Feed, images: Tensor, labels: Tensor, weights: Tensor) -> Batch:
    num_images = int(feed.mask.sum()) // loader.plan.augmentation.views
    return Batch(images, labels, weights, torch.from_numpy(feed.rows.ids), num_images, feed.bad_files)


# -- of windows -------------------------------------------------------------------------------------------------------


def _cut_windows(loader: Loader, feed: Feed, images: Sequence[tuple[int, Pixels]]) -> Iterator[tuple[int, Tensor]]:
    """Row and crop of each view, from the first row and the window of some images."""
    for first, window in images:
        for row, crop in cut_views(window, feed.rows, first, loader.plan.augmentation):
            yield row, torch.from_numpy(crop)


def _list_others(feed: Feed) -> Iterator[tuple[int, Tensor]]:
    """Row and crop of what DALI was not given."""
    rows = np.flatnonzero(feed.mask & ~feed.in_dali).tolist()
    return zip(rows, torch.from_numpy(feed.crops), strict=True)


# -- of crops that are scaled -----------------------------------------------------------------------------------------


def _take_crops(loader: Loader, feed: Feed, outputs: list[Tensor], edges: list[Tensor]) -> Crops:
    """The crops of the rows with an image: normalized in the pipeline, or bytes where operations follow on these."""
    images = _join_views(loader, outputs)
    if edges:
        _weigh_edges(images, *edges)
    cut_here = feed.mask & ~feed.in_dali  # (B,)
    others = torch.from_numpy(_flip_others(feed, cut_here))  # (k, S, S, C)
    if changes_bytes(loader.plan.augmentation):
        pixels = images.round().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()  # (m, S, S, C)
        if not feed.in_dali.all():
            made, pixels = pixels, pixels.new_zeros((len(feed.mask), *pixels.shape[1:]))
            _put(pixels, feed.in_dali, made)
            _put(pixels, cut_here, others)
        return CutCrops(change_rows("bytes", pixels, feed.rows.drawn, feed.mask))
    if cut_here.any():
        shifts = torch.from_numpy(feed.rows.shifts[cut_here].astype(np.float32))
        scaled = scale_pixels(loader.normalization, others, shifts, loader.channels_last)
        layout = torch.channels_last if loader.channels_last else torch.contiguous_format
        shape = (len(images) + len(scaled), *images.shape[1:])
        made, images = images, torch.empty(shape, device=loader.device, memory_format=layout)
        _put(images, feed.in_dali[feed.mask], made)
        _put(images, cut_here[feed.mask], scaled)
    return ScaledCrops(images)


def _flip_others(feed: Feed, cut_here: Mask) -> Pixels:
    flipped = feed.crops.copy()
    for number, row in enumerate(np.flatnonzero(cut_here).tolist()):
        flipped[number] = flip_pixels(feed.crops[number], feed.rows, row)
    return flipped


def _join_views(loader: Loader, outputs: list[Tensor]) -> Tensor:
    """(m, C, S, S) of what the pipeline made of each view."""
    side = loader.plan.augmentation.crop_size
    if not outputs:
        return torch.empty((0, loader.channels, side, side), device=loader.device)
    images = outputs[0] if len(outputs) == 1 else torch.stack(outputs, dim=1).flatten(0, 1)
    return images.permute(0, 3, 1, 2) if loader.channels_last else images  # channels last in memory


def _put(rows: Tensor, is_there: Mask, values: Tensor) -> None:
    """Write values to the rows of a mask on the host."""
    places = torch.from_numpy(np.flatnonzero(is_there)).to(rows.device, non_blocking=True)
    rows[places] = values.to(rows.device)


def _weigh_edges(images: Tensor, factors: Tensor, terms: Tensor) -> None:
    """Multiply the first and last column and the first and last line of (m, C, S, S) by factors, and add the terms."""
    edges = (images[..., 0], images[..., -1], images[..., 0, :], images[..., -1, :])  # (m, C, S) each
    for edge, factor, term in zip(edges, factors, terms, strict=True):
        edge *= factor[:, None, None]
        edge += term[:, :, None]
