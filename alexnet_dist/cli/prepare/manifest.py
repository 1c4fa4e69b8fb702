"""`prepare manifest`: lists the images of a set in text files, which source manifest reads, or tar beside archives."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from alexnet_dist.base.errors import DataError, UsageError
from alexnet_dist.base.text import join_names
from alexnet_dist.cli.options import add_options
from alexnet_dist.cli.prepare.lists import Listed, Pictures, list_source, show_lists, write_lists
from alexnet_dist.data.sources.folders import list_class_folders, list_images, match_folders
from alexnet_dist.settings.reader import new_parser, parse_options

EXAMPLES = """List images in manifests, files of `path label` lines, with a class list beside them.

examples:
  python launch/prepare.py manifest --data data/cat_dog --train train_data --test test_data --out lists
  python launch/prepare.py manifest --data data/shards --source tar --train "train-*.tar" --val "val-*.tar" --out lists
  python launch/train.py --config imagenet_subset --data.source manifest --data.train "$PWD/lists/train.txt" ...

OUT/train.txt, val.txt and test.txt are written, as far as they are asked for, and OUT/classes.txt. The classes are
those of --train: without --source its folders, sorted. Paths are relative to --data, which stays data.root. Images that
lie in archives are listed together in OUT/labels.csv, for --data.labels of source tar. Training from the lists sees the
same images, labels and classes. No image is copied. The last line says the settings. No list names the rows of parquet:
`prepare pack` takes a part of it."""

SETS = ("train", "val", "test")
FOLDER, LISTED = "folder", ["folder", "manifest", "tar", "imagenet"]


def main(argv: Sequence[str]) -> int:
    """Run the verb; its exit code."""
    parser = new_parser("prepare manifest", EXAMPLES, "--data FOLDER --out FOLDER [options]")
    add_set_options(parser)
    options = parse_options(argv, parser)
    root, names = read_set_options(options)
    if options.source != FOLDER:
        listed = list_source(options.source, root, names)
    else:
        classes = tuple(list_class_folders(root / names["train"]))
        pictures = {key: find_pictures(root / name, classes, classes) for key, name in names.items()}
        listed = Listed(root, classes, place_below(root, names, pictures))
    write_lists(listed, Path(options.out), overwrite=options.overwrite)
    show_lists(listed, Path(options.out))
    return 0


def add_set_options(parser: ArgumentParser) -> None:
    """The options that say which folders are listed, and where to."""
    add = parser.add_argument
    add("--data", type=str, help="folder that --train, --val and --test are relative to")
    add("--source", default=FOLDER, choices=LISTED, help="what they are; folder = class folders")
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


def _relative(root: Path, name: str) -> str:
    return Path(os.path.relpath(root / name, root)).as_posix()
