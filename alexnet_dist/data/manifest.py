"""Which pictures a manifest lists and of which classes: text with a `path label` a line, or CSV.

Paths are relative to the root, and nothing outside it is read. A label is an integer (a position in the class list) or
a class name.
"""

from __future__ import annotations

import csv
import errno
import io
import os
import posixpath
import re
import stat
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from alexnet_dist.data.class_folders import IMAGE_EXTENSIONS, FoundFile
from alexnet_dist.errors import DataError

CLASS_LIST = "classes.txt"  # its name beside a manifest

_INTEGER = re.compile(r"[+-]?[0-9]+")
_DRIVE = re.compile(r"[A-Za-z]:[/\\]")
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_UTF8_MARK = b"\xef\xbb\xbf"
_FORM_REMEDY = "write PATH LABEL (or PATH,LABEL into a file whose name ends with .csv)"


class Listed(NamedTuple):
    """A picture as a manifest lists it."""

    line: int  # from 1
    file: FoundFile
    label: str  # as written
    reason: str  # why the file cannot be looked up, or ""


class _Way(NamedTuple):
    """One way to read a line."""

    path: str
    label: str


def is_integer(label: str) -> bool:
    """Whether a label is a position in the class list, not a name."""
    return _INTEGER.fullmatch(label) is not None


def normalise_name(name: str) -> str:
    """Composed and decomposed Unicode spellings of a name are the same name."""
    return unicodedata.normalize("NFC", name)


def read_manifest(root: Path, manifest: Path, names: Sequence[str] = ()) -> list[Listed]:
    """The pictures that a manifest lists, in its order, each looked up on the disk.

    Text is split at the last TAB of a line, or where there is none before its last word. Where that gives no file, a
    class name with spaces at the end of the line is the label.

    Args:
        root: folder that paths are relative to.
        manifest: the file.
        names: classes that are known already.

    Raises:
        DataError: the manifest cannot be read or is empty, or a line has no label or leads out of the root.
    """
    text = read_plain_text(manifest, "manifest")
    known = set(map(normalise_name, names))
    is_csv = manifest.name.lower().endswith(".csv")
    lines = list(_split_csv(manifest, text) if is_csv else _split_text(text, known, names))
    if is_csv and lines and _is_header(root, lines, known):
        del lines[0]
    if not lines:
        raise DataError("the manifest is empty", where=str(manifest), remedy=_FORM_REMEDY)
    folder, seen_from = os.path.join(root, ""), (os.path.abspath(root), os.path.realpath(root))
    return [_read_line(folder, seen_from, f"{manifest}:{number}", number, ways, known) for number, ways in lines]


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
        data = path.read_bytes()
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            remedy = "check data.root, and the names of the sets and of the class list below it"
            raise DataError(f"no such {kind}", where=str(path), remedy=remedy) from error
        why = "it is a folder" if isinstance(error, IsADirectoryError) else error.strerror or str(error)
        remedy = f"give the {kind}'s file" if isinstance(error, IsADirectoryError) else "check its permissions"
        raise DataError(f"cannot read the {kind}", where=str(path), why=why, remedy=remedy) from error
    text = data.removeprefix(_UTF8_MARK).decode("utf-8", "surrogateescape")
    if "\0" in text:
        why = "it is UTF-16 text" if data.startswith(_UTF16_MARKS) else "it holds a zero byte"
        where = f"{path}:{text.count(chr(10), 0, text.index(chr(0))) + 1}"
        raise DataError(f"the {kind} is not plain text", where=where, why=why, remedy="save it as UTF-8")
    return text


def split_lines(text: str) -> list[str]:
    r"""Lines that end with \n or \r\n; nothing else ends one (`str.splitlines` would cut names at U+2028)."""
    return [line.removesuffix("\r") for line in text.split("\n")]


