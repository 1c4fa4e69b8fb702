"""Which images: an index of samples and classes, from folders, a manifest, or pixels that lie in no image files."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from alexnet_dist.base.errors import DataError, UsageError
from alexnet_dist.base.text import quote_word
from alexnet_dist.data.decode import DEFAULT_MAX_PIXELS, Pixels, convert_to_luma, cut_window, decode_image
from alexnet_dist.data.files.scan import Header, scan_headers
from alexnet_dist.data.files.verify import read_verdicts
from alexnet_dist.data.sources.folders import FoundFile, join_names, list_class_folders, list_images, match_folders
from alexnet_dist.data.sources.manifest import Listed, ListForm, find_first_mentions, read_manifest, refuse_other_root
from alexnet_dist.data.sources.manifest_labels import derive_classes, number_labels
from alexnet_dist.data.sources.synthetic import SyntheticPixels

__all__ = [
    "BadFile",
    "BadFilesError",
    "PixelSource",
    "SampleIndex",
    "scan_folder",
    "scan_manifest",
    "split_validation",
    "synthetic_index",
]

logger = logging.getLogger("alexnet_dist")


@dataclass(frozen=True)
class BadFile:
    """A file that was left out, and why."""

    path: str  # relative to the index's root, POSIX
    reason: str


class BadFilesError(DataError):
    """Images that cannot be used under `data.on_bad_file: fail`; `bad_files` has all of them, `root` is their place."""

    def __init__(self, root: Path, bad_files: tuple[BadFile, ...], remedy: str, what: str = "unreadable image") -> None:
        first, others = bad_files[0], len(bad_files) - 1
        why = first.reason + (f" ... and {others} more" if others else "")
        super().__init__(what, where=str(root / first.path), why=why, remedy=remedy)
        self.root = root
        self.bad_files = bad_files


class PixelSource(Protocol):
    """Pictures that lie in no image files.

    Its `repr` says which pictures they are, wherever they are kept: it is part of the index's fingerprint. It is small,
    because it travels to decoding processes.
    """

    def load(self, path: str) -> Pixels:
        """uint8 (H, W, 1) or (H, W, 3) of the sample with this path, writable.

        Raises:
            UnreadableImageError: the picture cannot be had.
        """


@dataclass(frozen=True, eq=False)
class SampleIndex:
    """N samples; those of files and arrays are sorted by class, then by path. A sample's id is its position."""

    root: Path  # folder the paths are relative to
    paths: tuple[str, ...]  # (N,), POSIX
    labels: npt.NDArray[np.int64]  # (N,)
    sizes: npt.NDArray[np.int32]  # (N, 2): upright width and height in pixels
    byte_sizes: npt.NDArray[np.int64]  # (N,): of the files; 0 where there are none
    is_plain: npt.NDArray[np.bool_]  # (N,): files of a kind that every decoder reads alike; see ImageHeader
    classes: tuple[str, ...]  # by label, always those of the training set; folders sort their names, lists order them
    bad_files: tuple[BadFile, ...] = ()  # found by the header scan, or known from `prepare verify`, and left out
    pixels: PixelSource | None = None  # gives the pixels where there are no files
    newest_ns: int = 0  # latest time of change among the files that were scanned; no part of the fingerprint

    def __len__(self) -> int:
        return len(self.paths)

    def subset(self, ids: Sequence[int] | npt.NDArray[np.integer]) -> SampleIndex:
        """The samples with these ids, in this order, with the same classes and the same bad files."""
        chosen = np.asarray(ids, dtype=np.int64)
        return dataclasses.replace(
            self,
            paths=tuple(self.paths[sample_id] for sample_id in chosen.tolist()),
            labels=self.labels[chosen],
            sizes=self.sizes[chosen],
            byte_sizes=self.byte_sizes[chosen],
            is_plain=self.is_plain[chosen],
        )

    def fingerprint(self) -> str:
        """sha256 over paths, byte sizes, labels and class names; neither the root nor the order matters."""
        digest = hashlib.sha256()
        # Neither names nor paths can hold a zero byte, so no two indices are written alike.
        digest.update(b"".join(os.fsencode(name) + b"\0" for name in self.classes))
        digest.update(b"\0" + repr(self.pixels).encode() + b"\0")
        lines = zip(self.paths, self.byte_sizes.tolist(), self.labels.tolist(), strict=True)
        for path, byte_size, label in sorted(lines):
            digest.update(os.fsencode(path) + f"\0{byte_size}\0{label}\0".encode())
        return digest.hexdigest()

    def load_pixels(
        self,
        sample_id: int,
        channels: int = 3,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        window: Sequence[int] | None = None,
    ) -> Pixels:
        """Decode, read or draw one sample.

        Args:
            sample_id: which.
            channels: 3, or 1 for gray.
            max_pixels: a larger file is unreadable.
            window: x, y, width and height of the part that is wanted; None = all of it.

        Returns:
            uint8 (H, W, channels), with H and W as in `sizes` or `window`.

        Raises:
            UnreadableImageError: the file is damaged or gone, or has another size than at the scan.
        """
        path = self.paths[sample_id]
        if self.pixels is None:
            return decode_image(os.path.join(self.root, path), channels, max_pixels, self.sizes[sample_id], window)
        image = _set_channels(self.pixels.load(path), channels)
        return image if window is None else cut_window(image, window)


