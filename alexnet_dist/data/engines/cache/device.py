"""The cache engine on a GPU: bytes go to the device, and one kernel cuts, flips and normalizes a whole batch there.

- A set that fits into the device's memory is kept there, and nothing but the plan travels.
- Of a larger one, crops travel, copied to pinned memory by a few threads: the lines of each, or all bytes from a crop's
  first line to its last where pictures are still to be resized, or share their bytes among several crops.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from alexnet_dist.base.c_library import load_c_library
from alexnet_dist.base.errors import MachineError
from alexnet_dist.base.machine import available_cores
from alexnet_dist.data.draws import IntArray
from alexnet_dist.data.engines.cache.store import Mask, Store, load_picture
from alexnet_dist.data.engines.finish import DeviceCrops, Places, find_factors, find_targets, finish
from alexnet_dist.data.engines.loader import Factors, Loader
from alexnet_dist.data.engines.resize import resize_planes
from alexnet_dist.data.engines.to_device import Form, allocate, forms_of, send, split
from alexnet_dist.data.plan import StepPlan, resize_shapes

logger = logging.getLogger("alexnet_dist")

SOURCE = Path(__file__).with_name("copy_lines.c")
RESIDENT_PART = 0.4  # of the device's free memory that a set may take
LINE_COPIERS = 4  # threads; they share the memory's bandwidth
COPIERS = 2  # threads; with more the time goes into waiting for the GIL (of 1, 2, 4, 8, 16 the fastest on 14 cores)


@dataclass(frozen=True, eq=False)
class Resident:
    """A set in the device's memory.

    Args:
        pixels: (bytes,) uint8, one image after the other.
        offsets: (N,) first byte of each.
        sizes: (N, 2) width and height of each as it is kept.
        is_final: whether no image is resized any more; else all are of one size.
    """

    pixels: Tensor
    offsets: IntArray
    sizes: IntArray
    is_final: bool


def choose_maker(store: Store, loader: Loader) -> Callable[[Loader, StepPlan, Mask], list[Tensor]]:
    """How a loader's batches are made on its device."""
    free = torch.cuda.mem_get_info(loader.device)[0]
    resident_fits = store.layout.total_bytes <= RESIDENT_PART * free
    if resident_fits and (store.is_uniform or is_final(store, loader)):
        return partial(make_from_resident, upload(store, loader))
    if loader.plan.augmentation.views == 1 and is_final(store, loader) and load_copier() is not None:
        return partial(make_from_lines, store, ThreadPoolExecutor(min(LINE_COPIERS, available_cores()), "cache-lines"))
    return partial(make_from_bands, store, ThreadPoolExecutor(COPIERS, "cache-bands"))


def is_final(store: Store, loader: Loader) -> bool:
    """Whether images are kept as large as they are cut from."""
    sizes = store.layout.sizes
    return bool((sizes == resize_shapes(sizes, loader.plan.augmentation.resize)).all())


def upload(store: Store, loader: Loader) -> Resident:
    """Copy a set to the device, each chunk once its images are checked.

    Raises:
        DataError: the pixels of an image are not those that were written.
    """
    layout, counts = store.layout, [len(chunk) for chunk in store.chunks]
    firsts = np.cumsum([0, *counts])
    pixels = torch.empty(int(firsts[-1]), dtype=torch.uint8, device=loader.device)
    with ThreadPoolExecutor(available_cores(), "cache-checks") as pool:
        checks = pool.map(partial(_check_chunk, store), range(layout.num_chunks))
        for chunk, first, _ in zip(store.chunks, firsts.tolist(), checks, strict=False):
            pixels[first : first + len(chunk)] = chunk.to(loader.device)
    return Resident(pixels, layout.offsets + firsts[store.chunk_of], layout.sizes, is_final(store, loader))


def _check_chunk(store: Store, number: int) -> None:
    """Hold the images of a chunk against their checksums, which lets other threads run meanwhile."""
    for sample_id in store.layout.chunk_ids(number):
        if sample_id not in store.bad_files:
            store.load(sample_id)  # which checks it


def make_from_resident(resident: Resident, loader: Loader, rows: StepPlan, mask: Mask) -> list[Tensor]:
    """Images (B, C, S, S), labels and weights on the device, from a set that lies there."""
    ids, views, channels = np.maximum(rows.ids, 0), loader.plan.augmentation.views, loader.channels
    if resident.is_final:
        pixels, offsets, widths = resident.pixels, resident.offsets[ids], resident.sizes[ids, 0]
    else:
        kept, (width, height) = resident.sizes[0].tolist(), rows.resized[0].tolist()
        pictures = resident.pixels.view(-1, kept[1], kept[0], channels)  # (N, H, W, C)
        wanted = torch.from_numpy(ids[::views]).to(loader.device)
        pixels = resize_batch(pictures[wanted], height, width).reshape(-1)  # (B / views * H' * W' * C,)
        offsets, widths = np.arange(len(ids)) // views * (height * width * channels), np.full(len(ids), width)
    starts = offsets + (rows.corners[:, 1] * widths + rows.corners[:, 0]) * channels
    numbers = _list_numbers(loader, rows, mask, starts, widths)
    return _finish_there(loader, pixels, send(numbers, loader.device), rows, mask)


def resize_batch(pictures: Tensor, height: int, width: int) -> Tensor:
    """(N, H, W, C) uint8 to (N, height, width, C): on a CPU bit by bit the reference's resize, on a GPU within 1."""
    return resize_planes(pictures.permute(0, 3, 1, 2), height, width).permute(0, 2, 3, 1)


