"""What a PNG is made of: whether its chunks are well formed up to the last byte, and where its EXIF block lies."""

from __future__ import annotations

import io
from typing import BinaryIO, NamedTuple

_SIGNATURE_BYTES, _LONGEST = 8, 2**31 - 1
_KNOWN = (b"IHDR", b"PLTE", b"IDAT", b"IEND")  # the chunks that a decoder may not pass over


class Chunks(NamedTuple):
    """The chunks of a PNG."""

    is_strict: bool  # every parser walks them to the end, and finds nothing that it must not pass over
    exif: bytes  # Pillow looks for it before the pixels alone


def read_chunks(stream: BinaryIO) -> Chunks:
    """Walk the chunks of a PNG; the pixels are stepped over."""
    size = stream.seek(0, io.SEEK_END)
    kinds: list[bytes] = []
    exif, position, is_whole = b"", _SIGNATURE_BYTES, True
    while position < size and is_whole and kinds[-1:] != [b"IEND"]:
        stream.seek(position)
        head = stream.read(8)
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        position += 12 + length
        is_whole = kind.isalpha() and length <= _LONGEST and position <= size
        if kind == b"eXIf" and is_whole:
            exif = stream.read(length)
        kinds.append(kind)
    return Chunks(is_whole and position == size and not exif and _is_in_order(kinds), exif)


def _is_in_order(kinds: list[bytes]) -> bool:
    """Whether the header comes first, the pixels stand together, and the end mark ends it."""
    critical = [kind for kind in kinds if kind[:1].isupper()]
    if kinds[:1] != [b"IHDR"] or kinds[-1:] != [b"IEND"] or b"IDAT" not in kinds or not set(critical) <= set(_KNOWN):
        return False
    first, count = kinds.index(b"IDAT"), kinds.count(b"IDAT")
    is_single = all(kinds.count(kind) <= 1 for kind in (b"IHDR", b"PLTE", b"IEND"))
    has_palette_before = b"PLTE" not in kinds or kinds.index(b"PLTE") < first
    return is_single and has_palette_before and kinds[first : first + count] == [b"IDAT"] * count
