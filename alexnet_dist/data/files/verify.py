"""Which files decode to the end: found once with the reference decoder, remembered between runs, used by every scan.

A header says little about the pixels behind it. What is remembered belongs to a path, a byte size and a time of change:
a file that was mended is another file. Two files below `cache_dir/verified` hold it for each root:

- PLACE.good: eight bytes for each file that decodes, a hash of path, size and time. It only grows at its end: a killed
  verification loses its last seconds. Bytes that are damaged match no file, which is then decoded again.
- PLACE.csv: the bad files with their reasons, under a checksum. They are few, and the only thing that training reads.

Bad files are decoded anew by each verification: a disk or a network that failed once says nothing about a file.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import os
import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from alexnet_dist.base.durable import check_regular, disk_errors_named, tidy_folder
from alexnet_dist.base.errors import MemoryExhaustedError
from alexnet_dist.base.progress import Progress
from alexnet_dist.data.decode import UnreadableImageError, decode_image
from alexnet_dist.data.files.scan import FileSet, FoundFile, hash_place, scan_headers
from alexnet_dist.data.files.sealed import read_table, write_table

Digests = npt.NDArray[np.uint64]

_TITLE = "alexnet_dist bad files 1"  # the number changes when the meaning of a line does
_DIGEST = np.dtype("<u8")
_BYTES_PER_DIGEST = 8  # a changed file among ten million passes for a good one with a chance of 1 to 10**12
SAVE_SECONDS = 5.0
FILES_AT_ONCE = 1024  # given to the threads together; a pool's list of all files of ImageNet would fill a gigabyte


def read_verdicts(root: Path, cache_dir: Path) -> dict[FoundFile, str]:
    """The bad files that were found below a root, with their reasons."""
    with contextlib.suppress(ValueError, csv.Error):
        rows = read_table(_find_place(root, cache_dir).with_suffix(".csv"), _TITLE)
        return {FoundFile(path, int(size), int(modified_ns)): reason for path, size, modified_ns, reason in rows}
    return {}


def verify_files(
    images: FileSet, *, cache_dir: Path, max_pixels: int, workers: int, progress: bool, again: bool = False
) -> list[str]:
    """Decode every file that is not known to be good, and remember what was found.

    Args:
        images: what to verify.
        cache_dir: where headers and verdicts are remembered.
        max_pixels: an image with more pixels is bad.
        workers: threads; Pillow decodes them at once.
        progress: show a bar once it has taken two seconds.
        again: decode the files that are known to be good, too.

    Returns:
        Why each file is bad, in order; "" for a good one.

    Raises:
        MachineError: the verdicts cannot be written.
        MemoryExhaustedError: an image does not fit into memory, which says nothing about the file.
    """
    headers = scan_headers(images, cache_dir=cache_dir, max_pixels=max_pixels, progress=progress)
    reasons = [header.reason for header in headers]
    tidy_folder(cache_dir / "verified")
    memory = _recall(images.root, images.files, cache_dir)
    digests = np.fromiter(map(_hash_file, images.files), _DIGEST, len(images.files))
    is_good = np.zeros(len(digests), np.bool_) if again else np.isin(digests, memory.read_good())
    todo = [
        position
        for position, file in enumerate(images.files)
        if not reasons[position] and (not is_good[position] or file in memory.bad)
    ]
    bar = Progress(f"decoding {images.root}", len(todo), shown=progress)
    verdicts = _decode_files(images, todo, max_pixels, workers)
    with bar, contextlib.closing(verdicts), memory.saving():
        for position, reason in zip(todo, verdicts, strict=True):
            reasons[position] = reason
            memory.note(images.files[position], int(digests[position]), reason)
            bar.advance()
    return reasons


@dataclass(eq=False)
class _Memory:
    """What is remembered of the files below one root.

    Args:
        place: its two files, without their suffixes.
        bad: the bad files, with their reasons.
        new: digests of good files that are not written yet.
        saved_at: seconds on the monotonic clock.
    """

    place: Path
    bad: dict[FoundFile, str]
    new: list[int] = field(default_factory=list)
    saved_at: float = field(default_factory=time.monotonic)

    def read_good(self) -> Digests:
        """Digests of the files that are known to be good."""
        with contextlib.suppress(OSError):
            check_regular(self._good_path)
            data = self._good_path.read_bytes()
            return np.frombuffer(data[: len(data) // _BYTES_PER_DIGEST * _BYTES_PER_DIGEST], _DIGEST)
        return np.empty(0, _DIGEST)

    def note(self, file: FoundFile, digest: int, reason: str) -> None:
        """Take up what was found; every few seconds it is written down."""
        self.bad.pop(file, None)
        if reason:
            self.bad[file] = reason
        else:
            self.new.append(digest)
        if time.monotonic() - self.saved_at > SAVE_SECONDS:
            self.save()

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """Write down what is known at the end, however it comes."""
        try:
            yield
        finally:
            self.save()

    def save(self) -> None:
        """Write down what is known.

        Raises:
            MachineError: the disk is full, or the folder cannot be written.
        """
        bad_path = self.place.with_suffix(".csv")
        with disk_errors_named(bad_path, "data.cache_dir"):
            write_table(bad_path, _TITLE, ((*file, reason) for file, reason in self.bad.items()))
            with open(self._good_path, "ab") as stream:
                stream.truncate(stream.tell() // _BYTES_PER_DIGEST * _BYTES_PER_DIGEST)  # what a killed scan cut off
                stream.write(np.array(self.new, _DIGEST).tobytes())
                stream.flush()
                os.fsync(stream.fileno())
        self.new.clear()
        self.saved_at = time.monotonic()

    @property
    def _good_path(self) -> Path:
        return self.place.with_suffix(".good")


def _recall(root: Path, files: Sequence[FoundFile], cache_dir: Path) -> _Memory:
    """What is remembered, without the bad files that have changed since."""
    bad = read_verdicts(root, cache_dir)
    suspects = {file.path for file in bad}
    now = {file.path: file for file in files if file.path in suspects}
    kept = {file: reason for file, reason in bad.items() if now.get(file.path, file) == file}
    return _Memory(_find_place(root, cache_dir), kept)


def _find_place(root: Path, cache_dir: Path) -> Path:
    return cache_dir / "verified" / hash_place(root)


def _hash_file(file: FoundFile) -> int:
    name = os.fsencode(file.path) + f"\0{file.byte_size}\0{file.modified_ns}".encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=_BYTES_PER_DIGEST).digest(), "little")


def _decode_files(images: FileSet, positions: Sequence[int], max_pixels: int, workers: int) -> Generator[str]:
    """Why each file is bad, in order, found by several threads."""
    judge = partial(_judge_file, images, max_pixels)
    with ThreadPoolExecutor(workers) as pool:
        for first in range(0, len(positions), FILES_AT_ONCE):
            yield from pool.map(judge, positions[first : first + FILES_AT_ONCE])


def _judge_file(images: FileSet, max_pixels: int, position: int) -> str:
    try:
        decode_image(images.find_encoded(position, whole=True), max_pixels=max_pixels)
    except UnreadableImageError as error:
        return str(error)
    except MemoryError:
        where, remedy = str(images.root / images.files[position].path), "lower --workers, or data.max_pixels"
        raise MemoryExhaustedError("no memory to decode an image", where=where, remedy=remedy) from None
    return ""
