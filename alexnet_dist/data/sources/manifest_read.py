"""Which pictures a manifest lists and of which classes: text with a `path label` a line, or CSV.

Paths are relative to the root, and nothing outside it is read. A label is an integer (a position in the class list) or
a class name.
"""

from __future__ import annotations

import errno
import logging
import os
import posixpath
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from alexnet_dist.base.disk_errors import name_reason, name_remedy
from alexnet_dist.base.durable import parse_json
from alexnet_dist.base.errors import DataError, UsageError
from alexnet_dist.base.places import describe_missing
from alexnet_dist.base.text import quote_word
from alexnet_dist.data.files.scan import FoundFile
from alexnet_dist.data.sources.folders import IMAGE_EXTENSIONS, is_folder
from alexnet_dist.data.sources.manifest_table import ColumnNames, Row, names_columns, no_label_error, read_table

logger = logging.getLogger("alexnet_dist")

CLASS_LIST = "classes.txt"  # its name beside a manifest
NO_MEMBER = "the archives have no such member"

_INTEGER = re.compile(r"[+-]?[0-9]+")
_DRIVE = re.compile(r"[A-Za-z]:[/\\]")
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_UTF8_MARK = b"\xef\xbb\xbf"
_TABLE_ENDINGS = (".csv", ".tsv")
_WHOLE_NUMBER = re.compile(r"([+-]?[0-9]+)(?:\.0+)?")
_NOT_A_NUMBER = ("nan", "<na>", "#n/a", "n/a", "null")  # what programs write where there is no value
_MOST_CHARACTERS = 20_000  # of a line: a path has at most 4,096
_MISSING = os.strerror(errno.ENOENT)
_HEAD_BYTES = 65_536  # enough to know what a file is


class Listed(NamedTuple):
    """A picture as a manifest lists it, or an archive has it."""

    line: int  # from 1; 0 without a list
    file: FoundFile
    label: str  # as written
    reason: str  # why the file cannot be looked up, or ""

    @property
    def spot(self) -> str:
        """Where its label stands, beside others of the same list or archives."""
        return f"line {self.line}" if self.line else f"'{self.file.path}'"

    def place(self, listed_in: Path) -> str:
        """Where its label stands, for messages: the line of the list, or the file below a root."""
        return f"{listed_in}:{self.line}" if self.line else str(listed_in / self.file.path)


@dataclass(frozen=True)
class ListForm:
    """How a manifest is to be read.

    Args:
        part: train, val or test: the rows to take where a column says so; "" = all.
        wanted: the parts that some set takes.
        columns: the columns of a table that the settings name.
        image_dir: folder below the root that listed paths are relative to.
        image_suffix: what is missing at the end of each path.
        has_positions: whether an integer label is a position in the class list; it always is one where the classes
            are numbers.
        members: what an archive has, by the names that listed paths are; None where they are files on the disk.
    """

    part: str = ""
    wanted: tuple[str, ...] = ()
    columns: ColumnNames = field(default_factory=ColumnNames)
    image_dir: str = ""
    image_suffix: str = ""
    has_positions: bool = False
    members: Mapping[str, FoundFile] | None = None

    def place(self, path: str) -> str:
        """A listed path, relative to the root."""
        path = path if path.endswith(self.image_suffix) else path + self.image_suffix
        return os.path.join(self.image_dir, path)


class _Way(NamedTuple):
    """One way to read a line."""

    path: str
    label: str


def is_integer(label: str) -> bool:
    """Whether a label is a position in the class list, not a name."""
    return _INTEGER.fullmatch(label) is not None


def normalize_name(name: str) -> str:
    """Composed and decomposed Unicode spellings of a name are the same name."""
    return unicodedata.normalize("NFC", name)


