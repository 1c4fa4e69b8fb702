"""What no run can mean: values out of range, lists of the wrong length, settings that contradict each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from alexnet_dist.base.addresses import is_address, parse_address
from alexnet_dist.base.bounds import describe_bounds, is_within
from alexnet_dist.base.errors import UsageError
from alexnet_dist.base.nested import flatten
from alexnet_dist.base.sources import SOURCES
from alexnet_dist.settings.schema import (
    Config,
    DataConfig,
    LayerFactors,
    ParallelConfig,
    ScheduleConfig,
    TrackingConfig,
    walk_fields,
)

# The setting that says when a schedule changes the rate: in epochs, in evaluations, in updates.
PERIODS = {"step": "schedule.step_epochs", "plateau": "schedule.patience", "halve_every": "schedule.halve_every_steps"}
TWO_TOWERS = ("paper", "source2012")  # variants
# Values of the settings that are lists; mean and std have one, or one for each channel.
LENGTHS = {
    "augment.crop_scale": 2,
    "augment.crop_ratio": 2,
    "augment.resize": 2,
    "augment.color_jitter": 4,
    "model.relu_after_pool": 3,
    "model.conv_channels": 5,
    "model.conv_groups": 5,
}
MAX_HUE = 0.5  # half a turn of the color circle
MAX_NAME_BYTES, MAX_PATH_BYTES = 255, 4_000  # what file systems take; of a path, less our own names below it
OWN_ENDING_BYTES = 40  # of what a folder is called while it is written, and of `--new`'s number


def check_config(config: Config, places: Mapping[str, str]) -> None:
    """Refuse values that no run can mean.

    Args:
        config: the settings.
        places: where each setting was read, for the message.

    Raises:
        UsageError: a value out of range, or settings that contradict each other.
    """
    values = flatten(config)
    for key, item in walk_fields(config):
        _check_bounds(key, values[key], dict(item.metadata), places.get(key, ""))
        check_text(key, values[key], places.get(key, ""))
    _check_lengths(config, places)
    _check_augment(config, places)
    _check_data(config, places)
    _check_schedule(config, places)
    _check_optimizer(config, places)
    _check_parallel(config, places)
    _check_store(config.tracking, places)
    if (config.train.epochs is None) == (config.train.max_steps is None):
        raise UsageError(
            "exactly one of train.epochs and train.max_steps is needed",
            where=places.get("train.epochs", ""),
            why="both are set" if config.train.epochs else "neither is set",
            remedy="set one and leave the other null",
        )


def _check_data(config: Config, places: Mapping[str, str]) -> None:
    data = config.data
    facts = SOURCES[data.source]
    if facts.needs_root and data.root is None and not (facts.can_download and data.download):
        what, otherwise = ("its files", " or --data.download true") if facts.can_download else ("images", "")
        raise UsageError(
            "data.root is missing",
            why=f"source {data.source} reads {what} there",
            remedy=f"set --data.root FOLDER{otherwise}",
        )
    if data.classes is not None and not facts.reads_list:
        raise _no_effect("data.classes", f"source {data.source} has its own class names", places)
    for key in ("columns.path", "columns.label", "columns.split", "image_dir", "image_suffix"):
        takes = facts.reads_list or (facts.has_columns and key in ("columns.path", "columns.label"))
        if not takes and flatten(data)[key] is not None:
            raise _no_effect(f"data.{key}", f"source {data.source} reads no list", places)
    if data.labels is not None and not facts.reads_archives:
        raise _no_effect("data.labels", f"source {data.source} reads no archives", places)
    if data.download and not facts.can_download:
        raise _no_effect("data.download", f"source {data.source} cannot be downloaded", places)
    _check_addresses(data, places)
    _check_folds(data, places)
    has_val = data.val is not None or data.val_fraction > 0 or facts.makes_val or data.folds is not None
    for key, needs_val in (
        ("train.early_stop", config.train.early_stop is not None),
        ("schedule.name", config.schedule.name == "plateau"),
    ):
        if needs_val and not has_val:
            raise UsageError(
                f"{key} needs a validation set", where=places.get(key, ""), remedy="set data.val or data.val_fraction"
            )


def _check_addresses(data: DataConfig, places: Mapping[str, str]) -> None:
    """Only data.root may be an address; one that cannot be meant is refused before anything is begun."""
    if data.root is not None and is_address(data.root):
        parse_address(data.root)
    for key in ("train", "val", "test", "classes", "image_dir", "cache_dir"):
        value = getattr(data, key)
        if value is not None and is_address(value):
            why, remedy = "only data.root may be one", f"set --data.root to the address, and --data.{key} below it"
            raise UsageError(f"data.{key} is an address", where=places.get(f"data.{key}", ""), why=why, remedy=remedy)


def _check_store(tracking: TrackingConfig, places: Mapping[str, str]) -> None:
    key, why = "tracking.mlflow", "a run writes to a file store alone, which no network delays"
    if is_address(tracking.mlflow):
        raise UsageError(f"{key} is an address", where=places.get(key, ""), why=why, remedy="give a folder")


def _check_folds(data: DataConfig, places: Mapping[str, str]) -> None:
    if data.folds is None:
        if data.fold is not None:
            raise _no_effect("data.fold", "data.folds is null", places)
        return
    if data.val is not None:
        raise UsageError(
            "data.folds and data.val exclude each other",
            where=places.get("data.folds", places.get("data.val", "")),
            why="a fold of data.train is the validation set",
            remedy="set --data.val null (data.train alone is then cut into folds), or leave the folds out",
        )
    if data.fold is not None and data.fold > data.folds:
        why = f"got {data.fold}, and there are {data.folds} folds"
        raise UsageError("data.fold is out of range", where=places.get("data.fold", ""), why=why, remedy="count from 1")


def check_fold_is_chosen(data: DataConfig) -> None:
    """Refuse to find a run's images where the settings say into how many folds, but not which is held out.

    Raises:
        UsageError: `data.folds` without `data.fold`.
    """
    if data.folds is not None and data.fold is None:
        remedy = "set --data.fold 1 for one of them, or use crossval for all"
        raise UsageError("data.fold is missing", why=f"data.folds is {data.folds}", remedy=remedy)


def _check_schedule(config: Config, places: Mapping[str, str]) -> None:
    """A period in a unit that the schedule does not count in is a mistake, not a wish to be passed over."""
    defaults = flatten(ScheduleConfig(), "schedule.")
    values = flatten(config.schedule, "schedule.")
    for name, key in PERIODS.items():
        if name != config.schedule.name and values[key] != defaults[key]:
            raise _no_effect(key, f"schedule {config.schedule.name} does not count in it, {name} does", places)


def _check_optimizer(config: Config, places: Mapping[str, str]) -> None:
    optimizer = config.optimizer
    layers = {item.name for item in fields(LayerFactors)}
    if layers <= set(optimizer.freeze) and optimizer.freeze_from_epoch == 0:
        why = "all layers are frozen: nothing learns"
        raise UsageError("optimizer.freeze is too long", where=places.get("optimizer.freeze", ""), why=why)
    if optimizer.freeze_from_epoch and not optimizer.freeze:
        raise _no_effect("optimizer.freeze_from_epoch", "optimizer.freeze names no layer", places)
    if config.kernels.update == "flat" and (optimizer.name, config.parallel.strategy) != ("sgd", "ddp"):
        why = "it is SGD, on a network that is not cut"
        remedy = "set --kernels.update auto, or --optimizer.name sgd and --parallel.strategy ddp"
        where = places.get("kernels.update", "")
        raise UsageError("kernels.update flat is not for this run", where=where, why=why, remedy=remedy)


def _check_parallel(config: Config, places: Mapping[str, str]) -> None:
    parallel, variant = config.parallel, config.model.variant
    needs_towers = {"strategy": parallel.strategy == "towers", "exchange_at": parallel.exchange_at != "all"}
    for name, is_needed in needs_towers.items():
        if is_needed and variant not in TWO_TOWERS:
            raise UsageError(
                f"parallel.{name} {getattr(parallel, name)} needs a network of two towers",
                where=places.get(f"parallel.{name}", ""),
                why=f"model.variant is {variant}",
                remedy=f"use {' or '.join(TWO_TOWERS)}",
            )
    users = {"exchange": ("towers", "hybrid"), "shard_size": ("hybrid",), "hybrid_schedule": ("hybrid",)}
    for name, strategies in users.items():
        is_set = getattr(parallel, name) != getattr(ParallelConfig(), name)
        if is_set and parallel.strategy not in strategies:
            raise _no_effect(f"parallel.{name}", f"parallel.strategy is {parallel.strategy}", places)


def _check_augment(config: Config, places: Mapping[str, str]) -> None:
    augment = config.augment
    if augment.lighting_epochs is not None and augment.lighting is None:
        raise _no_effect("augment.lighting_epochs", "augment.lighting is null", places)
    if augment.color_jitter is not None and augment.color_jitter[3] > MAX_HUE:
        raise UsageError(
            "augment.color_jitter is out of range",
            where=places.get("augment.color_jitter", ""),
            why=f"hue is {augment.color_jitter[3]:g}",
            remedy=f"the last of the four numbers is at most {MAX_HUE}",
        )
    for key in ("crop_scale", "crop_ratio"):
        low, high = getattr(augment, key)
        if low > high:
            raise UsageError(
                f"augment.{key} is out of order", why=f"{low} > {high}", remedy="give the smaller value first"
            )


def _no_effect(key: str, why: str, places: Mapping[str, str]) -> UsageError:
    return UsageError(f"{key} has no effect", where=places.get(key, ""), why=why, remedy="leave it out")


def _check_bounds(key: str, value: Any, bounds: dict[str, float], place: str) -> None:
    for number in value if isinstance(value, list) else [value]:
        if isinstance(number, int | float) and not isinstance(number, bool) and not is_within(number, bounds):
            wanted = f"use a finite value {describe_bounds(bounds)}".rstrip()
            raise UsageError(f"{key} is out of range", where=place, why=f"got {number}", remedy=wanted)


def check_text(key: str, value: Any, place: str) -> None:
    """Refuse a text that no file system would take as a path, where it would come to light as a traceback.

    Args:
        key: the setting, or the option.
        value: a text, a list of some, or anything else, which is passed over.
        place: where it was read, for the message.

    Raises:
        UsageError: a name in it is too long, or it holds a zero byte.
    """
    most = MAX_NAME_BYTES - (OWN_ENDING_BYTES if key == "output_dir" else 0)
    for text in value if isinstance(value, list) else [value]:
        if not isinstance(text, str):
            continue
        data = text.encode("utf-8", "surrogatepass")
        longest = max(map(len, data.split(b"/")))
        if longest > most or len(data) > MAX_PATH_BYTES:
            why = f"a name in it has {longest:,} bytes, and a name may have {most}"
            if longest <= most:
                why = f"it has {len(data):,} bytes, and a path may have {MAX_PATH_BYTES:,}"
            raise UsageError(f"{key} is too long", where=place, why=why, remedy="use a shorter one")
        if b"\0" in data:
            raise UsageError(f"{key} holds a zero byte", where=place, remedy="remove it")


def _check_lengths(config: Config, places: Mapping[str, str]) -> None:
    values = flatten(config)
    scales: set[int] = {1, config.model.in_channels}
    wanted: dict[str, set[int]] = {key: {length} for key, length in LENGTHS.items()}
    wanted |= {"augment.mean": scales, "augment.std": scales}
    for key, lengths in wanted.items():
        value = values[key]
        if isinstance(value, list) and len(value) not in lengths:
            counts = " or ".join(str(length) for length in sorted(lengths))
            why = f"got {len(value)} values"
            raise UsageError(f"{key} has the wrong length", where=places.get(key, ""), why=why, remedy=f"give {counts}")
