"""From the settings of the data to the sets of a run: which source finds them, and where."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import os
from collections.abc import Callable, Container
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from alexnet_dist.base.errors import DataError, UsageError
from alexnet_dist.base.places import default_cache_dir, describe_missing
from alexnet_dist.base.text import quote_word
from alexnet_dist.data.folds import split_fold, split_validation
from alexnet_dist.data.index import SampleIndex
from alexnet_dist.data.sources.arrays import PARTS, array_index
from alexnet_dist.data.sources.digits import prepare_digits
from alexnet_dist.data.sources.folders import scan_folder
from alexnet_dist.data.sources.layouts import explain_missing_folder
from alexnet_dist.data.sources.manifest import scan_manifest
from alexnet_dist.data.sources.manifest_labels import find_class_lists
from alexnet_dist.data.sources.manifest_read import ListForm
from alexnet_dist.data.sources.manifest_table import ColumnNames
from alexnet_dist.data.sources.synthetic import synthetic_index
from alexnet_dist.settings.checks import ARRAY_SOURCES, check_fold_is_chosen
from alexnet_dist.settings.schema import DataConfig

logger = logging.getLogger("alexnet_dist")

PART_KEYS = ("train", "val", "test")  # settings that name a set
# Names of folders and of lists that hold a set.
TRAIN_NAMES, VAL_NAMES, TEST_NAMES = ("training", "train"), ("val", "valid", "validation", "dev"), ("test", "testing")
SYNTHETIC_VAL_PART = 8  # one validation image for so many training images

Sets: TypeAlias = tuple[SampleIndex, SampleIndex | None, SampleIndex | None]  # train, val, test


@dataclass(frozen=True)
class Splits:
    """The sets of a run.

    Args:
        train: training images.
        val: validation images; None without any.
        test: test images; None without any.
        is_held_out: whether val was kept out of the training images.
        uncut: both of them, where it was.
    """

    train: SampleIndex
    val: SampleIndex | None
    test: SampleIndex | None
    is_held_out: bool
    uncut: SampleIndex | None = None

    def named(self) -> dict[str, SampleIndex]:
        """The sets that are there, as train, val and test, in this order."""
        sets = {"train": self.train, "val": self.val, "test": self.test}
        return {name: index for name, index in sets.items() if index is not None}

    def counts(self) -> dict[str, int]:
        """Images in train, val and test; 0 where there is no such set."""
        return dict.fromkeys(PART_KEYS, 0) | {name: len(index) for name, index in self.named().items()}

    def recut(self, held_out: Container[str]) -> Splits:
        """The same images, of which these paths are kept out of the training images."""
        if self.uncut is None:
            return self
        is_held = np.array([path in held_out for path in self.uncut.paths], dtype=np.bool_)
        train, val = self.uncut.subset(np.flatnonzero(~is_held)), self.uncut.subset(np.flatnonzero(is_held))
        return dataclasses.replace(self, train=train, val=dataclasses.replace(val, bad_files=()))

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of all sets: equal where every file, label and class is."""
        parts = [index.fingerprint() if index else "" for index in (self.train, self.val, self.test)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def build_splits(data: DataConfig, seed: int, progress: bool) -> Splits:
    """Find a run's images.

    Raises:
        UsageError: a part that the source does not have, or folds of which none is chosen.
        DataError: missing, empty or damaged files or folders, bad images, a class that training lacks or that has too
            few images for what is held out.
        MachineError: a download that failed, or a cache folder that cannot be written.
    """
    check_fold_is_chosen(data)
    splits = cut_splits(find_sets(data, seed, progress), data, seed)
    _name_unused_sets(data)
    return splits


def find_sets(data: DataConfig, seed: int, progress: bool) -> Sets:
    """The sets as the source has them, nothing held out; raises what `build_splits` raises."""
    return _SOURCES[data.source](data, seed, progress)


def cut_splits(sets: Sets, data: DataConfig, seed: int) -> Splits:
    """Hold out a fold, or a part of the training images, where the settings say so.

    Raises:
        DataError: a class with too few images for it.
    """
    train, val, test = sets
    if data.folds is not None and data.fold is not None:
        return Splits(*split_fold(train, data.folds, data.fold, seed), test, is_held_out=True, uncut=train)
    if val is None and data.val_fraction > 0:
        return Splits(*split_validation(train, data.val_fraction, seed), test, is_held_out=True, uncut=train)
    return Splits(train, val, test, is_held_out=False)


def find_root(data: DataConfig) -> Path:
    """The folder that data.train, data.val and data.test are relative to; empty where pictures are no files.

    Raises:
        DataError: it is missing.
    """
    if data.source in ("synthetic", *ARRAY_SOURCES):
        return Path()
    if data.source == "digits" and data.root is None:
        return prepare_digits(cache_dir(data))
    root = Path(data.root or ".")
    if not root.is_dir():
        layout = " and ".join(f"{root}/{part}/CLASS/*.jpg" for part in (data.train, data.val) if part)
        remedy = f"put images at {layout}" if data.source == "folder" else "give the folder that paths are relative to"
        where, why, near = describe_missing(root)
        if root.exists():
            remedy = "give the folder that it lies in, or unpack it and give that folder"
            raise DataError("data.root is no folder", where=where, why="it is a file", remedy=remedy)
        remedy = f"did you mean '{near}'? or {remedy}" if near else remedy
        raise DataError("data.root is missing", where=where, why=f"no such folder; {why}", remedy=remedy)
    return root


def scan_split(data: DataConfig, folder: Path, classes: tuple[str, ...] | None, progress: bool) -> SampleIndex:
    """The images of one folder, with the classes of training."""
    return scan_folder(folder, classes=classes, **_scan_settings(data, progress))


def scan_listed(
    data: DataConfig, key: str, classes: tuple[str, ...] | None, has_positions: bool, progress: bool
) -> SampleIndex:
    """The images of one manifest, that of data.train, data.val or data.test; see `scan_manifest`."""
    root, settings = find_root(data), _scan_settings(data, progress)
    form = make_list_form(data, key, has_positions)
    return scan_manifest(root, root / getattr(data, key), classes=classes, form=form, **settings)


def make_list_form(data: DataConfig, key: str, has_positions: bool = False) -> ListForm:
    """How the manifest of train, val or test is to be read."""
    given = (data.columns.path, data.columns.label, data.columns.split)
    columns = ColumnNames(*(None if name is None else str(name) for name in given))
    wanted = tuple(name for name in PART_KEYS if getattr(data, name) is not None)
    return ListForm(key, wanted, columns, data.image_dir or "", data.image_suffix or "", has_positions)


def find_lists(data: DataConfig, *names: str | None) -> dict[Path, tuple[str, ...]]:
    """The class lists that go with the manifests of these names, by path.

    Raises:
        DataError: a list is missing or damaged.
    """
    root = find_root(data)
    manifests = [root / name for name in names if name is not None]
    return find_class_lists(manifests, root / data.classes if data.classes is not None else None)


def find_part(data: DataConfig, key: str) -> SampleIndex:
    """One part of cifar10 or fashion_mnist.

    Args:
        data: the settings.
        key: train, val or test: the setting that names the part.

    Raises:
        UsageError: there is no such part.
    """
    part = getattr(data, key)
    _check_part(data, key, PARTS)
    assert data.source in ("cifar10", "fashion_mnist")
    root = Path(data.root) if data.root is not None else None
    return array_index(data.source, part, root=root, cache_dir=cache_dir(data), download=data.download)


def cache_dir(data: DataConfig) -> Path:
    """Where prepared data goes."""
    return Path(data.cache_dir) if data.cache_dir else default_cache_dir()


def _find_folders(data: DataConfig, seed: int, progress: bool) -> Sets:
    root = find_root(data)
    names = {key: getattr(data, key) for key in PART_KEYS if getattr(data, key)}
    for key, name in names.items():
        if not os.path.lexists(root / name):
            raise explain_missing_folder(root / name, key, name)
    train = scan_split(data, root / data.train, None, progress)
    val, test = (
        scan_split(data, root / name, train.classes, progress) if name else None for name in (data.val, data.test)
    )
    _warn_about_leaks(train, val, test)
    return train, val, test


def _find_manifests(data: DataConfig, seed: int, progress: bool) -> Sets:
    """Every set has the classes of training, and a class list beside its manifest must be training's."""
    lists = find_lists(data, data.train, data.val, data.test)
    of_training = find_lists(data, data.train)
    listed = next(iter(of_training.values()), None)
    train = scan_listed(data, "train", listed, listed is not None, progress)
    for path, names in lists.items():
        if names != train.classes:
            why = _first_difference(names, train.classes)
            raise DataError("the class list is not training's", where=str(path), why=why, remedy="make them equal")
    val, test = (
        scan_listed(data, key, train.classes, bool(lists), progress) if getattr(data, key) else None
        for key in ("val", "test")
    )
    _warn_about_leaks(train, val, test)
    return train, val, test


def _find_arrays(data: DataConfig, seed: int, progress: bool) -> Sets:
    val, test = (find_part(data, key) if getattr(data, key) is not None else None for key in ("val", "test"))
    train = find_part(data, "train")
    _warn_about_leaks(train, val, test)
    return train, val, test


def _find_synthetic(data: DataConfig, seed: int, progress: bool) -> Sets:
    """Sets of neighbouring seeds; validation and test are an eighth as large as training."""
    if data.test is not None:
        _check_part(data, "test", ("test",))
    num_val = max(1, data.synthetic_images // SYNTHETIC_VAL_PART)
    counts = (data.synthetic_images, num_val, num_val)
    size = (data.synthetic_size, data.synthetic_size)
    train, val, test = (
        synthetic_index(count, data.synthetic_classes, size, seed + offset) for offset, count in enumerate(counts)
    )
    return train, val, test if data.test is not None else None


_SOURCES: dict[str, Callable[[DataConfig, int, bool], Sets]] = {
    "folder": _find_folders,
    "manifest": _find_manifests,
    "cifar10": _find_arrays,
    "fashion_mnist": _find_arrays,
    "digits": _find_folders,
    "synthetic": _find_synthetic,
}


def _scan_settings(data: DataConfig, progress: bool) -> dict[str, Any]:
    return {
        "on_bad_file": data.on_bad_file,
        "cache_dir": cache_dir(data),
        "max_pixels": data.max_pixels,
        "progress": progress,
    }


def _check_part(data: DataConfig, key: str, parts: tuple[str, ...]) -> None:
    part = getattr(data, key)
    if part not in parts:
        names = " or ".join(parts)
        why = f"{data.source} has the {'parts' if len(parts) > 1 else 'part'} {' and '.join(parts)}"
        raise UsageError(f"data.{key} is {part!r}", why=why, remedy=f"set --data.{key} {names}")


def _name_unused_sets(data: DataConfig) -> None:
    """Say that a set lies beside the training set which no setting names."""
    if data.source not in ("folder", "manifest") or data.folds is not None:
        return
    root = find_root(data)
    train = root / data.train
    used = {root / name for name in (data.train, data.val, data.test) if name is not None}
    with contextlib.suppress(OSError):
        beside = [path for path in sorted(train.parent.iterdir()) if path not in used and _is_like(path, train)]
        for key, names, purpose in (("val", VAL_NAMES, "validates on it"), ("test", TEST_NAMES, "reads it at the end")):
            stem = train.stem.casefold()  # train_data stands beside test_data
            wanted = {*names, *(stem.replace(word, name) for word in TRAIN_NAMES for name in names)}
            found = [path for path in beside if path.stem.casefold() in wanted]
            if found and getattr(data, key) is None:
                name = quote_word(os.path.relpath(found[0], root))
                text = "data      %s lies beside %s and is not used: --data.%s %s %s"
                logger.warning(text, name, data.train, key, name, purpose)


def _is_like(path: Path, other: Path) -> bool:
    return (path.is_dir() and other.is_dir()) or (path.is_file() and path.suffix == other.suffix)


def _first_difference(names: tuple[str, ...], others: tuple[str, ...]) -> str:
    for position, (name, other) in enumerate(zip(names, others, strict=False)):
        if name != other:
            return f"class {position} is {name!r} there and {other!r} in training"
    return f"it has {len(names)} names, training {len(others)} classes"


def _warn_about_leaks(*sets: SampleIndex | None) -> None:
    """Say how many pictures stand in more than one set: what is measured on them is not what the network can do."""
    by_root: dict[str, list[SampleIndex]] = {}  # paths begin in it
    for index in sets:
        if index is not None:
            by_root.setdefault(os.path.realpath(index.root), []).append(index)
    leaked: set[str] = set()
    for together in by_root.values():
        for number, index in enumerate(together[1:], start=1):
            leaked.update(*(set(index.paths).intersection(other.paths) for other in together[:number]))
    if leaked:
        logger.warning("%d pictures are in more than one of train, val and test ('%s')", len(leaked), min(leaked))
