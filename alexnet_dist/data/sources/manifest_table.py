"""Which columns of a table hold the paths, the labels and the parts of a set: found by their names, never guessed."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

from alexnet_dist.base.errors import DataError, UsageError
from alexnet_dist.base.text import join_names
from alexnet_dist.data.sources.folders import IMAGE_EXTENSIONS

# Compared without case, spaces and underscores.
_PATH_NAMES = frozenset(
    [
        *("path", "paths", "file", "files", "filename", "filepath", "image", "images", "img", "imagename", "imagefile"),
        *("imgname", "imagepath", "imgpath", "imageid", "imgid", "imageindex", "id", "name", "picture", "photo"),
    ]
)
_LABEL_NAMES = frozenset(
    [
        *("label", "labels", "labelname", "labelid", "class", "classes", "classname", "classid"),
        *("category", "categoryname", "categoryid", "target", "targetname", "y", "species", "breed"),
    ]
)
_SPLIT_NAMES = frozenset(("split", "set", "subset", "partition", "part", "phase", "fold", "dataset"))
_CLEAR_SPLIT_NAMES = ("split", "subset", "partition", "phase")  # they say nothing but the set
# Columns of false and true, and the parts that these say.
_FLAGS = {
    **dict.fromkeys(("isvalid", "isval", "isvalidation"), ("train", "val")),
    "istest": ("train", "test"),
    **dict.fromkeys(("istrain", "istraining", "istrainingimage"), ("test", "train")),
}
_WEAK_PATH_NAMES = ("id", "name")  # they may be of anything
NO_SPLIT = "none"  # for data.columns.split: take all rows
_PARTS = {
    **dict.fromkeys(("train", "training", "tr", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
}
_NUMBER = re.compile(r"[-+]?[0-9.]+(e[-+]?[0-9]+)?", re.IGNORECASE)
_GIVEN_MARK = re.compile(r"sep=([,;|\t])\r?\n", re.IGNORECASE)  # a first line of Excel's
_MOST_NAMED = 8  # columns in a message
_BINARY = {"0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}

Cells: TypeAlias = list[str]
Rows: TypeAlias = list[tuple[int, Cells]]  # each with its line, from 1


class Row(NamedTuple):
    """A picture as a table lists it."""

    line: int  # from 1
    path: str
    label: str
    part: str  # train, val or test; "" without such a column


@dataclass(frozen=True)
class ColumnNames:
    """What the settings say of a table's columns: names of its header, or numbers from 1; None = found by itself."""

    path: str | None = None
    label: str | None = None
    split: str | None = None


@dataclass(frozen=True)
class Table:
    """What a table lists.

    Args:
        rows: a picture each.
        note: which columns were taken, for people; "" where the table has no header.
    """

    rows: list[Row]
    note: str


class _Sheet(NamedTuple):
    """A table on its way: where it stands, what its header says, what is below."""

    manifest: Path
    header: Cells  # empty without one
    rows: Rows
    width: int

    def column(self, number: int) -> list[str]:
        return [cells[number].strip(" ") for _, cells in self.rows]

    def is_of_images(self, number: int) -> bool:
        return all(cells[number].lower().rstrip(" ").endswith(IMAGE_EXTENSIONS) for _, cells in self.rows)

    def name(self, number: int) -> str:
        return self.header[number].strip() if self.header else f"column {number + 1}"

    def find(self, names: frozenset[str]) -> list[int]:
        """Columns whose header is one of these names."""
        return [number for number, cell in enumerate(self.header) if _normalize(cell) in names]


