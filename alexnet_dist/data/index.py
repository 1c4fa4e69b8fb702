"""Which images: an index of samples and classes, which every source makes."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from alexnet_dist.base.errors import DataError
from alexnet_dist.data.decode import (
    DEFAULT_MAX_PIXELS,
    ImageSource,
    Pixels,
    UnreadableImageError,
    compare_size,
    convert_to_luma,
    cut_window,
    decode_image,
)
from alexnet_dist.data.files.containers import Containers
from alexnet_dist.data.files.names import Names


@dataclass(frozen=True)
class BadFile:
    """A file that was left out, and why."""

    path: str  # relative to the index's root, POSIX
    reason: str


class BadFilesError(DataError):
    """Images that cannot be used under `data.on_bad_file: fail`; `bad_files` has all of them, `root` is their place.

    `data_root` is what their paths are told relative to in the process that met them, where that is known: a machine
    may have a root of its own.
    """

    data_root: Path | None = None

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
    paths: Names  # (N,), POSIX
    labels: npt.NDArray[np.int64]  # (N,)
    sizes: npt.NDArray[np.int32]  # (N, 2): upright width and height in pixels
    byte_sizes: npt.NDArray[np.int64]  # (N,): of the files; 0 where there are none
    is_plain: npt.NDArray[np.bool_]  # (N,): files of a kind that every decoder reads alike; see ImageHeader
    classes: tuple[str, ...]  # by label, always those of the training set; folders sort their names, lists order them
    bad_files: tuple[BadFile, ...] = ()  # found by the header scan, or known from `prepare verify`, and left out
    pixels: PixelSource | None = None  # gives the pixels where there are no files
    containers: Containers | None = None  # where the pictures lie that are parts of larger files, such as archives
    newest_ns: int = 0  # latest time of change among the files that were scanned; no part of the fingerprint

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def has_files(self) -> bool:
        """Whether each sample is an image file, of its own or in a container; else `pixels` gives the pictures."""
        return self.pixels is None

    @property
    def place(self) -> str:
        """Where the files lie, for messages; "" without files."""
        return str(self.root) if self.has_files else ""

    def subset(self, ids: Sequence[int] | npt.NDArray[np.integer]) -> SampleIndex:
        """The samples with these ids, in this order, with the same classes and the same bad files."""
        chosen = np.asarray(ids, dtype=np.int64)
        return dataclasses.replace(
            self,
            paths=self.paths.take(chosen),
            labels=self.labels[chosen],
            sizes=self.sizes[chosen],
            byte_sizes=self.byte_sizes[chosen],
            is_plain=self.is_plain[chosen],
            containers=None if self.containers is None else self.containers.take(chosen),
        )

    def locate(self, sample_id: int) -> str:
        """The name of a sample's file for messages, with its root; a part of a container is called CONTAINER!NAME."""
        return os.path.join(str(self.root), self.paths[sample_id])

    def find_encoded(self, sample_id: int) -> ImageSource:
        """An image file as decoders take it: the path of a file of its own, the bytes of a part of a container.

        Raises:
            UnreadableImageError: the container is gone, or is another file than when it was listed.
        """
        if self.containers is None:
            return self.locate(sample_id)
        return self.containers.read(self.root, sample_id, int(self.byte_sizes[sample_id]))

    def fingerprint(self) -> str:
        """sha256 over paths, byte sizes, labels and class names; neither the root nor the order matters."""
        return self._fingerprint

    def know_fingerprint(self, fingerprint: str) -> None:
        """Take the fingerprint of an index that was kept with it: a million pictures take seconds to hash."""
        vars(self)["_fingerprint"] = fingerprint

    @cached_property
    def _fingerprint(self) -> str:
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
        if self.pixels is None:
            return decode_image(self.find_encoded(sample_id), channels, max_pixels, self.sizes[sample_id], window)
        image = self.pixels.load(self.paths[sample_id])
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3):
            raise UnreadableImageError(f"its pixels are {image.dtype} {image.shape}, not uint8 (height, width, 1 or 3)")
        compare_size((image.shape[1], image.shape[0]), self.sizes[sample_id])
        image = _set_channels(image, channels)
        return image if window is None else cut_window(image, window)


def index_pixels(
    pixels: PixelSource,
    paths: Sequence[str],
    labels: npt.NDArray[np.integer],
    sizes: npt.ArrayLike,
    classes: Sequence[str],
    *,
    root: Path = Path(),
    byte_sizes: Sequence[int] | None = None,
) -> SampleIndex:
    """An index of pictures that are no image files.

    Args:
        pixels: gives the picture of each path.
        paths: (N,), by class, then by path.
        labels: (N,), positions in `classes`.
        sizes: (N, 2), or one pair for all: width and height in pixels.
        classes: names of all classes.
        root: folder the paths are relative to; empty without one.
        byte_sizes: (N,), of files that the pictures come from, whose change is to be noticed; None = 0.
    """
    count = len(paths)
    return SampleIndex(
        root=root,
        paths=Names.of(paths),
        labels=labels.astype(np.int64, copy=False),
        sizes=np.broadcast_to(np.asarray(sizes, dtype=np.int32), (count, 2)).copy(),
        byte_sizes=np.zeros(count, np.int64) if byte_sizes is None else np.array(byte_sizes, dtype=np.int64),
        is_plain=np.zeros(count, dtype=np.bool_),
        classes=tuple(classes),
        pixels=pixels,
    )


def _set_channels(pixels: Pixels, channels: int) -> Pixels:
    """(H, W, 1) or (H, W, 3) to (H, W, channels), by the same rules as image files."""
    if pixels.shape[2] == channels:
        return pixels
    return convert_to_luma(pixels) if channels == 1 else np.repeat(pixels, channels, axis=2)