def scan_folder(
    root: Path,
    *,
    classes: Sequence[str] | None,
    on_bad_file: Literal["fail", "skip"],
    cache_dir: Path,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    progress: bool = False,
) -> SampleIndex:
    """Index the images below class folders, reading every header that is new or changed.

    Args:
        root: folder of class folders; each is searched at any depth, links are followed, hidden names ignored.
        classes: None for the training set, whose sorted folder names are the classes; else the classes of training,
            to which folders are matched by name.
        on_bad_file: raise on an unreadable file, or leave it out and list it in `bad_files`.
        cache_dir: where header sizes are remembered.
        max_pixels: an image with more pixels is unreadable.
        progress: show a bar when the scan takes longer than two seconds.

    Raises:
        DataError: the folder is not laid out like this, holds nothing readable, or has classes training lacks.
        BadFilesError: unreadable files under `fail`; all of them.
    """
    folders = list_class_folders(root)
    class_names = tuple(folders if classes is None else classes)
    label_of = match_folders(root, folders, class_names)
    folders.sort(key=label_of.__getitem__)
    files_of = list_images(root, folders)
    files = list(chain.from_iterable(files_of))
    labels = np.repeat([label_of[folder] for folder in folders], [len(found) for found in files_of])
    headers = _scan_files(root, files, cache_dir, max_pixels, progress)
    index = _build_index(root, files, labels, headers, class_names, on_bad_file)
    _warn_about_classes(index, root)
    return index


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
        manifest: the file; see data/sources/manifest.py for its form.
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
    lookup = [picture.file for picture in pictures if not picture.reason]
    found = iter(_scan_files(root, lookup, cache_dir, max_pixels, progress, os.path.abspath(manifest)))
    headers = [Header(0, 0, False, picture.reason) if picture.reason else next(found) for picture in pictures]
    files = [picture.file for picture in pictures]
    index = _build_index(root, files, labels, headers, class_names, on_bad_file)
    _warn_about_classes(index, manifest)
    return index


def split_validation(index: SampleIndex, fraction: float, seed: int) -> tuple[SampleIndex, SampleIndex]:
    """Split off a stratified part for validation; both parts keep the order of the index.

    The bad files stay with the first part, so that they are reported once.

    Args:
        fraction: part of the images that goes to validation, between 0 and 1.
        seed: equal seeds give equal splits.

    Returns:
        (training part, validation part).

    Raises:
        DataError: a class would have no image in one of the parts.
        UsageError: fraction is not between 0 and 1.
    """
    if not 0 < fraction < 1:
        raise UsageError(f"data.val_fraction is {fraction}", why="it must lie between 0 and 1")
    counts = np.bincount(index.labels, minlength=len(index.classes))
    present = np.flatnonzero(counts)
    num_val = round(len(index) * fraction)
    smallest = present[counts[present].argmin()]
    if counts[smallest] < 2 or not len(present) <= num_val <= len(index) - len(present):
        raise _split_error(index, int(smallest), fraction)
    from sklearn.model_selection import train_test_split

    train_ids, val_ids = train_test_split(
        np.arange(len(index)), test_size=num_val, stratify=index.labels, random_state=seed % 2**32
    )
    train, val = index.subset(np.sort(train_ids)), index.subset(np.sort(val_ids))
    for part in (train, val):
        without = np.setdiff1d(present, part.labels)
        if len(without):
            raise _split_error(index, int(without[0]), fraction)
    return train, dataclasses.replace(val, bad_files=())