def read_manifest(
    root: Path, manifest: Path, names: Sequence[str] = (), form: ListForm | None = None, tell: bool = False
) -> list[Listed]:
    """The pictures that a manifest lists, in its order, each looked up on the disk.

    Text is split at the last TAB of a line, or where there is none before its last word. Where that gives no file, a
    class name with spaces at the end of the line is the label. For tables (.csv, .tsv) see `read_table`.

    Args:
        root: folder that paths are relative to.
        manifest: the file.
        names: classes that are known already.
        form: how to read it.
        tell: log which columns and rows of a table are taken.

    Raises:
        DataError: the manifest cannot be read, is empty or is something else; or a line has no label or leads out of
            the root.
        UsageError: a setting of the form names what is not there.
    """
    form = form or ListForm()
    text = read_plain_text(manifest, "manifest")
    known = set(map(normalize_name, names))
    if manifest.name.lower().endswith(_TABLE_ENDINGS):
        lines = _read_table(root, manifest, text, known, form, tell)
    else:
        if form.columns != ColumnNames():
            why = "a text file has a path and a label in each line"
            raise UsageError("data.columns has no effect", where=str(manifest), why=why, remedy="leave it out")
        lines = list(_split_text(manifest, text, known, names))
        if lines and names_columns(lines[0][1][0]) and not os.path.lexists(os.path.join(root, lines[0][1][0].path)):
            del lines[0]
    if not lines:
        remedy = "write a path and a label into each line"
        raise DataError("the manifest is empty", where=str(manifest), remedy=remedy)
    folder, seen_from = os.path.join(root, ""), (os.path.abspath(root), os.path.realpath(root))
    lookup = _Lookup(folder, seen_from, known, form)
    pictures = [_read_line(lookup, f"{manifest}:{number}", number, ways) for number, ways in lines]
    if form.members is None and all(picture.reason for picture in pictures):
        _suggest_place(root, manifest, lines[0][1][0].path.strip(" "), form)
    return pictures


def refuse_other_root(manifest: Path, pictures: Sequence[Listed]) -> None:
    """Refuse a list of pictures of which none is there: the folder is another one, and no picture is to be mended.

    Raises:
        DataError: so it is, and there are several.
    """
    if len(pictures) > 1 and {picture.reason for picture in pictures} in ({_MISSING}, {NO_MEMBER}):
        why = f"the first is '{pictures[0].file.path}'"
        remedy = "set data.root, or data.image_dir, to the folder that the paths begin in"
        raise DataError("no listed picture is there", where=str(manifest), why=why, remedy=remedy)


def _suggest_place(root: Path, manifest: Path, path: str, form: ListForm) -> None:
    """Where none of the pictures is found: refuse with the settings that find the first one, if there are any."""
    below: list[str] = []
    with suppress(OSError), os.scandir(root) as entries:  # a folder that may be entered, but not listed
        below = sorted(entry.name for entry in entries if is_folder(entry))
    folders = [form.image_dir, *below]
    suffixes = dict.fromkeys([form.image_suffix, *IMAGE_EXTENSIONS, *map(str.upper, IMAGE_EXTENSIONS)])
    for folder in folders:
        for suffix in suffixes:
            if os.path.isfile(os.path.join(root, ListForm(image_dir=folder, image_suffix=suffix).place(path))):
                given = {"image_dir": folder, "image_suffix": suffix}
                words = " ".join(f"--data.{key} {quote_word(value)}" for key, value in given.items() if value)
                why = f"'{path}' is there as '{os.path.join(folder, path)}{suffix}'"
                raise DataError("no listed picture is there", where=str(manifest), why=why, remedy=f"set {words}")


def _read_table(
    root: Path, manifest: Path, text: str, known: set[str], form: ListForm, tell: bool
) -> list[tuple[int, list[_Way]]]:
    def is_picture(cell: str) -> bool:
        return cell.lower().endswith(IMAGE_EXTENSIONS) or os.path.isfile(os.path.join(root, form.place(cell)))

    table = read_table(manifest, text, form.columns, is_picture, lambda cell: normalize_name(cell) in known)
    rows, counts = _select_part(manifest, table.rows, form)
    if tell and table.note:
        logger.info("list      %s: %s%s", manifest, table.note, counts)
    labels = _drop_fractions([row.label for row in rows], known)
    return [(row.line, [_Way(row.path, label)]) for row, label in zip(rows, labels, strict=True)]


