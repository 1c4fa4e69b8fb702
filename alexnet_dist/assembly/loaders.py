"""From settings to the parts of a run: here, and for the images in sets.py, fields of a `Config` become arguments."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from alexnet_dist.assembly.sets import cache_dir
from alexnet_dist.base.errors import DataError, UsageError
from alexnet_dist.base.text import name_few
from alexnet_dist.data.draws import Blocks
from alexnet_dist.data.engines.choose import ENGINES
from alexnet_dist.data.engines.loader import Loader, Normalization, choose_workers, make_normalization
from alexnet_dist.data.index import BadFile, BadFilesError, SampleIndex
from alexnet_dist.data.plan import Augmentation, Plan, share_rows
from alexnet_dist.models import AlexNetSpec
from alexnet_dist.parallel.runtime import Runtime, start_runtime
from alexnet_dist.settings.schema import AugmentConfig, Config, DataConfig

logger = logging.getLogger("alexnet_dist")

UNFIT_REMEDY = "remove it, set data.on_bad_file: skip, or change augment.resize"
RESIZE_REMEDY = "set augment.resize to model.image_size or more"

# What autocast makes of the network's input: the loader writes it at once, in half the memory.
INPUT_DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def join_processes(config: Config, precision: tuple[str, str] | None = None) -> Runtime:
    """Join the other processes of a run; see `start_runtime`.

    Args:
        config: the settings.
        precision: that of the run until now and why; None = as the settings say.
    """
    name, reason = precision or (config.precision, "")
    return start_runtime(
        config.device,
        name,
        precision_reason=reason,
        strategy=config.parallel.strategy,
        shard_size=config.parallel.shard_size,
    )


def build_augmentation(augment: AugmentConfig, crop_size: int) -> Augmentation:
    """The training recipe for an image."""
    resize, jitter = augment.resize, augment.color_jitter
    return Augmentation(
        crop_size=crop_size,
        resize=(resize[0], resize[1]) if isinstance(resize, list) else resize,
        crop=augment.crop,
        crop_scale=(augment.crop_scale[0], augment.crop_scale[1]),
        crop_ratio=(augment.crop_ratio[0], augment.crop_ratio[1]),
        horizontal_flip=augment.horizontal_flip,
        vertical_flip=augment.vertical_flip,
        lighting=augment.lighting,
        lighting_std=augment.lighting_std,
        lighting_epochs=augment.lighting_epochs,
        color_jitter=(jitter[0], jitter[1], jitter[2], jitter[3]) if jitter is not None else None,
        random_erasing=augment.random_erasing,
    )


def build_normalization(augment: AugmentConfig, channels: int) -> Normalization:
    """The network's input scale."""
    return make_normalization(channels, augment.pixel_range, augment.mean, augment.std)


def build_plan(
    data: DataConfig, index: SampleIndex, recipe: Augmentation, global_batch_size: int, seed: int, shuffle: bool
) -> Plan:
    """The batches of a set; see `Plan`. Images that the recipe cannot be carried out on count as bad files.

    Raises:
        BadFilesError: there are such images, and bad files are not skipped; all of them.
        DataError: there are no others.
        UsageError: blocks are asked for, and each image has a file of its own.
    """
    blocks = find_blocks(data, index) if shuffle else None
    plan = Plan(index.sizes, recipe, global_batch_size, seed, shuffle, skips_unfit=True, blocks=blocks)
    unfit = list_unfit(index, plan)
    if len(unfit) == len(index) > 0:
        raise DataError("no image fits the recipe", where=index.place, why=unfit[0].reason, remedy=RESIZE_REMEDY)
    if unfit and data.on_bad_file == "fail":
        raise BadFilesError(index.root, unfit, UNFIT_REMEDY, what="an image does not fit the recipe")
    return plan


def find_blocks(data: DataConfig, index: SampleIndex) -> Blocks | None:
    """The images that lie in one file, where `data.order` asks for blocks.

    Raises:
        UsageError: it does, and each image has a file of its own.
    """
    if data.order == "global":
        return None
    if index.containers is None:
        why = f"data.source is {data.source}: its images lie in no archives"
        remedy = "leave it at global, or write archives with `prepare pack`"
        raise UsageError("data.order is blocks", where=index.place, why=why, remedy=remedy)
    return Blocks(index.containers.numbers, data.order_window)


