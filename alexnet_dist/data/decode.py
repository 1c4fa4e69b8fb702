"""What an image file means: one contract that every engine keeps.

- EXIF orientation is applied wherever it stands (XMP's where there is no other, a TIFF's own tag too).
- Gray is replicated for three channels; for one channel colors become ITU-R 601 luma, Pillow's mode "L".
- 16-bit gray is scaled to 8 bits by value / 257, rounded. (Pillow itself reads 16-bit color as the high byte.)
- CMYK and YCCK are converted as Pillow does, palettes are expanded, 1-bit becomes 0 and 255.
- Alpha is dropped: the color stays as it is stored.
- Animations and documents of several pages give their first frame.
- A file that ends too early is an error, never a picture that is half gray, not even where it has an end mark.
  (Pillow does not tell of a PNG whose packed pixels are whole but for lines that were never put in; these are black.)
- A picture has a budget of pixels, memory and passes; what goes beyond it is an error before anything is decoded.

The content decides the format, not the file's name.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import logging
import os
import re
import struct
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import BinaryIO, NamedTuple, TypeAlias, cast

import numpy as np
import numpy.typing as npt

# Naming the plugins registers these formats and no others (among the rest is one that starts Ghostscript).
from PIL import (  # noqa: F401
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
    _imaging,
)

from alexnet_dist.data.files.jpeg_stream import Head, check_scans, count_scans, load_whole, read_head
from alexnet_dist.data.files.png_chunks import Chunks, read_chunks

with contextlib.suppress(ImportError):  # older versions of Pillow do not have it
    from PIL import AvifImagePlugin

    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # there is a process or a thread for each core already

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
EMPTY = "empty file"
DEFAULT_MAX_PIXELS = 50_000_000

ImageSource: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO
"""A path, the bytes of a file, or a stream of them, which is closed."""
Pixels: TypeAlias = npt.NDArray[np.uint8]
Form: TypeAlias = Head | Chunks | None
"""How a JPEG or a PNG is made; None for other formats, and for a JPEG that has no pixels."""

_WIDTH_TAG, _HEIGHT_TAG, _ORIENTATION_TAG = 0x0100, 0x0101, 0x0112
_JPEG_FORMATS = frozenset({"JPEG", "MPO"})
_TILE_TAGS, _STRIP_TAG, _BITS_TAG = (322, 323), 278, 258
_GRAY_MODES = frozenset({"1", "L", "LA", "La"})
_FORMATS_WITH_16_BIT_I = frozenset({"PNG", "PPM"})  # their 16-bit gray opens as "I" in some versions of Pillow
_PILLOW_MODULES = re.compile(r"PIL\.")
_XMP_ORIENTATION = re.compile(rb"""tiff:Orientation(?:\s*=\s*["']|>)\s*([1-8])""")
_RAW_EXIF = ("Raw profile type exif", "Raw profile type APP1")  # texts of a PNG in which ImageMagick keeps EXIF
_ORIENTATION_KEYS = ("exif", *_RAW_EXIF, "xmp", "XML:com.adobe.xmp")  # of `Image.info`
_REASON_LENGTH = 160
_PNG_DEPTH_OFFSET = 24  # of the bits per sample, which Pillow's mode does not tell: it opens 16-bit color as RGB
_PREFIX_LENGTH = 30  # what Pillow's plugins look at to recognize their format

# From the stored array to the upright one, by EXIF orientation.
_UPRIGHT: dict[int, Callable[[Pixels], Pixels]] = {
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: stored[::-1].swapaxes(0, 1),
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: lambda stored: stored[:, ::-1].swapaxes(0, 1),
}
_TRANSPOSED = (5, 6, 7, 8)
_BACK = {6: 8, 8: 6}  # which of the above undoes one; the others undo themselves

# Memory that a picture takes while it is decoded, in bytes per pixel. At the default limit of pixels it is 450 MB.
_MOST_BYTES_PER_PIXEL = 9
STRIP_PIXELS = 2**20  # are converted at once

# What names of images hide besides images of FORMATS, by their first bytes and where these begin.
_STRANGERS = {
    (4, b"ftypavi"): "an AVIF image, which this Pillow cannot read",
    (4, b"ftyp"): "a HEIF image or a film; convert it to JPEG",
    (4, b"jP  "): "a JPEG 2000 image; convert it to JPEG",
    (4, b"JXL "): "a JPEG XL image; convert it to JPEG",
    (0, b"\xff\x0a"): "a JPEG XL image; convert it to JPEG",
    (0, b"8BPS"): "a Photoshop file; convert it to JPEG",
    (0, b"%PDF"): "a PDF document",
}


class UnreadableImageError(Exception):
    """An image that cannot be used; the text is a short reason on one line, without the path."""

    def __init__(self, reason: str) -> None:
        line = " ".join(reason.split())
        super().__init__(line if len(line) <= _REASON_LENGTH else line[: _REASON_LENGTH - 3] + "...")


class NoImageError(UnreadableImageError):
    """A file of another kind."""


class TooLargeImageError(UnreadableImageError):
    """More pixels, or memory to decode them, than the limit allows."""


class ImageHeader(NamedTuple):
    """What a header says of an image."""

    width: int  # upright, in pixels
    height: int
    is_plain: bool  # of a kind that every decoder reads alike: an upright 8-bit gray or RGB JPEG or PNG without alpha


def read_header(source: ImageSource, max_pixels: int = DEFAULT_MAX_PIXELS) -> ImageHeader:
    """Upright size and kind of an image, from the header alone.

    Args:
        source: a path, the file's bytes, or a stream of them.
        max_pixels: largest width x height that is accepted.

    Raises:
        UnreadableImageError: not an image, damaged header, no permission; too many pixels or scans, too much memory.
    """
    with _reading(source) as stream:
        image, form = _open_image(stream, max_pixels)
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            # Newer versions of Pillow swap `size` themselves, older ones do not: take the stored sides.
            width, height = int(image.tag_v2[_WIDTH_TAG]), int(image.tag_v2[_HEIGHT_TAG])
            exif = image.getexif()
            orientation = exif[_ORIENTATION_TAG] if _ORIENTATION_TAG in exif else _read_xmp_orientation(image)
        else:
            width, height = image.size
            orientation = _read_orientation(image)
        if isinstance(form, Head):
            check_scans(count_scans(stream, form, width * height))
        if orientation in _TRANSPOSED:
            width, height = height, width
        return ImageHeader(width, height, orientation not in _UPRIGHT and _is_plain(image, form, stream))


def is_known_format(prefix: bytes) -> bool:
    """Whether a file that begins so is of one of `FORMATS`.

    Args:
        prefix: its first 30 bytes, or more.
    """
    return any(accept is not None and accept(prefix) is True for accept in (Image.OPEN[name][1] for name in FORMATS))


def _is_plain(image: ImageFile.ImageFile, form: Form, stream: BinaryIO) -> bool:
    if form is None or not form.is_strict or image.mode not in ("L", "RGB") or "transparency" in image.info:
        return False
    if image.format == "JPEG":
        return image.info.get("adobe_transform") != 0 or image.mode == "L"  # else stored as RGB, not as YCbCr
    if image.format == "PNG":
        stream.seek(_PNG_DEPTH_OFFSET)
        return stream.read(1) == b"\x08" and not getattr(image, "is_animated", False)
    return False


def decode_image(
    source: ImageSource,
    channels: int = 3,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    size: Sequence[int] | None = None,
    window: Sequence[int] | None = None,
) -> Pixels:
    """Decode one image file by the contract at the top of this module.

    Args:
        source: a path, the file's bytes, or a stream of them.
        channels: 3 (RGB) or 1 (gray).
        max_pixels: largest width x height that is accepted; checked before anything is decoded.
        size: width and height that the upright picture had when it was scanned.
        window: x, y, width and height of the part of the upright picture that is wanted; None = all of it.

    Returns:
        uint8 (H, W, channels), C-contiguous and writable, upright.

    Raises:
        UnreadableImageError: whatever is wrong with the file, or it has another size than at the scan.
        MemoryError: the machine has no memory for an image within the limit.
    """
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 or 3, not {channels}")
    with _reading(source) as stream:
        image, form = _open_image(stream, max_pixels)
        is_tiff = isinstance(image, TiffImagePlugin.TiffImageFile)
        orientation = _read_hidden_orientation(image) if is_tiff else _read_orientation(image)
        if isinstance(form, Head):
            load_whole(image, form, stream)
        else:
            image.load()
        if is_tiff:
            # Pillow turns a TIFF upright while loading and then removes the tag.
            orientation = image.getexif().get(_ORIENTATION_TAG, orientation)
        if size is not None:
            compare_size(image.size[::-1] if orientation in _TRANSPOSED else image.size, size)
        if window is not None and orientation not in _UPRIGHT and image.mode in ("L", "RGB"):
            # Pillow holds a pixel in four bytes: the less of them are turned into three, the better.
            x, y, width, height = map(int, window)
            return _convert_upright(image, image.format, orientation, channels, (x, y, x + width, y + height))
        upright = _convert_upright(image, image.format, orientation, channels)
        return upright if window is None else np.ascontiguousarray(cut_window(upright, window))


def convert_picture(image: Image.Image, channels: int = 3) -> Pixels:
    """A picture that Pillow has opened or made, by the contract at the top of this module.

    Args:
        image: of any mode; it is not changed.
        channels: 3 (RGB) or 1 (gray).

    Returns:
        uint8 (H, W, channels), C-contiguous and writable, upright.

    Raises:
        UnreadableImageError: a file that cannot be decoded, or pixels without an 8-bit value.
    """
    _silence_pillow()
    if 0 in image.size:
        raise UnreadableImageError(_describe_no_pixels(image.size))
    try:
        is_tiff = isinstance(image, TiffImagePlugin.TiffImageFile)
        hidden = _read_hidden_orientation(image) if is_tiff else 1
        picture = image.copy()  # decodes, and finds what stands behind the pixels
        if isinstance(image, PngImagePlugin.PngImageFile) and image.is_animated:
            with contextlib.suppress(ValueError):  # the file may be closed by now
                _read_form(image, cast(BinaryIO, image._fp))  # decoding stops at the second frame
        orientation = image.getexif().get(_ORIENTATION_TAG, hidden) if is_tiff else _read_orientation(image)
        return _convert_upright(picture, image.format, orientation, channels)
    except (UnreadableImageError, MemoryError):
        raise
    except Exception as error:
        raise UnreadableImageError(_describe_failure(error)) from error


def cut_window(image: Pixels, window: Sequence[int]) -> Pixels:
    """The part x, y, width, height of an image (H, W, C).

    Raises:
        UnreadableImageError: the image is not as large as its header said when the plan was made.
    """
    x, y, width, height = window
    part = image[y : y + height, x : x + width]
    if part.shape[:2] != (height, width):
        raise UnreadableImageError(f"is {image.shape[1]} x {image.shape[0]} pixels, not as the scan found it")
    return part


def convert_to_luma(rgb: Pixels) -> Pixels:
    """Gray of an RGB picture, uint8 (H, W, 3) -> (H, W, 1), by the same rule as `decode_image`."""
    return np.array(Image.fromarray(rgb).convert("L"))[:, :, None]


@contextmanager
def _reading(source: ImageSource) -> Iterator[BinaryIO]:
    """Open the bytes; whatever goes wrong with them, here or in the body, ends as `UnreadableImageError`."""
    _silence_pillow()
    try:
        with _open_bytes(source) as stream:
            yield stream
    except (UnreadableImageError, MemoryError):
        # No memory says nothing about the file: under on_bad_file=skip it would leave out a good one.
        raise
    except Exception as error:
        raise UnreadableImageError(_describe_failure(error)) from error


def _silence_pillow() -> None:
    """Keep the filter that ignores Pillow's warnings in front of all others.

    `warnings.catch_warnings` around each image would be wrong: threads that overlap restore each other's filters.
    """
    front = warnings.filters[0] if warnings.filters else None
    if front is None or front[0] != "ignore" or front[3] != _PILLOW_MODULES:
        warnings.filterwarnings("ignore", module=_PILLOW_MODULES.pattern)
        _silence_libraries()


@cache
def _silence_libraries() -> None:
    """Keep what Pillow logs, and what libtiff prints, from the terminal: it names no file, and floods it."""
    logging.getLogger("PIL").addHandler(logging.NullHandler())
    with contextlib.suppress(AttributeError, OSError):  # a Pillow that holds its libtiff in itself
        libtiff = ctypes.CDLL(_imaging.__file__)
        libtiff.TIFFSetWarningHandler(None)
        libtiff.TIFFSetErrorHandler(None)


def _open_bytes(source: ImageSource) -> BinaryIO:
    if isinstance(source, (bytes, bytearray, memoryview)):
        return io.BytesIO(source)
    return open(source, "rb") if isinstance(source, (str, os.PathLike)) else source


def _describe_failure(error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return "too many pixels"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"damaged image: {str(error) or type(error).__name__}"


def _open_image(stream: BinaryIO, max_pixels: int) -> tuple[ImageFile.ImageFile, Form]:
    """Read the header and hold size and memory against the limits.

    The plugins are called directly because `Image.open` has a limit of its own that warns, and forgets the reason
    when a header is damaged.
    """
    prefix = stream.read(_PREFIX_LENGTH)
    for name in FORMATS:
        factory, accept = Image.OPEN.get(name, (None, None))
        if factory is not None and accept is not None and accept(prefix) is True:
            if name == "WEBP":
                _check_size(_read_webp_size(prefix), max_pixels)  # opening takes memory for all of its pixels
            stream.seek(0)
            try:
                image = factory(stream, "")
            except (SyntaxError, IndexError, TypeError, KeyError, struct.error) as error:
                raise UnreadableImageError(f"damaged {name} header: {error}") from error
            _check_size(image.size, max_pixels)
            form = _read_form(image, stream)
            _check_memory(image, form, max_pixels)
            return image, form
    raise NoImageError(_describe_stranger(prefix))


def _read_form(image: ImageFile.ImageFile, stream: BinaryIO) -> Form:
    """How the file is made; what a PNG says behind its pixels is put where Pillow keeps what it says before them."""
    if image.format in _JPEG_FORMATS:
        return read_head(stream)
    if image.format != "PNG":
        return None
    position = stream.tell()  # Pillow goes on from there
    chunks = read_chunks(stream)
    parser = PngImagePlugin.PngStream(stream)  # the picture's own would count the texts twice against its limit
    try:
        for kind, start, length in chunks.late:
            stream.seek(start)
            parser.call(kind, start, length)
    except (SyntaxError, ValueError):  # decoding says it
        chunks = chunks._replace(is_strict=False)
    # A text of another name could replace what the header says of the pixels.
    image.info.update({key: parser.im_info[key] for key in _ORIENTATION_KEYS if key in parser.im_info})
    stream.seek(position)
    return chunks


def _read_webp_size(prefix: bytes) -> tuple[int, int]:
    """Width and height of a WebP from its first 30 bytes."""
    kind, numbers = prefix[12:16], int.from_bytes(prefix[21:25], "little")
    if kind == b"VP8X":
        return int.from_bytes(prefix[24:27], "little") + 1, int.from_bytes(prefix[27:30], "little") + 1
    if kind == b"VP8L":
        return (numbers & 0x3FFF) + 1, (numbers >> 14 & 0x3FFF) + 1
    return int.from_bytes(prefix[26:28], "little") & 0x3FFF, int.from_bytes(prefix[28:30], "little") & 0x3FFF


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise UnreadableImageError(_describe_no_pixels(size))
    if width * height > max_pixels:
        raise TooLargeImageError(f"too many pixels ({width}x{height}, the limit is {max_pixels})")


def _describe_no_pixels(size: tuple[int, int]) -> str:
    return "no pixels ({}x{})".format(*size)


def _check_memory(image: ImageFile.ImageFile, form: Form, max_pixels: int) -> None:
    """Refuse what takes more memory than an ordinary picture of `max_pixels`."""
    limit = _MOST_BYTES_PER_PIXEL * max_pixels
    needed = _estimate_memory(image, form)
    if needed > limit:
        found, most = (f"{value / 1e6:,.0f} MB" for value in (needed, limit))
        raise TooLargeImageError(f"decoding it takes {found} of memory, data.max_pixels allows {most}")


def _estimate_memory(image: ImageFile.ImageFile, form: Form) -> float:
    """Bytes that decoding takes at its peak: what Pillow holds, what we make of it, and what a library needs beside."""
    pixels, ours = image.width * image.height, 3
    if isinstance(form, Head) and form.has_many_scans:
        return pixels * (4 + max(ours, 2 * form.samples_per_pixel))  # libjpeg keeps all coefficients while it decodes
    if image.format == "WEBP":
        return pixels * 16.0  # two canvases of the animation decoder, the frame as bytes, and the picture
    if image.format == "AVIF":
        return pixels * 10.0
    if isinstance(image, TiffImagePlugin.TiffImageFile) and image.tile and image.tile[0][0] == "libtiff":
        return pixels * 4 + max(pixels * 4, _estimate_tile(image))  # a copy that is upright, or a tile
    return pixels * (4.0 + ours)


def _estimate_tile(image: TiffImagePlugin.TiffImageFile) -> float:
    """Bytes of a tile, or a strip, of a TIFF; it may be larger than the picture."""
    tags = image.tag_v2
    width, height = (tags.get(tag, default) for tag, default in zip(_TILE_TAGS, image.size, strict=True))
    if _TILE_TAGS[0] not in tags:
        height = min(int(tags.get(_STRIP_TAG, image.height)), image.height)
    bits = tags.get(_BITS_TAG, (1,))
    return int(width) * int(height) * sum(map(int, bits)) / 8


def _describe_stranger(prefix: bytes) -> str:
    if not prefix:
        return EMPTY
    if prefix.lstrip().lower().startswith((b"<!doctype", b"<html", b"<head")):
        return "an HTML page, not an image"
    for (start, mark), name in _STRANGERS.items():
        if prefix.startswith(mark, start):
            return f"not an image that can be read: {name}"
    return f"not an image ({', '.join(FORMATS)})"


def compare_size(found: tuple[int, int], scanned: Sequence[int]) -> None:
    """Refuse a picture whose (width, height) is not what it was when it was listed.

    Raises:
        UnreadableImageError: so it is.
    """
    if found != tuple(scanned):
        now, then = ("x".join(map(str, size)) for size in (found, scanned))
        raise UnreadableImageError(f"changed since it was scanned: {now}, was {then}")


def _read_orientation(image: Image.Image) -> int:
    """EXIF orientation from what the header held, 1 where there is none or it is damaged.

    Not `image.getexif()`: for a PNG that decodes the whole picture first.
    """
    block = image.info.get("exif") or _read_raw_exif(image)
    if not isinstance(block, bytes) or (b"\x12\x01" not in block and b"\x01\x12" not in block):
        return _read_xmp_orientation(image)  # the tag's number is not there in either byte order
    try:
        exif = Image.Exif()
        exif.load(block)
        orientation = exif.get(_ORIENTATION_TAG)
    except (SyntaxError, ValueError, TypeError, KeyError, IndexError, OSError, OverflowError, struct.error):
        return 1
    if orientation is None:
        return _read_xmp_orientation(image)
    return orientation if isinstance(orientation, int) else 1


def _read_raw_exif(image: Image.Image) -> bytes:
    """The EXIF block in a PNG's text: three lines of words, then digits."""
    profiles = [image.info[key] for key in _RAW_EXIF if isinstance(image.info.get(key), str)]
    try:
        return bytes.fromhex("".join(profiles[0].split("\n")[3:])) if profiles else b""
    except ValueError:
        return b""


def _read_hidden_orientation(image: Image.Image) -> int:
    """Orientation of a TIFF, before it is loaded, that stands in its XMP packet where Pillow does not find it."""
    return 1 if _ORIENTATION_TAG in image.getexif() else _read_xmp_orientation(image)


def _read_xmp_orientation(image: Image.Image) -> int:
    """Orientation from an XMP packet, 1 where there is none."""
    packet = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or b""
    if isinstance(packet, str):
        packet = packet.encode()
    found = _XMP_ORIENTATION.search(packet) if isinstance(packet, bytes) else None
    return int(found[1]) if found else 1


def _convert_upright(
    image: Image.Image,
    kind: str | None,
    orientation: int,
    channels: int,
    box: tuple[int, int, int, int] | None = None,
) -> Pixels:
    """The loaded pixels as uint8 (H, W, channels), upright, C-contiguous and writable.

    A large picture goes strip by strip: the copies on the way are as large as a strip.

    Args:
        image: loaded; what its `info` says of transparency is dropped.
        kind: its format.
        orientation: as EXIF counts it.
        channels: 3 or 1.
        box: left, top, right and bottom of the part that is wanted, as stored; None = all.
    """
    image.info.pop("transparency", None)  # alpha is dropped; Pillow would try to carry it over
    left, above, right, below = box or (0, 0, *image.size)
    width, height = right - left, below - above
    if orientation not in _UPRIGHT and width * height <= STRIP_PIXELS:
        return _convert_pixels(image if box is None else image.crop(box), kind, channels)
    sides = (width, height) if orientation in _TRANSPOSED else (height, width)
    upright = np.empty((*sides, channels), np.uint8)
    stored = _UPRIGHT[_BACK.get(orientation, orientation)](upright) if orientation in _UPRIGHT else upright
    step = max(1, STRIP_PIXELS // width)
    for top in range(0, height, step):
        bottom = min(top + step, height)
        is_all = (width, bottom - top) == image.size
        strip = image if is_all else image.crop((left, above + top, right, above + bottom))
        stored[top:bottom] = _convert_pixels(strip, kind, channels)
    return upright


def _convert_pixels(image: Image.Image, kind: str | None, channels: int) -> Pixels:
    """The loaded pixels of a picture of a format as uint8 (H, W, channels), not yet turned upright."""
    if image.mode.startswith("I;16") or (image.mode == "I" and kind in _FORMATS_WITH_16_BIT_I):
        return _replicate(_scale_16_bit(np.asarray(image)), channels)
    if image.mode in ("I", "F"):
        values = "32-bit integer" if image.mode == "I" else "floating-point"
        raise UnreadableImageError(f"{values} pixels have no defined 8-bit value")
    if image.mode in _GRAY_MODES:
        return _replicate(np.array(image if image.mode == "L" else image.convert("L")), channels)
    color = image if image.mode == "RGB" else image.convert("RGB")  # which would be a copy
    return np.array(color) if channels == 3 else np.array(color.convert("L"))[:, :, None]


def _scale_16_bit(gray: npt.NDArray[np.generic]) -> Pixels:
    """(H, W) of 0..65535 to 0..255, rounded."""
    return ((gray.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _replicate(gray: Pixels, channels: int) -> Pixels:
    """(H, W) to (H, W, channels)."""
    return np.repeat(gray[:, :, None], channels, axis=2)
