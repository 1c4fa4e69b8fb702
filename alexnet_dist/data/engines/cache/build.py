"""Building the image cache: chunk by chunk, in several processes, so that a killed build goes on where it stopped."""

from __future__ import annotations

import dataclasses
import logging
import os
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from filelock import FileLock, Timeout

from alexnet_dist.base.durable import CACHE_SETTING, check_space, disk_errors_named, tidy_folder
from alexnet_dist.base.errors import DataError, MachineError
from alexnet_dist.base.progress import Progress
from alexnet_dist.data.decode import UnreadableImageError
from alexnet_dist.data.draws import IntArray
from alexnet_dist.data.engines.cache.chunks import ChunkError, Footer, write_chunk
from alexnet_dist.data.engines.cache.store import MANIFEST, Layout, list_bad, read_footers, write_manifest
from alexnet_dist.data.engines.patience import Patience, describe_process
from alexnet_dist.data.engines.torchvision import resize_pixels
from alexnet_dist.data.engines.workers import (
    FILES_PER_WORKER,
    allow_open_files,
    end_with_training_process,
    main_file_left_alone,
    worker_context,
)
from alexnet_dist.data.index import BadFile, BadFilesError, SampleIndex
from alexnet_dist.data.plan import describe_enlarged, resize_shapes

logger = logging.getLogger("alexnet_dist")

_FILES_PER_TASK = 256
_NUM_THREADS = 16  # looking up times of change waits for the disk or the network


@dataclass(frozen=True, eq=False)
class _Job:
    """A chunk to be made; it travels to a decoding process.

    Args:
        index: the images of the chunk.
        sizes: (N, 2) width and height they are kept at.
        enlarged: why some are not kept: they would become too large.
        channels: 3, or 1 for gray.
        max_pixels: larger images are bad files.
        path: of the chunk.
        footer: what it will say of itself.
    """

    index: SampleIndex
    sizes: IntArray
    enlarged: dict[int, str]
    channels: int
    max_pixels: int
    path: Path
    footer: Footer


def build_store(
    layout: Layout, *, workers: int, on_bad_file: Literal["fail", "skip"], progress: bool, repair: bool = False
) -> None:
    """Build a cache, or what is missing of it; see `iterate_build`."""
    for _ in iterate_build(layout, workers=workers, on_bad_file=on_bad_file, progress=progress, repair=repair):
        pass


def iterate_build(
    layout: Layout, *, workers: int, on_bad_file: Literal["fail", "skip"], progress: bool, repair: bool = False
) -> Iterator[int]:
    """Build a cache, or what is missing of it; yields the number of images of each chunk that is done.

    Chunks whose files have changed since are made again. The work stops where the iterator is left; what was done is
    kept. Another process that builds the same cache is waited for.

    Args:
        layout: where the images go.
        workers: decoding processes; up to 1, this process decodes.
        on_bad_file: raise when all images were tried and some are bad, or list them in the manifest.
        progress: show a bar when it takes longer than two seconds.
        repair: make damaged chunks again.

    Raises:
        BadFilesError: images that cannot be decoded under `fail`; all of them.
        DataError: a cache that was whole is damaged or foreign, and not to be repaired.
        MachineError: no space, no permission, or a decoding process was killed.
    """
    changes = read_change_times(layout.index)
    tidy_folder(layout.folder)
    footers = _find_footers(layout, changes, repair)
    if None in footers or not layout.is_whole:
        _check_space(layout, footers)
        with disk_errors_named(layout.folder, CACHE_SETTING):
            layout.folder.mkdir(parents=True, exist_ok=True)
            with _lock(layout.folder):
                footers = _find_footers(layout, changes, repair)  # another process may have been at work
                yield from _fill(layout, footers, changes, workers, progress)
    _judge_bad_files(layout, [footer for footer in footers if footer is not None], on_bad_file)


