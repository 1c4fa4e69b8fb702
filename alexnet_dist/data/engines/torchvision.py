"""HOW a plan is carried out with Pillow and torchvision: decode, cut, resize, crop, flip, jitter in worker processes.

Each worker makes whole batches of uint8 pixels, in memory that it shares with the training process; finish.py does the
rest on the device. The memory is taken once and used in turns: a page of shared memory costs more to
get than to fill.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from alexnet_dist.base.errors import MachineError
from alexnet_dist.base.exhaustion import explain_exhaustion
from alexnet_dist.base.spans import COPIES, span
from alexnet_dist.data.crop_ops.operations import change_crop, changes_bytes
from alexnet_dist.data.decode import UnreadableImageError
from alexnet_dist.data.engines.finish import CutCrops, find_factors, find_targets, finish
from alexnet_dist.data.engines.loader import Batch, Factors, Loader
from alexnet_dist.data.engines.patience import Patience, describe_process
from alexnet_dist.data.engines.resize import resize_planes
from alexnet_dist.data.engines.to_device import (
    Form,
    SideStream,
    count_bytes,
    forms_of,
    hold_until_copied,
    registered,
    send,
    split,
)
from alexnet_dist.data.engines.workers import (
    FILES_PER_WORKER,
    allow_open_files,
    end_with_training_process,
    main_file_left_alone,
    worker_context,
)
from alexnet_dist.data.index import BadFile, SampleIndex
from alexnet_dist.data.plan import Augmentation, Plan, StepPlan, share_rows

Pixels = npt.NDArray[np.uint8]
Pin: TypeAlias = AbstractContextManager[None]

PREFETCH = 2  # batches that each worker makes ahead
SPARE = 1  # more slots on a GPU: so many batches may be on their way there while the next is asked for


class RowFacts(NamedTuple):
    """What there is to say of a batch beside its pixels."""

    mask: npt.NDArray[np.bool_]  # (B,), True where there is an image
    rows: StepPlan  # what was to be done, B rows
    bad_files: list[BadFile]  # with full paths


class PixelBatch(NamedTuple):
    """One replica's batch as it leaves a worker; see `RowFacts`."""

    pixels: Tensor  # (B, S, S, C) uint8
    mask: npt.NDArray[np.bool_]  # (B,)
    rows: StepPlan
    bad_files: list[BadFile]
    slot: Tensor | None = None  # (bytes,) shared memory that begins with the pixels


@dataclass(frozen=True, eq=False)
class PixelBatches:
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

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of a batch's pixels: rows, height, width, channels."""
        recipe = self.plan.augmentation
        rows = share_rows(self.plan.global_batch_size, self.num_shards) * recipe.views
        return rows, recipe.crop_size, recipe.crop_size, self.channels

    def __getitem__(self, step: int) -> PixelBatch:
        pixels = np.empty(self.shape, np.uint8)
        return PixelBatch(torch.from_numpy(pixels), *self.fill(pixels, step))

    def fill(self, pixels: Pixels, step: int) -> RowFacts:
        """Write the batch of a step to `pixels` (B, S, S, C), over whatever is there."""
        rows = self.plan.at(step).shard(self.shard_id, self.num_shards)
        views = self.plan.augmentation.views
        mask = rows.ids >= 0
        bad_files = []
        for first in range(0, len(mask), views):
            try:
                if mask[first]:
                    self._fill_image(pixels, rows, first)
            except UnreadableImageError as error:
                mask[first : first + views] = False
                path = self.index.root / self.index.paths[rows.ids[first]]
                bad_files.append(BadFile(str(path), str(error)))
        pixels[~mask] = 0
        return RowFacts(mask, rows, bad_files)

    def _fill_image(self, pixels: Pixels, rows: StepPlan, first: int) -> None:
        """One image, in all its views."""
        self.plan.check_fits(int(rows.ids[first]))
        window = self.index.load_pixels(int(rows.ids[first]), self.channels, self.max_pixels, rows.windows[first])
        is_changed = changes_bytes(self.plan.augmentation)
        for row, cut in cut_views(window, rows, first, self.plan.augmentation):
            crop = flip_pixels(cut, rows, row)
            pixels[row] = change_crop(torch.from_numpy(crop), rows.drawn, row).numpy() if is_changed else crop


def cut_views(window: Pixels, rows: StepPlan, first: int, recipe: Augmentation) -> Iterator[tuple[int, Pixels]]:
    """Row and crop (S, S, C), not flipped, of each view of an image, from its window (H, W, C) and its first row."""
    width, height = rows.resized[first].tolist()
    picture = resize_pixels(window, width, height)  # the views of an image share it
    for row in range(first, first + recipe.views):
        yield row, cut_pixels(picture, rows, row, recipe.crop_size)


