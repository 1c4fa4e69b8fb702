"""A folder of images as its owner has it: class folders at once, or sets of them, called train, val, test or alike."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alexnet_dist.base.disk_errors import name_reason, name_remedy
from alexnet_dist.base.errors import DataError
from alexnet_dist.base.places import describe_missing, match_sets
from alexnet_dist.base.text import join_names, quote_word
from alexnet_dist.data.sources.folders import IMAGE_EXTENSIONS, is_folder, is_stray
from alexnet_dist.data.sources.given_archives import HERE, match_archives
from alexnet_dist.data.sources.imagenet import looks_like_imagenet
from alexnet_dist.data.sources.layouts import LAYOUT_REMEDY
from alexnet_dist.data.sources.parquet import match_tables

# What a configuration may have for another source, and what a folder would be refused with.
OF_OTHER_SOURCES: dict[str, Any] = {
    "data.download": False,
    **dict.fromkeys(("data.classes", "data.labels", "data.image_dir", "data.image_suffix")),
    **dict.fromkeys(("data.columns.path", "data.columns.label", "data.columns.split")),
}
LEAST_CLASSES = 2


@dataclass(frozen=True)
class GivenFolder:
    """How a folder is read.

    Args:
        settings: that read it so, {dotted name: value}.
        layout: what was recognized, in words.
    """

    settings: dict[str, Any]
    layout: str


def recognize_folder(folder: Path) -> GivenFolder:
    """How the images of a folder, or of an archive, are trained on: its sets by their usual names, or its classes.

    Without a folder of validation images a part of the training images is kept, as data.val_fraction says.

    Raises:
        DataError: there is no such folder, or it has neither sets nor classes; what it has is said.
    """
    if looks_like_imagenet(folder):
        return _give("imagenet", folder, {"train": "train", "val": "val"}, "ImageNet 2012 as it is delivered")
    archives = match_archives(folder)
    if archives is not None:
        layout = f"archives ({join_names(list(archives.values()))})" if folder.is_dir() else "an archive"
        return _give("tar", folder, archives, layout)
    tables = match_tables(folder)
    if tables is not None:
        return _give("parquet", folder, tables, f"parquet files ({join_names(list(tables.values()))})")
    names, num_files, num_images = _look_into(folder)
    sets = match_sets(names)
    if "test" in sets and not _look_into(folder / sets["test"])[0]:
        del sets["test"]  # pictures without classes
    if "train" in sets:
        layout = f"class folders in {join_names(list(sets.values()))}"
    else:
        classes = [name for name in names if _look_into(folder / name)[2]]
        if sets or len(classes) < LEAST_CLASSES:
            seen = f"the folders {join_names(names)}" if names else "no folder"
            why = f"it has {seen} and {num_files} files, {num_images} of them images"
            inside = next((name for name in names if "train" in match_sets(_look_into(folder / name)[0])), None)
            remedy = LAYOUT_REMEDY if inside is None else f"did you mean {quote_word(folder / inside)}?"
            raise DataError("neither classes nor train and val", where=str(folder), why=why, remedy=remedy)
        sets, layout = {"train": HERE}, f"{len(classes)} class folders"
    return _give("folder", folder, sets, layout)


def _give(source: str, folder: Path, sets: dict[str, str], layout: str) -> GivenFolder:
    if "val" not in sets:
        layout += "; a part is kept for validation"
    found = {f"data.{key}": sets.get(key) for key in ("train", "val", "test")}
    return GivenFolder({**OF_OTHER_SOURCES, "data.source": source, "data.root": str(folder), **found}, layout)


def name_set(place: Path, split: str) -> dict[str, Any]:
    """The settings that read one set from a folder or from archives, but for data.root.

    It lies in the part that is called like it, or in the folder itself. An archive that is a part is the whole set.

    Raises:
        DataError: there is no such folder, or an archive that cannot be read.
    """
    archives, tables = match_archives(place), match_tables(place)
    source = "tar" if archives is not None else "parquet" if tables is not None else "folder"
    sets = next((sets for sets in (archives, tables) if sets is not None), None) or match_sets(_look_into(place)[0])
    otherwise = place.name if source == "parquet" and place.is_file() else HERE
    return {**OF_OTHER_SOURCES, "data.source": source, f"data.{split}": sets.get(split, otherwise)}


def _look_into(folder: Path) -> tuple[list[str], int, int]:
    """Names of the folders in a folder; how many files lie beside them, and how many of these are images."""
    try:
        with os.scandir(folder) as entries:
            visible = [entry for entry in entries if not is_stray(entry.name)]
    except FileNotFoundError:
        where, why, near = describe_missing(folder)
        remedy = f"did you mean '{near}'?" if near else "give a folder of images"
        raise DataError("no such folder", where=where, why=why, remedy=remedy) from None
    except OSError as error:
        remedy = name_remedy(error, "give a folder of images")
        raise DataError("cannot list the folder", where=str(folder), why=name_reason(error), remedy=remedy) from None
    folders = sorted(entry.name for entry in visible if is_folder(entry))
    files = [entry.name for entry in visible if entry.name not in set(folders)]
    return folders, len(files), sum(name.lower().endswith(IMAGE_EXTENSIONS) for name in files)
