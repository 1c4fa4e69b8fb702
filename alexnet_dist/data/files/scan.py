"""Upright sizes of many images, from their headers, remembered between runs."""

from __future__ import annotations

import csv
import hashlib
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeAlias

from alexnet_dist.base.durable import tidy_folder
from alexnet_dist.base.places import find_place
from alexnet_dist.base.progress import Progress
from alexnet_dist.data.decode import EMPTY, ImageSource, UnreadableImageError, read_header
from alexnet_dist.data.files.containers import Containers
from alexnet_dist.data.files.sealed import read_table, write_table

logger = logging.getLogger("alexnet_dist")

_CACHE_TITLE = "alexnet_dist header scan 5"  # the number changes when the meaning of a line does
_FILES_PER_TASK = 64
# Reading headers waits for the disk or the network more than it computes.
_NUM_THREADS = min(32, 4 * (os.cpu_count() or 1))


class FoundFile(NamedTuple):
    """A file that its name says is an image; nothing has read it yet."""

    path: str  # relative to the root, POSIX; CONTAINER!NAME for a part of a container
    byte_size: int  # -1 where the file cannot even be looked up (a link that leads nowhere)
    modified_ns: int  # the container's for a part of one


class Header(NamedTuple):
    """What the header of a file says, or the reason why it says nothing."""

    width: int  # upright, in pixels
    height: int
    is_plain: bool  # see ImageHeader
    reason: str = ""


@dataclass(frozen=True)
class FileSet:
    """Some image files, not yet read.

    Args:
        root: folder the paths are relative to.
        files: the images.
        missing: files that a manifest lists and that cannot be looked up, as (path, reason).
        listed_in: the list that names the files; None where they are what lies below the root.
        containers: where the files lie, if they are parts of larger ones; such a file is called CONTAINER!NAME.
        headers: of the files, where they are known; None where they are to be read.
    """

    root: Path
    files: Sequence[FoundFile]
    missing: list[tuple[str, str]] = field(default_factory=list)
    listed_in: Path | None = None
    containers: Containers | None = None
    headers: Sequence[Header] | None = None

    def take(self, positions: Sequence[int]) -> FileSet:
        """The files at these positions, in this order, and nothing of what is missing."""
        files, headers, places = self.files, self.headers, self.containers
        return FileSet(
            self.root,
            [files[position] for position in positions],
            listed_in=self.listed_in,
            containers=None if places is None else places.take(positions),
            headers=None if headers is None else [headers[position] for position in positions],
        )

    @property
    def listed_by(self) -> str:
        """What named the files, where that is not the root alone."""
        return os.path.abspath(self.listed_in) if self.listed_in is not None else ""

    def find_encoded(self, position: int, whole: bool = False) -> ImageSource:
        """A file as decoders take it: its path, or the part of a container.

        Args:
            position: in `files`.
            whole: read such a part at once, for who needs all of it.

        Raises:
            UnreadableImageError: there is no such container any more.
        """
        path, byte_size, _ = self.files[position]
        if self.containers is None:
            return os.path.join(self.root, path)
        return (self.containers.read if whole else self.containers.open)(self.root, position, byte_size)


_Cache: TypeAlias = dict[FoundFile, Header]


def scan_headers(images: FileSet, *, cache_dir: Path, max_pixels: int, progress: bool) -> list[Header]:
    """Read the header of every file that is new or changed since the last scan of this root.

    Args:
        images: what to scan; headers that are known are not read. Each list of files has a cache of its own: a cache
            forgets what its scan does not ask for.
        cache_dir: where sizes are remembered, by path, byte size and time of change. A cache that is damaged is
            rebuilt, one that cannot be written only costs time.
        max_pixels: an image with more pixels is unreadable.
        progress: show how far it is.

    Returns:
        One Header for each file, in order. Unreadable files are never remembered.
    """
    if images.headers is not None:
        return list(images.headers)
    tidy_folder(cache_dir / "scans")
    cache_path = cache_dir / "scans" / f"{hash_place(images.root, images.listed_by)}.csv"
    known = {
        file: header for file, header in _read_cache(cache_path).items() if header.width * header.height <= max_pixels
    }
    unknown = {file: position for position, file in enumerate(images.files) if file not in known}
    scanned = dict(zip(unknown, read_headers(images, list(unknown.values()), max_pixels, progress), strict=True))
    headers = [known[file] if file in known else scanned[file] for file in images.files]
    good = {file: header for file, header in zip(images.files, headers, strict=True) if not header.reason}
    if good.keys() != known.keys():
        _write_cache(cache_path, good)
    return headers


def read_headers(images: FileSet, positions: Sequence[int], max_pixels: int, progress: bool) -> list[Header]:
    """Headers in the order of `positions`, read by several threads; nothing is remembered.

    Args:
        images: some files.
        positions: of those that are read.
        max_pixels: an image with more pixels is unreadable.
        progress: show how far it is.
    """

    def read_some(first: int) -> list[Header]:
        return [_read_one(images, position, max_pixels) for position in positions[first : first + _FILES_PER_TASK]]

    headers: list[Header] = []
    bar = Progress(f"scanning {images.root}", len(positions), shown=progress)
    with ThreadPoolExecutor(_NUM_THREADS) as pool, bar:
        for some in pool.map(read_some, range(0, len(positions), _FILES_PER_TASK)):
            headers += some
            bar.advance(len(some))
    return headers


def _read_one(images: FileSet, position: int, max_pixels: int) -> Header:
    if images.containers is not None and not images.files[position].byte_size:  # there may be a million of them
        return Header(0, 0, False, EMPTY)
    try:
        return Header(*read_header(images.find_encoded(position), max_pixels))
    except UnreadableImageError as error:
        return Header(0, 0, False, str(error))


def hash_place(root: Path, listed_by: str = "") -> str:
    """A file name for what is remembered of the files below a root."""
    # A path cannot hold a zero byte, so no two places are written alike.
    place = os.fsencode(find_place(root)) + (b"\0" + os.fsencode(listed_by) if listed_by else b"")
    return hashlib.sha256(place).hexdigest()[:16]


def _read_cache(path: Path) -> _Cache:
    """What the last scan wrote."""
    try:
        return {
            FoundFile(name, int(byte_size), int(modified_ns)): Header(int(width), int(height), is_plain == "1")
            for name, byte_size, modified_ns, width, height, is_plain in read_table(path, _CACHE_TITLE)
        }
    except (ValueError, csv.Error) as error:
        logger.debug("no header scan to start from (%s): %s", path, error)
        return {}


def _write_cache(path: Path, known: _Cache) -> None:
    rows = ((*file, header.width, header.height, int(header.is_plain)) for file, header in known.items())
    try:
        write_table(path, _CACHE_TITLE, rows)
    except OSError as error:
        logger.debug("the header scan is not remembered (%s): %s", path, error)