def synthetic_index(num_images: int, num_classes: int, size: tuple[int, int], seed: int) -> SampleIndex:
    """Samples without files: image i has class i modulo `num_classes`, and pixels drawn from (seed, i).

    The pattern of a class is the same for every seed, so sets of two seeds can train and validate.

    Args:
        num_images: how many.
        num_classes: named `class-000`, `class-001`, ...
        size: (width, height) in pixels.
        seed: of the noise and of where the pattern starts.
    """
    synthetic = SyntheticPixels(seed=seed, num_classes=num_classes, width=size[0], height=size[1])
    return SampleIndex(
        root=Path(),
        paths=tuple(map(synthetic.name_sample, range(num_images))),
        labels=np.arange(num_images, dtype=np.int64) % num_classes,
        sizes=np.tile(np.array(size, dtype=np.int32), (num_images, 1)),
        byte_sizes=np.zeros(num_images, dtype=np.int64),
        is_plain=np.zeros(num_images, dtype=np.bool_),
        classes=tuple(map(synthetic.name_class, range(num_classes))),
        pixels=synthetic,
    )


def _scan_files(
    root: Path, files: list[FoundFile], cache_dir: Path, max_pixels: int, progress: bool, listed_by: str = ""
) -> list[Header]:
    """The headers of files. What `verify_files` found to be bad counts as unreadable until the file changes."""
    headers = scan_headers(
        root, files, cache_dir=cache_dir, max_pixels=max_pixels, progress=progress, listed_by=listed_by
    )
    verdicts = read_verdicts(root, cache_dir)
    if not verdicts:
        return headers
    pairs = zip(files, headers, strict=True)
    return [header if header.reason else header._replace(reason=verdicts.get(file, "")) for file, header in pairs]


def _set_channels(pixels: Pixels, channels: int) -> Pixels:
    """(H, W, 1) or (H, W, 3) to (H, W, channels), by the same rules as image files."""
    if pixels.shape[2] == channels:
        return pixels
    return convert_to_luma(pixels) if channels == 1 else np.repeat(pixels, channels, axis=2)


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
    logger.warning("%d of %d images in %s are unreadable and left out (%s)", len(bad_files), num_files, root, first)


def _build_index(
    root: Path,
    files: list[FoundFile],
    labels: npt.NDArray[np.int64],
    headers: list[Header],
    classes: tuple[str, ...],
    on_bad_file: Literal["fail", "skip"],
) -> SampleIndex:
    """The index of the files whose header could be read; the others are judged."""
    pairs = zip(files, headers, strict=True)
    bad_files = tuple(BadFile(file.path, header.reason) for file, header in pairs if header.reason)
    _judge_bad_files(root, bad_files, len(files), on_bad_file)
    good = [position for position, header in enumerate(headers) if not header.reason]
    return SampleIndex(
        root=root,
        paths=tuple(files[position].path for position in good),
        labels=labels[good].astype(np.int64, copy=False),
        sizes=np.array([headers[position][:2] for position in good], dtype=np.int32),
        byte_sizes=np.array([files[position].byte_size for position in good], dtype=np.int64),
        is_plain=np.array([headers[position].is_plain for position in good], dtype=np.bool_),
        classes=classes,
        bad_files=bad_files,
        newest_ns=max((files[position].modified_ns for position in good), default=0),
    )


def _warn_about_classes(index: SampleIndex, place: Path) -> None:
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


def _split_error(index: SampleIndex, label: int, fraction: float) -> DataError:
    count = int(np.count_nonzero(index.labels == label))
    return DataError(
        "cannot split off a validation set",
        where=str(index.root) if index.pixels is None else "",
        why=f"class '{index.classes[label]}' ({count} in all) would have no image in one part",
        remedy=f"add images of it, change data.val_fraction ({fraction}) or give a validation set",
    )
