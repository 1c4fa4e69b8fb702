"""`prepare manifest`: lists class folders of images in text files, which source manifest reads."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from jsonargparse import ArgumentParser, Namespace

from alexnet_dist.base.durable import disk_errors_named, tidy_folder, write_file
from alexnet_dist.base.errors import DataError, UsageError
from alexnet_dist.base.terminal import COMMAND_JOINT
from alexnet_dist.base.text import align, escape_text, join_names, quote_word
from alexnet_dist.cli.options import add_options, show
from alexnet_dist.data.sources.folders import list_class_folders, list_images, match_folders
from alexnet_dist.data.sources.manifest_read import CLASS_LIST
from alexnet_dist.data.sources.manifest_write import format_class_list, format_manifest
from alexnet_dist.settings.reader import new_parser, parse_options

EXAMPLES = """List class folders in manifests, files of `path label` lines, with a class list beside them.

examples:
  python launch/prepare.py manifest --data data/cat_dog --train train_data --test test_data --out lists
  python launch/prepare.py manifest --data data/imagenet_subset --train train --val val --out lists
  python launch/train.py --config imagenet_subset --data.source manifest --data.train "$PWD/lists/train.txt" ...

OUT/train.txt, val.txt and test.txt are written, as far as they are asked for, and OUT/classes.txt. The classes are the
folders of --train, sorted. Paths are relative to --data, which stays data.root. Training from the manifests sees the
same images, labels and classes as from the folders. No image is read or copied."""

SETS = ("train", "val", "test")

Pictures: TypeAlias = dict[str, list[str]]  # {class: paths relative to the folder of the set}


def main(argv: Sequence[str]) -> int:
    """Run the verb; its exit code."""
    parser = new_parser("prepare manifest", EXAMPLES, "--data FOLDER --out FOLDER [options]")
    add_set_options(parser)
    options = parse_options(argv, parser)
    root, names = read_set_options(options)
    classes = tuple(list_class_folders(root / names["train"]))
    found = {key: find_pictures(root / name, classes, classes) for key, name in names.items()}
    write_lists(Path(options.out), place_below(root, names, found), classes, overwrite=options.overwrite)
    print_report(root, Path(options.out), found)
    return 0


def add_set_options(parser: ArgumentParser) -> None:
    """The options that say which folders are listed, and where to."""
    add = parser.add_argument
    add("--data", type=str, help="folder that --train, --val and --test are relative to")
    add("--train", type=str, default="train", help="class folders of the training images; they name the classes")
    add("--val", type=str, help="class folders of validation images")
    add("--test", type=str, help="class folders of test images")
    what = "folder for the manifests and the class list; it is made"
    add("--out", type=str, metavar="FOLDER", help=what)
    add("--overwrite", action="store_true", help="replace lists of other content")
    add_options(parser, "quiet", "debug")


def read_set_options(options: Namespace) -> tuple[Path, dict[str, str]]:
    """The root, and the folder of each set that is asked for.

    Raises:
        UsageError: an option is missing, or a folder does not lie below the root.
    """
    for name in ("data", "out"):
        if getattr(options, name) is None:
            raise UsageError(f"--{name} is missing", where="command line", remedy="see the examples of --help")
    if not options.out.strip():
        raise UsageError("--out is empty", where="command line", remedy="give the folder for the lists")
    root = Path(options.data)
    names = {key: getattr(options, key) for key in SETS if getattr(options, key) is not None}
    for key, name in names.items():
        if _relative(root, name).split("/")[0] == "..":
            why = "the paths of a manifest lead to nothing outside data.root"
            raise UsageError(f"--{key} lies outside --data", where=str(root / name), why=why, remedy="widen --data")
    return root, names


def find_pictures(folder: Path, classes: Sequence[str], picked: Sequence[str]) -> Pictures:
    """The image files of some classes, sorted by path; a class without a folder has none.

    Args:
        folder: of class folders.
        classes: all classes of training, to which folders are matched by name.
        picked: those that are wanted.

    Raises:
        DataError: the folder is not laid out like this, has a class training lacks, or an empty one that is wanted.
    """
    folders = list_class_folders(folder)
    label_of = match_folders(folder, folders, classes)
    folder_of = {classes[label]: name for name, label in label_of.items() if classes[label] in set(picked)}
    files = dict(zip(folder_of, list_images(folder, list(folder_of.values())), strict=True))
    if not files:
        why = f"none of {join_names(picked)} has a folder there"
        raise DataError("no image of these classes", where=str(folder), why=why, remedy="pick others")
    return {name: [file.path for file in files.get(name, [])] for name in picked}


def place_below(root: Path, names: Mapping[str, str], found: Mapping[str, Pictures]) -> dict[str, Pictures]:
    """The pictures of each set with paths relative to the root."""
    starts = {key: "" if (start := _relative(root, names[key])) == "." else f"{start}/" for key in found}
    return {
        key: {name: [starts[key] + path for path in paths] for name, paths in pictures.items()}
        for key, pictures in found.items()
    }


def write_lists(out: Path, sets: Mapping[str, Pictures], classes: Sequence[str], overwrite: bool) -> None:
    """Write the manifest of each set and the class list.

    Args:
        out: the folder; it is made.
        sets: paths relative to data.root, by class, by name of the set.
        classes: all classes, in order.
        overwrite: replace files of other content.

    Raises:
        UsageError: files of other content are there; nothing is written then.
        DataError: a name that a line of text cannot hold.
        MachineError: the folder cannot be written.
    """
    files = {f"{key}.txt": format_manifest(pictures, classes) for key, pictures in sets.items()}
    files[CLASS_LIST] = format_class_list(classes)
    with disk_errors_named(out, "out"):
        out.mkdir(parents=True, exist_ok=True)
        tidy_folder(out)
        differing = [
            name for name, data in files.items() if (out / name).exists() and (out / name).read_bytes() != data
        ]
    if differing and not overwrite:
        why = f"{', '.join(differing)} {'is' if len(differing) == 1 else 'are'} there with other content"
        remedy = "give another --out, or --overwrite"
        raise UsageError("a list would be replaced", where=str(out), why=why, remedy=remedy)
    for name, data in files.items():
        write_file(out / name, data, "out")


def print_report(root: Path, out: Path, sets: Mapping[str, Pictures]) -> None:
    """A line for each set, and the settings with which the lists are read."""
    rows = [("set", "classes", "images", "per class", "manifest")]
    for key, pictures in sets.items():
        counts = [len(paths) for paths in pictures.values() if paths]
        spread = f"{min(counts):,} to {max(counts):,}" if counts else "0"
        file = escape_text(str(out / f"{key}.txt"))
        rows.append((key, f"{len(counts):,}", f"{sum(counts):,}", spread, file))
    show(align(rows, "<>><"))
    paths = {key: os.path.abspath(out / f"{key}.txt") for key in sets}
    settings = {"source": "manifest", "root": str(root), **paths}
    words = " ".join(f"--data.{key} {quote_word(value)}" for key, value in settings.items())
    show("")
    show(f"use: {words}", COMMAND_JOINT)


def _relative(root: Path, name: str) -> str:
    return Path(os.path.relpath(root / name, root)).as_posix()
