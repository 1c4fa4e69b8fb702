"""From settings to the parts of a run: the only place where fields of a `Config` become arguments."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from alexnet_dist.config import AugmentConfig, DataConfig, ModelConfig
from alexnet_dist.data.digits import prepare_digits
from alexnet_dist.data.loader import Loader, Normalization, choose_workers, make_normalization
from alexnet_dist.data.plan import Augmentation, Plan
from alexnet_dist.data.samples import SampleIndex, scan_folder, split_validation, synthetic_index
from alexnet_dist.errors import DataError, UsageError
from alexnet_dist.models import AlexNetSpec, make_spec
from alexnet_dist.parallel.runtime import Runtime
from alexnet_dist.training.run_folder import default_cache_dir

SYNTHETIC_VAL_PART = 8  # one validation image for so many training images
SPEC_FIELDS = tuple(AlexNetSpec.__dataclass_fields__)


@dataclass(frozen=True)
class Splits:
    """The sets of a run.

    Args:
        train: training images.
        val: validation images; None without any.
        test: test images; None without any.
        is_held_out: whether val was kept out of the training folder.
    """

    train: SampleIndex
    val: SampleIndex | None
    test: SampleIndex | None
    is_held_out: bool

    def fingerprint(self) -> str:
        """sha256 of all sets: equal where every file, label and class is."""
        parts = [index.fingerprint() if index else "" for index in (self.train, self.val, self.test)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def build_splits(data: DataConfig, seed: int, progress: bool) -> Splits:
    """Find a run's images.

    Raises:
        DataError: missing or empty folders, bad files, a class that training lacks.
    """
    if data.source == "synthetic":
        return _build_synthetic(data, seed)
    root = find_root(data)
    train = scan_split(data, root / data.train, None, progress)
    val = scan_split(data, root / data.val, train.classes, progress) if data.val else None
    test = scan_split(data, root / data.test, train.classes, progress) if data.test else None
    is_held_out = val is None and data.val_fraction > 0
    if is_held_out:
        train, val = split_validation(train, data.val_fraction, seed)
    return Splits(train, val, test, is_held_out)


def find_root(data: DataConfig) -> Path:
    """The folder that data.train, data.val and data.test are relative to.

    Raises:
        DataError: it is missing.
    """
    if data.source == "digits" and data.root is None:
        return prepare_digits(cache_dir(data))
    root = Path(data.root or ".")
    if not root.is_dir():
        layout = " and ".join(f"{root}/{part}/CLASS/*.jpg" for part in (data.train, data.val) if part)
        raise DataError("data.root is missing", where=str(root), why="no such folder", remedy=f"put images at {layout}")
    return root


def scan_split(data: DataConfig, folder: Path, classes: tuple[str, ...] | None, progress: bool) -> SampleIndex:
    """The images of one folder, with the classes of training."""
    return scan_folder(
        folder,
        classes=classes,
        on_bad_file=data.on_bad_file,
        cache_dir=cache_dir(data),
        max_pixels=data.max_pixels,
        progress=progress,
    )


def _build_synthetic(data: DataConfig, seed: int) -> Splits:
    size = (data.synthetic_size, data.synthetic_size)
    num_val = max(1, data.synthetic_images // SYNTHETIC_VAL_PART)
    train = synthetic_index(data.synthetic_images, data.synthetic_classes, size, seed)
    return Splits(train, synthetic_index(num_val, data.synthetic_classes, size, seed + 1), None, False)


def cache_dir(data: DataConfig) -> Path:
    """Where prepared data goes."""
    return Path(data.cache_dir) if data.cache_dir else default_cache_dir()


def build_spec(model: ModelConfig, num_classes: int) -> AlexNetSpec:
    """The network that the settings describe.

    Raises:
        UsageError: a network that cannot be, or fewer outputs than classes.
    """
    if model.num_classes is not None and model.num_classes < num_classes:
        raise UsageError(
            "model.num_classes is too small", why=f"{model.num_classes} outputs, {num_classes} classes in the data"
        )
    fields = {name: getattr(model, name) for name in SPEC_FIELDS if hasattr(model, name)}
    try:
        return make_spec(model.variant, **{**fields, "num_classes": model.num_classes or num_classes})
    except ValueError as error:
        raise UsageError("model cannot be built", why=str(error)) from None


def build_augmentation(augment: AugmentConfig, crop_size: int) -> Augmentation:
    """The training recipe for an image."""
    values = asdict(augment)
    for name in ("mean", "std", "pixel_range"):
        values.pop(name)
    for name, value in values.items():
        values[name] = tuple(value) if isinstance(value, list) else value
    return Augmentation(crop_size=crop_size, **values)


def build_normalization(augment: AugmentConfig, channels: int) -> Normalization:
    """The network's input scale."""
    return make_normalization(channels, augment.pixel_range, augment.mean, augment.std)


def build_loader(
    runtime: Runtime,
    data: DataConfig,
    index: SampleIndex,
    plan: Plan,
    normalization: Normalization,
    channels_last: bool,
) -> Loader:
    """One replica's batches of a set."""
    on_gpu = runtime.device.type == "cuda"
    return Loader(
        plan=plan,
        index=index,
        normalization=normalization,
        channels=len(normalization.mean),
        max_pixels=data.max_pixels,
        shard_id=runtime.dp_rank,
        num_shards=runtime.dp_size,
        device=runtime.device,
        channels_last=channels_last,
        workers=choose_workers(data.workers, on_gpu, runtime.processes_here),
    )


def place_model(model: torch.nn.Module, runtime: Runtime, channels_last: bool) -> None:
    """Move a network to the device, in the layout of its batches."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model.to(device=runtime.device, memory_format=layout)  # type: ignore[call-overload]


@dataclass(frozen=True)
class BatchSizes:
    """The arithmetic of a batch: global = micro x replicas x accumulation.

    Args:
        global_: samples per update.
        micro: samples per replica per forward.
        replicas: copies of the network.
        accumulation: forwards per update.
    """

    global_: int
    micro: int
    replicas: int
    accumulation: int

    def __str__(self) -> str:
        return f"{self.global_} = {self.micro} x {self.replicas} replicas x {self.accumulation} accumulation"


def settle_batch_sizes(global_size: int, micro_size: int | None, replicas: int, num_train: int) -> BatchSizes:
    """Check the arithmetic of a batch.

    Raises:
        UsageError: sizes that do not divide; the line names the nearest that do.
        DataError: a batch larger than the training set.
    """
    if global_size % replicas:
        lower = global_size // replicas * replicas
        near = " or ".join(str(size) for size in (lower, lower + replicas) if size)
        raise UsageError(
            f"train.global_batch_size {global_size} cannot be shared by {replicas} processes",
            remedy=f"use {near}, or another number of processes",
        )
    per_replica = global_size // replicas
    micro = micro_size or per_replica
    if per_replica % micro:
        divisors = [size for size in range(1, per_replica + 1) if per_replica % size == 0]
        near = " or ".join(str(size) for size in sorted(divisors, key=lambda size: abs(size - micro))[:2])
        raise UsageError(
            f"train.micro_batch_size {micro} does not divide {per_replica}",
            why=f"global batch {global_size} over {replicas} processes",
            remedy=f"use {near}",
        )
    if global_size > num_train:
        raise DataError(
            f"train.global_batch_size {global_size} is larger than the training set",
            why=f"{num_train} images",
            remedy=f"set --train.global_batch_size {num_train // replicas * replicas} or less",
        )
    return BatchSizes(global_size, micro, replicas, per_replica // micro)