def _drop_fractions(labels: list[str], known: set[str]) -> list[str]:
    """3.0 is 3 where all labels are whole numbers: so programs write a column in which a value was missing."""
    numbers = [_WHOLE_NUMBER.fullmatch(label) for label in labels]
    if not all(numbers) or not known.isdisjoint(labels):
        return labels
    return [number[1] for number in numbers if number is not None]


def _select_part(manifest: Path, rows: Sequence[Row], form: ListForm) -> tuple[Sequence[Row], str]:
    """The rows of the part that is wanted, and how many there are, for people; all of a list of a single part."""
    found = Counter(row.part for row in rows)
    if not form.part or len(found) < 2:
        return rows, ""
    counts = ", ".join(f"{part} {count:,}" for part, count in sorted(found.items()))
    if not found[form.part]:
        others = "".join(f"name the list as --data.{part}, or " for part in sorted(found.keys() - {*form.wanted})[:1])
        remedy = f"{others}take all rows with --data.columns.split none"
        raise DataError(f"no row is of part {form.part}", where=str(manifest), why=f"there are {counts}", remedy=remedy)
    unused = sorted(found.keys() - {form.part, *form.wanted})
    advice = "".join(f"; rows of {part} are not used, data.{part} names no list" for part in unused)
    used = [row for row in rows if row.part == form.part]
    return used, f"; {found[form.part]:,} rows are used ({counts}){advice}"


def find_first_mentions(manifest: Path, pictures: Sequence[Listed], labels: npt.NDArray[np.int64]) -> list[int]:
    """Positions of the pictures without those that were listed before.

    Raises:
        DataError: a picture is listed with two labels.
    """
    first_of: dict[str, int] = {}
    for position, picture in enumerate(pictures):
        first = first_of.setdefault(picture.file.path, position)
        if labels[first] != labels[position]:
            raise DataError(
                "a picture with two labels",
                where=f"{manifest}:{picture.line}",
                why=f"'{picture.file.path}' is '{picture.label}' here and '{pictures[first].label}' in line "
                f"{pictures[first].line}",
                remedy="remove one of the lines",
            )
    return list(first_of.values())


# -- from bytes to lines ----------------------------------------------------------------------------------------------