def _split_text(text: str, known: set[str], names: Sequence[str]) -> Iterator[tuple[int, list[_Way]]]:
    spaced = {name for name in names if " " in name}
    most_words = max((name.count(" ") + 1 for name in spaced), default=0)
    for number, line in enumerate(split_lines(text), start=1):
        if not line.strip(" \t"):
            continue
        if "\t" in line:
            path, _, label = line.rpartition("\t")
            yield number, [_Way(path, label.strip(" "))]
        else:
            line = line.rstrip(" ")
            path, _, label = line.rpartition(" ")
            ways = _find_spaced_names(line, spaced, most_words) if spaced else []
            is_label = is_integer(label) or normalise_name(label) in known
            yield number, [_Way(path, label), *ways] if is_label else [*ways, _Way(path, label)]


def _find_spaced_names(line: str, spaced: set[str], most_words: int) -> list[_Way]:
    """Ways to read a line that ends with a class name with spaces, the longest name first."""
    words = line.rsplit(" ", most_words)
    ends = (" ".join(words[first:]) for first in range(1, len(words)))
    return [_Way(line[: -len(end) - 1], end) for end in ends if end in spaced]


def _split_csv(manifest: Path, text: str) -> Iterator[tuple[int, list[_Way]]]:
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in rows:
            if any(field.strip(" ") for field in row):
                yield rows.line_num, [_Way(row[0], row[-1].strip(" "))] if len(row) > 1 else [_Way(row[0], "")]
    except csv.Error as error:
        remedy = "mend the quotes"
        raise DataError("damaged CSV", where=f"{manifest}:{rows.line_num}", why=str(error), remedy=remedy) from None


def _is_header(root: Path, lines: Sequence[tuple[int, list[_Way]]], known: set[str]) -> bool:
    """Whether the first row of a CSV names the columns."""
    path, label = lines[0][1][0]
    used = known or {normalise_name(ways[0].label) for _, ways in lines[1:]}
    names_a_picture = path.lower().endswith(IMAGE_EXTENSIONS) or os.path.lexists(os.path.join(root, path))
    return bool(label) and not is_integer(label) and normalise_name(label) not in used and not names_a_picture


# -- from a line to a file --------------------------------------------------------------------------------------------


def _read_line(
    folder: str, seen_from: tuple[str, ...], place: str, number: int, ways: Sequence[_Way], known: set[str]
) -> Listed:
    """The first way to read a line that gives a file, or the first way of all."""
    found: Listed | None = None
    for path, label in ways:
        is_word = is_integer(label) or normalise_name(label) in known
        if not path.strip(" \t") or not label or (not is_word and label.lower().endswith(IMAGE_EXTENSIONS)):
            raise DataError("a line without a label", where=place, remedy=_FORM_REMEDY)
        file, reason = _look_up(folder, seen_from, place, path)
        if not reason:
            return Listed(number, file, label, reason)
        found = found or Listed(number, file, label, reason)
    assert found is not None
    if not known:
        _refuse_spaced_name(folder, place, f"{ways[0].path} {ways[0].label}")
    return found


def _refuse_spaced_name(folder: str, place: str, line: str) -> None:
    """Without a class list nothing says where a class name with spaces begins; a file that is there gives it away."""
    for space in (match.start() for match in re.finditer(" ", line)):
        path = line[:space].replace("\\", "/")
        if path.lower().endswith(IMAGE_EXTENSIONS) and os.path.isfile(folder + path):
            remedy = f"put a TAB before it, write CSV, or list the classes in {CLASS_LIST}"
            raise DataError("a label with spaces", where=place, why=f"'{line[space + 1 :]}'", remedy=remedy)


def _look_up(folder: str, seen_from: tuple[str, ...], place: str, path: str) -> tuple[FoundFile, str]:
    """The file that a path names, and why it cannot be looked up.

    What is written comes first: names may begin or end with spaces and hold backslashes. Then spaces are passed over,
    and backslashes separate.
    """
    stripped = path.strip(" \t")
    reason = ""
    for text in dict.fromkeys((path, stripped, path.replace("\\", "/"), stripped.replace("\\", "/"))):
        inside = _place_below(seen_from, place, text)
        try:
            status = os.stat(folder + inside)
        except OSError as error:
            reason = error.strerror or str(error)
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
