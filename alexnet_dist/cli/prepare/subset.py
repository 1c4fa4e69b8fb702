"""`prepare subset`: picks classes and images of a large set into manifests; nothing is copied."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import Namespace

from alexnet_dist.base.errors import DataError, UsageError
from alexnet_dist.cli.prepare.manifest import (
    SETS,
    Pictures,
    add_set_options,
    find_pictures,
    place_below,
    print_report,
    read_set_options,
    write_lists,
)
from alexnet_dist.data.sources.folders import list_class_folders
from alexnet_dist.data.sources.manifest_read import normalize_name
from alexnet_dist.data.sources.subset import pick_names
from alexnet_dist.settings.reader import new_parser, parse_options

EXAMPLES = """Pick classes and images out of a large set, and list them in manifests; no image is read or copied.

examples:
  python launch/prepare.py subset --data data/imagenet --val val --num_classes 10 --per_class 100 --out lists
  python launch/prepare.py subset --data data/imagenet --classes n01440764 n02102040 --per_class 200 --out lists

The files are those of `prepare manifest`. The choice follows --seed and the names alone, on every machine, and a
smaller one is part of a larger one with the same seed. --per_class is for the training images, --val_per_class and
--test_per_class are for the others. Classes keep the order of their folders' names."""


def main(argv: Sequence[str]) -> int:
    """Run the verb; its exit code."""
    parser = new_parser("prepare subset", EXAMPLES, "--data FOLDER --out FOLDER [options]")
    add_set_options(parser)
    parser.add_argument("--classes", type=str, nargs="+", help="names of the classes")
    parser.add_argument("--num_classes", type=int, help="how many classes to pick (default: all)")
    parser.add_argument("--per_class", type=int, help="training images of each class (default: all)")
    parser.add_argument("--val_per_class", type=int, help="validation images of each class (default: all)")
    parser.add_argument("--test_per_class", type=int, help="test images of each class (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice")
    options = parse_options(argv, parser)
    counts = _check_options(options)
    root, names = read_set_options(options)
    classes = list_class_folders(root / names["train"])
    picked = pick_classes(classes, options.classes, options.num_classes, options.seed)
    found = {
        key: pick_pictures(root / name, find_pictures(root / name, classes, picked), counts[key], options.seed)
        for key, name in names.items()
    }
    write_lists(Path(options.out), place_below(root, names, found), picked, overwrite=options.overwrite)
    print_report(root, Path(options.out), found)
    return 0


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


def _check_options(options: Namespace) -> dict[str, int | None]:
    """Images of each class, by set."""
    numbers = {"train": "per_class", "val": "val_per_class", "test": "test_per_class"}
    for name in ("num_classes", *numbers.values()):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name} must be 1 or more", where="command line", why=f"got {value}")
    for key in ("val", "test"):
        if getattr(options, numbers[key]) is not None and getattr(options, key) is None:
            raise UsageError(f"--{numbers[key]} has no effect", why=f"--{key} names no folder", remedy=f"give --{key}")
    if options.classes is not None and options.num_classes is not None:
        raise UsageError("--classes and --num_classes exclude each other", remedy="give one of them")
    if options.classes is None and options.num_classes is None and options.per_class is None:
        why = "neither classes nor images are picked"
        raise UsageError("the subset would be the set", why=why, remedy="use prepare manifest, or see --help")
    return {key: getattr(options, numbers[key]) for key in SETS}