def read_plain_text(path: Path, kind: str) -> str:
    """A UTF-8 file; bytes that are none survive, so that every file name can be listed."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
            _refuse_other_formats(path, kind, head)
            data = head + file.read()
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            where, why, near = describe_missing(path)
            remedy = "check data.root, and the names of the sets and of the class list below it"
            remedy = f"did you mean '{near}'? {remedy}" if near else remedy
            raise DataError(f"no such {kind}", where=where, why=why, remedy=remedy) from error
        why = "it is a folder" if isinstance(error, IsADirectoryError) else name_reason(error)
        remedy = f"give the {kind}'s file" if isinstance(error, IsADirectoryError) else name_remedy(error)
        raise DataError(f"cannot read the {kind}", where=os.path.abspath(path), why=why, remedy=remedy) from error
    text = data.removeprefix(_UTF8_MARK).decode("utf-8", "surrogateescape")
    if "\0" in text:
        why = "it is UTF-16 text" if data.startswith(_UTF16_MARKS) else "it holds a zero byte"
        where = f"{path}:{text.count(chr(10), 0, text.index(chr(0))) + 1}"
        raise DataError(f"the {kind} is not plain text", where=where, why=why, remedy="save it as UTF-8")
    return text


def split_lines(text: str) -> list[str]:
    r"""Lines that end with \n or \r\n; nothing else ends one (`str.splitlines` would cut names at U+2028)."""
    return [line.removesuffix("\r") for line in text.split("\n")]


def _refuse_other_formats(path: Path, kind: str, head: bytes) -> None:
    """Say what a file is that is no list, before all of it is read."""
    found = next((form for mark, form in _OTHER_FORMATS.items() if head.startswith(mark)), None)
    if found is None and head.removeprefix(_UTF8_MARK).lstrip()[:1] in (b"{", b"["):
        found = _name_json(head.removeprefix(_UTF8_MARK).lstrip())
    if found is not None:
        what, remedy = found
        remedy = remedy if kind == "manifest" else "write a class name into each line of a text file"
        raise DataError(f"the {kind} is {what}", where=str(path), why="a list is text or CSV", remedy=remedy)


def _name_json(head: bytes) -> tuple[str, str] | None:
    """What kind of JSON a file is, and what to do with it; None where it is text that begins with a bracket."""
    first, _, others = head.partition(b"\n")
    try:
        is_rows = isinstance(parse_json(first), dict) and others.lstrip().startswith(b"{")
    except ValueError:
        is_rows = False
    is_coco = all(f'"{key}"'.encode() in head for key in ("file_name", "id")) and b'"images"' in head
    if is_coco or (b'"annotations"' in head and b'"categories"' in head):
        return "COCO's JSON", "write a CSV file with a path and one class a picture: path,label"
    if is_rows:
        return "JSON lines", "convert it: pandas.read_json(FILE, lines=True).to_csv('list.csv', index=False)"
    is_json = re.match(rb'[{\[]\s*[{\["]', head) is not None
    return ("JSON", "write a CSV file with a path and a class a picture: path,label") if is_json else None


_CONVERT = "convert it: pandas.read_{}(FILE).to_csv('list.csv', index=False)"
_OTHER_FORMATS = {
    b"PAR1": ("a Parquet file", _CONVERT.format("parquet")),
    b"PK\x03\x04": ("a workbook or a zip file", "save the sheet as CSV, or unpack it"),
    b"\xd0\xcf\x11\xe0": ("an Excel workbook", "save the sheet as CSV"),
    b"\x1f\x8b": ("packed with gzip", "unpack it with gunzip"),
    b"ARROW1": ("an Arrow file", _CONVERT.format("feather")),
    b"SQLite format 3": ("an SQLite database", "write its table to a CSV file"),
    b"\x89HDF": ("an HDF5 file", "write its table to a CSV file"),
    b"\x80\x04\x95": ("a pickle", "write its table to a CSV file"),
    b"\x80\x05\x95": ("a pickle", "write its table to a CSV file"),
    b"\x93NUMPY": ("a NumPy array", "write its rows to a CSV file"),
    b"<?xml": ("XML", "write a CSV file with a path and a class a picture: path,label"),
}


def _split_text(manifest: Path, text: str, known: set[str], names: Sequence[str]) -> Iterator[tuple[int, list[_Way]]]:
    spaced = {name for name in names if " " in name}
    most_words = max((name.count(" ") + 1 for name in spaced), default=0)
    for number, line in enumerate(split_lines(text), start=1):
        if not line.strip(" \t"):
            continue
        if len(line) > _MOST_CHARACTERS:
            why = f"it has {len(line):,} characters, and names one picture"
            remedy = "write a path and a label into each line"
            raise DataError("a line is too long", where=f"{manifest}:{number}", why=why, remedy=remedy)
        if "\t" in line:
            path, _, label = line.rpartition("\t")
            yield number, [_Way(path, label.strip(" "))]
        else:
            line = line.rstrip(" ")
            path, _, label = line.rpartition(" ")
            ways = _find_spaced_names(line, spaced, most_words) if spaced else []
            is_label = is_integer(label) or normalize_name(label) in known
            yield number, [_Way(path, label), *ways] if is_label else [*ways, _Way(path, label)]


def _find_spaced_names(line: str, spaced: set[str], most_words: int) -> list[_Way]:
    """Ways to read a line that ends with a class name with spaces, the longest name first."""
    words = line.rsplit(" ", most_words)
    ends = (" ".join(words[first:]) for first in range(1, len(words)))
    return [_Way(line[: -len(end) - 1], end) for end in ends if end in spaced]


# -- from a line to a file --------------------------------------------------------------------------------------------


class _Lookup(NamedTuple):
    """Where the pictures of a manifest are looked up.

    Args:
        folder: the root, with a slash at its end.
        seen_from: the root's absolute path, and where links lead.
        known: classes that are known already.
        form: how the manifest is read.
    """

    folder: str
    seen_from: tuple[str, ...]
    known: set[str]
    form: ListForm


def _read_line(lookup: _Lookup, place: str, number: int, ways: Sequence[_Way]) -> Listed:
    """The first way to read a line that gives a file, or the first way of all."""
    found: Listed | None = None
    for path, label in ways:
        is_word = is_integer(label) or normalize_name(label) in lookup.known
        if not path.strip(" \t") or not label or (not is_word and label.lower().endswith(IMAGE_EXTENSIONS)):
            raise no_label_error(place)
        if not is_word and label.lower() in _NOT_A_NUMBER:
            remedy = "write its class, remove the line, or give a class list with this name"
            raise DataError("a line without a label", where=place, why=f"the label is '{label}'", remedy=remedy)
        file, reason = _look_up(lookup, place, path)
        if not reason:
            return Listed(number, file, label, reason)
        found = found or Listed(number, file, label, reason)
    assert found is not None
    if not lookup.known:
        _refuse_spaced_name(lookup.folder, place, f"{ways[0].path} {ways[0].label}")
    return found


def _refuse_spaced_name(folder: str, place: str, line: str) -> None:
    """Without a class list nothing says where a class name with spaces begins; a file that is there gives it away."""
    for space in (match.start() for match in re.finditer(" ", line)):
        path = line[:space].replace("\\", "/")
        if path.lower().endswith(IMAGE_EXTENSIONS) and os.path.isfile(folder + path):
            remedy = f"put a TAB before it, write CSV, or list the classes in {CLASS_LIST}"
            raise DataError("a label with spaces", where=place, why=f"'{line[space + 1 :]}'", remedy=remedy)


def _look_up(lookup: _Lookup, place: str, path: str) -> tuple[FoundFile, str]:
    """The file that a path names, and why it cannot be looked up.

    What is written comes first: names may begin or end with spaces and hold backslashes. Then spaces are passed over,
    and backslashes separate.
    """
    stripped = path.strip(" \t")
    reason = ""
    for text in dict.fromkeys((path, stripped, path.replace("\\", "/"), stripped.replace("\\", "/"))):
        inside = _place_below(lookup.seen_from, place, lookup.form.place(text))
        if lookup.form.members is not None:
            if inside in lookup.form.members:
                return lookup.form.members[inside], ""
            reason = NO_MEMBER
            continue
        try:
            status = os.stat(lookup.folder + inside)
        except OSError as error:
            reason = name_reason(error)
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                break
            continue
        if stat.S_ISREG(status.st_mode):
            return FoundFile(inside, status.st_size, status.st_mtime_ns), ""
        reason = "not a file"  # opening a pipe would wait for ever
    if _DRIVE.match(stripped):
        raise _escape_error(place, stripped)
    return FoundFile(inside, -1, 0), reason


def _place_below(seen_from: tuple[str, ...], place: str, path: str) -> str:
    """The path relative to the root, without `.` and `..`."""
    ways = [os.path.relpath(path, root) for root in seen_from] if path.startswith("/") else [posixpath.normpath(path)]
    for way in ways:
        if way != ".." and not way.startswith("../"):
            return way
    raise _escape_error(place, path)


def _escape_error(place: str, path: str) -> DataError:
    return DataError(
        "a path leads out of data.root", where=place, why=f"'{path}'", remedy="write it relative to data.root"
    )
