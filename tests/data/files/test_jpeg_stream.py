"""Forms of JPEG that decoders do not read alike, and pictures that end too early or take too long."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from helpers.images import encode, exif_block, make_gray
from PIL import Image

from alexnet_dist.data.decode import UnreadableImageError, decode_image, read_header
from alexnet_dist.data.files.jpeg_stream import MAX_SCANS, read_head

PICTURE = Image.fromarray(np.random.default_rng(3).integers(0, 256, (48, 64, 3), dtype=np.uint8))
PLAIN = encode(PICTURE, format="JPEG", quality=90)
PROGRESSIVE = encode(PICTURE, format="JPEG", quality=90, progressive=True)
JFIF_END = 20  # of the start mark and JFIF's segment


def place(data: bytes, marker: int) -> int:
    """Where the first segment with a marker begins."""
    return data.index(bytes((0xFF, marker)))


def take_out(data: bytes, marker: int) -> bytes:
    """Without the segments of a marker."""
    while bytes((0xFF, marker)) in data:
        start = place(data, marker)
        data = data[:start] + data[start + 2 + int.from_bytes(data[start + 2 : start + 4], "big") :]
    return data


def put_in(data: bytes, more: bytes, where: int = JFIF_END) -> bytes:
    return data[:where] + more + data[where:]


def change(data: bytes, where: int, value: int) -> bytes:
    return data[:where] + bytes((value,)) + data[where + 1 :]


def cut_with_end(data: bytes, part: float) -> bytes:
    """So much of the pixels' data, and the end mark."""
    start = data.index(b"\xff\xda") + 14
    return data[: start + int(part * (len(data) - 2 - start))] + b"\xff\xd9"


def is_strict(data: bytes) -> bool:
    head = read_head(io.BytesIO(data))
    return head is not None and head.is_strict


USUAL = {
    "baseline": PLAIN,
    "progressive": PROGRESSIVE,
    "gray": encode(Image.fromarray(make_gray()), format="JPEG"),
    "no subsampling": encode(PICTURE, format="JPEG", subsampling=0),
    "own tables": encode(PICTURE, format="JPEG", optimize=True),
    "restarts": encode(PICTURE, format="JPEG", restart_marker_blocks=2),
    "metadata": encode(PICTURE, format="JPEG", exif=exif_block(1), comment=b"\xff\xd8 hello", icc_profile=b"i" * 99999),
}
UNUSUAL = {
    "bytes between segments": put_in(PLAIN, b"junk"),
    "a marker that is stuffed": put_in(PLAIN, b"\xff\x00"),
    "fill bytes": put_in(PLAIN, b"\xff\xff"),
    "two starts": put_in(PLAIN, b"\xff\xd8"),
    "a restart in the head": put_in(PLAIN, b"\xff\xd0"),
    "a reserved segment": put_in(PLAIN, b"\xff\xf0\x00\x02"),
    "a height that comes later": put_in(PLAIN, b"\xff\xdc\x00\x04\x00\x30"),
    "a length below 2": put_in(PLAIN, b"\xff\xfe\x00\x00"),
    "a restart interval of 3 bytes": put_in(PLAIN, b"\xff\xdd\x00\x05\x00\x00\x00"),
    "half an EXIF block": put_in(PLAIN, b"\xff\xe1" + struct.pack(">H", 20) + exif_block(1)[:18]),
    "an EXIF block of letters": put_in(PLAIN, b"\xff\xe1" + struct.pack(">H", 22) + b"Exif\0\0" + b"x" * 14),
    "two frames": put_in(PLAIN, PLAIN[place(PLAIN, 0xC0) :][:19], place(PLAIN, 0xC0)),
    "an extended frame": change(PLAIN, place(PLAIN, 0xC0) + 1, 0xC1),
    "an arithmetic frame": change(PLAIN, place(PLAIN, 0xC0) + 1, 0xC9),
    "a lossless frame": change(PLAIN, place(PLAIN, 0xC0) + 1, 0xC3),
    "a wide chroma": change(PLAIN, place(PLAIN, 0xC0) + 14, 0x21),
    "no table of codes": take_out(PLAIN, 0xC4),
    "no quantization": take_out(PLAIN, 0xDB),
    "a missing quantization table": change(PLAIN, place(PLAIN, 0xC0) + 12, 3),
    "a table of 16 bits": change(PLAIN, place(PLAIN, 0xDB) + 4, 0x10),
    "a table of codes that is too long": change(PLAIN, place(PLAIN, 0xC4) + 5, 0xFF),
    "components named as colors": change(take_out(PLAIN, 0xE0), place(PLAIN, 0xC0) + 10 - 18, ord("R")),
    "CMYK": encode(PICTURE.convert("CMYK"), format="JPEG"),
}


