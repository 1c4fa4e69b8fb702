"""`prepare subset`: picks classes and images of a large set into manifests; nothing is copied."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from jsonargparse import Namespace

from alexnet_dist.base.errors import UsageError
from alexnet_dist.cli.prepare.choice import (
    add_choice_options,
    check_choice,
    pick_classes,
    pick_pictures,
    refuse_nothing,
)
from alexnet_dist.cli.prepare.lists import Listed, list_source, show_lists, write_lists
from alexnet_dist.cli.prepare.manifest import (
    FOLDER,
    SETS,
    add_set_options,
    find_pictures,
    place_below,
    read_set_options,
)
from alexnet_dist.data.sources.folders import list_class_folders
from alexnet_dist.settings.reader import new_parser, parse_options

EXAMPLES = """Pick classes and images out of a large set, and list them in manifests; no image is read or copied.

examples:
  python launch/prepare.py subset --data data/imagenet --val val --num_classes 10 --per_class 100 --out lists
  python launch/prepare.py subset --data data/imagenet --classes n01440764 n02102040 --per_class 200 --out lists
  python launch/prepare.py subset --data data/shards --source tar --train "train-*.tar" --num_classes 10 --out lists

The files are those of `prepare manifest`. The choice follows --seed and the names alone, on every machine, and a
smaller one is part of a larger one with the same seed. --per_class is for the training images, --val_per_class and
--test_per_class are for the others. Classes keep their order."""


def main(argv: Sequence[str]) -> int:
    """Run the verb; its exit code."""
    parser = new_parser("prepare subset", EXAMPLES, "--data FOLDER --out FOLDER [options]")
    add_set_options(parser)
    add_choice_options(parser)
    parser.add_argument("--seed", type=int, default=0, help="of the choice")
    options = parse_options(argv, parser)
    counts = check_choice(options, [key for key in SETS if getattr(options, key) is not None])
    if options.classes is None and options.num_classes is None and options.per_class is None:
        why = "neither classes nor images are picked"
        raise UsageError("the subset would be the set", why=why, remedy="use prepare manifest, or see --help")
    root, names = read_set_options(options)
    pick = _pick_folders if options.source == FOLDER else _pick
    listed = pick(root, names, options, counts)
    write_lists(listed, Path(options.out), overwrite=options.overwrite)
    show_lists(listed, Path(options.out))
    return 0


def _pick_folders(root: Path, names: Mapping[str, str], options: Namespace, counts: Mapping[str, int | None]) -> Listed:
    """Of class folders; only those that are picked are looked into."""
    classes = list_class_folders(root / names["train"])
    picked = pick_classes(classes, options.classes, options.num_classes, options.seed)
    found = {
        key: pick_pictures(root / name, find_pictures(root / name, classes, picked), counts[key], options.seed)
        for key, name in names.items()
    }
    return Listed(root, picked, place_below(root, names, found))


def _pick(root: Path, names: Mapping[str, str], options: Namespace, counts: Mapping[str, int | None]) -> Listed:
    """Of any other source."""
    listed = list_source(options.source, root, names)
    picked = pick_classes(listed.classes, options.classes, options.num_classes, options.seed)
    found = {key: {name: pictures[name] for name in picked} for key, pictures in listed.pictures.items()}
    pictures = {key: pick_pictures(root / names[key], some, counts[key], options.seed) for key, some in found.items()}
    for key, some in pictures.items():
        refuse_nothing(some, root / names[key])
    return dataclasses.replace(listed, classes=picked, pictures=pictures)
