"""Layouts of well-known sets that are no folders of classes, and what to do with them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from alexnet_dist.base.errors import DataError
from alexnet_dist.base.places import describe_missing
from alexnet_dist.base.text import quote_word

LAYOUT_REMEDY = "put the images of each class into a folder of their own: ROOT/CLASS/IMAGE"
TINY_IMAGENET = ("images", "val_annotations.txt")  # its val/: a folder of all pictures, and a table of their classes
FLAT_IMAGENET = "ILSVRC2012_"  # how its validation and test pictures are called, and those of a sample of it
SETS = {"train", "val", "valid", "validation", "test"}


def refuse_other_layouts(root: Path, folders: Sequence[str], names: Sequence[str]) -> None:
    """Refuse a folder whose folders are no classes, where it is known what they are.

    Args:
        root: the folder.
        folders: the folders in it.
        names: all that is in it.

    Raises:
        DataError: it is tiny-imagenet's or ImageNet's val, or holds the sets and not the classes.
    """
    pictures, table = TINY_IMAGENET
    if not folders and any(name.startswith(FLAT_IMAGENET) for name in names):
        why = "ImageNet's pictures lie directly in it, and the name of a folder is no class of theirs"
        remedy = "set --data.source imagenet, which reads their classes from the devkit or LOC_val_solution.csv"
        raise DataError("no class folders", where=str(root), why=why, remedy=remedy)
    if list(folders) == [pictures] and table in names:
        raise DataError(
            "no class folders",
            where=str(root),
            why=f"{table} has the classes of {pictures}/",
            remedy=f"cd {quote_word(root)} && while read -r f c _; do mkdir -p $c && mv {pictures}/$f $c; "
            f"done < {table} && rmdir {pictures}",
        )
    if "train" in folders and len(folders) > 1 and SETS.issuperset(folders):
        why = f"it holds {', '.join(folders)}"
        remedy = f"set --data.train {quote_word(os.path.join(root, 'train'))}, or --data.root to this folder"
        raise DataError("folders of sets where classes should be", where=str(root), why=why, remedy=remedy)


def explain_missing_folder(folder: Path, key: str = "", value: str = "") -> DataError:
    """The line for a folder that is not there: where it was looked for, what lies there, and what may be meant.

    Args:
        folder: which.
        key: the setting that names it, "" where none does.
        value: of the setting.
    """
    where, why, near = describe_missing(folder)
    remedy = (f"did you mean '{near}'? " if near else "") + "check data.root and the names of the sets below it"
    if key and near and os.path.isdir(os.path.join(os.path.dirname(where), near)):
        remedy = f"did you mean --data.{key} {quote_word(os.path.join(os.path.dirname(value), near))}?"
    return DataError("no such folder", where=where, why=why, remedy=remedy)
