"""HOW a plan is carried out: the engines by name, and which one a run takes."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch

from alexnet_dist.base.errors import AlexNetDistError, MachineError
from alexnet_dist.data.decode import UnreadableImageError
from alexnet_dist.data.engines import torchvision as torchvision_engine
from alexnet_dist.data.engines.cache import engine as cache_engine
from alexnet_dist.data.engines.cache.engine import find_layout
from alexnet_dist.data.engines.cache.store import FOLDER
from alexnet_dist.data.engines.dali import engine as dali_engine
from alexnet_dist.data.engines.loader import Batch, Engine, Loader
from alexnet_dist.data.index import SampleIndex

ENGINES: dict[str, Engine] = {
    "torchvision": torchvision_engine.iterate_batches,
    "cache": cache_engine.iterate_batches,
    "dali": dali_engine.iterate_batches,
}

logger = logging.getLogger("alexnet_dist")

REFERENCE = "torchvision"
FEW_IMAGES = 1000  # an epoch of fewer ends before a faster engine has made up for the measurement
MARGIN = 1.05  # as much faster another engine must be than the reference
MEASURED_BATCH, MEASURED_BATCHES = 32, 16  # their files are read before, and then decoded again and again
SECONDS = 1.0  # for reading these files, and for each engine
MANY_STEPS = 10**6


def choose_engine(requested: str, loader: Loader) -> tuple[str, str]:
    """The engine to use, and the reason.

    Args:
        requested: data.engine.
        loader: of the training set; its own engine does not matter.

    Raises:
        MachineError: an engine was asked for that cannot run here.
    """
    if requested != "auto":
        check_engine(requested)
        return requested, "set by data.engine"
    if _has_cache(loader):
        return "cache", "built for this recipe"
    if not loader.index.has_files:
        return REFERENCE, "the pictures lie in no files"
    if len(loader.index) < FEW_IMAGES:
        return REFERENCE, f"few images: {len(loader.index)}"  # DALI need not even be imported
    obstacle = find_obstacle("dali")
    if obstacle:
        return REFERENCE, obstacle
    return _judge(compare_engines(loader, [REFERENCE, "dali"]))


def choose_evaluation_engine(requested: str, is_given: bool) -> str:
    """The engine of an evaluation: the one that is named, and without a name the reference.

    Args:
        requested: data.engine.
        is_given: it comes from the command line, not from the run that made the model.

    Raises:
        MachineError: an engine was asked for that cannot run here.
    """
    if is_given:
        check_engine(requested)
    obstacle = find_obstacle(requested)
    if obstacle:
        logger.warning("engine %s, with which the model was trained, cannot run: %s", requested, obstacle)
    return REFERENCE if requested == "auto" or obstacle else requested


def check_engine(name: str) -> None:
    """Refuse an engine that cannot run on this machine.

    Raises:
        MachineError: it cannot.
    """
    obstacle = find_obstacle(name)
    if obstacle:
        raise MachineError(f"data.engine {name} cannot run", why=obstacle, remedy=dali_engine.REMEDY)


def find_obstacle(name: str) -> str | None:
    """Why an engine cannot run on this machine, or None."""
    return dali_engine.find_dali() if name == "dali" else None


def _has_cache(loader: Loader) -> bool:
    """Whether the images have been cached for this recipe."""
    if loader.plan.augmentation.crop == "random_resized" or not (loader.cache_dir / FOLDER).is_dir():
        return False
    return find_layout(loader).is_whole


def _judge(speeds: dict[str, float]) -> tuple[str, str]:
    """The fastest engine; the reference where it is about as fast."""
    reference = speeds.get(REFERENCE, 0.0)
    if not reference:
        return REFERENCE, "files are read too slowly to compare engines"
    fastest = max(speeds, key=speeds.__getitem__)
    if speeds[fastest] > MARGIN * reference:
        times = f"{speeds[fastest] / reference:.1f} times {REFERENCE}'s {reference:.0f} images/s"
        return fastest, f"{times} in a short measurement"
    others = [f"{name} {speed:.0f}" for name, speed in speeds.items() if name != REFERENCE]
    return REFERENCE, f"{reference:.0f} images/s in a short measurement, {', '.join(others)}"


def compare_engines(loader: Loader, names: Sequence[str]) -> dict[str, float]:
    """Images per second of several engines on the same few files of a run; 0 for one that fails.

    Nothing of it stays behind: no process, no thread, no generator of random numbers in another state.

    Args:
        loader: of the training set.
        names: of engines. The reference must not fail.

    Returns:
        Speeds by name; nothing where files are read too slowly to tell engines apart.
    """
    logger.info("comparing data loaders: %s", ", ".join(names))
    sample = _take_sample(loader)
    if sample is None:
        return {}
    speeds = {}
    for name in names:
        try:
            speeds[name] = measure_speed(replace(sample, engine=ENGINES[name]))
        except (AlexNetDistError, OSError, RuntimeError) as error:
            if name == REFERENCE:
                raise
            logger.warning("engine %s failed: %s", name, " ".join(str(error).split()))
            speeds[name] = 0.0
    dali_engine.release_memory()
    return speeds


def measure_speed(loader: Loader) -> float:
    """Images per second of a loader, for a second after its first batches."""
    with contextlib.closing(cast("Generator[Batch]", loader.batches(0, MANY_STEPS))) as batches:
        for _ in range(max(1, loader.workers)):  # processes start, and the first of each arrive together
            next(batches)
        num_images, seconds, began = 0, 0.0, time.perf_counter()
        while seconds < SECONDS:
            num_images += next(batches).num_images
            if loader.device.type == "cuda":
                torch.cuda.synchronize(loader.device)
            seconds = time.perf_counter() - began
    return num_images / seconds


def _take_sample(loader: Loader) -> Loader | None:
    """The loader of one process, in smaller batches, over its first few files; None if they are read too slowly."""
    plan = replace(loader.plan, global_batch_size=MEASURED_BATCH)
    first = [sample for step in range(MEASURED_BATCHES) for sample in plan.at(step).ids.tolist() if sample >= 0]
    index = loader.index.subset(first)
    index = index.subset(range(_read_files(index)))
    if len(index) < MEASURED_BATCH:
        return None
    plan = replace(plan, sizes=index.sizes, blocks=None)  # which are those of all files
    return replace(loader, plan=plan, index=index, shard_id=0, num_shards=1)


def _read_files(index: SampleIndex) -> int:
    """Read the files into the page cache for a second; how many there was time for."""
    end = time.perf_counter() + SECONDS
    for number in range(len(index)):
        if time.perf_counter() > end:
            return number
        with contextlib.suppress(OSError, UnreadableImageError):
            encoded = index.find_encoded(number)
            if isinstance(encoded, str):
                Path(encoded).read_bytes()
    return len(index)
