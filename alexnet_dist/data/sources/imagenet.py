"""ImageNet 2012 as it is delivered: the official archives, Kaggle's tree, or folders of either; nothing is extracted.

Classes are WordNet ids, sorted. Those of a flat folder or archive of validation pictures come from the development kit
or Kaggle's table, never from the folder's name.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from alexnet_dist.base.errors import DataError
from alexnet_dist.base.places import describe_missing
from alexnet_dist.base.text import join_names
from alexnet_dist.data.files.index_files import index_files
from alexnet_dist.data.files.kept_index import make_once
from alexnet_dist.data.files.scan import FileSet
from alexnet_dist.data.index import SampleIndex
from alexnet_dist.data.sources import folders
from alexnet_dist.data.sources.imagenet_labels import find_class, read_val_classes
from alexnet_dist.data.sources.source import Source, SourceOptions, check_part, find_given_root
from alexnet_dist.data.sources.tar_index import ArchiveSet, list_pictures
from alexnet_dist.data.sources.tar_members import INNER, list_members
from alexnet_dist.data.sources.tar_names import find_archives

ARCHIVES = {"train": "ILSVRC2012_img_train.tar", "val": "ILSVRC2012_img_val.tar"}
KAGGLE = Path("ILSVRC") / "Data" / "CLS-LOC"


@dataclass(frozen=True)
class _Part:
    """Where train or val lies.

    Args:
        kind: archive, archives of one class each, folders of classes, or a flat folder.
        path: of the archive or the folder.
    """

    kind: str
    path: Path


def looks_like_imagenet(root: Path) -> bool:
    """Whether a folder has ImageNet as it is delivered, which no other source reads."""
    return (root / ARCHIVES["train"]).is_file() or (root / KAGGLE).is_dir()


def find_root(options: SourceOptions) -> Path:
    """The folder that train and val lie in."""
    root = find_given_root(options, f"give the folder with {ARCHIVES['train']}, with ILSVRC/, or with train/ and val/")
    return root / KAGGLE if (root / KAGGLE).is_dir() else root


def _find_part(options: SourceOptions, key: str) -> _Part:
    check_part(options, key, tuple(ARCHIVES))
    root, name = find_root(options), options.parts[key]
    for path in (root / ARCHIVES[name], root / name / ARCHIVES[name]):
        if path.is_file():
            return _Part("archive", path)
    folder = root / name
    if not folder.is_dir():
        where, why, _ = describe_missing(root / ARCHIVES[name])
        remedy = f"set data.root to the folder with {ARCHIVES[name]}, or with {name}/"
        raise DataError(f"no {name} set of ImageNet", where=where, why=why, remedy=remedy)
    with os.scandir(folder) as entries:
        names = [(entry.name, folders.is_folder(entry)) for entry in entries if not folders.is_stray(entry.name)]
    if any(is_folder for _, is_folder in names):
        return _Part("folders", folder)
    if any(name.endswith(".tar") for name, _ in names):
        return _Part("archives", folder)
    return _Part("flat", folder)


def _list_part(options: SourceOptions, key: str, part: _Part) -> tuple[FileSet, list[str]]:
    """The pictures of a part that is no folder of classes, and the WordNet id of each, "" where nothing says it."""
    root = find_root(options)
    if part.kind == "flat":
        images = FileSet(part.path, folders.list_images_below(part.path))
        return images, _find_ids(options, part, [file.path for file in images.files])
    listing, headers = list_pictures(_find_archives(options, key, part), options.rules)
    everything = listing.place(list(range(len(headers))))
    images = FileSet(root, listing.list_files(), listed_in=part.path, containers=everything, headers=headers)
    if part.kind == "archives":
        stems = [Path(name).stem for name in listing.names]
        return images, [stems[number] for number in listing.numbers.tolist()]
    if options.parts[key] == "train":
        return images, [row.name.partition(INNER)[0] if INNER in row.name else "" for row in listing.rows]
    return images, _find_ids(options, part, [row.name for row in listing.rows])


def _find_archives(options: SourceOptions, key: str, part: _Part) -> ArchiveSet:
    root = find_root(options)
    return ArchiveSet(root, tuple(find_archives(root, os.path.relpath(part.path, root), key)), labels="none")


def _find_ids(options: SourceOptions, part: _Part, names: Sequence[str]) -> list[str]:
    said_by, classes = read_val_classes(Path(options.root or "."))
    ids = [find_class(classes, name) for name in names]
    if not any(ids):
        why = f"{said_by.name} names none of {len(names):,}"
        remedy = "put the kit or the table of these pictures into data.root"
        raise DataError("pictures of unknown classes", where=str(part.path), why=why, remedy=remedy)
    return ids


def _list_split(options: SourceOptions, key: str, classes: tuple[str, ...] | None) -> SampleIndex:
    part, rules = _find_part(options, key), options.rules
    if part.kind in ("archive", "archives") and options.parts[key] == "train":  # a million pictures
        wanted = _find_archives(options, key, part)

        def make() -> SampleIndex:
            return _index_by_id(*_list_part(options, key, part), classes, options)

        return make_once(rules, wanted.root, wanted.stem, (wanted.look_up(), classes), make, part.path)
    if part.kind != "folders":
        return _index_by_id(*_list_part(options, key, part), classes, options)
    return folders.scan_folder(
        part.path,
        classes=classes,
        on_bad_file=rules.on_bad_file,
        cache_dir=rules.cache_dir,
        max_pixels=rules.max_pixels,
        progress=rules.progress,
    )


def _index_by_id(
    images: FileSet, ids: Sequence[str], classes: tuple[str, ...] | None, options: SourceOptions
) -> SampleIndex:
    """An index of pictures with the WordNet ids of their classes; those without one are bad files."""
    names = tuple(sorted({name for name in ids if name})) if classes is None else classes
    number_of = {name: number for number, name in enumerate(names)}
    unknown = sorted({name for name in ids if name and name not in number_of})
    if unknown:
        why = f"{join_names(unknown)} are not among its {len(names)}"
        remedy = "train on all classes, or leave the pictures of the others out"
        raise DataError("classes that the training set does not have", where=str(images.root), why=why, remedy=remedy)
    labels = np.array([number_of.get(name, 0) for name in ids], np.int64)
    order = sorted(range(len(ids)), key=lambda position: (labels[position], images.files[position].path))
    reasons = ["" if ids[position] else "nothing says which class it is of" for position in order]
    return index_files(images.take(order), labels[order], names, options.rules, reasons)


# -- as a source ------------------------------------------------------------------------------------------------------


def _check(options: SourceOptions) -> None:
    for key, name in options.parts.items():
        if name:
            part = _find_part(options, key)
            if part.kind == "flat" or (part.kind == "archive" and name == "val"):
                read_val_classes(Path(options.root or "."))


def _list_files(options: SourceOptions, key: str) -> FileSet:
    part = _find_part(options, key)
    if part.kind == "folders":
        found = folders.list_images(part.path, folders.list_class_folders(part.path))
        return FileSet(part.path, [file for some in found for file in some])
    return _list_part(options, key, part)[0]


def _list_classes(options: SourceOptions, key: str) -> tuple[str, ...]:
    """The classes of a part, as far as names tell; no picture is read."""
    part = _find_part(options, key)
    if part.kind == "folders":
        return tuple(folders.list_class_folders(part.path))
    if part.kind == "archives":
        return tuple(sorted(path.stem for path in part.path.glob("*.tar")))
    if options.parts[key] == "train":
        return tuple(sorted(Path(name).stem for name, _, _ in list_members(part.path).inner))
    return tuple(sorted(set(read_val_classes(Path(options.root or "."))[1].values())))


def _name_classes(options: SourceOptions, key: str, classes: Sequence[str]) -> Sequence[str]:
    return _list_classes(options, key)


def _count_classes(options: SourceOptions) -> tuple[int | None, str]:
    try:
        return len(_list_classes(options, "train")), f"ImageNet in {options.root}"
    except DataError:
        return None, f"ImageNet in {options.root} is not read here"


SOURCE = Source(
    list_split=_list_split,
    check=_check,
    find_root=find_root,
    list_files=_list_files,
    name_classes=_name_classes,
    count_classes=_count_classes,
)