def _fill(
    layout: Layout, footers: list[Footer | None], changes: IntArray, workers: int, progress: bool
) -> Iterator[int]:
    """Make the chunks that have no footer, and put their footers into the list; then write the manifest."""
    missing = [number for number, footer in enumerate(footers) if footer is None]
    if not missing and layout.is_whole:
        return
    if missing:
        (layout.folder / MANIFEST).unlink(missing_ok=True)  # until the end, the cache is not whole
    tidy_folder(layout.folder, alone=True)
    counts = [len(layout.chunk_ids(number)) for number in missing]
    num_images = len(layout.index)
    num_done = num_images - sum(counts)
    name = f"caching images in {layout.folder}"
    bar = Progress(name, num_images, done=num_done, shown=progress)
    jobs = (_plan_job(layout, number, changes) for number in missing)
    with bar:
        for footer in _run_jobs(jobs, min(workers, len(missing))):
            footers[footer.number] = footer
            done = len(layout.chunk_ids(footer.number))
            bar.advance(done)
            yield done
    write_manifest(layout, [footer for footer in footers if footer is not None])


# -- what is there ----------------------------------------------------------------------------------------------------


def _find_footers(layout: Layout, changes: IntArray, repair: bool) -> list[Footer | None]:
    """The footer of each chunk; None where it is missing, out of date, or damaged and to be repaired.

    Raises:
        DataError: a cache that was whole is damaged or foreign, and not to be repaired.
    """
    found = _read_whole(layout, repair) or [_find_footer(layout, number) for number in range(layout.num_chunks)]
    current = [footer if footer and _is_current(layout, footer, changes) else None for footer in found]
    num_stale = current.count(None) - found.count(None)
    if num_stale:
        logger.info("images changed since they were cached: %d of %d chunks are made again", num_stale, len(found))
    return current


def _read_whole(layout: Layout, repair: bool) -> list[Footer | None] | None:
    """The footers of a cache that was built to its end; None where that has yet to come."""
    if not layout.is_whole:
        return None
    try:
        return list(read_footers(layout))
    except DataError as error:
        if not repair:
            raise
        logger.warning("mending: %s", error)
        with disk_errors_named(layout.folder, CACHE_SETTING):
            (layout.folder / MANIFEST).unlink()
        return None


def _find_footer(layout: Layout, number: int) -> Footer | None:
    try:
        return layout.read_footer(number)
    except ChunkError:
        return None


def _is_current(layout: Layout, footer: Footer, changes: IntArray) -> bool:
    """Whether no file of a chunk is newer than the chunk's newest was, and what was bad still is."""
    ids = layout.chunk_ids(footer.number)
    if changes[ids.start : ids.stop].max() > footer.newest_ns:
        return False
    enlarged = _describe_enlarged(layout, ids)  # bad, and can be decoded
    bad = [ids[position] for position, _ in footer.bad_files if position not in enlarged]
    return not any(_can_be_decoded(layout, sample_id) for sample_id in bad)


def _describe_enlarged(layout: Layout, ids: range) -> dict[int, str]:
    """Why images of a chunk are too large to be kept, by their positions in it."""
    own = layout.index.sizes[ids.start : ids.stop].astype(np.int64)
    return describe_enlarged(resize_shapes(own, layout.resize), layout.resize)


def _can_be_decoded(layout: Layout, sample_id: int) -> bool:
    try:
        layout.index.load_pixels(sample_id, layout.channels, layout.max_pixels)
    except UnreadableImageError:
        return False
    return True


def read_change_times(index: SampleIndex) -> IntArray:
    """(N,) when each file, or its container, was changed, in nanoseconds; 0 where there is none.

    The index holds paths and byte sizes. A picture that was edited under its old name may keep its byte size.
    """
    if not index.has_files:
        return np.zeros(len(index), np.int64)
    folder, containers = os.path.join(index.root, ""), index.containers
    if containers is not None:
        times = [_read_change_time(folder + name) for name in containers.names]
        return np.array(times, np.int64)[containers.numbers]

    def read_some(first: int) -> list[int]:
        return [_read_change_time(folder + path) for path in index.paths[first : first + _FILES_PER_TASK]]

    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        parts = pool.map(read_some, range(0, len(index), _FILES_PER_TASK))
        return np.fromiter(chain.from_iterable(parts), np.int64, len(index))


def _read_change_time(path: str) -> int:
    try:
        return min(os.stat(path).st_mtime_ns, np.iinfo(np.int64).max)  # of the year 2262
    except OSError:
        return 0