@pytest.mark.parametrize("name", USUAL)
def test_usual_forms_are_plain(name: str) -> None:
    assert is_strict(USUAL[name])
    assert read_header(USUAL[name]).is_plain


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_forms_are_not(name: str) -> None:
    assert UNUSUAL[name] != PLAIN
    assert not is_strict(UNUSUAL[name])
    try:
        header = read_header(UNUSUAL[name])
    except UnreadableImageError:  # not even Pillow reads it
        return
    assert not header.is_plain


@pytest.mark.parametrize("name", ["bytes between segments", "fill bytes", "no table of codes", "an extended frame"])
def test_an_unusual_form_has_the_same_pixels(name: str) -> None:
    assert np.array_equal(decode_image(UNUSUAL[name]), decode_image(PLAIN))


@pytest.mark.parametrize("cut", range(3))
def test_a_head_without_pixels_is_none(cut: int) -> None:
    ends = (30, place(PLAIN, 0xC4), place(PLAIN, 0xDA))
    assert read_head(io.BytesIO(PLAIN[: ends[cut]])) is None


# -- pictures that end too early --------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("name", [name for name in USUAL if name != "metadata"])
def test_an_end_mark_does_not_make_a_half_picture_whole(name: str, part: float) -> None:
    data = cut_with_end(USUAL[name], part)
    with Image.open(io.BytesIO(data)) as image:
        image.load()  # Pillow takes it for a picture: what is refused here is seen by nobody else
    for behind in (b"", b"\0" * 100, USUAL[name]):
        with pytest.raises(UnreadableImageError, match="truncated"):
            decode_image(data + behind)


@pytest.mark.parametrize("name", USUAL)
@pytest.mark.parametrize("behind", [b"", b"\0\xff\xd9\xff\xda", PLAIN], ids=["nothing", "markers", "a picture"])
def test_a_whole_picture_has_pillows_pixels_whatever_lies_behind(name: str, behind: bytes) -> None:
    with Image.open(io.BytesIO(USUAL[name])) as image:
        expected = np.array(image.convert("RGB"))
    assert np.array_equal(decode_image(USUAL[name] + behind), expected)


def test_a_progressive_picture_without_its_last_scan_is_refused() -> None:
    last = PROGRESSIVE.rindex(b"\xff\xda")
    with pytest.raises(UnreadableImageError, match="truncated"):
        decode_image(PROGRESSIVE[:last] + b"\xff\xd9")


# -- pictures that take too long --------------------------------------------------------------------------------------


def repeat_last_scan(times: int) -> bytes:
    """A progressive JPEG with so many scans in all."""
    last = PROGRESSIVE.rindex(b"\xff\xda")
    missing = times - PROGRESSIVE.count(b"\xff\xda")
    return PROGRESSIVE[:-2] + PROGRESSIVE[last:-2] * missing + b"\xff\xd9"


def test_too_many_scans_are_refused_at_the_header() -> None:
    assert read_header(repeat_last_scan(MAX_SCANS)).width == 64
    for read in (read_header, decode_image):
        with pytest.raises(UnreadableImageError, match=f"more than {MAX_SCANS} scans"):
            read(repeat_last_scan(MAX_SCANS + 1))


def test_scans_behind_a_single_one_are_never_decoded() -> None:
    data = PLAIN[:-2] + PLAIN[place(PLAIN, 0xDA) : -2] * 200 + b"\xff\xd9"
    with pytest.raises(UnreadableImageError, match="broken"):
        decode_image(data)


def test_memory_is_reckoned_before_anything_is_decoded() -> None:

    whole = encode(PICTURE, format="JPEG", progressive=True, subsampling=0)
    limit = 64 * 48
    assert read_header(encode(PICTURE, format="JPEG", subsampling=0), max_pixels=limit).width == 64
    with pytest.raises(UnreadableImageError, match="of memory"):
        read_header(whole, max_pixels=limit)
    assert read_header(whole, max_pixels=2 * limit).width == 64
