"""Arrays that are made once and kept in the cache folder, to be mapped into memory by every process."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from alexnet_dist.base.durable import CACHE_SETTING, disk_errors_named, replacing
from alexnet_dist.base.errors import MachineError

Array: TypeAlias = npt.NDArray[Any]

_SEAL_BYTES = hashlib.sha256().digest_size


class Kept(NamedTuple):
    """An array in a file, mapped into memory."""

    array: Array
    digest: str  # sha256 of its type, shape and contents, in hexadecimal
    file: Path


def keep_arrays(folder: Path, stem: str, names: Sequence[str], make: Callable[[], Sequence[Array]]) -> dict[str, Kept]:
    """Arrays by name, from `folder`/STEM-NAME.npy; those that are missing or damaged are made again, all together.

    A file is a .npy followed by the digest of the array, which finds a file that is cut short or altered. Processes
    that ask at once wait for the one that writes.

    Args:
        folder: in the cache; made where it is missing.
        stem: says what the arrays were made from.
        names: of the arrays.
        make: gives the arrays, in the order of `names`. Its errors are its own; it must not raise an OSError.

    Raises:
        MachineError: the cache folder cannot be written, or the disk is full.
    """
    paths = {name: folder / f"{stem}-{name}.npy" for name in names}
    kept = _open_all(paths)
    if kept is None:
        with disk_errors_named(folder, CACHE_SETTING):
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / ".lock"):
                kept = _open_all(paths)  # another process may have written them while this one waited
                if kept is None:
                    for path, array in zip(paths.values(), make(), strict=True):
                        _write_sealed(path, np.ascontiguousarray(array))
                    kept = _open_all(paths)
    if kept is None:
        why = "what was read back is not what was written"
        raise MachineError(
            "cannot keep the data", where=str(folder), why=why, remedy="set data.cache_dir to another disk"
        )
    return kept


def _open_all(paths: dict[str, Path]) -> dict[str, Kept] | None:
    kept = {name: _open_sealed(path) for name, path in paths.items()}
    return None if None in kept.values() else kept  # type: ignore[return-value]


def _open_sealed(path: Path) -> Kept | None:
    """An intact array, or None."""
    if not path.is_file():  # opening a named pipe would wait for ever
        return None
    try:
        array = np.lib.format.open_memmap(path, mode="r")
        with path.open("rb") as stream:
            stream.seek(-_SEAL_BYTES, os.SEEK_END)
            seal = stream.read()
        digest = _hash_array(array)
    except (OSError, ValueError, BufferError):  # BufferError: an array in Fortran's order
        return None
    return Kept(array, digest.hex(), path) if digest == seal else None


def _write_sealed(path: Path, array: Array) -> None:
    with replacing(path) as stream:
        np.lib.format.write_array(stream, array, allow_pickle=False)
        stream.write(_hash_array(array))


def _hash_array(array: Array) -> bytes:
    digest = hashlib.sha256(f"{array.dtype.str} {array.shape}".encode())
    digest.update(array.view(np.uint8).data if array.size else b"")
    return digest.digest()
