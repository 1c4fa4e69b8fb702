"""From an index and a recipe to batches on the device; picks the engine and says why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from alexnet_dist.data.plan import IMAGENET_MEAN, IMAGENET_STD, LUMA, Plan
from alexnet_dist.data.samples import BadFile, SampleIndex
from alexnet_dist.data.torchvision_engine import PixelBatch, PixelBatches, iterate_pixel_batches
from alexnet_dist.machine import available_cores

MAX_WORKERS = 16


class Batch(NamedTuple):
    """One replica's batch on the device."""

    images: Tensor  # (B, C, S, S) float
    labels: Tensor  # (B,) int64
    mask: Tensor  # (B,) float32, 1 = a real image, 0 = filling or a bad file
    ids: Tensor  # (B,) int64 on the host, -1 = filling
    num_images: int  # with mask 1; with several views an image has that many rows
    bad_files: list[BadFile]


@dataclass(frozen=True)
class Normalization:
    """Pixels on the 0-255 scale to the network's input: (pixel + shift - mean) / std, all on that scale.

    Args:
        mean: per channel.
        std: per channel.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, pixels: Tensor, shifts: Tensor, channels_last: bool) -> Tensor:
        """(B, S, S, C) uint8 and (B, 3) colour shifts to (B, C, S, S) float32."""
        if pixels.shape[-1] == 1:
            shifts = shifts @ shifts.new_tensor(LUMA)[:, None]  # (B, 1)
        images = pixels.permute(0, 3, 1, 2).float()  # (B, C, S, S), channels last in memory
        images += (shifts - shifts.new_tensor(self.mean))[:, :, None, None]
        images /= images.new_tensor(self.std)[:, None, None]
        return images if channels_last else images.contiguous()


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


def choose_engine(requested: str) -> tuple[str, str]:
    """The engine to use, and the reason."""
    if requested != "auto":
        return requested, "asked for"
    return "torchvision", "the only engine"


def choose_workers(requested: int | None, on_gpu: bool, processes_here: int) -> int:
    """Decoding processes for one training process.

    Args:
        requested: data.workers.
        on_gpu: whether the network runs on a GPU. On a CPU it shares the cores with its workers, and one keeps it busy.
        processes_here: training processes on this machine.
    """
    if requested is not None:
        return requested
    return min(MAX_WORKERS, max(1, available_cores() // processes_here)) if on_gpu else 1


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
        workers: decoding processes.
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

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """The batches of steps start to stop - 1."""
        source = PixelBatches(self.plan, self.index, self.channels, self.max_pixels, self.shard_id, self.num_shards)
        on_gpu = self.device.type == "cuda"
        made = iterate_pixel_batches(source, start, stop, self.workers, on_gpu)
        return map(self._finish, made)

    def _finish(self, made: PixelBatch) -> Batch:
        pixels, labels, mask, shifts = (
            tensor.to(self.device, non_blocking=True) for tensor in (made.pixels, made.labels, made.mask, made.shifts)
        )
        images = self.normalization(pixels, shifts, self.channels_last)
        num_images = int(made.mask.sum()) // self.plan.augmentation.views
        return Batch(images, labels, mask.float(), made.ids, num_images, made.bad_files)
