"""What is kept in one file that is written whole: a line with a checksum, then rows of a table, or arrays and names.

Nothing is unpickled. Arrays lie in the memory that the file is mapped to: it is taken once for all processes of a
machine that read the file, and a decoding process is sent the open file in their place.
"""

from __future__ import annotations

import csv
import io
import logging
import mmap
import os
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import context, reduction
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from alexnet_dist.base.durable import check_regular, parse_json, replacing

logger = logging.getLogger("alexnet_dist")

Arrays: TypeAlias = Mapping[str, npt.NDArray[Any]]

_TYPES = {"BOOL": np.bool_, "U8": np.uint8, "I32": np.int32, "I64": np.int64}  # safetensors' names
_ALIGNMENT = 64  # bytes: what the line before arrays is filled up to
_LENGTH = struct.Struct("<Q")  # of safetensors' header, before it


def write_table(path: Path, title: str, rows: Iterable[Sequence[object]]) -> None:
    """Replace a table at once.

    Args:
        path: of the file; its folder is made where it is missing.
        title: what the rows are, with a number that changes when their meaning does.
        rows: of texts and numbers.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    _write(path, title, text.getvalue().encode("utf-8", "surrogateescape"))


def read_table(path: Path, title: str) -> Iterator[list[str]]:
    """The rows that `write_table` wrote, or none where the file is missing, damaged or of another version."""
    with _reading(path):
        check_regular(path)
        first, _, body = path.read_bytes().partition(b"\n")
        if first == _seal(title, body):
            return csv.reader(io.StringIO(body.decode("utf-8", "surrogateescape"), newline=""))
    return iter(())


def write_arrays(path: Path, title: str, arrays: Arrays) -> None:
    """Replace arrays at once; see `write_table`."""
    _write(path, title, save(dict(arrays)), _ALIGNMENT)


def read_arrays(path: Path, title: str) -> Arrays | None:
    """What `write_arrays` wrote, mapped; None where it is missing, damaged or of another version."""
    with _reading(path):
        check_regular(path)
        file = MappedFile(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        start = file.memory.find(b"\n", 0, _ALIGNMENT * 4) + 1
        body = memoryview(file.memory)[start:]
        if file.memory[: start - 1] == _seal(title, body, _ALIGNMENT):
            return _map_arrays(file, start)
    return None


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """A file that cannot be read is none."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        logger.debug("nothing kept to start from (%s): %s", path, error)


def _write(path: Path, title: str, body: bytes, alignment: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as stream:
        stream.write(_seal(title, body, alignment) + b"\n")
        stream.write(body)


def _seal(title: str, body: bytes | memoryview, alignment: int = 1) -> bytes:
    """First line of a file; the checksum finds one that was cut off in the middle of a number."""
    line = f"{title} crc32={zlib.crc32(body):08x}".encode()
    return line.ljust(-(-(len(line) + 1) // alignment) * alignment - 1)


# -- arrays in memory -------------------------------------------------------------------------------------------------


class MappedFile:
    """A file in memory. It stays open: what becomes of its name does not matter.

    Args:
        descriptor: of the open file, which this object closes.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.memory = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # at the end of a process `os` is gone
        close(self.descriptor)

    def __reduce__(self) -> tuple[Any, ...]:
        return _open_sent, (reduction.DupFd(self.descriptor),)


class MappedArray(np.ndarray[Any, Any]):
    """An array that lies in a mapped file. A process that is started with it maps the file; others get a copy."""

    place: tuple[MappedFile, int] | None = None  # the file, and the byte where it begins; what is computed has none

    def __reduce_ex__(self, protocol: Any) -> Any:
        if self.place is None or context.get_spawning_popen() is None or not hasattr(reduction, "DupFd"):
            return np.array(self).__reduce_ex__(protocol)
        file, start = self.place
        return map_array, (file, start, self.dtype.str, self.shape)


def map_array(file: MappedFile, start: int, kind: str, shape: Sequence[int]) -> npt.NDArray[Any]:
    """An array in a mapped file, read-only.

    Raises:
        ValueError: the file ends before it.
    """
    dtype = np.dtype(kind)
    count = int(np.prod(shape, dtype=np.int64))
    array = np.frombuffer(file.memory, dtype, count, start) if count else np.zeros(0, dtype)
    mapped = array.reshape(shape).view(MappedArray)
    mapped.place = (file, start) if count else None
    return mapped


def _map_arrays(file: MappedFile, start: int) -> Arrays:
    (length,) = _LENGTH.unpack_from(file.memory, start)
    first = start + _LENGTH.size + length
    facts = parse_json(file.memory[start + _LENGTH.size : first])
    return {
        name: map_array(file, first + fact["data_offsets"][0], np.dtype(_TYPES[fact["dtype"]]).str, fact["shape"])
        for name, fact in facts.items()
    }


def _open_sent(sent: Any) -> MappedFile:
    return MappedFile(sent.detach())