def read_table(
    manifest: Path,
    text: str,
    names: ColumnNames,
    is_picture: Callable[[str], bool],
    is_class: Callable[[str], bool],
) -> Table:
    """Read a table with commas, semicolons, TABs or bars between its columns.

    A table of two columns need not name them: the first is the path. Of more columns, the ones with the usual names are
    taken, or several columns of 0 and 1 with a single 1 in each row, whose names are the classes.

    Args:
        manifest: named in errors.
        text: of the file.
        names: columns that the settings name.
        is_picture: whether a cell names a picture.
        is_class: whether a cell is a class that is known.

    Raises:
        DataError: damaged rows, or columns that do not say what they hold.
        UsageError: the settings name a column that is not there.
    """
    rows = _split_rows(manifest, text)
    if not rows:
        return Table([], "")
    width = len(rows[0][1])
    has_header = _is_header(rows, names, is_picture, is_class)
    sheet = _Sheet(manifest, rows[0][1] if has_header else [], rows[1:] if has_header else rows, width)
    _check_widths(sheet)
    return _pick_columns(sheet, names)


def names_columns(cells: tuple[str, str]) -> bool:
    """Whether the first line of a text is a header: usual names of a path and of a label."""
    path, label = map(_normalize, cells)
    return path in _PATH_NAMES and label in _LABEL_NAMES


def no_label_error(place: str) -> DataError:
    """A line that gives a path or a label, not both."""
    remedy = "write PATH LABEL (or PATH,LABEL into a file whose name ends with .csv)"
    return DataError("a line without a label", where=place, remedy=remedy)


def _split_rows(manifest: Path, text: str) -> Rows:
    """The rows that are not empty; columns that are empty in all of them go."""
    given = _GIVEN_MARK.match(text)
    first = next((line for line in text.split("\n") if line.strip(" \t\r,;")), "")
    delimiter = given[1] if given else next((mark for mark in (",", "\t", ";", "|") if mark in first), ",")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        rows = [(reader.line_num, row) for row in reader if _measure(row)][1 if given else 0 :]
    except csv.Error as error:
        remedy = "mend the quotes"
        raise DataError("damaged CSV", where=f"{manifest}:{reader.line_num}", why=str(error), remedy=remedy) from None
    width = max((_measure(row) for _, row in rows), default=0)
    return [(line, row if len(row) <= width else row[:width]) for line, row in rows]


def _measure(row: Cells) -> int:
    """The number of columns up to the last one with something in it."""
    if row and row[-1].strip(" "):  # nearly always, in a million rows
        return len(row)
    return next((number for number in range(len(row), 0, -1) if row[number - 1].strip(" ")), 0)


def _check_widths(sheet: _Sheet) -> None:
    for line, cells in sheet.rows:
        if len(cells) == 1:
            raise no_label_error(f"{sheet.manifest}:{line}")
        if len(cells) != sheet.width:
            why = f"it has {len(cells)} columns, the first row has {sheet.width}"
            remedy = "put a cell with commas into double quotes"
            raise DataError("a row of another length", where=f"{sheet.manifest}:{line}", why=why, remedy=remedy)


def _is_header(
    rows: Rows, names: ColumnNames, is_picture: Callable[[str], bool], is_class: Callable[[str], bool]
) -> bool:
    """Whether the first row names the columns."""
    first, others = rows[0][1], [cells for _, cells in rows[1:]]
    if any(map(is_picture, first)) or (len(first) == 2 and is_class(first[1].strip(" "))):
        return False
    cells = {_normalize(cell) for cell in first}
    given = {_normalize(name) for name in (names.path, names.label, names.split) if name is not None}
    if cells & (_PATH_NAMES | _LABEL_NAMES | given):
        return True
    # Names that nobody knows: none is a number, or stands below itself.
    is_name = (cell.strip() and not _NUMBER.fullmatch(cell.strip()) for cell in first)
    below = [{cells[number] for cells in others if number < len(cells)} for number in range(len(first))]
    return bool(others) and all(is_name) and not any(cell in column for cell, column in zip(first, below, strict=True))


# -- which column is what ---------------------------------------------------------------------------------------------


