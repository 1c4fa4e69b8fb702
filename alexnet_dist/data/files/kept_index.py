"""Whole indices, kept as arrays: an index of a million pictures of archives is there in a second."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from alexnet_dist.base.durable import tidy_folder
from alexnet_dist.data.files.containers import Containers
from alexnet_dist.data.files.sealed import Arrays, join_names, read_sealed, split_names, write_sealed
from alexnet_dist.data.index import SampleIndex

logger = logging.getLogger("alexnet_dist")

_TITLE = "alexnet_dist index 1"  # the number changes when the meaning of an array does


def keep_index(path: Path, index: SampleIndex) -> None:
    """Keep an index of pictures in containers, of which none is bad. A disk that is full only costs time.

    Args:
        path: of the file; its name says all that the index depends on.
        index: what is kept.
    """
    places = index.containers
    if places is None or index.bad_files:
        return
    arrays: Arrays = {
        "paths": join_names(index.paths),
        "labels": index.labels,
        "sizes": index.sizes,
        "byte_sizes": index.byte_sizes,
        "is_plain": index.is_plain,
        "classes": join_names(index.classes),
        "newest_ns": np.array([index.newest_ns], np.int64),
        "containers": join_names(places.names),
        "container_sizes": places.byte_sizes,
        "container_times": places.modified_ns,
        "numbers": places.numbers,
        "offsets": places.offsets,
    }
    tidy_folder(path.parent)
    try:
        write_sealed(path, _TITLE, arrays)
    except OSError as error:
        logger.debug("the index is not kept (%s): %s", path, error)


def recall_index(path: Path, root: Path) -> SampleIndex | None:
    """The index that was kept, or None.

    Args:
        path: of the file.
        root: of the index.
    """
    arrays = read_sealed(path, _TITLE)
    if arrays is None:
        return None
    facts = ("container_sizes", "container_times", "numbers", "offsets")
    return SampleIndex(
        root=root,
        paths=tuple(split_names(arrays["paths"])),
        labels=arrays["labels"],
        sizes=arrays["sizes"],
        byte_sizes=arrays["byte_sizes"],
        is_plain=arrays["is_plain"],
        classes=tuple(split_names(arrays["classes"])),
        newest_ns=int(arrays["newest_ns"][0]),
        containers=Containers(tuple(split_names(arrays["containers"])), *(arrays[name] for name in facts)),
    )
