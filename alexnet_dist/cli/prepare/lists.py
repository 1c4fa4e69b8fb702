"""Lists of the images of some sets, as `prepare manifest` and `prepare subset` write them."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from alexnet_dist.base.durable import disk_errors_named, tidy_folder, write_file
from alexnet_dist.base.errors import DataError, UsageError
from alexnet_dist.base.terminal import COMMAND_JOINT
from alexnet_dist.base.text import align, escape_text, quote_word
from alexnet_dist.cli.options import show
from alexnet_dist.data.index import SampleIndex
from alexnet_dist.data.sources.manifest_read import CLASS_LIST, is_integer
from alexnet_dist.data.sources.manifest_write import format_class_list, format_manifest
from alexnet_dist.settings.reader import build_config

Pictures: TypeAlias = dict[str, list[str]]  # {class: paths}

LABELS = "labels.csv"  # of archives


@dataclass(frozen=True)
class Listed:
    """The images of some sets, by the names of the sets.

    Args:
        root: that their paths are relative to.
        classes: all of them, in order.
        pictures: by class.
        archives: what the setting of each set is for source tar; None where each image has a file of its own.
    """

    root: Path
    classes: Sequence[str]
    pictures: dict[str, Pictures]
    archives: dict[str, str] | None = None


def list_source(source: str, root: Path, names: Mapping[str, str]) -> Listed:
    """The images of a source, with their labels; bad ones are refused.

    Args:
        source: of `data.source`.
        root: data.root.
        names: what the sets are called.

    Raises:
        DataError: as training does; or some sets lie in archives, and others do not.
    """
    from alexnet_dist.assembly.sets import PART_KEYS, find_sets, prepare_source
    from alexnet_dist.runs.folder import start_logging
    from alexnet_dist.runs.image_list import place_paths

    start_logging(None)
    parts = {f"data.{key}": names.get(key) for key in PART_KEYS}
    data = build_config({"train.epochs": 1, "data.source": source, "data.root": str(root), **parts}).data
    opened, options = prepare_source(data, seed=0, progress=True)
    place = opened.find_root(options)
    found = zip(PART_KEYS, find_sets(data, seed=0, progress=True), strict=True)
    sets = {key: index for key, index in found if index is not None}
    if len({index.containers is None for index in sets.values()}) > 1:
        what, why = "sets of two kinds", "some lie in archives, and some are files"
        raise DataError(what, where=str(root), why=why, remedy="use prepare pack")
    classes = sets["train"].classes
    pictures = {key: group(index, place_paths(index, index.paths, place)) for key, index in sets.items()}
    archives = {key: _name_archives(index, names[key], source) for key, index in sets.items()}
    return Listed(place, classes, pictures, archives if sets["train"].containers is not None else None)


def group(index: SampleIndex, paths: Iterable[str]) -> Pictures:
    """The paths of an index's images by class."""
    pictures: Pictures = {name: [] for name in index.classes}
    for path, label in zip(paths, index.labels.tolist(), strict=True):
        pictures[index.classes[label]].append(path)
    return pictures


def _name_archives(index: SampleIndex, name: str, source: str) -> str:
    """What source tar calls the archives of a set."""
    if source == "tar" or index.containers is None:
        return name
    archives = index.containers.names
    return archives[0] if len(archives) == 1 else os.path.dirname(archives[0])


def write_lists(listed: Listed, out: Path, overwrite: bool) -> None:
    """Write the lists of all sets and the class list.

    Args:
        listed: the images.
        out: the folder; it is made.
        overwrite: replace files of other content.

    Raises:
        UsageError: files of other content are there; nothing is written then.
        DataError: a name that a line of text cannot hold.
        MachineError: the folder cannot be written.
    """
    files = _format_lists(listed)
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


def _format_lists(listed: Listed) -> dict[str, bytes]:
    """The files that say it, by their names.

    Raises:
        DataError: a name that a line of text cannot hold.
    """
    classes = format_class_list(listed.classes)
    if listed.archives is None:
        lists = {f"{key}.txt": format_manifest(pictures, listed.classes) for key, pictures in listed.pictures.items()}
        return {**lists, CLASS_LIST: classes}
    are_names = not any(map(is_integer, listed.classes))
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("path", "label", "split"))
    for key, pictures in listed.pictures.items():
        for number, name in enumerate(listed.classes):
            writer.writerows((path, name if are_names else number, key) for path in pictures.get(name, ()))
    return {LABELS: text.getvalue().encode("utf-8", "surrogateescape"), CLASS_LIST: classes}


def show_lists(listed: Listed, out: Path) -> None:
    """A line for each set, and the settings with which the lists are read."""
    rows = [("set", "classes", "images", "per class", "list")]
    for key, pictures in listed.pictures.items():
        counts = [len(paths) for paths in pictures.values() if paths]
        spread = f"{min(counts):,} to {max(counts):,}" if counts else "0"
        name = f"{key}.txt" if listed.archives is None else LABELS
        rows.append((key, f"{len(counts):,}", f"{sum(counts):,}", spread, escape_text(str(out / name))))
    show(align(rows, "<>><"))
    settings = {"source": "manifest" if listed.archives is None else "tar", "root": str(listed.root)}
    if listed.archives is None:
        settings |= {key: os.path.abspath(out / f"{key}.txt") for key in listed.pictures}
    else:
        settings |= listed.archives | {name: os.path.abspath(out / file) for name, file in _BESIDE.items()}
    show("")
    words = " ".join(f"--data.{key} {quote_word(value)}" for key, value in settings.items())
    show(f"use: {words}", COMMAND_JOINT)


_BESIDE = {"labels": LABELS, "classes": CLASS_LIST}
