"""The images of a training for programs of one's own: `make_index` lists them, `make_loader` makes their batches.

Options are the settings of the same names, checked by the same rules; what they become is what a run uses.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import logging
import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack, cast

import torch
from torch import Tensor

from alexnet_dist.assembly.caches import choose_builders
from alexnet_dist.assembly.loaders import (
    INPUT_DTYPES,
    Feed,
    build_augmentation,
    build_normalization,
    build_plan,
    settle_batch_sizes,
)
from alexnet_dist.assembly.sets import make_options
from alexnet_dist.base.addresses import is_address
from alexnet_dist.base.machine import find_device
from alexnet_dist.base.places import find_cache_dir
from alexnet_dist.base.ranks import local_world_size_from_environment, rank_from_environment
from alexnet_dist.data.engines.cache.build import build_store
from alexnet_dist.data.engines.cache.engine import find_layout
from alexnet_dist.data.engines.choose import REFERENCE, choose_engine, choose_evaluation_engine
from alexnet_dist.data.engines.loader import Batch, Loader
from alexnet_dist.data.engines.workers import start_worker_server
from alexnet_dist.data.index import BadFile, SampleIndex
from alexnet_dist.data.remote.keep import fetch_copy
from alexnet_dist.data.sources.source import index_path, open_source
from alexnet_dist.parallel.runtime import share_first
from alexnet_dist.settings.reader import settle_config
from alexnet_dist.settings.schema import AugmentConfig, Config, DataConfig
from alexnet_dist.training.gate import name_bad_file

logger = logging.getLogger("alexnet_dist")

SET = "set"  # there is one, whatever it is called
PRECISIONS = {dtype: name for name, dtype in INPUT_DTYPES.items() if name != "tf32"}


class IndexOptions(TypedDict, total=False):
    """What `make_index` takes beside: settings below `data`."""

    class_list: str | Path  # data.classes: the file that names a manifest's classes
    columns: Mapping[str, str | int]  # of a table: path, label, split
    image_dir: str
    image_suffix: str
    download: bool
    synthetic_images: int
    synthetic_classes: int
    synthetic_size: int
    on_bad_file: Literal["fail", "skip"]
    max_pixels: int
    cache_dir: str | Path


class LoaderOptions(TypedDict, total=False):
    """What `make_loader` takes beside: settings below `augment` and `data`, and where batches go."""

    classes: Sequence[str]  # of the training set, for another set's folder
    in_channels: Literal[1, 3]  # 3
    device: str | torch.device  # "auto": the GPU where there is one
    channels_last: bool  # True
    dtype: torch.dtype  # of the images: torch.float32, or what autocast makes of them
    resize: int | Sequence[int] | None
    crop: Literal["centre", "random", "random_resized"]
    crop_scale: Sequence[float]
    crop_ratio: Sequence[float]
    horizontal_flip: float
    vertical_flip: float
    lighting: Literal["source2012", "common"] | None
    lighting_std: float
    lighting_epochs: int | None
    pixel_range: Literal[1, 255]
    color_jitter: Sequence[float] | None
    random_erasing: float
    mean: Sequence[float] | None
    std: Sequence[float] | None
    order: Literal["global", "blocks"]
    order_window: int
    workers: int | None
    prefetch: int
    hw_decoder_load: float
    on_bad_file: Literal["fail", "skip"]
    max_pixels: int
    cache_dir: str | Path


@dataclass(frozen=True)
class Seat:
    """Which of the processes this is, and where its batches go; see `Place`."""

    device: torch.device
    dp_rank: int
    dp_size: int
    processes_here: int
    precision: str


class BatchLoader:
    """One process's batches: (images, labels, mask) on the device, made by `make_loader`.

    Images: (B, in_channels, crop_size, crop_size). Labels: (B,) int64. Mask: (B,) float32, 1 for a row that holds an
    image and 0 for one that fills up the last batch of an epoch or stands for a bad file; its label is then 0.

    A loop over it gives an epoch, the first time epoch 0, then the next one each time, or the one of `set_epoch`.
    Workers and threads end with the loop, also with one that is left by `break` or by an error.

    Args:
        loader: makes the batches.
        engine: its name.
        engine_reason: why that one.
        skips_bad_files: leave bad files out instead of raising.
        bad_files: known already.
    """

    def __init__(
        self, loader: Loader, engine: str, engine_reason: str, skips_bad_files: bool, bad_files: set[BadFile]
    ) -> None:
        self._loader, self._skips = loader, skips_bad_files
        self.engine, self.engine_reason = engine, engine_reason
        self.bad_files = bad_files
        self.epoch = 0

    @property
    def index(self) -> SampleIndex:
        """The images."""
        return self._loader.index

    @property
    def classes(self) -> tuple[str, ...]:
        """Names by label."""
        return self._loader.index.classes

    def __len__(self) -> int:
        """Steps an epoch, the last one possibly with rows that only fill it up."""
        return self._loader.plan.steps_per_epoch

    def set_epoch(self, epoch: int) -> None:
        """Let the next loop give this epoch, counted from 0: its order, crops, flips and colors."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The batches of an epoch."""
        epoch = self.epoch
        yield from self.batches(epoch * len(self), (epoch + 1) * len(self))
        self.epoch = epoch + 1

    def batches(self, start: int, stop: int | None = None) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The batches of steps `start` to `stop` - 1, counted from 0 over all epochs.

        Step s is the same batch whatever was asked for before: a training that was broken off goes on at its step.

        Args:
            start: first step.
            stop: step after the last; None: the end of the epoch that `start` lies in.

        Raises:
            BadFilesError: a file that cannot be decoded, unless `on_bad_file` is "skip".
            MachineError: a decoding process was killed, or the like.
            ValueError: a negative step.
        """
        end = (start // len(self) + 1) * len(self) if stop is None else stop
        if start < 0:
            raise ValueError(f"steps count from 0, got {start}")
        return self._iterate(start, end)

    def _iterate(self, start: int, stop: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        made = cast("Generator[Batch]", self._loader.batches(start, stop))
        with contextlib.closing(made):
            for batch in made:
                self._judge(batch.bad_files)
                yield batch.images, batch.labels, batch.mask

    def _judge(self, bad_files: list[BadFile]) -> None:
        error = None if self._skips else name_bad_file(bad_files)
        if error is not None:
            raise error
        for bad in bad_files:
            if bad not in self.bad_files:
                logger.warning("%s is left out: %s", bad.path, bad.reason)
                self.bad_files.add(bad)


def make_index(
    root: str | Path | None,
    part: str | None = None,
    *,
    source: str = "folder",
    split: Literal["train", "val", "test"] = "train",
    classes: Sequence[str] | None = None,
    **options: Unpack[IndexOptions],
) -> SampleIndex:
    """List the images of a set and read their sizes, which are remembered in `cache_dir`.

    Args:
        root: folder that `part` and the paths of a list are relative to. Without `part`, the set itself: a folder with
            a folder for each class, or a list. An address (s3://, https://, hf://) is fetched into `cache_dir` once.
            None for sources that have no files of one's own.
        part: what the setting data.train names: a folder or list below the root, or a part of the source.
        source: folder, manifest, or another one that the setting data.source names.
        split: which rows of a list with a column for it; the source synthetic draws other images for each.
        classes: of the training set, where this is another set; else they are found.
        options: of the settings below `data`: class_list (data.classes), columns, image_dir, image_suffix, download,
            synthetic_images, synthetic_classes, synthetic_size, on_bad_file, max_pixels, cache_dir.

    Raises:
        UsageError: an option that cannot be meant.
        DataError: images, folders or lists that are missing or damaged, or a class that `classes` lacks.
        TypeError: an unknown option.
    """
    _check_names("make_index", options, IndexOptions)
    values = {f"data.{'classes' if name == 'class_list' else name}": value for name, value in options.items()}
    if root is not None and is_address(str(root)):
        root = fetch_copy(str(root), find_cache_dir(options.get("cache_dir")), shown=_is_first())
    if root is not None and part is None:
        whole = Path(os.path.abspath(root))
        root, part = whole.parent, whole.name
    data = _read_settings("make_index", {**values, "data.source": source, "data.root": root}).data
    listing = dataclasses.replace(
        make_options(data, progress=_is_first()), parts={split: part if part is not None else split}
    )
    found = open_source(source)
    listing = found.prepare(listing)
    found.check(listing)
    return found.list_split(listing, split, _freeze(classes))


def make_loader(
    root_or_index: str | Path | SampleIndex,
    batch_size: int,
    crop_size: int,
    engine: str = "auto",
    training: bool = True,
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
    **options: Unpack[LoaderOptions],
) -> BatchLoader:
    """The batches of a training, or of an evaluation, for a loop of one's own; see `BatchLoader`.

    Batches depend on the images, the seed and the options alone: not on the engine, the workers or the number of
    processes, and a resumed loop needs one integer. (Engines decode and resize by programs of their own: their crops
    may differ by two gray levels.)

    Args:
        root_or_index: a folder with a folder of images for each class, a list of `path label` lines or a CSV table
            beside what it lists, or what `make_index` gives.
        batch_size: images of a batch over all processes; each gets an equal, consecutive part of it.
        crop_size: side of the crops in pixels: the network's image_size.
        engine: auto, torchvision, dali or cache. cache first builds what is missing in `cache_dir`.
        training: shuffled, with random crops, flips and colors; else in the order of the index, with center crops.
        seed: of order and augmentation.
        rank: of this process, from 0.
        world_size: processes that share each batch.
        options: classes (of the training set, for another set's folder), in_channels, device, channels_last, dtype; and
            of the settings below `augment` and `data`: resize, crop, crop_scale, crop_ratio, horizontal_flip,
            vertical_flip, lighting, lighting_std, lighting_epochs, pixel_range, color_jitter, random_erasing, mean,
            std, order, order_window, workers, prefetch, hw_decoder_load, on_bad_file, max_pixels, cache_dir.

    Raises:
        UsageError: an option that cannot be meant, or a batch that the processes cannot share.
        DataError: no such folder or list, no images, or a training set smaller than a batch.
        MachineError: an engine or a device that is not there.
        ValueError: a rank outside 0 .. world_size - 1, a dtype that no engine makes, or classes that the index has not.
        TypeError: an unknown option.
    """
    _check_names("make_loader", options, LoaderOptions)
    seat = _take_seat(rank, world_size, options.get("device", "auto"), options.get("dtype", torch.float32))
    given = {"train.global_batch_size": batch_size, "model.image_size": crop_size, "data.engine": engine, "seed": seed}
    config = _read_settings("make_loader", {**given, **_place_options(options)})
    index = _find_index(root_or_index, config.data, options.get("classes"))
    feed = _build_feed(config, seat, index, training)
    if training:
        engine, reason = share_first(partial(choose_engine, engine, feed.load(SET, REFERENCE)), world_size)
    else:
        reason = "evaluations take the reference" if engine == "auto" else "set by data.engine"
        engine = choose_evaluation_engine(engine, engine != "auto")
    loader = feed.load(SET, engine)
    if engine == "cache":
        workers, fate = choose_builders(config.data), config.data.on_bad_file
        build_store(find_layout(loader), workers=workers, on_bad_file=fate, progress=_is_first())
    if loader.workers:
        start_worker_server()
    return BatchLoader(loader, engine, reason, config.data.on_bad_file == "skip", feed.find_bad_files())


def _build_feed(config: Config, seat: Seat, index: SampleIndex, training: bool) -> Feed:
    batch_size, recipe = config.train.global_batch_size, build_augmentation(config.augment, config.model.image_size)
    settle_batch_sizes(batch_size, None, seat.dp_size, len(index) if training else batch_size)
    recipe = recipe if training else recipe.for_evaluation()
    plan = build_plan(config.data, index, recipe, batch_size, config.seed, shuffle=training)
    normalization = build_normalization(config.augment, config.model.in_channels)
    return Feed(seat, config.data, {SET: index}, {SET: plan}, normalization, config.channels_last)


def _take_seat(rank: int, world_size: int, device: str | torch.device, dtype: torch.dtype) -> Seat:
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must lie in 0 .. world_size - 1, got rank {rank} and world_size {world_size}")
    if dtype not in PRECISIONS:
        raise ValueError(f"dtype must be one of {', '.join(map(str, PRECISIONS))}, got {dtype}")
    return Seat(find_device(device), rank, world_size, local_world_size_from_environment(world_size), PRECISIONS[dtype])


def _find_index(
    root_or_index: str | Path | SampleIndex, data: DataConfig, classes: Sequence[str] | None
) -> SampleIndex:
    if isinstance(root_or_index, SampleIndex):
        if classes is not None and tuple(classes) != root_or_index.classes:
            raise ValueError("the index has other classes; give them to make_index")
        return root_or_index
    return index_path(Path(root_or_index), make_options(data, progress=_is_first()).rules, _freeze(classes))


def _freeze(classes: Sequence[str] | None) -> tuple[str, ...] | None:
    return None if classes is None else tuple(classes)


def _is_first() -> bool:
    """Whether this process shows bars where something takes long."""
    return rank_from_environment() == 0


def _place_options(options: LoaderOptions) -> dict[str, Any]:
    """Options as settings, {dotted name: value}; what is no setting is left out."""
    sections = {"in_channels": "model.", "channels_last": ""}
    sections |= {item.name: "augment." for item in dataclasses.fields(AugmentConfig)}
    sections |= {item.name: "data." for item in dataclasses.fields(DataConfig) if item.name != "classes"}
    return {sections[name] + name: value for name, value in options.items() if name in sections}


def _read_settings(function: str, values: Mapping[str, Any]) -> Config:
    """Checked settings; those of a run are left out, and images are found by `make_index`."""
    return settle_config({"data.source": "synthetic", "train.epochs": 1}, values, f"{function}()")


def _check_names(function: str, options: Mapping[str, Any], known: Any) -> None:
    names = list(known.__annotations__)
    for name in options:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(names)}"
            raise TypeError(f"{function}() got an unexpected keyword argument {name!r} ({hint})")
