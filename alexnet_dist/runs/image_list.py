"""images.csv.gz: every image file that a run began with. It tells which ones changed, where the fingerprint cannot."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import posixpath
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias

from alexnet_dist.base.durable import disk_errors_named, hash_file, refuse_link, replacing
from alexnet_dist.data.index import SampleIndex
from alexnet_dist.runs.folder import relative_path

IMAGES = "images.csv.gz"
Key: TypeAlias = tuple[str, str]  # split (train, val, test) and path relative to data.root, POSIX
Image: TypeAlias = tuple[int, str]  # the file's bytes and its class
Images: TypeAlias = dict[Key, Image]

_HEADER = ["split", "path", "bytes", "class"]
_MOST_NAMED = 3


@dataclass(frozen=True)
class Changes:
    """What differs between the images of a run's last start and those of today; paths are those of its list.

    Args:
        removed: no longer there.
        added: not there before.
        altered: with other bytes or of another class.
    """

    removed: list[Key] = field(default_factory=list)
    added: list[Key] = field(default_factory=list)
    altered: list[Key] = field(default_factory=list)

    def not_among(self, reported: Collection[str]) -> Changes:
        """The changes of files that are not among these paths."""
        parts = (self.removed, self.added, self.altered)
        return Changes(*([key for key in part if key[1] not in reported] for part in parts))

    def __bool__(self) -> bool:
        return bool(self.removed or self.added or self.altered)

    def __str__(self) -> str:
        parts = {"is gone": self.removed, "is new": self.added, "is another file": self.altered}
        named = [f"{path} {what}" for what, keys in parts.items() for _, path in keys]
        others = len(named) - _MOST_NAMED
        return ", ".join(named[:_MOST_NAMED]) + (f" ... and {others} more" if others > 0 else "")


def place_paths(index: SampleIndex, paths: Iterable[str], root: Path) -> Iterator[str]:
    """Paths of an index relative to a root, POSIX."""
    folder = relative_path(index.root, root)
    return (posixpath.normpath(posixpath.join(folder, path)) for path in paths)


def iterate_images(sets: Mapping[str, SampleIndex], root: Path) -> Iterator[tuple[Key, Image]]:
    """The image files of some sets.

    Args:
        sets: by the name of the split.
        root: folder that paths are told relative to.
    """
    for split, index in sets.items():
        if index.has_files:
            placed = place_paths(index, index.paths, root)
            rows = zip(placed, index.byte_sizes.tolist(), index.labels.tolist(), strict=True)
            yield from (((split, path), (num_bytes, index.classes[label])) for path, num_bytes, label in rows)


def keep_image_list(folder: Path, digest: Any, images: Iterable[tuple[Key, Image]]) -> str | None:
    """See to it that the run folder has the list of its images; a run without image files has none.

    Args:
        folder: the run folder.
        digest: sha256 of the list of these very images, as run.json says; a list with another one is written anew, and
            so is any where it is None.
        images: what is to be listed; a million of them are never in memory together.

    Returns:
        sha256 of the list; None without one.

    Raises:
        MachineError: the disk is full or the folder cannot be written.
    """
    with contextlib.suppress(OSError):
        if digest is not None and hash_file(folder / IMAGES) == digest:
            return str(digest)
    rows = ([split, path, num_bytes, name] for (split, path), (num_bytes, name) in images)
    first = next(rows, None)
    if first is None:
        return None
    path = folder / IMAGES
    refuse_link(path)
    with (
        disk_errors_named(path),
        replacing(path) as file,
        gzip.GzipFile("", "wb", 1, file, mtime=0) as packed,
        io.TextIOWrapper(packed, "utf-8", "surrogateescape", newline="") as text,
    ):
        csv.writer(text).writerows(chain([_HEADER, first], rows))
    return hash_file(path)


def read_image_list(folder: Path) -> Images:
    """The run folder's list; empty where there is none that can be read."""
    try:
        data = gzip.decompress((folder / IMAGES).read_bytes())
        header, *rows = csv.reader(io.StringIO(data.decode("utf-8", "surrogateescape"), newline=""))
        if header != _HEADER:
            return {}
        return {(split, path): (int(num_bytes), name) for split, path, num_bytes, name in rows}
    except (OSError, EOFError, ValueError, csv.Error):
        return {}


def find_changes(before: Images, now: Images) -> Changes:
    """What differs between two lists."""
    return Changes(
        removed=[key for key in before if key not in now],
        added=[key for key in now if key not in before],
        altered=[key for key in now if key in before and before[key] != now[key]],
    )


def list_changes(run: Path, sets: Mapping[str, SampleIndex], root: Path) -> str:
    """What differs from the images that a run began with, for people; empty where nothing does, or nothing is known.

    Args:
        run: the run folder.
        sets: images of today, by the name of their set.
        root: folder that the run's list is relative to.
    """
    before = {key: value for key, value in read_image_list(run).items() if key[0] in sets}
    bad = [place_paths(index, [file.path for file in index.bad_files], root) for index in sets.values()]
    changes = find_changes(before, dict(iterate_images(sets, root))).not_among(set().union(*bad))
    return str(changes) if before and changes else ""
