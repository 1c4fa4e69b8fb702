"""From image files with labels to an index: every header is read, and what cannot be used is judged."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from alexnet_dist.base.errors import DataError
from alexnet_dist.base.text import join_names, quote_word
from alexnet_dist.data.decode import DEFAULT_MAX_PIXELS
from alexnet_dist.data.files.names import Names
from alexnet_dist.data.files.scan import FileSet, Header, scan_headers
from alexnet_dist.data.files.verify import read_verdicts
from alexnet_dist.data.index import BadFile, BadFilesError, SampleIndex

logger = logging.getLogger("alexnet_dist")


@dataclass(frozen=True)
class FileRules:
    """How image files are looked at.

    Args:
        cache_dir: where header sizes are remembered.
        on_bad_file: raise on an unreadable file, or leave it out and list it in `bad_files`.
        max_pixels: an image with more pixels is unreadable.
        progress: show a bar when the scan takes longer than two seconds.
    """

    cache_dir: Path
    on_bad_file: Literal["fail", "skip"] = "fail"
    max_pixels: int = DEFAULT_MAX_PIXELS
    progress: bool = False


def index_files(
    images: FileSet,
    labels: npt.NDArray[np.integer],
    classes: tuple[str, ...],
    rules: FileRules,
    reasons: Sequence[str] = (),
) -> SampleIndex:
    """Index image files, reading every header that is new or changed.

    Args:
        images: N files, sorted by class, then by path.
        labels: (N,), positions in `classes`.
        classes: names of all classes.
        rules: how the files are looked at.
        reasons: (N,), why a file cannot be looked up, "" where it can; empty where all can.

    Raises:
        DataError: nothing is readable.
        BadFilesError: unreadable files under `on_bad_file: fail`; all of them.
    """
    root, files, containers = images.root, images.files, images.containers
    reasons = reasons or [""] * len(files)
    there = [position for position, reason in enumerate(reasons) if not reason]
    found = iter(_scan_files(images.take(there), rules))
    headers = [Header(0, 0, False, reason) if reason else next(found) for reason in reasons]
    bad_files = tuple(
        BadFile(file.path, header.reason) for file, header in zip(files, headers, strict=True) if header.reason
    )
    _judge_bad_files(root, bad_files, len(files), rules.on_bad_file)
    good = [position for position, header in enumerate(headers) if not header.reason]
    index = SampleIndex(
        root=root,
        paths=Names.of(files[position].path for position in good),
        labels=labels[good].astype(np.int64, copy=False),
        sizes=np.array([headers[position][:2] for position in good], dtype=np.int32),
        byte_sizes=np.array([files[position].byte_size for position in good], dtype=np.int64),
        is_plain=np.array([headers[position].is_plain for position in good], dtype=np.bool_),
        classes=classes,
        bad_files=bad_files,
        newest_ns=max((files[position].modified_ns for position in good), default=0),
        containers=None if containers is None else containers.take(good),
    )
    warn_about_classes(index, images.listed_in or root)
    return index


def _scan_files(images: FileSet, rules: FileRules) -> list[Header]:
    """The headers of files. What `verify_files` found to be bad counts as unreadable until the file changes."""
    headers = scan_headers(images, cache_dir=rules.cache_dir, max_pixels=rules.max_pixels, progress=rules.progress)
    verdicts = read_verdicts(images.root, rules.cache_dir)
    if not verdicts:
        return headers
    pairs = zip(images.files, headers, strict=True)
    return [header if header.reason else header._replace(reason=verdicts.get(file, "")) for file, header in pairs]


def _judge_bad_files(
    root: Path, bad_files: tuple[BadFile, ...], num_files: int, on_bad_file: Literal["fail", "skip"]
) -> None:
    if not bad_files:
        return
    if on_bad_file == "fail":
        remedy = "remove it" if len(bad_files) == 1 else "remove them"
        raise BadFilesError(root, bad_files, remedy + " or set data.on_bad_file: skip")
    first = f"{bad_files[0].path}: {bad_files[0].reason}"
    if len(bad_files) == num_files:
        why = f"all {num_files} files are unreadable, the first is {first}"
        raise DataError("no readable image", where=str(root), why=why, remedy="check the files")
    logger.warning("left out %d of %d images in %s, which cannot be read (%s)", len(bad_files), num_files, root, first)


def warn_about_classes(index: SampleIndex, place: Path) -> None:
    """Say which classes have no image, and that a set has a single class.

    Args:
        index: the set.
        place: the list, or the folder, for messages.
    """
    counts = np.bincount(index.labels, minlength=len(index.classes))
    without = [name for name, count in zip(index.classes, counts, strict=True) if count == 0]
    if without:
        logger.warning("%s has no image of %s", place, join_names(without))
    if len(index.classes) == 1:
        inner = place / index.classes[0]
        folders = {path.split("/")[1] for path in index.paths if path.count("/") > 1 and place == index.root}
        advice = f"; if the classes are its folders, name {quote_word(inner)} as the set" if len(folders) > 1 else ""
        text = "%s has a single class, '%s': there is nothing to tell apart%s"
        logger.warning(text, place, index.classes[0], advice)