def list_unfit(index: SampleIndex, plan: Plan) -> tuple[BadFile, ...]:
    """The images that a plan's recipe cannot be carried out on."""
    return tuple(BadFile(index.paths[sample], reason) for sample, reason in plan.unfit.items())


class Place(Protocol):
    """Where a loader's batches go, and which share of them: what it asks of a `Runtime`."""

    @property
    def device(self) -> torch.device: ...
    @property
    def dp_rank(self) -> int: ...
    @property
    def dp_size(self) -> int: ...
    @property
    def processes_here(self) -> int: ...
    @property
    def precision(self) -> str: ...


def build_loader(
    place: Place,
    data: DataConfig,
    index: SampleIndex,
    plan: Plan,
    normalization: Normalization,
    channels_last: bool,
    engine: str = "torchvision",
) -> Loader:
    """One replica's batches of a set."""
    on_gpu = place.device.type == "cuda"
    return Loader(
        plan=plan,
        index=index,
        normalization=normalization,
        channels=len(normalization.mean),
        max_pixels=data.max_pixels,
        shard_id=place.dp_rank,
        num_shards=place.dp_size,
        device=place.device,
        channels_last=channels_last,
        workers=choose_workers(data.workers, on_gpu, place.processes_here),
        engine=ENGINES[engine],
        cache_dir=cache_dir(data),
        prefetch=data.prefetch,
        hw_decoder_load=data.hw_decoder_load,
        dtype=INPUT_DTYPES[place.precision],
    )


@dataclass(frozen=True)
class BatchSizes:
    """The arithmetic of a batch: global = micro x replicas x accumulation, or less where machines come and go.

    Args:
        global_: samples per update.
        micro: samples per replica per forward, at most.
        replicas: copies of the network.
        accumulation: forwards per update.
    """

    global_: int
    micro: int
    replicas: int
    accumulation: int

    def __str__(self) -> str:
        most = "" if self.is_even else "up to "
        return f"{self.global_} = {most}{self.micro} x {self.replicas} replicas x {self.accumulation} accumulation"

    @property
    def is_even(self) -> bool:
        """Whether each forward of each replica has as many samples."""
        return self.global_ == self.micro * self.replicas * self.accumulation


