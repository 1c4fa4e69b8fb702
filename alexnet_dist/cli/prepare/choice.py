"""Some classes, and some images of each: what `prepare subset` lists and `prepare pack` writes."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
from jsonargparse import ArgumentParser, Namespace

from alexnet_dist.base.errors import DataError, UsageError
from alexnet_dist.base.text import join_names
from alexnet_dist.cli.prepare.lists import Pictures, group
from alexnet_dist.data.index import SampleIndex
from alexnet_dist.data.sources.manifest_read import normalize_name
from alexnet_dist.data.sources.subset import pick_names


def add_choice_options(parser: ArgumentParser) -> None:
    """The options that say which classes, and how many images of each."""
    add = parser.add_argument
    add("--classes", type=str, nargs="+", help="names of the classes")
    add("--num_classes", type=int, help="how many classes to pick (default: all)")
    add("--per_class", type=int, help="training images of each class (default: all)")
    add("--val_per_class", type=int, help="validation images of each class (default: all)")
    add("--test_per_class", type=int, help="test images of each class (default: all)")


def choose(
    sets: Mapping[str, SampleIndex], options: Namespace, counts: Mapping[str, int | None]
) -> dict[str, SampleIndex]:
    """The picked classes and images of some sets, with labels among the picked classes; all where nothing is picked.

    Raises:
        UsageError: a name that no class has.
        DataError: there are fewer classes or images.
    """
    if options.classes is None and options.num_classes is None and not any(counts.values()):
        return dict(sets)
    classes = sets["train"].classes
    picked = pick_classes(classes, options.classes, options.num_classes, options.seed)
    new_label = np.array([picked.index(name) if name in picked else -1 for name in classes], np.int64)
    chosen = {}
    for key, index in sets.items():
        pictures = {name: paths for name, paths in group(index, index.paths).items() if name in picked}
        refuse_nothing(pictures, index.root)
        some = pick_pictures(index.root, pictures, counts[key], options.seed)
        wanted, labels = {path for paths in some.values() for path in paths}, new_label[index.labels]
        ids = [number for number, path in enumerate(index.paths) if labels[number] >= 0 and path in wanted]
        chosen[key] = dataclasses.replace(index.subset(ids), labels=labels[ids], classes=tuple(picked))
    return chosen


def refuse_nothing(pictures: Pictures, where: Path) -> None:
    """Refuse a set without an image of the picked classes.

    Raises:
        DataError: it has none.
    """
    if not any(pictures.values()):
        why = f"it has none of {join_names([*pictures])}"
        raise DataError("no image of these classes", where=str(where), why=why, remedy="pick others")


def pick_classes(classes: Sequence[str], named: Sequence[str] | None, count: int | None, seed: int) -> list[str]:
    """The classes that are named, or so many of them, or all; in their own order.

    Raises:
        UsageError: a name that no class has.
        DataError: there are fewer classes.
    """
    if named is not None:
        own = {normalize_name(name): name for name in classes}
        unknown = [name for name in named if normalize_name(name) not in own]
        if unknown:
            near = difflib.get_close_matches(unknown[0], classes, n=1, cutoff=0.5)
            remedy = f"did you mean '{near[0]}'?" if near else "see the names of the class folders"
            raise UsageError(f"unknown class '{unknown[0]}'", where="--classes", why="no such folder", remedy=remedy)
        wanted = {own[normalize_name(name)] for name in named}
        return [name for name in classes if name in wanted]
    if count is None:
        return list(classes)
    if count > len(classes):
        why = f"{count} are asked for, there are {len(classes)}"
        raise DataError("too few classes", why=why, remedy=f"set --num_classes {len(classes)} or leave it out")
    return pick_names(classes, count, seed)


def pick_pictures(folder: Path, found: Pictures, count: int | None, seed: int) -> Pictures:
    """So many pictures of each class, or all.

    Raises:
        DataError: a class has fewer.
    """
    if count is None:
        return found
    for name, paths in found.items():
        if len(paths) < count:
            fewest = min(map(len, found.values()))
            raise DataError(
                "too few images",
                where=str(folder),
                why=f"class '{name}' has {len(paths)}, {count} are asked for",
                remedy=f"ask for {fewest} a class, or leave the number out to take all",
            )
    return {name: pick_names(paths, count, seed) for name, paths in found.items()}


def check_choice(options: Namespace, sets: Collection[str]) -> dict[str, int | None]:
    """Images of each class, by set; None = all.

    Raises:
        UsageError: numbers below 1, or of a set that is not there; or two ways to pick classes.
    """
    numbers = {"train": "per_class", "val": "val_per_class", "test": "test_per_class"}
    for name in ("num_classes", *numbers.values()):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name} must be 1 or more", where="command line", why=f"got {value}")
    for key in ("val", "test"):
        if getattr(options, numbers[key]) is not None and key not in sets:
            raise UsageError(f"--{numbers[key]} has no effect", why=f"--{key} names no folder", remedy=f"give --{key}")
    if options.classes is not None and options.num_classes is not None:
        raise UsageError("--classes and --num_classes exclude each other", remedy="give one of them")
    return {key: getattr(options, numbers[key]) for key in numbers}
