"""Which image files, archives and parquet files the words of a command line mean: files, folders, patterns, lists."""

from __future__ import annotations

import errno
import fnmatch
import glob
import os
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

from alexnet_dist.base.braces import expand_braces
from alexnet_dist.base.disk_errors import name_reason, name_remedy
from alexnet_dist.base.errors import DataError
from alexnet_dist.base.places import describe_missing
from alexnet_dist.data.sources.folders import IMAGE_EXTENSIONS, Walk, list_images_below
from alexnet_dist.data.sources.loose import CONTAINERS, find_container, list_containers

STANDARD_INPUT, ANY_DEPTH = "-", "**"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def find_pictures(words: Sequence[str], list_name: str | None) -> list[str]:
    """The paths that are meant, in the order of the words, those of the list last.

    A folder means its images at any depth, sorted, or, where it has none, the archives and parquet files that lie in
    it. A word that names nothing on the disk is several where it has braces, `{0000..0003}` or `{a,b}`; with `*`, `?`
    or `[` it is a pattern and means the images, archives and parquet files that match, sorted; `**` matches folders at
    any depth, for images alone. Any other word, and every line of a list, is a path, whether it is there or not.

    Args:
        words: of the command line.
        list_name: a file with a path on each line; `-` is standard input, None no list.

    Raises:
        DataError: a folder or pattern without an image, or a list that cannot be read or names nothing.
    """
    paths = [path for word in words for path in _expand(word)]
    return paths if list_name is None else [*paths, *read_list(list_name)]


def _expand(word: str) -> list[str]:
    if os.path.isdir(word):
        return _list_folder(word)
    if os.path.lexists(word) or find_container(word):
        return [word]
    names = expand_braces(word)
    if len(names) > 1:
        return [path for name in names for path in _expand(name)]
    if not glob.has_magic(word):
        return [word]
    matches = _match_any_depth(word) if ANY_DEPTH in word.split("/") else glob.glob(word)
    endings = (*IMAGE_EXTENSIONS, *CONTAINERS)
    images = sorted(path for path in matches if path.lower().endswith(endings) and os.path.isfile(path))
    if not images:
        why = f"none of the {len(matches)} names that match is an image file's" if matches else "nothing matches"
        raise DataError("a pattern without an image", where=word, why=why, remedy=f"use {' '.join(endings)}")
    return images


def _list_folder(folder: str) -> list[str]:
    try:
        return [os.path.join(folder, found.path) for found in list_images_below(Path(folder))]
    except DataError:
        packed = list_containers(Path(folder))
        if not packed:
            raise
    return packed


def _match_any_depth(word: str) -> list[str]:
    """What a pattern with `**` matches of image files. Unlike `glob`, this reads no folder twice through links."""
    parts = word.split("/")
    first = parts.index(ANY_DEPTH)
    above, below = "/".join(parts[:first]), parts[first:]
    folders = glob.glob(os.path.join(above, "")) if parts[:first] else [""]
    return [
        os.path.join(folder, found.path)
        for folder in folders
        for found in Walk(folder or os.curdir, "").files
        if _fits(found.path.split("/"), below)
    ]


def _fits(names: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a path fits a pattern, name by name; `**` stands for any number of names."""
    if not pattern or not names:
        return not names and all(part == ANY_DEPTH for part in pattern)
    if pattern[0] == ANY_DEPTH:
        return _fits(names, pattern[1:]) or _fits(names[1:], pattern)
    return fnmatch.fnmatchcase(names[0], pattern[0]) and _fits(names[1:], pattern[1:])


def _read_list_file(name: str) -> bytes:
    """A file, or a pipe of the shell's; a device need not end."""
    with open(name, "rb") as file:
        if stat.S_ISCHR(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is a device")
        return file.read()


def read_list(name: str) -> list[str]:
    """The paths that a file has on its lines; empty lines are passed over.

    Raises:
        DataError: it cannot be read, names nothing, or is no text.
    """
    where = "standard input" if name == STANDARD_INPUT else name
    try:
        data = sys.stdin.buffer.read() if name == STANDARD_INPUT else _read_list_file(name)
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            where, why, near = describe_missing(name)
            remedy = f"did you mean '{near}'?" if near else "give a file with a path a line"
            raise DataError("no such list", where=where, why=why, remedy=remedy) from None
        remedy = name_remedy(error, "give a file with a path a line")
        raise DataError("cannot read the list", where=where, why=name_reason(error), remedy=remedy) from None
    lines = data.removeprefix(BYTE_ORDER_MARK).replace(b"\r\n", b"\n").split(b"\n")
    paths = [os.fsdecode(line) for line in lines if line.strip()]
    if not paths or b"\0" in data:
        why = "it holds zero bytes" if paths else "it is empty"
        raise DataError("a list without paths", where=where, why=why, remedy="write the path of an image on each line")
    return paths
