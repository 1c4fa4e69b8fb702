"""From the labels of a manifest to classes: the class list, or what can be derived where there is none."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from alexnet_dist.base.errors import DataError
from alexnet_dist.base.text import join_names
from alexnet_dist.data.sources.manifest_read import (
    CLASS_LIST,
    Listed,
    is_integer,
    normalize_name,
    read_plain_text,
    split_lines,
)

_MOST_DIGITS = 18  # int() refuses thousands of them, and no class list is as long
_FROM_ZERO = "labels count from 0, and these begin at 1"
_FROM_ZERO_REMEDY = "subtract 1 from each label, or write class names"
_FEWEST_COUNTED = 3  # lines with 1, 2, 3


def read_class_list(path: Path) -> tuple[str, ...]:
    """The names of a class list, one a line, in order.

    Raises:
        DataError: the file cannot be read, is empty, has an empty line between names, or a name twice.
    """
    lines = [line.strip(" \t") for line in split_lines(read_plain_text(path, "class list"))]
    while lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise DataError("the class list is empty", where=str(path), remedy="write a class name a line")
    first_of: dict[str, int] = {}
    for number, name in enumerate(lines, start=1):
        if not name:
            why = "a name is missing, and positions count"
            raise DataError("empty line in the class list", where=f"{path}:{number}", why=why, remedy="remove the line")
        first = first_of.setdefault(normalize_name(name), number)
        if first != number:
            why = f"'{name}' stands in line {first} already"
            raise DataError("a class stands twice", where=f"{path}:{number}", why=why, remedy="remove one of the lines")
    return tuple(lines)


def find_class_lists(manifests: Sequence[Path], named: Path | None) -> dict[Path, tuple[str, ...]]:
    """The class lists that go with manifests: the named one, or each `classes.txt` beside a manifest.

    Raises:
        DataError: the named list is missing, or one cannot be read.
    """
    beside = dict.fromkeys(manifest.parent / CLASS_LIST for manifest in manifests)
    paths = [named] if named is not None else [path for path in beside if os.path.lexists(path)]
    return {path: read_class_list(path) for path in paths}


def derive_classes(manifest: Path, pictures: Sequence[Listed]) -> tuple[str, ...]:
    """The classes of a manifest without a class list: its names, sorted, or the numbers from 0 to its largest label.

    Raises:
        DataError: names and integers, or integers that cannot be labels.
    """
    numbers = [picture for picture in pictures if is_integer(picture.label)]
    if not numbers:
        return tuple(sorted({normalize_name(picture.label) for picture in pictures}))
    if len(numbers) < len(pictures):
        name = next(picture for picture in pictures if not is_integer(picture.label))
        raise DataError(
            "names and integers as labels",
            where=str(manifest),
            why=f"{name.spot} has '{name.label}', {numbers[0].spot} has {numbers[0].label}",
            remedy=f"write one kind, or give the class list with data.classes or in {CLASS_LIST}",
        )
    labels = [_read_integer(picture.label) for picture in pictures]
    lowest, highest = (pictures[labels.index(extreme(labels))] for extreme in (min, max))
    if min(labels) < 0:
        raise _range_error(manifest, lowest, "it is negative")
    if len(labels) >= _FEWEST_COUNTED and labels == list(range(1, len(labels) + 1)):
        raise _counting_error(manifest, pictures[0])
    if min(labels) == 1:
        where = lowest.place(manifest)
        raise DataError("no picture has label 0", where=where, why=_FROM_ZERO, remedy=_FROM_ZERO_REMEDY)
    if max(labels) >= len(pictures):
        raise _range_error(
            manifest, highest, f"without a class list it must be below the number of pictures, {len(pictures)}"
        )
    return tuple(map(str, range(max(labels) + 1)))


def number_labels(
    manifest: Path, pictures: Sequence[Listed], classes: Sequence[str], has_positions: bool
) -> npt.NDArray[np.int64]:
    """The class number of each picture, int64 (N,).

    Args:
        manifest: named in errors.
        pictures: what it lists.
        classes: all classes, in order.
        has_positions: whether integers may be used, because a list gives the classes their order.

    Raises:
        DataError: a name that is no class, an integer out of range, or one where no list gives the order.
    """
    number_of = {normalize_name(name): number for number, name in enumerate(classes)}
    labels = np.empty(len(pictures), dtype=np.int64)
    for position, picture in enumerate(pictures):
        if not is_integer(picture.label):
            number = number_of.get(normalize_name(picture.label), -1)
            if number < 0:
                raise _name_error(manifest, picture, classes)
        elif not has_positions:
            where = picture.place(manifest)
            why = f"label {picture.label}, but the classes have names and no list gives their order"
            remedy = f"write class names, or give the class list with data.classes or in {CLASS_LIST}"
            raise DataError("an integer label without a class list", where=where, why=why, remedy=remedy)
        else:
            number = _read_integer(picture.label)
            if not 0 <= number < len(classes):
                raise _explain_range(manifest, picture, pictures, len(classes))
        labels[position] = number
    return labels


def _read_integer(label: str) -> int:
    digits = label.lstrip("+-").lstrip("0") or "0"
    number = int(digits) if len(digits) <= _MOST_DIGITS else 10**_MOST_DIGITS
    return -number if label.startswith("-") else number


def _explain_range(manifest: Path, wrong: Listed, pictures: Sequence[Listed], num_classes: int) -> DataError:
    numbers = [_read_integer(picture.label) for picture in pictures if is_integer(picture.label)]
    if max(numbers) > num_classes and numbers == list(range(1, len(pictures) + 1)):
        return _counting_error(manifest, pictures[0])
    if min(numbers) > 0 and max(numbers) == num_classes:
        why = f"there are {num_classes} classes; {_FROM_ZERO}"
        where = wrong.place(manifest)
        return DataError(f"label {wrong.label} is out of range", where=where, why=why, remedy=_FROM_ZERO_REMEDY)
    negative = _read_integer(wrong.label) < 0
    return _range_error(manifest, wrong, "it is negative" if negative else f"the last class is {num_classes - 1}")


def _counting_error(manifest: Path, first: Listed) -> DataError:
    why = "each line has the next number, as in ImageNet's train_cls.txt"
    remedy = "read class folders with --data.source folder and --data.train FOLDER, or write labels"
    return DataError("the numbers are no labels", where=first.place(manifest), why=why, remedy=remedy)


def _range_error(manifest: Path, picture: Listed, why: str) -> DataError:
    label = picture.label if len(picture.label) <= _MOST_DIGITS else picture.label[:_MOST_DIGITS] + "..."
    where = picture.place(manifest)
    return DataError(
        f"label {label} is out of range",
        where=where,
        why=why,
        remedy="an integer is a position in the class list, from 0",
    )


def _name_error(manifest: Path, picture: Listed, classes: Sequence[str]) -> DataError:
    near = difflib.get_close_matches(picture.label, classes, n=1)
    return DataError(
        f"unknown class '{picture.label}'",
        where=picture.place(manifest),
        why=f"the classes are {join_names(classes)}",
        remedy=f"did you mean '{near[0]}'?" if near else "correct the label or the class list",
    )
