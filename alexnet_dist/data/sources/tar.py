"""Pictures in archives: WebDataset's shards, a tar, a tar of tars, or a zip of stored members. Nothing is extracted."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from alexnet_dist.base.errors import DataError
from alexnet_dist.base.text import join_names
from alexnet_dist.data.files.index_files import index_files
from alexnet_dist.data.files.kept_index import make_once
from alexnet_dist.data.files.scan import FileSet, FoundFile, Header
from alexnet_dist.data.index import SampleIndex
from alexnet_dist.data.sources.manifest import make_form
from alexnet_dist.data.sources.manifest_labels import derive_classes, find_class_lists, number_labels
from alexnet_dist.data.sources.manifest_read import (
    CLASS_LIST,
    Listed,
    find_first_mentions,
    is_integer,
    normalize_name,
    read_manifest,
    refuse_other_root,
)
from alexnet_dist.data.sources.source import Source, SourceOptions, find_file_root
from alexnet_dist.data.sources.tar_index import ArchiveSet, Listing, list_pictures
from alexnet_dist.data.sources.tar_labels import Kind, split_key, strip_folders
from alexnet_dist.data.sources.tar_names import FOLDER_MARK, find_archives, split_name

KINDS: dict[str, Kind] = {"cls": "cls", "json": "json", "folder": "folder"}


@dataclasses.dataclass(frozen=True, eq=False)
class Archived:
    """The N pictures of a set, in its archives' order.

    Args:
        wanted: the archives.
        listing: what they hold.
        headers: (N,) of the pictures.
        files: as an index knows them.
        pictures: with their labels as written; of those that a list names, in its order.
        rows: (M,) position in `listing.rows` of each of `pictures`, -1 where the archives have none.
        inside: names of the files below the folders that the whole set has in common.
    """

    wanted: ArchiveSet
    listing: Listing
    headers: list[Header]
    files: list[FoundFile]
    pictures: list[Listed]
    rows: list[int]
    inside: list[str]


def find_wanted(options: SourceOptions, key: str) -> ArchiveSet:
    """The archives of train, val or test.

    Raises:
        DataError: some are missing, or none is named.
    """
    root, name = find_file_root(options), options.parts[key]
    if options.root is not None and options.root.is_file():
        name = options.root.name + (f"{FOLDER_MARK}{name}" if name not in ("", ".") else "")
    archives, folder = split_name(root, name)
    kind = KINDS.get(options.labels or "") if options.labels is None or options.labels in KINDS else "none"
    json_key = options.columns.get("label", "") if kind in (None, "json") else ""
    return ArchiveSet(root, tuple(find_archives(root, archives, key)), folder, kind, json_key)


def list_archived(options: SourceOptions, key: str) -> Archived:
    """The pictures of train, val or test, with their labels as they are written.

    Raises:
        DataError: archives, or the list of labels, that are missing or damaged.
    """
    wanted = find_wanted(options, key)
    listing, headers = list_pictures(wanted, options.rules)
    if not listing.rows:
        where = str(wanted.root / wanted.names[0])
        raise DataError("archives without a picture", where=where, remedy=f"check --data.{key}")
    files = listing.list_files()
    where = str(wanted.root / wanted.names[0])
    inside = strip_folders([row.name for row in listing.rows], wanted.folder, where)
    if listing.kind == "none":
        pictures, rows = _read_list(options, key, files, inside)
        return Archived(wanted, listing, headers, files, pictures, rows, inside)
    pictures = [Listed(0, file, row.label, row.reason) for file, row in zip(files, listing.rows, strict=True)]
    if listing.kind == "folder":
        pictures = [_label_by_folder(picture, name) for picture, name in zip(pictures, inside, strict=True)]
    return Archived(wanted, listing, headers, files, pictures, list(range(len(files))), inside)


def _label_by_folder(picture: Listed, name: str) -> Listed:
    folder, slash, _ = name.partition("/")
    return picture._replace(label=folder) if slash else picture._replace(reason="no folder names its class")


def _read_list(
    options: SourceOptions, key: str, files: Sequence[FoundFile], inside: Sequence[str]
) -> tuple[list[Listed], list[int]]:
    """What a list says of members, by their names or their keys; and the position of each in `files`."""
    position_of: dict[str, int] = {}
    for position, (file, name) in enumerate(zip(files, inside, strict=True)):
        member = file.path.partition(FOLDER_MARK)[2]
        for called in dict.fromkeys((member, file.path, name, split_key(name)[0])):
            first = position_of.setdefault(called, position)
            if first != position and called == member:
                why = f"'{files[first].path}' and '{file.path}' have one name"
                raise DataError("a list cannot tell members apart", where=str(options.labels), why=why)
    root = find_file_root(options)
    form = dataclasses.replace(
        make_form(options, key, has_positions=bool(_read_class_lists(options, [key]))),
        members={called: files[position] for called, position in position_of.items()},
    )
    path = root / str(options.labels)
    classes = next(iter(_read_class_lists(options, [key]).values()), ())
    listed = read_manifest(root, path, classes, form, tell=True)
    refuse_other_root(path, listed)
    of_path = {file.path: position for position, file in enumerate(files)}
    return listed, [of_path.get(picture.file.path, -1) for picture in listed]


def find_classes(archived: Archived, place: Path, given: Sequence[str] | None) -> tuple[tuple[str, ...], bool]:
    """The classes of a set, and whether an integer is a position among them.

    Args:
        archived: the pictures.
        place: the list, or the root, for messages.
        given: of a class list, or of training; None without any.

    Raises:
        DataError: labels that are no labels.
    """
    labeled = [picture for picture in archived.pictures if picture.label and not picture.reason]
    if given is None:
        if archived.listing.kind == "folder":
            return tuple(sorted({normalize_name(picture.label) for picture in labeled})), False
        given = derive_classes(place, labeled)
    classes = tuple(given)
    return classes, classes == tuple(map(str, range(len(classes))))


def _list_split(options: SourceOptions, key: str, classes: tuple[str, ...] | None) -> SampleIndex:
    """Where nothing has changed since it was listed, and nothing is bad, the index is the one that is kept."""
    wanted, rules = find_wanted(options, key), options.rules
    lists = _read_class_lists(options, ["train"] if key == "train" else list(options.parts))
    given = classes if classes is not None else next(iter(lists.values()), None)
    make = partial(_index_anew, options, key, given, bool(lists))
    if wanted.labels == "none":
        return make()
    facts = wanted.look_up(), given, bool(lists)
    return make_once(rules, wanted.root, wanted.stem, facts, make, _name_set(wanted.root, options, key))


def _index_anew(
    options: SourceOptions, key: str, classes: Sequence[str] | None, has_list_of_classes: bool
) -> SampleIndex:
    archived = list_archived(options, key)
    wanted, pictures = archived.wanted, archived.pictures
    has_list = archived.listing.kind == "none"
    place = wanted.root / str(options.labels) if has_list else wanted.root
    names, are_numbers = find_classes(archived, place, classes)
    labels = np.zeros(len(pictures), np.int64)
    good = [position for position, picture in enumerate(pictures) if picture.label or not picture.reason]
    labels[good] = _number(
        place, [pictures[position] for position in good], names, archived, are_numbers or has_list_of_classes
    )
    order = list(range(len(pictures)))
    if has_list:
        order = find_first_mentions(place, pictures, labels)
    inside = [archived.inside[row] if row >= 0 else pictures[at].file.path for at, row in enumerate(archived.rows)]
    order.sort(key=lambda position: (labels[position], inside[position], pictures[position].file.path))
    rows = [archived.rows[position] for position in order]
    images = FileSet(
        wanted.root,
        [pictures[position].file for position in order],
        listed_in=_name_set(wanted.root, options, key),
        containers=archived.listing.place(rows),
        headers=[archived.headers[row] if row >= 0 else Header(0, 0, False) for row in rows],
    )
    return index_files(images, labels[order], names, options.rules, [pictures[position].reason for position in order])


def _name_set(root: Path, options: SourceOptions, key: str) -> Path:
    """What stands for the archives of a set in messages, and keeps what is remembered of each set apart."""
    return root / options.parts[key]


def _number(
    place: Path, pictures: Sequence[Listed], classes: Sequence[str], archived: Archived, has_positions: bool
) -> npt.NDArray[np.int64]:
    """Class numbers; each label that is written is looked up once. A folder's name is a name always."""
    first_of: dict[str, Listed] = {}
    for picture in pictures:
        first_of.setdefault(picture.label, picture)
    firsts = list(first_of.values())
    if archived.listing.kind == "folder":
        known = {normalize_name(name) for name in classes}
        unknown = [picture for picture in firsts if normalize_name(picture.label) not in known]
        if unknown:
            where, why = unknown[0].place(place), join_names([picture.label for picture in unknown])
            remedy = "rename or leave out the folder, or add the class to the training set"
            raise DataError("class folders the training set does not have", where=where, why=why, remedy=remedy)
        number_of = {normalize_name(name): number for number, name in enumerate(classes)}
        label_of = {text: number_of[normalize_name(text)] for text in first_of}
    else:
        label_of = dict(zip(first_of, number_labels(place, firsts, classes, has_positions).tolist(), strict=True))
    return np.array([label_of[picture.label] for picture in pictures], np.int64)


