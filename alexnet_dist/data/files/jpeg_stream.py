"""What a JPEG is made of: its segments, its scans, and whether its pixels are all there.

Decoders differ in what they forgive. libjpeg steps over bytes between two segments, and fills up with gray what is
missing before the end marker; DALI's parser fails on the first, and takes the process with it. So the segments are
walked here, by libjpeg's rules, and held against a strict form that every decoder reads alike.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator, Sequence
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageFile

# The limit that libtiff has for the JPEGs in its files. Encoders make ten scans, the most thorough ones thirty; each is
# a pass over the whole picture, however few bytes it has.
MAX_SCANS = 100

_SOI, _EOI, _SOS, _DQT, _DHT, _DRI, _COM = 0xD8, 0xD9, 0xDA, 0xDB, 0xC4, 0xDD, 0xFE
_APP0, _APP1, _APP15 = 0xE0, 0xE1, 0xEF
_BASELINE, _EXTENDED, _PROGRESSIVE = 0xC0, 0xC1, 0xC2
_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})  # SOF0 to SOF15
_RST0 = 0xD0
_WITHOUT_LENGTH = frozenset({0x01, _SOI, *range(_RST0, _RST0 + 8)})
_SAMPLINGS = frozenset({(1, 1), (2, 1), (1, 2), (2, 2), (4, 1)})  # of luma, where chroma has (1, 1)
_MOST_JUNK = 2**16  # bytes that are searched for the next segment
# Nothing but zeros follows the pixels where they are decoded, and no end marker, at which libjpeg would make up what is
# missing: a picture that is cut short asks for more. libjpeg looks eight bytes ahead.
_FILLING = bytes(8)
# A file of many scans is read to its end before its first line is made. When all scans are whole, libjpeg looks for the
# next marker and steps over zeros, as many as it gets; in the middle of a scan it cannot use them all, but by chance.
_MORE_FILLING = (bytes(7), bytes(5), bytes(3))
# What lies behind a picture may be a film: no more is read than the pixels and the tables between scans can need.
_BYTES_PER_PIXEL, _SLACK = 6, 2**22


class Segment(NamedTuple):
    """A part of a JPEG's head."""

    marker: int
    body: bytes  # without marker and length
    is_tight: bool  # it follows the one before directly, and is as long as it says


class Head(NamedTuple):
    """What comes before the pixels."""

    frame: int  # marker of the frame: the kind of JPEG
    first_scan: bytes  # body of its SOS segment
    num_components: int
    samples_per_pixel: float  # 3 for color, 1.5 where the chroma has a quarter of the pixels
    segments: list[Segment]
    end: int  # where the data of the first scan begin

    @property
    def is_strict(self) -> bool:
        """Whether it is of a form that every decoder reads alike."""
        return all(segment.is_tight for segment in self.segments) and _is_strict(self.segments)

    @property
    def has_many_scans(self) -> bool:
        """Whether more scans may follow the first."""
        return self.frame not in (_BASELINE, _EXTENDED) or self.first_scan[0] != self.num_components


class Scans(NamedTuple):
    """The scans of a JPEG, as far as they are there."""

    number: int
    end: int  # where the end marker stands; -1 without one
    is_complete: bool  # they give each coefficient of each component to its last bit


def read_head(stream: BinaryIO) -> Head | None:
    """Everything before the pixels; None where no scan is found."""
    segments = list(_read_segments(stream))
    frames = [segment for segment in segments if segment.marker in _FRAMES and len(segment.body) >= 6]
    if not frames or segments[-1].marker != _SOS or not segments[-1].body:
        return None
    marker, frame = frames[-1].marker, frames[-1].body
    areas = [(code >> 4) * (code & 15) for code in frame[7::3]]
    samples = sum(areas) / max(*areas, 1) if len(areas) > 1 else 1.0
    return Head(marker, segments[-1].body, frame[5], samples, segments, stream.tell())


def count_scans(stream: BinaryIO, head: Head, num_pixels: int) -> int:
    """The number of scans, or some number above `MAX_SCANS`; where there can be only one, nothing is read."""
    if not head.has_many_scans:
        return 1
    return find_scans(_read_data(stream, head, num_pixels), head.end, head).number


def find_scans(data: bytearray, start: int, head: Head) -> Scans:
    """The scans of a JPEG, up to one more than `MAX_SCANS`.

    Args:
        data: of the file, and room for the filling.
        start: where in them the first scan's data begin.
        head: what came before.
    """
    if not head.has_many_scans and _ends_once(data, start):
        return Scans(1, len(data) - len(_FILLING) - 2, is_complete=True)
    missing_bits: dict[int, list[int]] = {}
    _note_scan(missing_bits, head, head.first_scan)
    number, end = 1, -1
    for marker, first, stop in _walk_data(data, start):
        if marker == _EOI:
            end = first
            break
        if marker == _SOS and head.has_many_scans and stop > first:
            number += 1
            _note_scan(missing_bits, head, bytes(data[first:stop]))
        if number > MAX_SCANS:
            break
    is_complete = len(missing_bits) == head.num_components and not any(map(any, missing_bits.values()))
    return Scans(number, end, is_complete)


