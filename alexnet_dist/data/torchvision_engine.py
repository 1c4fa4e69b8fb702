"""HOW a plan is carried out with Pillow and torchvision: decode, cut, resize, crop, flip, jitter in worker processes.

Each worker makes whole batches of uint8 pixels; colour noise and normalisation follow on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import functional as transforms

from alexnet_dist.data.decode import UnreadableImageError
from alexnet_dist.data.loader import Batch, Loader
from alexnet_dist.data.plan import BRIGHTNESS, CONTRAST, HUE, SATURATION, Plan, StepPlan
from alexnet_dist.data.samples import BadFile, SampleIndex
from alexnet_dist.data.workers import end_with_training_process, worker_context
from alexnet_dist.errors import MachineError

Pixels = npt.NDArray[np.uint8]

JITTERS: dict[int, Callable[[Tensor, float], Tensor]] = {
    BRIGHTNESS: transforms.adjust_brightness,
    CONTRAST: transforms.adjust_contrast,
    SATURATION: transforms.adjust_saturation,
    HUE: transforms.adjust_hue,
}


class PixelBatch(NamedTuple):
    """One replica's batch as it leaves a worker."""

    pixels: Tensor  # (B, S, S, C) uint8
    labels: Tensor  # (B,) int64, 0 where there is no image
    mask: Tensor  # (B,) bool, True where there is an image
    shifts: Tensor  # (B, 3) float32, added to RGB on the 0-255 scale
    ids: Tensor  # (B,) int64, -1 where the batch was filled up
    bad_files: list[BadFile]  # with full paths


@dataclass(frozen=True, eq=False)
class PixelBatches(Dataset[PixelBatch]):
    """The batches of one replica, by step.

    Args:
        plan: what happens at each step.
        index: which images.
        channels: 3, or 1 for gray.
        max_pixels: larger images are bad files.
        shard_id: this replica's number.
        num_shards: replicas.
    """

    plan: Plan
    index: SampleIndex
    channels: int
    max_pixels: int
    shard_id: int
    num_shards: int

    def __getitem__(self, step: int) -> PixelBatch:
        rows = self.plan.at(step).shard(self.shard_id, self.num_shards)
        side, views = self.plan.augmentation.crop_size, self.plan.augmentation.views
        pixels = np.zeros((len(rows.ids), side, side, self.channels), np.uint8)
        mask = rows.ids >= 0
        bad_files = []
        for first in (np.flatnonzero(mask[::views]) * views).tolist():
            try:
                image = self.index.load_pixels(int(rows.ids[first]), self.channels, self.max_pixels)
                picture = resize_window(image, rows, first)  # the views of an image share it
                for row in range(first, first + views):
                    pixels[row] = jitter_pixels(cut_pixels(picture, rows, row, side), rows, row)
            except UnreadableImageError as error:
                mask[first : first + views] = False
                path = self.index.root / self.index.paths[rows.ids[first]]
                bad_files.append(BadFile(str(path), str(error)))
        labels = np.where(mask, self.index.labels[rows.ids], 0)
        shifts = torch.from_numpy(rows.shifts.astype(np.float32))
        tensors = (torch.from_numpy(pixels), torch.from_numpy(labels), torch.from_numpy(mask), shifts)
        return PixelBatch(*tensors, torch.from_numpy(rows.ids), bad_files)


def resize_window(image: Pixels, rows: StepPlan, row: int) -> Pixels:
    """Cut and resize one image (H, W, C) to (H', W', C) as row `row` of the plan says.

    Raises:
        UnreadableImageError: the image is not as large as its header said when the plan was made.
    """
    x, y, width, height = rows.windows[row]
    window = image[y : y + height, x : x + width]
    if window.shape[:2] != (height, width):
        raise UnreadableImageError(f"is {image.shape[1]} x {image.shape[0]} pixels, not as the scan found it")
    new_width, new_height = rows.resized[row]
    if (new_width, new_height) == (width, height):
        return window
    planes = torch.from_numpy(window).permute(2, 0, 1)  # (C, H, W)
    planes = transforms.resize(planes, [int(new_height), int(new_width)], antialias=True)  # (C, H', W')
    picture: Pixels = planes.permute(1, 2, 0).numpy()
    return picture


def cut_pixels(picture: Pixels, rows: StepPlan, row: int, side: int) -> Pixels:
    """Crop and flip a resized window to (side, side, C) as row `row` of the plan says."""
    left, top = rows.corners[row]
    crop = picture[top : top + side, left : left + side]
    axes = [axis for axis, turned in ((1, rows.flips[row, 0]), (0, rows.flips[row, 1])) if turned]
    # torch turns a row of pixels around 15 times as fast as a numpy view with a negative stride is copied.
    return torch.from_numpy(crop).flip(axes).numpy() if axes else crop


def jitter_pixels(crop: Pixels, rows: StepPlan, row: int) -> Pixels:
    """Change the colours of a crop (S, S, C) as row `row` of the plan says.

    It comes last because the crop is the smallest picture on the way: the network's input, and not one pixel more.
    """
    if not rows.jitters.shape[1]:
        return crop
    planes = torch.from_numpy(crop).permute(2, 0, 1).contiguous()  # (C, S, S)
    # The mean gray of contrast is a sum of whole numbers: up to 256 x 256 pixels it stays below 2**24 and float32 holds
    # it exactly, in whatever order threads add.
    for operation, factor in zip(rows.jitters[row], rows.factors[row], strict=True):
        planes = JITTERS[int(operation)](planes, float(factor))
    return planes.permute(1, 2, 0).numpy()


def iterate_batches(loader: Loader, start: int, stop: int) -> Iterator[Batch]:
    """The batches of steps start to stop - 1, finished on the device.

    Raises:
        MachineError: a worker was killed.
    """
    source = PixelBatches(
        loader.plan, loader.index, loader.channels, loader.max_pixels, loader.shard_id, loader.num_shards
    )
    for made in iterate_pixel_batches(source, start, stop, loader.workers, loader.device.type == "cuda"):
        pixels, labels, mask, shifts = (
            tensor.to(loader.device, non_blocking=True) for tensor in (made.pixels, made.labels, made.mask, made.shifts)
        )
        images = loader.normalization(pixels, shifts, loader.channels_last)
        num_images = int(made.mask.sum()) // loader.plan.augmentation.views
        yield Batch(images, labels, mask.float(), made.ids, num_images, made.bad_files)


def iterate_pixel_batches(
    batches: PixelBatches, start: int, stop: int, workers: int, pin_memory: bool
) -> Iterator[PixelBatch]:
    """The batches of steps start to stop - 1, made ahead by worker processes.

    Args:
        batches: the replica's batches by step.
        start: first step.
        stop: step after the last.
        workers: processes; 0 makes each batch when it is asked for.
        pin_memory: put batches in page-locked memory, for copies to a GPU.

    Raises:
        MachineError: a worker was killed.
    """
    workers = min(workers, max(stop - start, 0))
    loader = DataLoader(
        batches,
        batch_size=None,
        sampler=range(start, stop),
        num_workers=workers,
        pin_memory=pin_memory,
        multiprocessing_context=worker_context() if workers else None,
        worker_init_fn=end_with_training_process,
        prefetch_factor=2 if workers else None,
    )
    try:
        yield from loader
    except (RuntimeError, EOFError, ConnectionError) as error:
        if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
            raise
        why = str(error).splitlines()[0] if str(error) else "it closed its connection"
        remedy = "most likely memory or /dev/shm ran out: lower --data.workers"
        lost = MachineError("a decoding process was killed", why=why, remedy=remedy)
        lost.is_local = True
        raise lost from error
