"""What a PNG is made of: whether its chunks are well formed up to the last byte, and what stands behind the pixels."""

from __future__ import annotations

import io
from typing import BinaryIO, NamedTuple

_SIGNATURE_BYTES, _LONGEST = 8, 2**31 - 1
_KNOWN = (b"IHDR", b"PLTE", b"IDAT", b"IEND")  # the chunks that a decoder may not pass over
_OF_ORIENTATION = (b"eXIf", b"iTXt", b"zTXt", b"tEXt")  # EXIF, or a text that holds XMP or EXIF


class Chunks(NamedTuple):
    """The chunks of a PNG."""

    is_strict: bool  # every parser walks them to the end, and finds nothing that it must not pass over
    late: list[tuple[bytes, int, int]]  # what may tell the orientation behind the pixels: kind, first byte, length


def read_chunks(stream: BinaryIO) -> Chunks:
    """Walk the chunks of a PNG; the pixels are stepped over."""
    size = stream.seek(0, io.SEEK_END)
    kinds: list[bytes] = []
    late: list[tuple[bytes, int, int]] = []
    position, is_whole, has_pixels = _SIGNATURE_BYTES, True, False
    while position < size and is_whole and kinds[-1:] != [b"IEND"]:
        stream.seek(position)
        head = stream.read(8)
        length, kind, start = int.from_bytes(head[:4], "big"), head[4:], position + 8
        position += 12 + length
        is_whole = kind.isalpha() and length <= _LONGEST and position <= size
        has_pixels = has_pixels or kind == b"IDAT"
        if has_pixels and kind in _OF_ORIENTATION and is_whole:
            late.append((kind, start, length))
        kinds.append(kind)
    return Chunks(is_whole and position == size and b"eXIf" not in kinds and _is_in_order(kinds), late)


def _is_in_order(kinds: list[bytes]) -> bool:
    """Whether the header comes first, the pixels stand together, and the end mark ends it."""
    critical = [kind for kind in kinds if kind[:1].isupper()]
    if kinds[:1] != [b"IHDR"] or kinds[-1:] != [b"IEND"] or b"IDAT" not in kinds or not set(critical) <= set(_KNOWN):
        return False
    first, count = kinds.index(b"IDAT"), kinds.count(b"IDAT")
    is_single = all(kinds.count(kind) <= 1 for kind in (b"IHDR", b"PLTE", b"IEND"))
    has_palette_before = b"PLTE" not in kinds or kinds.index(b"PLTE") < first
    return is_single and has_palette_before and kinds[first : first + count] == [b"IDAT"] * count