def load_whole(image: ImageFile.ImageFile, head: Head, stream: BinaryIO) -> None:
    """Decode a JPEG that was opened from `stream`, and find out whether its pixels are all there.

    Raises:
        OSError: they are damaged, or end too early.
        ValueError: there are too many scans.
    """
    if head.frame not in (_BASELINE, _EXTENDED, _PROGRESSIVE):
        image.load()  # arithmetic and lossless coding, which libjpeg cannot interrupt
        return
    data = _read_data(stream, head, image.width * image.height)
    scans = find_scans(data, head.end, head)
    check_scans(scans.number)
    if scans.end < 0 or not scans.is_complete:
        raise OSError("image file is truncated")
    stop = scans.end + len(_FILLING)
    data[scans.end : stop] = _FILLING
    _decode(image, memoryview(data)[:stop], head.has_many_scans)


def _read_data(stream: BinaryIO, head: Head, num_pixels: int) -> bytearray:
    """The file, as far as the picture may reach, and room for the filling."""
    most = head.end + _BYTES_PER_PIXEL * num_pixels + _SLACK
    size = min(stream.seek(0, io.SEEK_END), most)
    data = bytearray(size + len(_FILLING))
    stream.seek(0)
    stream.readinto(memoryview(data)[:size])  # type: ignore[attr-defined]  # every binary stream of ours has it
    return data


def check_scans(number: int) -> None:
    """Refuse a picture that takes too long.

    Raises:
        ValueError: it has too many scans.
    """
    if number > MAX_SCANS:
        raise ValueError(f"more than {MAX_SCANS} scans")


def _decode(image: ImageFile.ImageFile, data: memoryview, has_many_scans: bool) -> None:
    """What `image.load` does, but what is missing is an error."""
    ((name, extents, _, arguments),) = image.tile
    image.load_prepare()
    decoder = Image._getdecoder(image.mode, name, arguments, image.decoderconfig)
    try:
        decoder.setimage(image.im, extents)
        used, code = decoder.decode(data)
        if has_many_scans and used == len(data) and all(decoder.decode(more)[0] == len(more) for more in _MORE_FILLING):
            used, code = decoder.decode(b"\xff\xd9")
    finally:
        decoder.cleanup()
    if code < 0:
        raise OSError("broken data stream when reading image file")
    if used >= 0:
        raise OSError("image file is truncated")
    image.tile = []


# -- segments ---------------------------------------------------------------------------------------------------------


def _read_segments(stream: BinaryIO) -> Iterator[Segment]:
    """The segments up to the first scan's."""
    stream.seek(2)
    while True:
        marker, is_tight = _find_marker(stream)
        if marker is None or marker == _EOI:
            return
        if marker in _WITHOUT_LENGTH:
            yield Segment(marker, b"", is_tight=False)
            continue
        length = int.from_bytes(stream.read(2), "big")
        body = stream.read(max(length - 2, 0))
        yield Segment(marker, body, is_tight and len(body) == length - 2)
        if marker == _SOS or len(body) != length - 2:
            return


def _find_marker(stream: BinaryIO) -> tuple[int | None, bool]:
    """The next marker, None at the end, and whether it stands where it should."""
    first = stream.read(2)
    if len(first) == 2 and first[0] == 0xFF and first[1] not in (0x00, 0xFF):
        return first[1], True
    stream.seek(-len(first), io.SEEK_CUR)
    start = stream.tell()
    junk = stream.read(_MOST_JUNK)
    markers = _find_markers(junk, 0)
    if not markers:
        return None, False
    stream.seek(start + markers[0][1])
    return markers[0][0], False


