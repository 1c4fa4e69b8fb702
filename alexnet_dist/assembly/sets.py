"""From the settings of the data to the sets of a run: which source finds them, and where."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import os
from collections.abc import Container
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TypeAlias

import numpy as np

from alexnet_dist.base.addresses import is_address
from alexnet_dist.base.errors import DataError
from alexnet_dist.base.places import SET_NAMES, find_cache_dir
from alexnet_dist.base.ranks import rank_from_environment
from alexnet_dist.base.sources import SOURCES
from alexnet_dist.base.text import find_difference, quote_word
from alexnet_dist.data.files.index_files import FileRules
from alexnet_dist.data.folds import split_fold, split_validation
from alexnet_dist.data.index import BadFilesError, SampleIndex
from alexnet_dist.data.sources.source import Source, SourceOptions, has_part, open_source
from alexnet_dist.settings.checks import check_fold_is_chosen
from alexnet_dist.settings.schema import DataConfig

logger = logging.getLogger("alexnet_dist")

PART_KEYS = ("train", "val", "test")  # settings that name a set

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
    try:
        splits = cut_splits(find_sets(data, seed, progress), data, seed)
    except BadFilesError as error:
        error.data_root = find_root(data)
        raise
    _name_unused_sets(data)
    return splits


def find_sets(data: DataConfig, seed: int, progress: bool) -> Sets:
    """The sets as the source has them, nothing held out; raises what `build_splits` raises."""
    source, options = prepare_source(data, seed, progress)
    source.check(options)
    train = source.list_split(options, "train", None)
    for path, names in source.read_class_lists(options, PART_KEYS).items():
        if names != train.classes:
            why = _first_difference(names, train.classes)
            raise DataError("the class list is not training's", where=str(path), why=why, remedy="make them equal")
    val, test = (
        source.list_split(options, key, train.classes) if has_part(options, key) else None for key in ("val", "test")
    )
    _warn_about_leaks(train, val, test)
    return train, val, test


def prepare_source(data: DataConfig, seed: int, progress: bool) -> tuple[Source, SourceOptions]:
    """The source of a run's images, and what it is told; what no setting gives is made where it is missing.

    Args:
        data: the settings.
        seed: of what is made up.
        progress: show bars where it takes long.

    Raises:
        UsageError: the cache folder holds something else in the place of what is made.
        DataError: nothing is at the address that data.root is.
        MachineError: the cache folder cannot be written, or the network does not give what is to be fetched.
    """
    fetch_root(data)
    source, options = open_source(data.source), make_options(data, seed, progress)
    return source, source.prepare(options)


def make_options(data: DataConfig, seed: int = 0, progress: bool = False) -> SourceOptions:
    """What a source is told of the settings."""
    names = {"train": data.train, "val": data.val, "test": data.test}
    columns = {"path": data.columns.path, "label": data.columns.label, "split": data.columns.split}
    return SourceOptions(
        name=data.source,
        root=local_root(data),
        parts={key: name for key, name in names.items() if name is not None},
        rules=FileRules(
            cache_dir=cache_dir(data), on_bad_file=data.on_bad_file, max_pixels=data.max_pixels, progress=progress
        ),
        classes=data.classes,
        labels=data.labels,
        columns={key: str(name) for key, name in columns.items() if name is not None},
        image_dir=data.image_dir or "",
        image_suffix=data.image_suffix or "",
        download=data.download,
        synthetic_images=data.synthetic_images,
        synthetic_classes=data.synthetic_classes,
        synthetic_size=data.synthetic_size,
        seed=seed,
    )


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
    source, options = prepare_source(data, seed=0, progress=False)
    return source.find_root(options)


def local_root(data: DataConfig) -> Path | None:
    """The folder that data.root is, or that it is fetched into; None where it is not given. Nothing is fetched."""
    if data.root is None or not is_address(data.root):
        return Path(data.root) if data.root is not None else None
    from alexnet_dist.data.remote.keep import find_copy  # with the Hub's library, which few need

    return find_copy(data.root, cache_dir(data)).root


def fetch_root(data: DataConfig) -> None:
    """Fetch what data.root is the address of, unless it is there. Nothing is done where it is a folder, or where the
    source takes none. Rank 0 speaks.

    Raises:
        DataError: nothing is there.
        MachineError: no network, no permission, no space.
    """
    if data.root is not None and is_address(data.root) and SOURCES[data.source].needs_root:
        fetch_once(data.root, cache_dir(data))


@lru_cache(maxsize=8)
def fetch_once(address: str, folder: Path) -> Path:
    """`fetch_copy`; a process looks at the files of a copy once."""
    from alexnet_dist.data.remote.keep import fetch_copy

    return fetch_copy(address, folder, shown=rank_from_environment() == 0)


def cache_dir(data: DataConfig) -> Path:
    """Where prepared data goes."""
    return find_cache_dir(data.cache_dir)


def _name_unused_sets(data: DataConfig) -> None:
    """Say that a set lies beside the training set which no setting names."""
    facts = SOURCES[data.source]
    if data.folds is not None or not (facts.has_folders or facts.reads_list):
        return
    root = find_root(data)
    train = root / data.train
    used = {root / name for name in (data.train, data.val, data.test) if name is not None}
    with contextlib.suppress(OSError):
        beside = [path for path in sorted(train.parent.iterdir()) if path not in used and _is_like(path, train)]
        for key, purpose in (("val", "validates on it"), ("test", "reads it at the end")):
            names = SET_NAMES[key]
            stem = train.stem.casefold()  # train_data stands beside test_data
            wanted = {*names, *(stem.replace(word, name) for word in SET_NAMES["train"] for name in names)}
            found = [path for path in beside if path.stem.casefold() in wanted]
            if found and getattr(data, key) is None:
                name = quote_word(os.path.relpath(found[0], root))
                text = "data      %s lies beside %s and is not used: --data.%s %s %s"
                logger.warning(text, name, data.train, key, name, purpose)


def _is_like(path: Path, other: Path) -> bool:
    return (path.is_dir() and other.is_dir()) or (path.is_file() and path.suffix == other.suffix)


def _first_difference(names: tuple[str, ...], others: tuple[str, ...]) -> str:
    place, name, other = find_difference(names, others) or (0, None, None)
    if name is not None and other is not None:
        return f"class {place} is {name!r} there and {other!r} in training"
    return f"it has {len(names)} names, training {len(others)} classes"


def _warn_about_leaks(*sets: SampleIndex | None) -> None:
    """Say how many pictures stand in more than one set: what is measured on them is not what the network can do."""
    by_place: dict[tuple[str, str], list[SampleIndex]] = {}  # where a path is one picture
    for index in sets:
        if index is not None:
            by_place.setdefault((os.path.realpath(index.root), repr(index.pixels)), []).append(index)
    leaked: set[str] = set()
    for together in by_place.values():
        for number, index in enumerate(together[1:], start=1):
            own = set(index.paths)  # of the smaller set, most often
            leaked.update(path for other in together[:number] for path in other.paths if path in own)
    if leaked:
        logger.warning("%d pictures are in more than one of train, val and test ('%s')", len(leaked), min(leaked))
