"""Images that a list names: a text file with a `path label` a line, or CSV."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from alexnet_dist.data.decode import DEFAULT_MAX_PIXELS
from alexnet_dist.data.files.index_files import FileRules, index_files
from alexnet_dist.data.index import SampleIndex
from alexnet_dist.data.sources.manifest_labels import derive_classes, number_labels
from alexnet_dist.data.sources.manifest_read import (
    Listed,
    ListForm,
    find_first_mentions,
    read_manifest,
    refuse_other_root,
)

logger = logging.getLogger("alexnet_dist")


def scan_manifest(
    root: Path,
    manifest: Path,
    *,
    classes: Sequence[str] | None,
    form: ListForm,
    on_bad_file: Literal["fail", "skip"],
    cache_dir: Path,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    progress: bool = False,
) -> SampleIndex:
    """Index the images that a manifest lists, reading every header that is new or changed.

    The order of its lines does not matter. A picture that is listed twice counts once.

    Args:
        root: folder that the manifest's paths are relative to.
        manifest: the file; see data/sources/manifest_read.py for its form.
        classes: in the order of their numbers; None derives them from the labels.
        form: how the manifest is to be read.
        on_bad_file: raise on an unreadable or missing file, or leave it out and list it in `bad_files`.
        cache_dir: where header sizes are remembered.
        max_pixels: an image with more pixels is unreadable.
        progress: show a bar when the scan takes longer than two seconds.

    Raises:
        DataError: a manifest, line or label that cannot be meant, or nothing readable.
        BadFilesError: unreadable files under `fail`; all of them.
    """
    pictures, labels, class_names = _list_pictures(root, manifest, classes, form)
    refuse_other_root(manifest, pictures)
    return index_files(
        root,
        [picture.file for picture in pictures],
        labels,
        class_names,
        FileRules(cache_dir, on_bad_file, max_pixels, progress),
        listed_in=manifest,
        reasons=[picture.reason for picture in pictures],
    )


def _list_pictures(
    root: Path, manifest: Path, classes: Sequence[str] | None, form: ListForm
) -> tuple[list[Listed], npt.NDArray[np.int64], tuple[str, ...]]:
    """What a manifest lists, each picture once, by class and path; their labels; the classes."""
    listed = read_manifest(root, manifest, classes or (), form, tell=True)
    class_names = tuple(derive_classes(manifest, listed) if classes is None else classes)
    has_positions = form.has_positions or class_names == tuple(map(str, range(len(class_names))))
    labels = number_labels(manifest, listed, class_names, has_positions)
    first = find_first_mentions(manifest, listed, labels)
    if len(first) < len(listed):
        logger.warning("%s lists pictures more than once: %d lines passed over", manifest, len(listed) - len(first))
    first.sort(key=lambda position: (labels[position], listed[position].file.path))
    return [listed[position] for position in first], labels[first], class_names
