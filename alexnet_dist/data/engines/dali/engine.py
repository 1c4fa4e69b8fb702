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
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any, BinaryIO, TypeAlias

import torch

from alexnet_dist.base.errors import MachineError, MemoryExhaustedError
from alexnet_dist.base.spans import COPIES, span
from alexnet_dist.data.engines.dali.crops import finish_crops, finish_windows
from alexnet_dist.data.engines.dali.feed import Feed, Feeder
from alexnet_dist.data.engines.dali.note import find_suspects, noting, write_names
from alexnet_dist.data.engines.loader import Batch, Loader

Made: TypeAlias = tuple[Feed, list[Any]]  # a step and what DALI made for it: windows, or the crops of each view

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
    suspects = find_suspects(loader.cache_dir, loader.index)
    feeder, step = Feeder(loader, lets_dali_scale(loader.device), suspects), start
    finish = _finish_at_once if feeder.dali_scales else _finish_beside
    # As many threads as decode. Where files are near, about one is busy: a step is prepared for each that is taken.
    # On a disk where a look at a file takes a millisecond, two threads would be a tenth as fast as sixteen.
    with threads("dali-feed", max(1, loader.workers)) as pool, noting(loader.cache_dir, loader.index) as note:
        while step < stop:
            try:
                with (
                    closing(_run_pipeline(feeder, pool, note, step, stop)) as made,
                    closing(finish(feeder, made, pool)) as batches,
                ):
                    for batch in batches:
                        step += 1
                        yield batch
            except PipelineBrokenError as broken:
                has_culprit = _distrust_files(feeder, broken, pool)
                in_vain = 0 if has_culprit or broken.num_made else in_vain + 1
                if in_vain == MOST_IN_VAIN:
                    why, remedy = _find_message(broken), "set data.engine: torchvision"
                    raise MachineError("DALI cannot make a batch", why=why, remedy=remedy, is_local=True) from None


def lets_dali_scale(device: torch.device) -> bool:
    """Whether DALI resizes, crops and normalizes: where the pixels are on a GPU already."""
    return device.type == "cuda"


@contextmanager
def threads(name: str, count: int) -> Iterator[ThreadPoolExecutor]:
    """So many threads; when the block ends, what they have begun ends, and nothing else begins."""
    pool = ThreadPoolExecutor(count, thread_name_prefix=name)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _finish_at_once(feeder: Feeder, made: Iterator[Made], _: ThreadPoolExecutor) -> Generator[Batch]:
    """On the device everything is queued, and nothing is waited for."""
    for feed, crops in made:
        with span(COPIES):
            batch = finish_crops(feeder.loader, feed, crops)
        yield batch


def _finish_beside(feeder: Feeder, made: Iterator[Made], pool: ThreadPoolExecutor) -> Generator[Batch]:
    """In threads, one batch ahead: while the network has a batch, the next is resized and that after it decoded."""
    waiting: Future[Batch] | None = None
    with threads("dali-finish", 1) as beside:
        try:
            for feed, windows in made:
                kept = feeder.leave_out_cut(feed, windows, pool)
                done, waiting = waiting, beside.submit(finish_windows, feeder.loader, *kept, pool)
                if done is not None:
                    yield done.result()
        except PipelineBrokenError:
            if waiting is not None:
                yield waiting.result()
            raise
        if waiting is not None:
            yield waiting.result()


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
) -> Generator[Made]:
    """What one pipeline makes, at least one step; the names of the files that it has are in the note.

    It ends before `stop` where many steps in a row have no file for it.

    Raises:
        PipelineBrokenError: it could not make one; those before are all there.
        MachineError: it cannot be built.
    """
    from alexnet_dist.data.engines.dali.pipeline import build_pipeline

    loader = feeder.loader
    feeds = feeder.prepare_ahead(start, stop, pool, ahead=max(1, loader.workers))
    first = None
    for first in feeds:
        if first.inputs is not None:
            break
        yield first, []
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
        pipeline = build_pipeline(loader, give(), feeder.dali_scales)
    except RuntimeError as error:
        raise _complain(_find_message(error)) from error
    pipeline.schedule_run()
    num_made = 0
    while True:
        while waiting and waiting[0].inputs is None:
            yield waiting.popleft(), []
        if pipeline.empty():
            return
        try:
            outputs = _take_outputs(feeder, pipeline)
        except RuntimeError as error:
            raise PipelineBrokenError(waiting[0], error, num_made) from None
        num_made += 1
        pipeline.schedule_run()
        yield waiting.popleft(), outputs


def _take_outputs(feeder: Feeder, pipeline: Any) -> list[Any]:
    """Crops (Tensor) or windows (Pixels)."""
    from alexnet_dist.data.engines.dali.pipeline import take_crops, take_windows

    return take_crops(pipeline, feeder.loader.device) if feeder.dali_scales else take_windows(pipeline)


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