def _pick_columns(sheet: _Sheet, names: ColumnNames) -> Table:
    if not sheet.header and sheet.width == 2 and names == ColumnNames():
        return Table([Row(line, cells[0], cells[1].strip(" "), "") for line, cells in sheet.rows], "")
    split = _find_split(sheet, names.split)
    path = _find_path(sheet, names.path, {split})
    given = None if names.label is None else _find_given(sheet, "label", names.label)
    rest = [number for number in range(sheet.width) if number not in (path, split)]
    label = given if given is not None else _find_label(sheet, rest)
    hot = [] if label is not None else _find_one_hot(sheet, rest)
    labels = _read_one_hot(sheet, hot) if label is None else sheet.column(label)
    parts = _read_parts(sheet, split) if split is not None else [""] * len(sheet.rows)
    paths = (cells[path] for _, cells in sheet.rows)
    lines = (line for line, _ in sheet.rows)
    rows = [*map(Row, lines, paths, labels, parts)]
    return Table(rows, _describe(sheet, path, [label] if label is not None else hot, split))


def _find_given(sheet: _Sheet, key: str, name: str) -> int:
    found = sheet.find(frozenset([_normalize(name)]))
    if len(found) == 1:
        return found[0]
    if not found and name.isdecimal() and 1 <= int(name) <= sheet.width:
        return int(name) - 1
    raise UsageError(
        f"data.columns.{key} is '{name}'",
        where=str(sheet.manifest),
        why=f"{'several' if found else 'no'} columns have this name; there are {_list_columns(sheet)}",
        remedy=f"give another name, or a number from 1 to {sheet.width}",
    )


def _find_path(sheet: _Sheet, given: str | None, taken: set[int | None]) -> int:
    """The column that names pictures: by its own name, or because every cell ends as a picture does."""
    if given is not None:
        return _find_given(sheet, "path", given)
    free = [number for number in range(sheet.width) if number not in taken]
    named = [number for number in sheet.find(_PATH_NAMES) if number in free]
    strong = [number for number in named if _normalize(sheet.header[number]) not in _WEAK_PATH_NAMES]
    if len(strong) == 1:
        return strong[0]
    images = [number for number in free if sheet.is_of_images(number)]
    if len(strong_images := [number for number in strong if number in images]) == 1:
        return strong_images[0]
    candidates = strong or list(dict.fromkeys([*named, *images]))
    if not candidates and sheet.width == 2:
        labels = sheet.find(_LABEL_NAMES)
        candidates = [1 if labels == [0] else 0]
    if len(candidates) != 1:
        raise _unclear_error(sheet, "path", "names the pictures", candidates)
    return candidates[0]


def _find_label(sheet: _Sheet, rest: Sequence[int]) -> int | None:
    """The column of labels; None where there may be one for each class."""
    named = [number for number in sheet.find(_LABEL_NAMES) if number in rest]
    if len(named) > 1 or any(_normalize(cell) == "x" for cell in sheet.header):  # x and y are a place in the picture
        named = [number for number in named if _normalize(sheet.header[number]) != "y"]
    if len(named) > 1:
        raise _unclear_error(sheet, "label", "is the label", named)
    return named[0] if named else rest[0] if len(rest) == 1 else None


def _find_one_hot(sheet: _Sheet, rest: Sequence[int]) -> list[int]:
    """The columns of 0 and 1 with a single 1 in each row.

    Raises:
        DataError: there are none.
    """
    columns = {number: [_BINARY.get(cell.lower()) for cell in sheet.column(number)] for number in rest}
    binary = {number: cells for number, cells in columns.items() if sheet.header and None not in cells}
    if len(binary) < 2:
        raise _unclear_error(sheet, "label", "is the label", rest)
    for (line, _), marks in zip(sheet.rows, zip(*binary.values(), strict=True), strict=True):
        if sum(map(bool, marks)) != 1:
            why = f"{_list_columns(sheet, list(binary))} have {sum(map(bool, marks))} times 1 in this row"
            remedy = "leave one column a class and a single 1 a row, or name one column: --data.columns.label NAME"
            raise DataError("cannot tell the label", where=f"{sheet.manifest}:{line}", why=why, remedy=remedy)
    return list(binary)


