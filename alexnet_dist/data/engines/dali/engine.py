"""HOW a plan is carried out with DALI: threads in this process, and the decoder of a GPU where there is one.

DALI gets the plan's numbers and has no state: its pipeline can be built again at any step. That is what happens when a
file breaks under it.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import os
import sys
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from alexnet_dist.base.errors import MachineError, MemoryExhaustedError
from alexnet_dist.base.spans import COPIES, span
from alexnet_dist.data.crop_ops.operations import change_rows, changes_bytes
from alexnet_dist.data.engines.dali.feed import Feed, Feeder
from alexnet_dist.data.engines.dali.note import find_suspects, noting, write_names
from alexnet_dist.data.engines.finish import Crops, CutCrops, Mask, ScaledCrops, find_targets, finish, scale_pixels
from alexnet_dist.data.engines.loader import Batch, Loader
from alexnet_dist.data.engines.to_device import send

REMEDY = (
    "pip install 'alexnet_dist[dali]' (nvidia-dali-cuda130; with a driver of CUDA 12 nvidia-dali-cuda120), "
    "or set data.engine: torchvision"
)
# What DALI reads when it starts. Larger blocks of host memory then come from a pool of its own: their sizes differ from
# batch to batch, and malloc would keep the holes between them and grow. The decoder's warnings name no file.
SETTINGS = {"DALI_MALLOC_POOL_THRESHOLD": "1M", "DALI_NVIMGCODEC_LOG_LEVEL": "1"}
OUT_OF_MEMORY = ("out of memory", "bad_alloc", "cudaErrorMemoryAllocation")
MOST_IN_VAIN = 3
MOST_WITHOUT = 4  # steps without a file for DALI, made and waiting among those that have some
PHRASES = ("Critical error in pipeline:", "Current pipeline object is no longer valid.")  # they say nothing


class PipelineBrokenError(Exception):
    """DALI could not make a batch, and its pipeline is of no more use.

    Args:
        feed: what it was given.
        error: what it said, on many lines.
        num_made: batches that it made before.
    """

    def __init__(self, feed: Feed, error: Exception, num_made: int) -> None:
        super().__init__(str(error))
        self.feed, self.num_made = feed, num_made


def find_dali() -> str | None:
    """Why DALI cannot run, or None where it is installed. Imports nothing of it."""
    try:
        found = importlib.util.find_spec("nvidia.dali")
    except ModuleNotFoundError:
        found = None
    return None if found else "DALI is not installed"


def release_memory() -> None:
    """Give back what DALI keeps for a next pipeline; nothing where it was not used."""
    backend = sys.modules.get("nvidia.dali.backend")
    if backend is not None:
        backend.ReleaseUnusedMemory()


def iterate_batches(loader: Loader, start: int, stop: int) -> Iterator[Batch]:
    """The batches of steps start to stop - 1, finished on the device.

    A file that breaks after the scan is listed and masked, as by the reference engine, and from then on not given to
    DALI; the steps that follow are made again.

    Raises:
        MachineError: DALI is missing, cannot use the device, or fails without a bad file.
        MemoryExhaustedError: there is no memory for its batches.
    """
    _import_dali()
    in_vain = 0  # pipelines in a row that made no batch, though the reference reads all that they were given
    feeder, step = Feeder(loader, distrusted=find_suspects(loader.cache_dir, loader.index)), start
    pool = ThreadPoolExecutor(max(1, loader.workers), thread_name_prefix="dali-feed")
    try:
        with noting(loader.cache_dir, loader.index) as note:
            while step < stop:
                try:
                    with closing(_run_pipeline(feeder, pool, note, step, stop)) as batches:
                        for batch in batches:
                            step += 1
                            yield batch
                except PipelineBrokenError as broken:
                    has_culprit = _distrust_files(feeder, broken, pool)
                    in_vain = 0 if has_culprit or broken.num_made else in_vain + 1
                    if in_vain == MOST_IN_VAIN:
                        why, remedy = _find_message(broken), "set data.engine: torchvision"
                        raise MachineError("DALI cannot make a batch", why=why, remedy=remedy, is_local=True) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _import_dali() -> None:
    reason = find_dali()
    if reason:
        raise _complain(reason)
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        importlib.import_module("alexnet_dist.data.engines.dali.pipeline")
    except Exception as error:  # a package that lacks its library, or fits no other, raises whatever it likes
        raise _complain(_find_message(error)) from error


def _complain(why: str) -> MachineError:
    return MachineError("data.engine dali cannot run", why=why, remedy=REMEDY)


def _run_pipeline(
    feeder: Feeder, pool: ThreadPoolExecutor, note: BinaryIO | None, start: int, stop: int
) -> Generator[Batch]:
    """The batches of one pipeline, at least one; the names of the files that it has are in the note.

    It ends before `stop` where many steps in a row have no file for it.

    Raises:
        PipelineBrokenError: it could not make one; those before are all there.
        MachineError: it cannot be built.
    """
    from alexnet_dist.data.engines.dali.pipeline import build_pipeline, take_outputs

    loader = feeder.loader
    feeds = feeder.prepare_ahead(start, stop, pool, ahead=max(1, loader.workers))
    first = None
    for first in feeds:
        if first.inputs is not None:
            break
        yield finish_batch(loader, first, [])
    if first is None or first.inputs is None:
        return
    waiting: deque[Feed] = deque()  # given to DALI and not yet taken; between them steps without any file

    def give() -> Iterator[tuple[object, ...]]:
        for feed in itertools.chain([first], feeds):
            waiting.append(feed)
            write_names(note, (some.names for some in waiting if some.names is not None))
            if feed.inputs is not None:
                yield feed.inputs.flatten()
            elif len(waiting) > loader.prefetch + MOST_WITHOUT:
                return

    try:
        pipeline = build_pipeline(loader, give())
    except RuntimeError as error:
        raise _complain(_find_message(error)) from error
    pipeline.schedule_run()
    num_made = 0
    while True:
        while waiting and waiting[0].inputs is None:
            yield finish_batch(loader, waiting.popleft(), [])
        if pipeline.empty():
            return
        try:
            outputs, last_pixels = take_outputs(pipeline, loader.device)
        except RuntimeError as error:
            raise PipelineBrokenError(waiting[0], error, num_made) from None
        num_made += 1
        pipeline.schedule_run()
        feed = waiting.popleft()
        if last_pixels is not None:
            feed, is_kept = feeder.leave_out_cut(feed, last_pixels, pool)
            outputs = outputs if is_kept.all() else [output[torch.from_numpy(is_kept)] for output in outputs]
        yield finish_batch(loader, feed, outputs if feed.in_dali.any() else [])


def _distrust_files(feeder: Feeder, broken: PipelineBrokenError, pool: ThreadPoolExecutor) -> bool:
    """Find the files that broke a pipeline with the reference decoder; where it reads them all, any may be the one.

    Returns:
        Whether the reference cannot read one of them either.

    Raises:
        MemoryExhaustedError: there was no memory.
    """
    if any(sign in str(broken) for sign in OUT_OF_MEMORY):
        remedy = "lower data.prefetch or train.global_batch_size"
        raise MemoryExhaustedError("out of memory in DALI", why=_find_message(broken), remedy=remedy)
    unreadable = feeder.find_unreadable(broken.feed.file_ids, pool)
    feeder.distrusted.update(unreadable or broken.feed.file_ids)
    return bool(unreadable)


def _find_message(error: Exception) -> str:
    """The line that says something, of the many that DALI writes."""
    lines = [line.strip() for line in str(error).splitlines()]
    lines = [line for line in lines if line and line not in PHRASES] or [type(error).__name__]
    after = lines.index("encountered:") + 1 if "encountered:" in lines[:-1] else 0
    return lines[after].partition('" failed: ')[2] or lines[after]


def finish_batch(loader: Loader, feed: Feed, outputs: list[Tensor]) -> Batch:
    """What DALI made of the m rows that it was given, among the B rows of the batch.

    Args:
        loader: normalization, layout, index.
        feed: the step.
        outputs: for each view (n, S, S, C) or (n, C, S, S); none where there were no rows.
    """
    with span(COPIES):
        numbers = [*find_targets(loader, feed.rows, feed.mask), *_list_edges(loader, feed)]
        labels, weights, *edges = send(numbers, loader.device)
        return Batch(
            images=finish(loader, _take_crops(loader, feed, outputs, edges), feed.rows, feed.mask),
            labels=labels,
            mask=weights,
            ids=torch.from_numpy(feed.rows.ids),
            num_images=int(feed.mask.sum()) // loader.plan.augmentation.views,
            bad_files=feed.bad_files,
        )


def _take_crops(loader: Loader, feed: Feed, outputs: list[Tensor], edges: list[Tensor]) -> Crops:
    """The crops of the rows with an image: normalized in the pipeline, or bytes where operations follow on these."""
    images = _join_views(loader, outputs)
    if edges:
        _weigh_edges(images, *edges)
    cut_here = feed.mask & ~feed.in_dali  # (B,)
    if changes_bytes(loader.plan.augmentation):
        pixels = images.round().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()  # (m, S, S, C)
        if not feed.in_dali.all():
            made, pixels = pixels, pixels.new_zeros((len(feed.mask), *pixels.shape[1:]))
            _put(pixels, feed.in_dali, made)
            _put(pixels, cut_here, torch.from_numpy(feed.crops))
        return CutCrops(change_rows("bytes", pixels, feed.rows.drawn, feed.mask))
    if cut_here.any():
        shifts = torch.from_numpy(feed.rows.shifts[cut_here].astype(np.float32))
        others = scale_pixels(loader.normalization, torch.from_numpy(feed.crops), shifts, loader.channels_last)
        layout = torch.channels_last if loader.channels_last else torch.contiguous_format
        shape = (len(images) + len(others), *images.shape[1:])
        made, images = images, torch.empty(shape, device=loader.device, memory_format=layout)
        _put(images, feed.in_dali[feed.mask], made)
        _put(images, cut_here[feed.mask], others)
    return ScaledCrops(images)


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


def _list_edges(loader: Loader, feed: Feed) -> list[Tensor]:
    """(4, m) factors and (4, m, C) terms for the outermost pixels; see `find_edge_gains`. None if they change nothing.

    With images = pixels / std - offsets a gain g makes g * images + (g - 1) * offsets of them.
    """
    if (feed.gains == 1).all():
        return []
    means = feed.means[feed.in_dali]
    offsets = np.divide(means, loader.normalization.std, dtype=np.float32)
    if changes_bytes(loader.plan.augmentation):
        offsets = np.zeros_like(means)  # the images hold pixels still
    terms = (feed.gains - 1).T[:, :, None] * offsets
    return [torch.from_numpy(array) for array in (np.ascontiguousarray(feed.gains.T), terms)]


def _weigh_edges(images: Tensor, factors: Tensor, terms: Tensor) -> None:
    """Multiply the first and last column and the first and last line of (m, C, S, S) by factors, and add the terms."""
    pixels: Any = images
    if images.device.type == "cpu":
        # In numpy: torch would wake its threads, which then spin for a while on the cores that DALI needs.
        pixels, factors, terms = images.numpy(), factors.numpy(), terms.numpy()  # type: ignore[assignment]
    edges = (pixels[..., 0], pixels[..., -1], pixels[..., 0, :], pixels[..., -1, :])  # (m, C, S) each
    for edge, factor, term in zip(edges, factors, terms, strict=True):
        edge *= factor[:, None, None]
        edge += term[:, :, None]
