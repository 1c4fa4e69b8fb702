"""What every source of images is: a few functions of plain options, of which only `list_split` must be given.

A module in this folder has a `SOURCE`, and base/sources.py has a line with its name. Where pictures are image files, an
index of paths is all that engines need. Where they are not, the index has a `PixelSource` that gives their pixels.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from alexnet_dist.base.errors import DataError, UsageError
from alexnet_dist.base.places import describe_missing
from alexnet_dist.base.sources import SOURCES
from alexnet_dist.data.files.index_files import FileRules
from alexnet_dist.data.files.scan import FileSet
from alexnet_dist.data.index import SampleIndex
from alexnet_dist.data.sources.layouts import explain_missing_folder

ARCHIVES = (".tar", ".zip")
ROOT_REMEDY = "give the folder that paths are relative to"


@dataclass(frozen=True)
class SourceOptions:
    """What a source is told: the settings below `data` of the same names.

    Args:
        name: of the source.
        root: folder that the parts lie in; None where none is given.
        parts: what train, val and test are called, of those that are wanted.
        rules: how image files are looked at; `rules.cache_dir` is for all that a source prepares.
        classes: the class list of a manifest, or of archives.
        labels: where the labels of archives are.
        columns: those of a table that the settings name: path, label and split.
        image_dir: folder below the root that listed paths are relative to.
        image_suffix: what is missing at the end of each listed path.
        download: fetch what the root lacks.
        synthetic_images: of training.
        synthetic_classes: how many.
        synthetic_size: side of an image, in pixels.
        seed: of what is made up.
    """

    name: str
    root: Path | None
    parts: Mapping[str, str]
    rules: FileRules
    classes: str | None = None
    labels: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    image_dir: str = ""
    image_suffix: str = ""
    download: bool = False
    synthetic_images: int = 512
    synthetic_classes: int = 10
    synthetic_size: int = 256
    seed: int = 0


def find_given_root(options: SourceOptions, remedy: str = ROOT_REMEDY) -> Path:
    """The folder of data.root, or this one where none is given.

    Raises:
        DataError: it is missing, or is a file.
    """
    root = Path(options.root or ".")
    if root.is_dir():
        return root
    where, why, near = describe_missing(root)
    if root.exists():
        remedy = "give the folder that it lies in, or unpack it and give that folder"
        if root.suffix.lower() in ARCHIVES:
            remedy = "an archive is read as it is with --data.source tar"
        raise DataError("data.root is no folder", where=where, why="it is a file", remedy=remedy)
    remedy = f"did you mean '{near}'? or {remedy}" if near else remedy
    raise DataError("data.root is missing", where=where, why=f"no such folder; {why}", remedy=remedy)


def find_file_root(options: SourceOptions) -> Path:
    """The folder that archives or tables lie in: data.root, or the folder of the one file that it is.

    Raises:
        DataError: it is missing.
    """
    root = options.root
    return root.parent if root is not None and root.is_file() else find_given_root(options)


def find_no_root(options: SourceOptions) -> Path:
    """The root of pictures that lie in no files of the user's."""
    return Path()


def check_part(options: SourceOptions, key: str, names: Sequence[str]) -> None:
    """Refuse a part that a source does not have.

    Args:
        options: of the source.
        key: train, val or test: the setting that names the part.
        names: of the parts that the source has.

    Raises:
        UsageError: there is no such part.
    """
    part = options.parts[key]
    if part not in names:
        why = f"{options.name} has the {'parts' if len(names) > 1 else 'part'} {' and '.join(names)}"
        raise UsageError(f"data.{key} is {part!r}", why=why, remedy=f"set --data.{key} {' or '.join(names)}")


def _check_nothing(options: SourceOptions) -> None:
    return


def _add_nothing(options: SourceOptions) -> SourceOptions:
    return options


def _read_no_lists(options: SourceOptions, keys: Sequence[str]) -> dict[Path, tuple[str, ...]]:
    return {}


def _name_no_classes(options: SourceOptions, key: str, classes: Sequence[str]) -> Sequence[str]:
    return ()


def _count_no_classes(options: SourceOptions) -> tuple[int | None, str]:
    return None, f"source {options.name} is not read here"


@dataclass(frozen=True)
class Source:
    """One source of images; the functions take its options first.

    Args:
        list_split: the images of `key` (train, val or test), with the given classes, or, where they are None, with its
            own. A source whose classes are always the same may pass over the given ones.
        prepare: the options with what no setting gives, which is made where it is missing.
        check: refuses what can be refused before any image is read, for all parts.
        find_root: the folder that lists of images are relative to.
        list_files: the image files of a part, for `prepare verify`; None where pictures are no files.
        read_class_lists: the class lists that go with some parts; they must be those of training, in its order.
        name_classes: the classes that a part names, of which some may be missing; the given ones are known already.
        count_classes: the number of classes as far as it is known without reading images, and where it comes from; or
            None, and why it is not known.
    """

    list_split: Callable[[SourceOptions, str, tuple[str, ...] | None], SampleIndex]
    prepare: Callable[[SourceOptions], SourceOptions] = _add_nothing
    check: Callable[[SourceOptions], None] = _check_nothing
    find_root: Callable[[SourceOptions], Path] = find_given_root
    list_files: Callable[[SourceOptions, str], FileSet] | None = None
    read_class_lists: Callable[[SourceOptions, Sequence[str]], dict[Path, tuple[str, ...]]] = _read_no_lists
    name_classes: Callable[[SourceOptions, str, Sequence[str]], Sequence[str]] = _name_no_classes
    count_classes: Callable[[SourceOptions], tuple[int | None, str]] = _count_no_classes


def open_source(name: str) -> Source:
    """The source of a name in `SOURCES`."""
    return cast(Source, importlib.import_module(SOURCES[name].module).SOURCE)


def has_part(options: SourceOptions, key: str) -> bool:
    """Whether there is a set for train, val or test."""
    return bool(options.parts.get(key)) or (key == "val" and SOURCES[options.name].makes_val)


def index_path(path: Path, rules: FileRules, classes: tuple[str, ...] | None = None) -> SampleIndex:
    """The images of a folder of class folders, of an archive, or of a manifest, for who has no settings.

    Args:
        path: of the folder; of a tar or zip; or of a text or CSV file, whose paths are relative to the folder that it
            lies in.
        rules: how the files are looked at.
        classes: those of training; None takes the path's own.

    Raises:
        DataError: nothing is there, it is laid out otherwise, or it has a class that the given ones lack.
        BadFilesError: unreadable files under `on_bad_file: fail`; all of them.
    """
    if not path.exists():
        raise explain_missing_folder(path)
    name = "folder" if path.is_dir() else "tar" if path.suffix.lower() in ARCHIVES else "manifest"
    options = SourceOptions(name, path.parent, {"train": path.name}, rules)
    return open_source(name).list_split(options, "train", classes)