@dataclass(frozen=True, eq=False)
class SharedBatches(Dataset[RowFacts]):
    """The batches of one replica as workers make them: step s goes to slot s modulo K.

    Args:
        batches: by step.
        slots: (K, bytes) uint8 in shared memory; each begins with the pixels of a batch.
    """

    batches: PixelBatches
    slots: Tensor

    def __getitem__(self, step: int) -> RowFacts:
        return self.batches.fill(self.pixels(step).numpy(), step)

    def pixels(self, step: int) -> Tensor:
        """(B, S, S, C) of a step, in its slot."""
        return split(self.slot(step), [Form(torch.uint8, self.batches.shape)])[0]

    def slot(self, step: int) -> Tensor:
        """(bytes,) of a step."""
        return self.slots[step % len(self.slots)]


def resize_pixels(window: Pixels, width: int, height: int) -> Pixels:
    """Resize a window (H, W, C) to (height, width, C): bilinear, with antialias."""
    if window.shape[:2] == (height, width):
        return window
    # With the batch's axis in place torch sees that the channels come last, and leaves them there: without it, it sorts
    # the pixels into planes, which takes as long as the resize.
    planes = torch.from_numpy(np.ascontiguousarray(window))[None].permute(0, 3, 1, 2)  # (1, C, H, W)
    planes = resize_planes(planes, height, width)  # (1, C, height, width)
    picture: Pixels = planes[0].permute(1, 2, 0).numpy()
    return picture


def cut_pixels(picture: Pixels, rows: StepPlan, row: int, side: int) -> Pixels:
    """Crop a resized window to (side, side, C), a view, where row `row` of the plan says."""
    left, top = rows.corners[row]
    return picture[top : top + side, left : left + side]


def flip_pixels(crop: Pixels, rows: StepPlan, row: int) -> Pixels:
    """Flip a crop (S, S, C) as row `row` of the plan says."""
    axes = [axis for axis, turned in ((1, rows.flips[row, 0]), (0, rows.flips[row, 1])) if turned]
    # torch turns a row of pixels around 15 times as fast as a numpy view with a negative stride is copied.
    return torch.from_numpy(crop).flip(axes).numpy() if axes else crop


def iterate_batches(loader: Loader, start: int, stop: int) -> Iterator[Batch]:
    """The batches of steps start to stop - 1, finished on the device.

    Raises:
        MachineError: a worker was killed.
    """
    source = PixelBatches(
        loader.plan, loader.index, loader.channels, loader.max_pixels, loader.shard_id, loader.num_shards
    )
    if loader.device.type == "cuda":
        yield from iterate_beside(loader, source, range(start, stop), SideStream(loader.device), registered)
        return
    for made in iterate_pixel_batches(source, start, stop, loader.workers):
        with span(COPIES):
            images = finish(loader, CutCrops(made.pixels), made.rows, made.mask)
            batch = _join_batch(loader, made, images, *find_targets(loader, made.rows, made.mask))
        yield batch


def iterate_beside(
    loader: Loader, source: PixelBatches, steps: range, beside: SideStream, pin: Callable[[Tensor], Pin]
) -> Iterator[Batch]:
    """Batches whose pixels and numbers go to the device in one copy, from where a worker has made them.

    Args:
        loader: input scale, device and workers.
        source: of the pixels.
        steps: which.
        beside: where copies and finishing are queued.
        pin: the slots, while they are used.
    """
    forms = _list_forms(loader, source)
    made = iterate_pixel_batches(source, steps.start, steps.stop, loader.workers, count_bytes(forms), SPARE, pin)
    for batch in hold_until_copied(made, SPARE, beside.mark):
        with span(COPIES):
            finished = beside.hand_over(*beside.run(partial(_finish_there, loader, batch)))
        yield finished


def _list_numbers(loader: Loader, rows: StepPlan, mask: npt.NDArray[np.bool_]) -> list[Tensor]:
    """Labels, weights, scale and bias of B rows, on the host."""
    return [*find_targets(loader, rows, mask), *find_factors(loader, rows)]


def _list_forms(loader: Loader, source: PixelBatches) -> list[Form]:
    """Of all that goes to the device of a batch."""
    rows = loader.plan.at(0).shard(loader.shard_id, loader.num_shards)
    return [Form(torch.uint8, source.shape), *forms_of(_list_numbers(loader, rows, rows.ids >= 0))]


def _finish_there(loader: Loader, made: PixelBatch) -> Batch:
    numbers = _list_numbers(loader, made.rows, made.mask)
    pixels, labels, weights, scale, bias = send([made.pixels, *numbers], loader.device, made.slot)
    images = finish(loader, CutCrops(pixels, Factors(scale, bias)), made.rows, made.mask)
    return _join_batch(loader, made, images, labels, weights)


