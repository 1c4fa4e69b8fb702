"""One file of the image cache: the pixels of some images, then a footer that says what they are.

    pixels | footer, JSON | sha256 of the footer, 32 bytes | length of the footer, 8 bytes, little-endian

Where each image lies in a chunk follows from the sizes of the images, so nothing but the pixels has to be found in it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from alexnet_dist.base.disk_errors import name_reason
from alexnet_dist.base.durable import check_regular, format_json, parse_json, replacing
from alexnet_dist.base.errors import MachineError

_SEAL_BYTES, _LENGTH_BYTES = hashlib.sha256().digest_size, 8
_READ_BYTES = 2**20


class ChunkError(Exception):
    """A chunk that is missing, damaged or foreign; the text is the reason."""


@dataclass(frozen=True)
class Footer:
    """What a chunk says of itself.

    Args:
        fingerprint: of the whole cache: its recipe and its images.
        number: of the chunk, from 0.
        newest_ns: latest time of change among its image files when they were read; 0 without files.
        sha256: of its pixels, in hexadecimal.
        sums: crc32 of each image's pixels; empty in chunks of older versions.
        bad_files: position in the chunk and reason of each image that could not be decoded; its pixels are zeros.
    """

    fingerprint: str
    number: int
    newest_ns: int
    sha256: str
    bad_files: tuple[tuple[int, str], ...] = ()
    sums: tuple[int, ...] = ()


def write_chunk(path: Path, pixels: npt.NDArray[np.uint8], footer: Footer) -> Footer:
    """Write a chunk beside its place, flush it to the disk, read it back, and rename it; its footer as it was written.

    Args:
        path: where it goes.
        pixels: (bytes,) of all its images, one after the other.
        footer: says what they are; the sha256 is filled in here.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
        MachineError: the disk gives back something else than was written.
    """
    footer = dataclasses.replace(footer, sha256=hashlib.sha256(pixels.data).hexdigest())
    with replacing(path) as file:
        file.write(pixels.data)
        file.write(_pack_footer(footer))
        file.flush()
        beside = Path(file.name)
        if hash_pixels(beside, len(pixels)) != footer.sha256 or read_footer(beside, len(pixels)) != footer:
            why = "what was read back is not what was written"
            raise MachineError(
                "cannot keep images", where=str(path), why=why, remedy="set data.cache_dir to another disk"
            )
    return footer


def read_footer(path: Path, num_bytes: int) -> Footer:
    """The footer of a chunk with so many bytes of pixels; the pixels are not read.

    Raises:
        ChunkError: the file is missing, too short or too long, or its footer is damaged.
    """
    try:
        check_regular(path)
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - _LENGTH_BYTES, 0))
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            if size != num_bytes + length + _SEAL_BYTES + _LENGTH_BYTES:
                raise ChunkError(f"it has {size} bytes, which is not what {num_bytes} bytes of pixels need")
            file.seek(num_bytes)
            text, seal = file.read(length), file.read(_SEAL_BYTES)
    except OSError as error:
        raise ChunkError(name_reason(error)) from error
    if hashlib.sha256(text).digest() != seal:
        raise ChunkError("its footer is damaged")
    return _parse_footer(text)


def hash_pixels(path: Path, num_bytes: int) -> str:
    """sha256 of a chunk's pixels, in hexadecimal.

    Raises:
        OSError: the file cannot be read.
    """
    digest = hashlib.sha256()
    check_regular(path)
    with path.open("rb") as file:
        for first in range(0, num_bytes, _READ_BYTES):
            digest.update(file.read(min(_READ_BYTES, num_bytes - first)))
    return digest.hexdigest()


def map_pixels(path: Path, num_bytes: int) -> Tensor:
    """A chunk's pixels, uint8 (bytes,), mapped into memory. Nothing may be written to them.

    Raises:
        OSError: the file cannot be mapped.
    """
    # A private mapping ("c") shares the system's pages like a read-only one, and torch takes it without a warning.
    return torch.from_numpy(np.asarray(np.memmap(path, np.uint8, "c", shape=(num_bytes,))))


def _pack_footer(footer: Footer) -> bytes:
    text = format_json(dataclasses.asdict(footer), "a chunk's footer").encode()
    return text + hashlib.sha256(text).digest() + len(text).to_bytes(_LENGTH_BYTES, "little")


def _parse_footer(text: bytes) -> Footer:
    try:
        values = parse_json(text)
        bad_files = tuple((int(position), str(reason)) for position, reason in values.pop("bad_files"))
        sums = tuple(map(int, values.pop("sums", ())))
        return Footer(**values, bad_files=bad_files, sums=sums)
    except (ValueError, TypeError, KeyError) as error:
        raise ChunkError(f"its footer cannot be read ({type(error).__name__})") from error