def _check_space(layout: Layout, footers: Sequence[Footer | None]) -> None:
    """Hold what is still to be written against what is free, before anything is written.

    Raises:
        MachineError: it does not fit.
    """
    needed = sum(layout.count_bytes(number) for number, footer in enumerate(footers) if footer is None)
    check_space(layout.folder, needed, "for the image cache", CACHE_SETTING)


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Hold the folder against other builders."""
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.info("another process is building this image cache: waiting (%s)", folder)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _judge_bad_files(layout: Layout, footers: list[Footer], on_bad_file: Literal["fail", "skip"]) -> None:
    paths = layout.index.paths
    bad_files = tuple(BadFile(paths[sample], reason) for sample, reason in list_bad(layout, footers))
    if not bad_files:
        return
    if on_bad_file == "fail":
        remedy = "remove it" if len(bad_files) == 1 else "remove them"
        raise BadFilesError(layout.index.root, bad_files, f"{remedy} or set data.on_bad_file: skip")
    first = f"{bad_files[0].path}: {bad_files[0].reason}"
    logger.warning("%d of %d images cannot be decoded and are left out (%s)", len(bad_files), len(paths), first)


# -- making chunks ----------------------------------------------------------------------------------------------------


def _plan_job(layout: Layout, number: int, changes: IntArray) -> _Job:
    ids = layout.chunk_ids(number)
    index = dataclasses.replace(layout.index.subset(np.arange(ids.start, ids.stop)), bad_files=(), classes=())
    footer = Footer(layout.fingerprint, number, int(changes[ids.start : ids.stop].max()), "")
    sizes = layout.sizes[ids.start : ids.stop]
    return _Job(
        index,
        sizes,
        _describe_enlarged(layout, ids),
        layout.channels,
        layout.max_pixels,
        layout.chunk_path(number),
        footer,
    )


def _run_jobs(jobs: Iterator[_Job], workers: int) -> Iterator[Footer]:
    """The footers of chunks as they are made.

    Raises:
        MachineError: a decoding process was killed, or none has made anything for too long.
    """
    if workers <= 1:
        yield from map(_make_chunk, jobs)
        return
    allow_open_files(FILES_PER_WORKER * workers)
    ready = list(jobs)
    # Processes, not threads: a seventh of the work holds Python's lock, and seven threads would be the end of it.
    pool = ProcessPoolExecutor(workers, worker_context(), _start_worker)
    patience = _watch(pool, ready)
    try:
        with patience.counting():
            with main_file_left_alone(ready[0].index.pixels):
                made = as_completed([pool.submit(_make_chunk, job) for job in ready])
            while True:
                with patience.waiting():
                    done = next(made, None)
                if done is None:
                    return
                yield done.result()
    except BrokenProcessPool as error:
        if patience.reason:
            raise patience.explain() from error
        remedy = "most likely memory ran out: lower --data.workers"
        raise MachineError("a decoding process was killed", why=str(error).splitlines()[0], remedy=remedy) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _watch(pool: ProcessPoolExecutor, jobs: Sequence[_Job]) -> Patience:
    """A limit on waiting for the next chunk: a process that is stopped goes before those that are only slow."""

    def describe() -> str:
        said = sorted((describe_process(pid, jobs[0].index.root) for pid in list(pool._processes)), key=_is_running)
        return said[0] if said else "decoding processes begin"

    def give_up() -> bool:
        processes = list(pool._processes.values())
        for process in processes:
            process.kill()  # the pool notices it
        return bool(processes)

    return Patience(max(len(job.index) for job in jobs), describe, give_up)


def _is_running(said: str) -> bool:
    return "is stopped" not in said


def _start_worker() -> None:
    torch.set_num_threads(1)
    end_with_training_process(0)


def _make_chunk(job: _Job) -> Footer:
    """Decode and resize the images of a chunk, and write it.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
        MachineError: the disk gives back something else than was written.
    """
    lengths = job.sizes.prod(axis=1) * job.channels
    pixels = np.zeros(int(lengths.sum()), np.uint8)
    ends = np.cumsum(lengths).tolist()
    bad_files = []
    for position, (end, length) in enumerate(zip(ends, lengths.tolist(), strict=True)):
        try:
            if position in job.enlarged:
                raise UnreadableImageError(job.enlarged[position])
            image = job.index.load_pixels(position, job.channels, job.max_pixels)
        except UnreadableImageError as error:
            bad_files.append((position, str(error)))
            continue
        pixels[end - length : end] = resize_pixels(image, *job.sizes[position].tolist()).reshape(-1)
    sums = tuple(zlib.crc32(part.data) for part in np.split(pixels, ends[:-1]))
    return write_chunk(job.path, pixels, dataclasses.replace(job.footer, bad_files=tuple(bad_files), sums=sums))
