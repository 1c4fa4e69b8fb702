"""Pictures that no set lists: files by their paths, and what lies in archives and parquet files."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from alexnet_dist.base.errors import DataError
from alexnet_dist.base.places import find_cache_dir
from alexnet_dist.data.files.containers import Containers
from alexnet_dist.data.files.scan import FileSet, FoundFile
from alexnet_dist.data.sources import parquet
from alexnet_dist.data.sources.folders import IMAGE_EXTENSIONS
from alexnet_dist.data.sources.given_archives import is_archive
from alexnet_dist.data.sources.source import ARCHIVES
from alexnet_dist.data.sources.tar_members import INNER, list_inner, list_members
from alexnet_dist.data.sources.tar_names import FOLDER_MARK

CONTAINERS = (*ARCHIVES, parquet.ENDING)  # what their names end with

logger = logging.getLogger("alexnet_dist")


class Unpacking(NamedTuple):
    """How parquet files are read.

    Args:
        cache_dir: where their pictures are unpacked.
        column: that holds the pictures; None = found by its kind, or by the usual names.
    """

    cache_dir: Path
    column: str | None = None


def open_pictures(paths: Sequence[str], unpacking: Unpacking | None = None) -> list[FileSet]:
    """The pictures that some paths mean, in their order; of image files nothing is read.

    Args:
        paths: of image files, whether they are there or not; of containers, which are archives and parquet files and
            mean their pictures, those of an archive sorted; or CONTAINER!NAME, which means a picture or a folder of an
            archive, or a row of parquet.
        unpacking: of parquet; None = into the user's cache folder.

    Raises:
        DataError: a container is damaged, or has no such picture.
        MachineError: parquet cannot be unpacked.
    """
    how = unpacking or Unpacking(find_cache_dir(None))
    sets = []
    for is_inside, some in itertools.groupby(paths, lambda path: bool(find_container(path))):
        if is_inside:
            sets.append(_join([_open_container(path, how) for path in some]))
        else:
            sets.append(FileSet(Path(), [FoundFile(path, 0, 0) for path in some]))
    return sets


def find_container(path: str) -> str:
    """The archive or parquet file that a path names, or names a part of; "" where it is the path of a file."""
    if path.lower().endswith(CONTAINERS) and os.path.isfile(path):
        return path
    container, mark, _ = path.partition(FOLDER_MARK)
    is_part = mark and container.lower().endswith(CONTAINERS) and os.path.isfile(container)
    return container if is_part and not os.path.lexists(path) else ""


def list_containers(folder: Path) -> list[str]:
    """The archives and parquet files that lie in a folder, sorted; none where it cannot be listed."""
    with contextlib.suppress(OSError):
        names = sorted(name for name in os.listdir(folder) if name.lower().endswith(CONTAINERS))
        return [os.path.join(folder, name) for name in names if not name.startswith(".")]
    return []


def _join(parts: Sequence[tuple[list[FoundFile], Containers]]) -> FileSet:
    files = [file for some, _ in parts for file in some]
    return FileSet(Path(), files, containers=Containers.join([containers for _, containers in parts]))


def _open_container(path: str, how: Unpacking) -> tuple[list[FoundFile], Containers]:
    container = find_container(path)
    wanted = path[len(container) + 1 :].strip("/")
    files, places = _open_archive(container) if is_archive(container) else _open_table(container, how)
    if wanted:
        whole = f"{container}{FOLDER_MARK}{wanted}"
        below = (whole + "/", whole + INNER)  # of a folder, a tar within the archive, or a row
        picked = [n for n, file in enumerate(files) if file.path == whole or file.path.startswith(below)]
        files, places = [files[position] for position in picked], places.take(picked)
    if not files:
        what = f"no '{wanted}' in it" if wanted else "no picture in it"
        remedy = f"give a file with pictures, or FILE{FOLDER_MARK}NAME for one of them"
        raise DataError(what, where=container, remedy=remedy)
    return files, places


def _open_archive(path: str) -> tuple[list[FoundFile], Containers]:
    status, contents = os.stat(path), list_members(Path(path))
    parts = [contents, *(list_inner(Path(path), *tar) for tar in contents.inner)]
    members = [member for part in parts for member in part.members if member.name.lower().endswith(IMAGE_EXTENSIONS)]
    members.sort()
    for damage in filter(None, (part.damage for part in parts)):
        logger.warning("%s is damaged, and what follows is not read: %s", path, damage)
    places = Containers(
        (path,),
        np.array([status.st_size], np.int64),
        np.array([status.st_mtime_ns], np.int64),
        np.zeros(len(members), np.int32),
        np.array([member.offset for member in members], np.int64),
    )
    names = [f"{path}{FOLDER_MARK}{member.name}" for member in members]
    sizes = [member.byte_size for member in members]
    return [FoundFile(name, size, status.st_mtime_ns) for name, size in zip(names, sizes, strict=True)], places


def _open_table(path: str, how: Unpacking) -> tuple[list[FoundFile], Containers]:
    files, places = parquet.open_file(Path(path), how.cache_dir, how.column, progress=True)
    folder = os.path.dirname(path)
    return [file._replace(path=os.path.join(folder, file.path)) for file in files], places
