"""Pictures that no set lists: files by their paths, and what lies in archives."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from alexnet_dist.base.errors import DataError
from alexnet_dist.data.files.containers import Containers
from alexnet_dist.data.files.scan import FileSet, FoundFile
from alexnet_dist.data.sources.folders import IMAGE_EXTENSIONS
from alexnet_dist.data.sources.given_archives import is_archive
from alexnet_dist.data.sources.tar_members import list_inner, list_members
from alexnet_dist.data.sources.tar_names import FOLDER_MARK

logger = logging.getLogger("alexnet_dist")


def open_pictures(paths: Sequence[str]) -> list[FileSet]:
    """The pictures that some paths mean, in their order; nothing of a file is read.

    Args:
        paths: of image files, whether they are there or not; of archives, which mean their pictures, sorted; or
            ARCHIVE!MEMBER, which means one of them.

    Raises:
        DataError: an archive is damaged, or has no such member.
    """
    sets = []
    for is_inside, some in itertools.groupby(paths, lambda path: bool(_find_archive(path))):
        if is_inside:
            sets += [_open_archive(path) for path in some]
        else:
            sets.append(FileSet(Path(), [FoundFile(path, 0, 0) for path in some]))
    return sets


def _find_archive(path: str) -> str:
    """The archive that a path names, or names a member of; "" where it is the path of a file."""
    archive, mark, _ = path.partition(FOLDER_MARK)
    if is_archive(path) and os.path.isfile(path):
        return path
    return archive if mark and is_archive(archive) and os.path.isfile(archive) and not os.path.lexists(path) else ""


def _open_archive(path: str) -> FileSet:
    archive = _find_archive(path)
    wanted = path[len(archive) + 1 :]
    status, contents = os.stat(archive), list_members(Path(archive))
    parts = [contents, *(list_inner(Path(archive), *tar) for tar in contents.inner)]
    members = [member for part in parts for member in part.members if member.name.lower().endswith(IMAGE_EXTENSIONS)]
    members = sorted(member for member in members if not wanted or member.name == wanted)
    for damage in filter(None, (part.damage for part in parts)):
        logger.warning("%s is damaged, and what follows is not read: %s", archive, damage)
    if not members:
        what = f"no '{wanted}' in the archive" if wanted else "an archive without a picture"
        raise DataError(what, where=archive, remedy=f"give an archive with pictures, or ARCHIVE{FOLDER_MARK}MEMBER")
    containers = Containers(
        (archive,),
        np.array([status.st_size], np.int64),
        np.array([status.st_mtime_ns], np.int64),
        np.zeros(len(members), np.int32),
        np.array([member.offset for member in members], np.int64),
    )
    files = [
        FoundFile(f"{archive}{FOLDER_MARK}{member.name}", member.byte_size, status.st_mtime_ns) for member in members
    ]
    return FileSet(Path(), files, containers=containers)