def _read_one_hot(sheet: _Sheet, hot: Sequence[int]) -> list[str]:
    return [
        next(sheet.name(number) for number in hot if _BINARY[cells[number].strip(" ").lower()])
        for _, cells in sheet.rows
    ]


def _find_split(sheet: _Sheet, given: str | None) -> int | None:
    """The column that says which set a picture belongs to, if there is one."""
    if given is not None:
        return None if given == NO_SPLIT else _find_given(sheet, "split", given)
    found = []
    for number in sheet.find(_SPLIT_NAMES | _FLAGS.keys()):
        known = [_name_part(sheet, number, cell) != "" for cell in set(sheet.column(number))]
        if all(known) or (any(known) and sheet.width > 2):  # of two columns it may be the label
            found.append(number)
        elif _normalize(sheet.header[number]) in _CLEAR_SPLIT_NAMES and sheet.width > 2:
            _read_parts(sheet, number)  # which refuses them: pictures of a test set are not trained on by accident
    if len(found) > 1:
        raise _unclear_error(sheet, "split", "says the set", found)
    return found[0] if found else None


def _name_part(sheet: _Sheet, split: int, cell: str) -> str:
    """The part that a cell says: a word, or yes or no where the column asks; "" for anything else."""
    flags = _FLAGS.get(_normalize(sheet.name(split)))
    flag = _BINARY.get(cell.lower())
    return _PARTS.get(_normalize(cell), "") if flags is None else "" if flag is None else flags[flag]


def _read_parts(sheet: _Sheet, split: int) -> list[str]:
    cells = sheet.column(split)
    part_of = {cell: _name_part(sheet, split, cell) for cell in set(cells)}
    parts = [part_of[cell] for cell in cells]
    if "" in parts:
        wrong = parts.index("")
        why = f"'{cells[wrong]}' in column '{sheet.name(split)}'"
        remedy = f"write train, val or test, or take all rows: --data.columns.split {NO_SPLIT}"
        raise DataError(
            "no such part of a set", where=f"{sheet.manifest}:{sheet.rows[wrong][0]}", why=why, remedy=remedy
        )
    return parts


# -- words ------------------------------------------------------------------------------------------------------------


def _describe(sheet: _Sheet, path: int, labels: Sequence[int], split: int | None) -> str:
    others = [number for number in range(sheet.width) if number not in (path, split, *labels)]
    names = f"label = {_list_columns(sheet, labels)}, path = {_list_columns(sheet, [path])}"
    names += f", part = {_list_columns(sheet, [split])}" if split is not None else ""
    return names + (f"; not used: {_list_columns(sheet, others)}" if others else "")


def _list_columns(sheet: _Sheet, numbers: Sequence[int] | None = None) -> str:
    return join_names([sheet.name(number) for number in numbers or range(sheet.width)], most=_MOST_NAMED)


def _unclear_error(sheet: _Sheet, key: str, what: str, candidates: Sequence[int]) -> DataError:
    listed = _list_columns(sheet, candidates) if len(candidates) > 1 else f"none of {_list_columns(sheet)}"
    first = "" if sheet.header else f" (the first row is {join_names(sheet.rows[0][1], most=_MOST_NAMED)})"
    value = "NAME" if sheet.header else "NUMBER"
    return DataError(
        f"cannot tell which column {what}",
        where=str(sheet.manifest),
        why=f"it may be {listed}{first}" if len(candidates) > 1 else f"{listed} looks like it{first}",
        remedy=f"set --data.columns.{key} {value}",
    )


def _normalize(name: str) -> str:
    return re.sub(r"[\s_.-]+", "", name.casefold())