def make_from_lines(store: Store, pool: ThreadPoolExecutor, loader: Loader, rows: StepPlan, mask: Mask) -> list[Tensor]:
    """Images (B, C, S, S), labels and weights on the device, from the lines of each image's one crop."""
    side, channels, widths = loader.plan.augmentation.crop_size, loader.channels, rows.resized[:, 0]
    ids, line = rows.ids[mask], side * channels
    list(pool.map(store.load, ids[~store.is_checked[ids]].tolist()))  # which checks them
    sources = np.zeros(len(widths), np.int64)  # (B,) addresses of the crops' first bytes
    sources[mask] = store.find_addresses(ids)
    sources[mask] += ((rows.corners[:, 1] * widths + rows.corners[:, 0]) * channels)[mask]
    places = np.arange(len(widths)) * (side * line)  # (B,) where each crop's bytes go
    numbers = _list_numbers(loader, rows, mask, places, np.full(len(widths), side))
    forms = [Form(torch.uint8, (len(widths) * side * line,)), *forms_of(numbers)]
    buffer = allocate(forms, loader.device)
    bytes_here = split(buffer, forms)[0]
    _copy_lines(pool, sources, (widths * channels).astype(np.int64), bytes_here, side, line)
    pixels, *numbers = send([bytes_here, *numbers], loader.device, buffer)
    return _finish_there(loader, pixels, numbers, rows, mask)


@cache
def load_copier() -> Callable[..., None] | None:
    """`copy_lines` of copy_lines.c, which holds no GIL; None where there is no C compiler."""
    try:
        copier: Callable[..., None] = load_c_library(SOURCE).copy_lines
    except MachineError as error:
        logger.info("crops travel with the bytes between their lines: %s", error)
        return None
    return copier


def _copy_lines(
    pool: ThreadPoolExecutor, sources: IntArray, strides: IntArray, target: Tensor, lines: int, line: int
) -> None:
    """Copy `lines` lines of `line` bytes of each crop to a buffer, one crop after the other."""
    copier, step = load_copier(), max(1, -(-len(sources) // LINE_COPIERS))
    assert copier is not None
    places = [ctypes.c_void_p(start) for start in (sources.ctypes.data, strides.ctypes.data, target.data_ptr())]

    def copy(begin: int) -> None:
        copier(*places, *map(ctypes.c_int64, (lines, line, begin, min(begin + step, len(sources)))))

    list(pool.map(copy, range(0, len(sources), step)))


def make_from_bands(store: Store, pool: ThreadPoolExecutor, loader: Loader, rows: StepPlan, mask: Mask) -> list[Tensor]:
    """Images (B, C, S, S), labels and weights on the device, from the bytes of each picture between its crops' first
    line and their last.
    """
    side, views, channels = loader.plan.augmentation.crop_size, loader.plan.augmentation.views, loader.channels
    widths = rows.resized[:, 0]
    lows = (rows.corners[:, 1] * widths + rows.corners[:, 0]) * channels  # (B,) a crop's first byte in its picture
    highs = lows + ((side - 1) * widths + side) * channels  # (B,) the byte after its last
    low, high = lows.reshape(-1, views).min(axis=1), highs.reshape(-1, views).max(axis=1)  # (B / views,)
    lengths = np.where(mask[::views], high - low, 0)
    places = np.cumsum(lengths) - lengths  # (B / views,) where each picture's bytes go
    numbers = _list_numbers(loader, rows, mask, np.repeat(places - low, views) + lows, widths)
    forms = [Form(torch.uint8, (max(1, int(lengths.sum())),)), *forms_of(numbers)]
    buffer = allocate(forms, loader.device)
    bytes_here = split(buffer, forms)[0]
    copies = np.stack([np.arange(0, len(widths), views), low, lengths, places], axis=1)  # (B / views, 4)
    parts = [copies[number::COPIERS].tolist() for number in range(COPIERS)]
    list(pool.map(partial(_copy_bands, store, rows, bytes_here.data_ptr()), parts))
    pixels, *numbers = send([bytes_here, *numbers], loader.device, buffer)
    return _finish_there(loader, pixels, numbers, rows, mask)


def _list_numbers(loader: Loader, rows: StepPlan, mask: Mask, starts: IntArray, widths: IntArray) -> list[Tensor]:
    """What the device has to know of the B rows.

    Args:
        loader: labels and input scale.
        rows: the plan.
        mask: (B,) which rows have an image.
        starts: (B,) first byte of each crop.
        widths: (B,) of the pictures, in pixels.
    """
    bounds = [np.where(mask, starts, -1), widths * loader.channels]
    places = [*(torch.from_numpy(bound.astype(np.int64)) for bound in bounds), torch.from_numpy(rows.flips)]
    return [*find_targets(loader, rows, mask), *places, *find_factors(loader, rows)]


def _finish_there(
    loader: Loader, pixels: Tensor, numbers: Sequence[Tensor], rows: StepPlan, mask: Mask
) -> list[Tensor]:
    """Images, labels and weights from bytes and from the numbers of `_list_numbers`, all on the device."""
    labels, weights, starts, strides, flips, scale, bias = numbers
    crops = DeviceCrops(pixels, Places(starts, strides, flips), Factors(scale, bias))
    return [finish(loader, crops, rows, mask), labels, weights]


def _copy_bands(store: Store, rows: StepPlan, target: int, copies: list[list[int]]) -> None:
    """Copy bytes of pictures to an address: row, first byte, number of bytes, where they go.

    By ctypes, which lets other threads run meanwhile: numpy does not, and torch wakes threads of its own.
    """
    for row, low, length, place in copies:
        if length:
            picture = load_picture(store, rows, row)
            ctypes.memmove(target + place, picture.ctypes.data + low, length)