# -- as a source ------------------------------------------------------------------------------------------------------


def _check(options: SourceOptions) -> None:
    for key, name in options.parts.items():
        if name:
            find_wanted(options, key)
    _read_class_lists(options, list(options.parts))


def _read_class_lists(options: SourceOptions, keys: Sequence[str]) -> dict[Path, tuple[str, ...]]:
    """The list of data.classes, or classes.txt in data.root."""
    root = find_file_root(options)
    return find_class_lists([root / CLASS_LIST], root / options.classes if options.classes is not None else None)


def _list_files(options: SourceOptions, key: str) -> FileSet:
    archived = list_archived(options, key)
    pairs = list(zip(archived.pictures, archived.rows, strict=True))
    good = {picture.file: row for picture, row in pairs if not picture.reason}
    return FileSet(
        archived.wanted.root,
        list(good),
        missing=[(picture.file.path, picture.reason) for picture, _ in pairs if picture.reason],
        listed_in=_name_set(archived.wanted.root, options, key),
        containers=archived.listing.place(list(good.values())),
        headers=[archived.headers[row] for row in good.values()],
    )


def _name_classes(options: SourceOptions, key: str, classes: Sequence[str]) -> Sequence[str]:
    archived = list_archived(options, key)
    is_folder = archived.listing.kind == "folder"
    labels = {picture.label for picture in archived.pictures if picture.label}
    return sorted(label for label in labels if is_folder or not is_integer(label))


def _count_classes(options: SourceOptions) -> tuple[int | None, str]:
    return None, "archives are not read here"


SOURCE = Source(
    list_split=_list_split,
    check=_check,
    find_root=find_file_root,
    list_files=_list_files,
    read_class_lists=_read_class_lists,
    name_classes=_name_classes,
    count_classes=_count_classes,
)
