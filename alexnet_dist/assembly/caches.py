"""The image cache of a run: built by the main process before the first batch, while the others wait in short turns."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Generator, Iterator, Sequence

from alexnet_dist.base.errors import AlexNetDistError
from alexnet_dist.base.machine import available_cores
from alexnet_dist.base.signals import StopRequest, raise_stopped
from alexnet_dist.data.engines.cache.build import build_store, iterate_build
from alexnet_dist.data.engines.cache.engine import find_layout
from alexnet_dist.data.engines.cache.store import Layout
from alexnet_dist.data.engines.loader import Loader
from alexnet_dist.parallel.runtime import Runtime
from alexnet_dist.settings.schema import DataConfig

logger = logging.getLogger("alexnet_dist")

TURN_SECONDS = 1.0


def choose_builders(data: DataConfig) -> int:
    """Processes that build a cache: all cores, because nothing else runs yet."""
    return available_cores() if data.workers is None else data.workers


def build_caches(runtime: Runtime, data: DataConfig, loaders: Sequence[Loader], stop: StopRequest) -> None:
    """Cache the images of some loaders, as far as they are not; all processes come back when all is there.

    Args:
        runtime: this process among the others.
        data: the settings.
        loaders: they say which images, and how large.
        stop: the signals this process received.

    Raises:
        InterruptedRunError: some process was asked to stop. What was built is kept.
        BadFilesError: images that cannot be decoded under `data.on_bad_file: fail`; all of them.
        DataError: a damaged or foreign cache.
        MachineError: no space, no permission, or a decoding process was killed.
    """
    layouts = list(map(find_layout, loaders))
    with contextlib.closing(_build_all(layouts, data)) as turns:
        # In turns, because a process that waits for a collective longer than half an hour gives up.
        while not runtime.on_main(lambda: _take_turn(turns)):
            raise_stopped(runtime.agree(*stop.counts()))
    runtime.raise_together(_build_elsewhere(layouts, data))


def _build_all(layouts: Sequence[Layout], data: DataConfig) -> Generator[int]:
    for layout in layouts:
        started, num_built = time.monotonic(), 0
        for done in iterate_build(layout, workers=choose_builders(data), on_bad_file=data.on_bad_file, progress=True):
            num_built += done
            yield done
        if num_built:
            seconds = time.monotonic() - started
            size = layout.total_bytes / 1e6
            logger.info("cached %s images in %.0f s: %.1f MB in %s", f"{num_built:,}", seconds, size, layout.folder)


def _take_turn(turns: Iterator[int]) -> bool:
    """Build for a while; whether all is done."""
    end = time.monotonic() + TURN_SECONDS
    return all(time.monotonic() < end for _ in turns)


def _build_elsewhere(layouts: Sequence[Layout], data: DataConfig) -> AlexNetDistError | None:
    """Build where another machine's disk has no cache yet: data.cache_dir need not be shared."""
    try:
        for layout in layouts:
            if not layout.is_whole:
                build_store(layout, workers=choose_builders(data), on_bad_file=data.on_bad_file, progress=False)
    except AlexNetDistError as error:
        return error
    return None