def _ends_once(data: bytearray, start: int) -> bool:
    """Whether there is one end marker from `start` on, at the end of the file: so it is with nearly every file.

    A search for two bytes among random ones would take a tenth of the time that decoding does.
    """
    stop = len(data) - len(_FILLING) - 2
    if stop < start or data[stop : stop + 2] != b"\xff\xd9":
        return False
    views = (np.frombuffer(data, "<u2", (stop - first) // 2, first) for first in (start, start + 1) if first < stop)
    return not any(bool((view == 0xD9FF).any()) for view in views)


def _find_markers(data: bytes | bytearray, start: int) -> list[tuple[int, int]]:
    """Each marker from `start` on that is neither a stuffed byte nor a restart, and where it ends."""
    values = np.frombuffer(data, np.uint8)[start:]
    places = np.flatnonzero(values[:-1] == 0xFF) + 1
    followers = values[places]
    is_marker = (followers != 0x00) & (followers != 0xFF) & ((followers & 0xF8) != _RST0)
    return list(zip(followers[is_marker].tolist(), (places[is_marker] + start + 1).tolist(), strict=True))


def _walk_data(data: bytearray, start: int) -> Iterator[tuple[int, int, int]]:
    """The markers among the data of scans: marker, and where its body begins and ends; of the end, where it stands."""
    position = start
    for marker, first in _find_markers(data, start):
        if first - 2 < position:
            continue  # within a segment
        if marker == _EOI:
            yield marker, first - 2, first
            return
        length = int.from_bytes(data[first : first + 2], "big")
        position = first if marker in _WITHOUT_LENGTH else first + max(length, 2)
        yield marker, first + 2, max(position, first + 2)


def _note_scan(missing_bits: dict[int, list[int]], head: Head, body: bytes) -> None:
    """Take up which coefficients a scan gives, and how many of their last bits it leaves to others."""
    count = body[0]
    if len(body) < 2 * count + 4:
        return
    first, last, precision = body[1 + 2 * count : 4 + 2 * count]
    if head.frame in (_BASELINE, _EXTENDED):
        first, last, precision = 0, 63, 0
    for component in body[1 : 1 + 2 * count : 2]:
        coefficients = missing_bits.setdefault(component, [16] * 64)
        coefficients[first : last + 1] = [precision & 15] * len(coefficients[first : last + 1])


# -- the strict form --------------------------------------------------------------------------------------------------


def _is_strict(segments: Sequence[Segment]) -> bool:
    """Whether frame, tables and scan are of the usual kind, and everything has the length that it should have."""
    frames = [segment for segment in segments if segment.marker in _FRAMES]
    if len(frames) != 1 or frames[0].marker not in (_BASELINE, _PROGRESSIVE):
        return False
    allowed = {_SOS, _DQT, _DHT, _DRI, _COM, frames[0].marker, *range(_APP0, _APP15 + 1)}
    if any(segment.marker not in allowed for segment in segments):
        return False
    has_jfif = any(segment.marker == _APP0 and segment.body.startswith(b"JFIF\0") for segment in segments)
    scan = segments[-1].body
    return (
        _is_usual_frame(frames[0].body, has_jfif)
        and _has_tables(segments, frames[0], scan)
        and all(len(segment.body) == 2 for segment in segments if segment.marker == _DRI)
        and all(_is_whole_exif(segment.body[6:]) for segment in segments if _holds_exif(segment))
        and len(scan) == 4 + 2 * scan[0]
        and (scan[0] == frames[0].body[5] or frames[0].marker == _PROGRESSIVE)
    )


def _is_usual_frame(body: bytes, has_jfif: bool) -> bool:
    """Eight bits, gray or YCbCr with an ordinary sampling of its chroma."""
    if len(body) < 6 or body[0] != 8 or body[5] not in (1, 3) or len(body) != 6 + 3 * body[5]:
        return False
    names, factors = body[6::3], [(code >> 4, code & 15) for code in body[7::3]]
    if body[5] == 1:
        return all(1 <= factor <= 4 for factor in factors[0])
    # Without JFIF's mark libjpeg takes the colors from the names of the components.
    return (has_jfif or names == b"\1\2\3") and factors[0] in _SAMPLINGS and factors[1:] == [(1, 1), (1, 1)]


def _has_tables(segments: Sequence[Segment], frame: Segment, scan: bytes) -> bool:
    """Whether tables are well formed, and there before they are used."""
    quantization: set[int] = set()
    huffman: set[int] = set()
    for segment in segments:
        if segment.marker == _DQT:
            found = _read_quantization(segment.body)
            quantization |= found or set()
        elif segment.marker == _DHT:
            found = _read_huffman(segment.body)
            huffman |= found or set()
        else:
            continue
        if not found:
            return False
    selectors = scan[2 : 2 + 2 * scan[0] : 2]
    used = {selector >> 4 for selector in selectors}
    if frame.marker == _BASELINE:
        used |= {16 | (selector & 15) for selector in selectors}
    return set(frame.body[8::3]) <= quantization and used <= huffman


def _read_quantization(body: bytes) -> set[int] | None:
    """The numbers of the tables of a DQT segment; None where it is not made of whole tables of bytes."""
    if len(body) % 65 or any(number > 3 for number in body[::65]):
        return None
    return set(body[::65])


def _read_huffman(body: bytes) -> set[int] | None:
    """The numbers of the tables of a DHT segment, 16 higher for AC; None where it is not made of whole tables."""
    found, position = set(), 0
    while position < len(body):
        lengths = body[position + 1 : position + 17]
        if len(lengths) < 16 or body[position] & 0xEC or not 0 < sum(lengths) <= 256:
            return None
        found.add(body[position])
        position += 17 + sum(lengths)
    return found if position == len(body) else None


def _holds_exif(segment: Segment) -> bool:
    return segment.marker == _APP1 and segment.body.startswith(b"Exif")


def _is_whole_exif(block: bytes) -> bool:
    """Whether an EXIF block, from its byte order on, has a first directory, and all of it."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(block[:4])
    if order is None or len(block) < 8:
        return False
    (start,) = struct.unpack_from(f"{order}I", block, 4)
    if not 8 <= start <= len(block) - 2:
        return False
    (count,) = struct.unpack_from(f"{order}H", block, start)
    return bool(start + 2 + 12 * count <= len(block))