def _join_batch(loader: Loader, made: PixelBatch, images: Tensor, labels: Tensor, weights: Tensor) -> Batch:
    num_images = int(made.mask.sum()) // loader.plan.augmentation.views
    return Batch(images, labels, weights, torch.from_numpy(made.rows.ids), num_images, made.bad_files)


def iterate_pixel_batches(
    batches: PixelBatches,
    start: int,
    stop: int,
    workers: int,
    slot_bytes: int = 0,
    spare: int = 0,
    pin: Callable[[Tensor], Pin] | None = None,
) -> Generator[PixelBatch]:
    """The batches of steps start to stop - 1, made ahead by worker processes.

    The pixels of a batch are good until `spare` + 1 more batches are asked for.

    Args:
        batches: the replica's batches by step.
        start: first step.
        stop: step after the last.
        workers: processes; 0 makes each batch when it is asked for.
        slot_bytes: of a batch's shared memory, where more than its pixels shall fit in.
        spare: batches that are kept beside the one that was given last.
        pin: what to do with the shared memory while it is used.

    Raises:
        MachineError: a worker was killed or made nothing for long, or there is no shared memory left.
    """
    workers = min(workers, max(stop - start, 0))
    if workers == 0:
        yield from map(batches.__getitem__, range(start, stop))
        return
    allow_open_files(FILES_PER_WORKER * workers)
    # DataLoader asks for one more batch with each that it hands out: so many are being made, and one is being used.
    num_slots = min(PREFETCH * workers + 1 + spare, stop - start)
    shared = SharedBatches(batches, share_slots(num_slots, max(slot_bytes, math.prod(batches.shape))))
    loader = DataLoader(
        shared,
        batch_size=None,
        sampler=range(start, stop),
        num_workers=workers,
        collate_fn=_leave_as_it_is,  # type: ignore[arg-type]
        multiprocessing_context=worker_context(),
        worker_init_fn=end_with_training_process,
        prefetch_factor=PREFETCH,
        generator=torch.Generator(),  # it would draw a seed for workers from the process's own
    )
    try:
        with pin(shared.slots) if pin else nullcontext():
            taken = _take_patiently(loader, batches.index, batches.shape[0])
            for step, facts in zip(range(start, stop), taken, strict=True):
                yield PixelBatch(shared.pixels(step), *facts, shared.slot(step))
    except (RuntimeError, EOFError, ConnectionError) as error:
        if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
            raise
        why = str(error).splitlines()[0] if str(error) else "it closed its connection"
        raise _no_memory("a decoding process was killed", why) from error


def _take_patiently(loader: DataLoader[RowFacts], index: SampleIndex, num_rows: int) -> Iterator[RowFacts]:
    """What workers say of their batches, with a limit on each wait.

    Raises:
        MachineError: a worker made nothing for too long.
    """
    workers: list[Any] = []
    num_taken, root = 0, index.root

    def describe() -> str:  # DataLoader gives batches to its workers in turn
        return describe_process(workers[num_taken % len(workers)].pid, root) if workers else "decoding processes begin"

    def give_up() -> bool:
        for worker in workers:
            worker.kill()  # DataLoader notices it in the main thread
        return bool(workers)  # to begin may take long where torch comes over a network

    patience = Patience(num_rows, describe, give_up)
    try:
        with patience.counting():
            with patience.waiting(), main_file_left_alone(index.pixels):
                batches: Any = iter(loader)
            workers += batches._workers
            while True:
                with patience.waiting():
                    facts = next(batches, None)
                if facts is None:
                    return
                num_taken += 1
                yield facts
    except (RuntimeError, EOFError, ConnectionError) as error:  # whichever DataLoader meets first after the kill
        if not patience.reason:
            raise
        raise patience.explain(is_local=True) from error


def share_slots(num_slots: int, num_bytes: int) -> Tensor:
    """(K, bytes) uint8 that processes share; they have no name and go with the last process that uses them.

    Raises:
        MachineError: there is not so much shared memory.
    """
    size = (num_slots, num_bytes)
    try:
        slots: Tensor = torch.empty(size, dtype=torch.uint8).share_memory_()  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        limit = explain_exhaustion(error)
        if limit is not None:
            limit.is_local = True
            raise limit from error
        what = f"cannot share {math.prod(size) / 2**20:,.0f} MiB with decoding processes"
        raise _no_memory(what, str(error)) from error
    return slots


def _leave_as_it_is(facts: RowFacts) -> RowFacts:
    """DataLoader would make tensors of them, and send each in a file of its own."""
    return facts


def _no_memory(what: str, why: str) -> MachineError:
    remedy = "most likely memory, threads or /dev/shm ran out: lower --data.workers"
    return MachineError(what, why=why, remedy=remedy, is_local=True)
