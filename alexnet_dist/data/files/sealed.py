"""Arrays and names in one file that is written whole: a line with a checksum, then safetensors."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from alexnet_dist.base.durable import check_regular, replacing

logger = logging.getLogger("alexnet_dist")

Arrays: TypeAlias = Mapping[str, npt.NDArray[Any]]


def write_sealed(path: Path, title: str, arrays: Arrays) -> None:
    """Replace a file at once.

    Args:
        path: of the file; its folder is made where it is missing.
        title: what the arrays are, with a number that changes when their meaning does.
        arrays: by name.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    body = save(dict(arrays))
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as stream:
        stream.write(_seal(title, body) + b"\n")
        stream.write(body)


def read_sealed(path: Path, title: str) -> Arrays | None:
    """What `write_sealed` wrote; None where it is missing, damaged or of another version. Nothing is unpickled."""
    try:
        check_regular(path)
        first, _, body = path.read_bytes().partition(b"\n")
        arrays: Arrays | None = load(body) if first == _seal(title, body) else None
    except (OSError, ValueError, SafetensorError) as error:
        logger.debug("nothing kept to start from (%s): %s", path, error)
        return None
    return arrays


def join_names(names: Iterable[str]) -> npt.NDArray[np.uint8]:
    """Names as bytes; none holds a zero."""
    return np.frombuffer("".join(name + "\0" for name in names).encode("utf-8", "surrogateescape"), np.uint8)


def split_names(blob: npt.NDArray[Any]) -> list[str]:
    """The names that `join_names` joined."""
    return blob.tobytes().decode("utf-8", "surrogateescape").split("\0")[:-1]


def _seal(title: str, body: bytes) -> bytes:
    return f"{title} crc32={zlib.crc32(body):08x}".encode()
