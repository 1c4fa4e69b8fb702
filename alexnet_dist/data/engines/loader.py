"""Batches on the device: what they hold, and what an engine needs to know to make them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from alexnet_dist.base.machine import share_of_cores
from alexnet_dist.data.index import BadFile, SampleIndex
from alexnet_dist.data.plan import IMAGENET_MEAN, IMAGENET_STD, LUMA, Plan

MAX_WORKERS = 16


class Batch(NamedTuple):
    """One replica's batch on the device."""

    images: Tensor  # (B, C, S, S) of the loader's dtype
    labels: Tensor  # (B,) int64
    mask: Tensor  # (B,) float32, 1 = a real image, 0 = filling or a bad file
    ids: Tensor  # (B,) int64 on the host, -1 = filling
    num_images: int  # with mask 1; with several views an image has that many rows
    bad_files: list[BadFile]


class Factors(NamedTuple):
    """The network's input as pixel * scale + bias."""

    scale: Tensor  # (C,) float32
    bias: Tensor  # (B, C) float32


@dataclass(frozen=True)
class Normalization:
    """Pixels on the 0-255 scale to the network's input: (pixel + shift - mean) / std, all on that scale; see finish.py.

    Args:
        mean: per channel.
        std: per channel.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def find_offsets(self, shifts: Tensor) -> Tensor:
        """(B, C) what is added to pixels, of the type of the color shifts (B, 3)."""
        if len(self.mean) == 1:
            shifts = shifts @ shifts.new_tensor(LUMA)[:, None]  # (B, 1)
        return shifts - shifts.new_tensor(self.mean)

    def fold(self, shifts: Tensor) -> Factors:
        """The same in one product and one sum, from color shifts (B, 3); on the host, where these are."""
        std = torch.tensor(self.std, dtype=torch.float64)
        return Factors((1 / std).float(), (self.find_offsets(shifts.double()) / std).float())


def make_normalization(
    channels: int, pixel_range: int, mean: list[float] | None, std: list[float] | None
) -> Normalization:
    """The input scale of a recipe; see `AugmentConfig` for the meaning of null."""
    to_bytes = 255 / pixel_range
    if mean is None:
        mean = [value * pixel_range for value in (IMAGENET_MEAN if channels == 3 else (float(np.mean(IMAGENET_MEAN)),))]
    if std is None and pixel_range == 255:
        std = [1.0]
    elif std is None:
        std = list(IMAGENET_STD) if channels == 3 else [float(np.mean(IMAGENET_STD))]
    spread = [tuple(value * to_bytes for value in values) * (channels // len(values)) for values in (mean, std)]
    return Normalization(*spread)


def choose_workers(requested: int | None, on_gpu: bool, processes_here: int) -> int:
    """Decoding processes for one training process.

    Args:
        requested: data.workers.
        on_gpu: whether the network runs on a GPU. On a CPU it shares the cores with its workers, and one keeps it busy.
        processes_here: training processes on this machine.
    """
    if requested is not None:
        return requested
    return min(MAX_WORKERS, share_of_cores(processes_here)) if on_gpu else 1


Engine: TypeAlias = Callable[["Loader", int, int], Iterator[Batch]]
"""Makes the batches of steps start to stop - 1 of a loader: `engine(loader, start, stop)`."""


@dataclass(frozen=True, eq=False)
class Loader:
    """Yields one replica's batches, on the device and in the network's layout.

    Args:
        plan: what happens at each step.
        index: which images.
        normalization: the input scale.
        channels: 3, or 1 for gray.
        max_pixels: larger images are bad files.
        shard_id: this replica's number.
        num_shards: replicas.
        device: where batches go.
        channels_last: memory layout of the images.
        workers: decoding processes, or threads.
        engine: carries the plan out; one of engines.ENGINES.
        cache_dir: where prepared images are.
        prefetch: batches that dali and cache make ahead.
        hw_decoder_load: part of the JPEGs that DALI gives to a GPU's hardware decoder.
        dtype: of the images; float32, or what autocast would make of them.
    """

    plan: Plan
    index: SampleIndex
    normalization: Normalization
    channels: int
    max_pixels: int
    shard_id: int
    num_shards: int
    device: torch.device
    channels_last: bool
    workers: int
    engine: Engine
    cache_dir: Path = Path()
    prefetch: int = 2
    hw_decoder_load: float = 0.65
    dtype: torch.dtype = torch.float32

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """The batches of steps start to stop - 1."""
        return self.engine(self, start, stop)