def settle_batch_sizes(
    global_size: int, micro_size: int | None, replicas: int, num_train: int, holders: str = "processes"
) -> BatchSizes:
    """Check the arithmetic of a batch.

    Args:
        global_size: samples per update.
        micro_size: samples per replica per forward; None = its whole share.
        replicas: copies of the network.
        num_train: images of the training set.
        holders: what hold a copy each, for messages.

    Raises:
        UsageError: sizes that do not divide; the line names the nearest that do.
        DataError: a batch larger than the training set.
    """
    if global_size % replicas:
        lower = global_size // replicas * replicas
        near = " or ".join(str(size) for size in (lower, lower + replicas) if size)
        fitting = [number for number in range(1, global_size + 1) if global_size % number == 0]
        few = [number for number in fitting if number < replicas][-2:]
        many = [number for number in fitting if number > replicas][:2]
        numbers = name_few(few + many)
        raise UsageError(
            f"train.global_batch_size {global_size} cannot be shared by {replicas} {holders}",
            remedy=f"use {near}, or another number of {holders}: {numbers}",
        )
    per_replica = global_size // replicas
    micro = micro_size or per_replica
    if per_replica % micro:
        divisors = [size for size in range(1, per_replica + 1) if per_replica % size == 0]
        near = " or ".join(str(size) for size in sorted(divisors, key=lambda size: abs(size - micro))[:2])
        raise UsageError(
            f"train.micro_batch_size {micro} does not divide {per_replica}",
            why=f"global batch {global_size} over {replicas} {holders}",
            remedy=f"use {near}",
        )
    if global_size > num_train:
        raise DataError(
            f"train.global_batch_size {global_size} is larger than the training set",
            why=f"{num_train} images",
            remedy=f"set --train.global_batch_size {num_train // replicas * replicas} or less",
        )
    return BatchSizes(global_size, micro, replicas, per_replica // micro)


def share_batch(global_size: int, micro_size: int | None, replicas: int, most: int | None) -> BatchSizes:
    """The arithmetic of a batch over as many replicas as there are: their parts may differ by some samples.

    The update is that of the whole batch all the same: it sums over samples, and divides by their number.

    Args:
        global_size: samples per update.
        micro_size: samples per replica per forward, at most; None = its whole share.
        replicas: copies of the network.
        most: samples per forward of earlier starts, which had more memory together; None = not known.
    """
    rows = share_rows(global_size, replicas)
    accumulation = share_rows(rows, min(filter(None, (micro_size, most, rows))))
    return BatchSizes(global_size, share_rows(rows, accumulation), replicas, accumulation)


@dataclass(frozen=True, eq=False)
class Feed:
    """The sets of a run, each with the plan of its batches: what its loaders are made from.

    Args:
        place: this process among the others.
        data: the settings.
        sets: by name: train, val and test, those that are there.
        plans: of these sets.
        normalization: the network's input scale.
        channels_last: memory layout of the images.
    """

    place: Place
    data: DataConfig
    sets: Mapping[str, SampleIndex]
    plans: Mapping[str, Plan]
    normalization: Normalization
    channels_last: bool

    def load(self, name: str, engine: str) -> Loader:
        """The batches of a set, made by an engine."""
        index, plan = self.sets[name], self.plans[name]
        return build_loader(self.place, self.data, index, plan, self.normalization, self.channels_last, engine)

    def load_all(self, engine: str) -> list[Loader]:
        """The batches of every set."""
        return [self.load(name, engine) for name in self.sets]

    def find_bad_files(self) -> set[BadFile]:
        """The files that are left out, with full paths: those that cannot be read, or do not fit the recipe."""
        found: set[BadFile] = set()
        for name, index in self.sets.items():
            bad_files = (*index.bad_files, *list_unfit(index, self.plans[name]))
            found |= {BadFile(str(index.root / bad.path), bad.reason) for bad in bad_files}
        return found


def build_feed(
    config: Config, runtime: Runtime, sets: Mapping[str, SampleIndex], spec: AlexNetSpec, sizes: BatchSizes
) -> Feed:
    """What the loaders of a run are made from; the main process says which images are left out.

    Args:
        config: the settings.
        runtime: this process among the others.
        sets: by name: train, val and test, those that are there.
        spec: the network.
        sizes: the arithmetic of a batch.

    Raises:
        BadFilesError: the recipe cannot be carried out on some images, and bad files are not skipped; all of them.
        DataError: there are no others.
    """
    recipe = build_augmentation(config.augment, spec.image_size)

    def plan_set(name: str, index: SampleIndex) -> Plan:
        training = name == "train"
        plan = build_plan(
            config.data,
            index,
            recipe if training else recipe.for_evaluation(),
            global_batch_size=sizes.global_ if training else sizes.micro * runtime.dp_size,
            seed=config.seed,
            shuffle=training,
        )
        unfit = list_unfit(index, plan)
        if unfit:
            text, first = "%d of %d images do not fit the recipe and are left out (%s)", unfit[0]
            logger.warning(text, len(unfit), len(index), f"{first.path}: {first.reason}")
        return plan

    # The main process first: what it refuses is everybody's error, once.
    plans = runtime.main_first(lambda: {name: plan_set(name, index) for name, index in sets.items()})
    normalization = build_normalization(config.augment, spec.in_channels)
    return Feed(runtime, config.data, sets, plans, normalization, config.channels_last)


def place_model(model: torch.nn.Module, runtime: Runtime, channels_last: bool) -> None:
    """Move a network to the device, in the layout of its batches."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model.to(device=runtime.device, memory_format=layout)  # type: ignore[call-overload]
