"""Pictures that lie in larger files: which file, where in it, and the one way to read them.

A picture is encoded bytes at a place. An archive is opened late, once in each process, and read by `pread`: no position
is shared, so threads and forked processes may read at once.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt

from alexnet_dist.data.decode import UnreadableImageError

MOST_OPEN = 64  # containers that a process keeps open; systems allow 256 files and more
_HEADER_BYTES = 4096  # hold the size of nearly every picture


@dataclass(frozen=True, eq=False)
class Containers:
    """Where N pictures lie in K larger files.

    Args:
        names: (K,) of the files, relative to the root of the index, POSIX.
        byte_sizes: (K,) of the files, int64.
        modified_ns: (K,) when they were changed, int64: a container that was changed since is not read.
        numbers: (N,) which file each picture lies in, int32.
        offsets: (N,) the byte of that file where the picture begins, int64. How many bytes it has, its index says.
    """

    names: tuple[str, ...]
    byte_sizes: npt.NDArray[np.int64]
    modified_ns: npt.NDArray[np.int64]
    numbers: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]

    def take(self, positions: Sequence[int] | npt.NDArray[np.integer]) -> Containers:
        """The places of these pictures, in this order; the files that none of them lies in are dropped."""
        chosen = np.asarray(positions, dtype=np.int64)
        kept, numbers = np.unique(self.numbers[chosen], return_inverse=True)
        return Containers(
            tuple(self.names[number] for number in kept.tolist()),
            self.byte_sizes[kept],
            self.modified_ns[kept],
            numbers.astype(np.int32),
            self.offsets[chosen],
        )

    @classmethod
    def join(cls, parts: Sequence[Containers]) -> Containers:
        """The places of several, one after the other, with the same root."""
        firsts = np.cumsum([0, *(len(part.names) for part in parts)])
        return cls(
            tuple(name for part in parts for name in part.names),
            np.concatenate([part.byte_sizes for part in parts]),
            np.concatenate([part.modified_ns for part in parts]),
            np.concatenate(
                [part.numbers + int(first) for part, first in zip(parts, firsts, strict=False)], dtype=np.int32
            ),
            np.concatenate([part.offsets for part in parts]),
        )

    def read(self, root: str | Path, position: int, byte_size: int) -> bytes:
        """The bytes of a picture.

        Raises:
            UnreadableImageError: its container is gone, or is another file than when it was listed.
        """
        file = self._open(root, position)
        try:
            data = os.pread(file.descriptor, byte_size, int(self.offsets[position]))
        except OSError as error:
            raise UnreadableImageError(error.strerror or str(error)) from error
        if len(data) != byte_size:
            raise UnreadableImageError("its container ends within it")
        return data

    def open(self, root: str | Path, position: int, byte_size: int) -> BinaryIO:
        """The same bytes as a stream, of which no more is read than is asked for.

        Raises:
            UnreadableImageError: as `read`.
        """
        section = _Section(self._open(root, position), int(self.offsets[position]), byte_size)
        return cast(BinaryIO, io.BufferedReader(section, _HEADER_BYTES))

    def _open(self, root: str | Path, position: int) -> _File:
        number = int(self.numbers[position])
        facts = int(self.byte_sizes[number]), int(self.modified_ns[number])
        try:
            file = _open_file(os.path.join(root, self.names[number]), *facts)
            status = os.fstat(file.descriptor)
        except OSError as error:
            raise UnreadableImageError(f"its container: {error.strerror or error}") from error
        if (status.st_size, status.st_mtime_ns) != facts:
            raise UnreadableImageError("its container changed since it was listed")
        return file


class _File:
    """An open file that closes when nobody holds it: a thread may be reading it when it leaves the cache of open ones.

    Args:
        path: of the file.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, path: str) -> None:
        self.descriptor = -1
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)


@lru_cache(maxsize=MOST_OPEN)
def _open_file(path: str, byte_size: int, modified_ns: int) -> _File:
    """Opened once for each state of a file: one that took its place has another time, and is opened anew."""
    return _File(path)


class _Section(io.RawIOBase):
    """A part of a file as a stream of its own."""

    def __init__(self, file: _File, start: int, byte_size: int) -> None:
        super().__init__()
        self._file, self._start, self._size, self._position = file, start, byte_size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise OSError("negative seek position")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        wanted = max(0, min(len(buffer), self._size - self._position))
        data = os.pread(self._file.descriptor, wanted, self._start + self._position)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)
