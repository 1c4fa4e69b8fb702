"""What an image file means: one contract that every engine keeps.

- EXIF orientation is applied (a TIFF's own orientation tag too).
- Gray is replicated for three channels; for one channel colours become ITU-R 601 luma, Pillow's mode "L".
- 16-bit gray is scaled to 8 bits by value / 257, rounded. (Pillow itself reads 16-bit colour as the high byte.)
- CMYK and YCCK are converted as Pillow does, palettes are expanded, 1-bit becomes 0 and 255.
- Alpha is dropped: the colour stays as it is stored.
- Animations and documents of several pages give their first frame.
- A file that ends too early is an error, never a picture that is half gray.

The content decides the format, not the file's name.
"""

from __future__ import annotations

import io
import os
import re
import struct
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import BinaryIO, NamedTuple, TypeAlias

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
)

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
DEFAULT_MAX_PIXELS = 50_000_000

ImageSource: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview
Pixels: TypeAlias = npt.NDArray[np.uint8]

_WIDTH_TAG, _HEIGHT_TAG, _ORIENTATION_TAG = 0x0100, 0x0101, 0x0112
_GRAY_MODES = frozenset({"1", "L", "LA", "La"})
_FORMATS_WITH_16_BIT_I = frozenset({"PNG", "PPM"})  # their 16-bit gray opens as "I" in some versions of Pillow
_PILLOW_MODULES = re.compile(r"PIL\.")
_REASON_LENGTH = 160
_PNG_DEPTH_OFFSET = 24  # of the bits per sample, which Pillow's mode does not tell: it opens 16-bit colour as RGB
_PREFIX_LENGTH = 16  # what Pillow's plugins look at to recognise their format

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


class UnreadableImageError(Exception):
    """An image that cannot be used; the text is a short reason on one line, without the path."""

    def __init__(self, reason: str) -> None:
        line = " ".join(reason.split())
        super().__init__(line if len(line) <= _REASON_LENGTH else line[: _REASON_LENGTH - 3] + "...")


class ImageHeader(NamedTuple):
    """What a header says of an image."""

    width: int  # upright, in pixels
    height: int
    is_plain: bool  # of a kind that every decoder reads alike: an upright 8-bit gray or RGB JPEG or PNG without alpha


def read_header(source: ImageSource, max_pixels: int = DEFAULT_MAX_PIXELS) -> ImageHeader:
    """Upright size and kind of an image, from the header alone.

    Args:
        source: a path, or the file's bytes.
        max_pixels: largest width x height that is accepted.

    Raises:
        UnreadableImageError: not an image, damaged header, no permission, too many pixels.
    """
    with _reading(source) as stream:
        image = _open_image(stream, max_pixels)
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            # Newer versions of Pillow swap `size` themselves, older ones do not: take the stored sides.
            width, height = int(image.tag_v2[_WIDTH_TAG]), int(image.tag_v2[_HEIGHT_TAG])
            orientation = image.getexif().get(_ORIENTATION_TAG, 1)
        else:
            width, height = image.size
            orientation = _read_orientation(image)
        if orientation in _TRANSPOSED:
            width, height = height, width
        return ImageHeader(width, height, orientation not in _UPRIGHT and _is_plain(image, stream))


def _is_plain(image: ImageFile.ImageFile, stream: BinaryIO) -> bool:
    if image.mode not in ("L", "RGB") or "transparency" in image.info:
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
        source: a path, or the file's bytes.
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
        image: Image.Image = _open_image(stream, max_pixels)
        orientation = _read_orientation(image)
        image.load()
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            # Pillow turns a TIFF upright while loading and then removes the tag.
            orientation = image.getexif().get(_ORIENTATION_TAG, 1)
        if size is not None:
            _compare_size(image.size[::-1] if orientation in _TRANSPOSED else image.size, size)
        if window is not None and orientation not in _UPRIGHT and image.mode in ("L", "RGB"):
            # Pillow holds a pixel in four bytes: the less of them are turned into three, the better.
            x, y, width, height = map(int, window)
            image, window = image.crop((x, y, x + width, y + height)), None
        stored = _convert_pixels(image, channels)
        upright = _UPRIGHT[orientation](stored) if orientation in _UPRIGHT else stored
        return np.ascontiguousarray(upright if window is None else cut_window(upright, window))


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
    try:
        orientation = _read_orientation(image)
        picture = image.copy()  # decodes
        picture.format = image.format
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            orientation = image.getexif().get(_ORIENTATION_TAG, 1)  # see `decode_image`
        stored = _convert_pixels(picture, channels)
    except (UnreadableImageError, MemoryError):
        raise
    except Exception as error:
        raise UnreadableImageError(_describe_failure(error)) from error
    return np.ascontiguousarray(_UPRIGHT[orientation](stored) if orientation in _UPRIGHT else stored)


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


def _open_bytes(source: ImageSource) -> BinaryIO:
    if isinstance(source, (bytes, bytearray, memoryview)):
        return io.BytesIO(source)
    return open(source, "rb")


def _describe_failure(error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return "too many pixels"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"damaged image: {str(error) or type(error).__name__}"


def _open_image(stream: BinaryIO, max_pixels: int) -> ImageFile.ImageFile:
    """Read the header and hold the size against the limit.

    The plugins are called directly because `Image.open` has a limit of its own that warns, and forgets the reason
    when a header is damaged.
    """
    prefix = stream.read(_PREFIX_LENGTH)
    for name in FORMATS:
        factory, accept = Image.OPEN[name]
        if accept is not None and accept(prefix) is True:
            stream.seek(0)
            try:
                image = factory(stream, "")
            except (SyntaxError, IndexError, TypeError, KeyError, struct.error) as error:
                raise UnreadableImageError(f"damaged {name} header: {error}") from error
            _check_size(image.size, max_pixels)
            return image
    raise UnreadableImageError(_describe_stranger(prefix))


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise UnreadableImageError(f"no pixels ({width}x{height})")
    if width * height > max_pixels:
        raise UnreadableImageError(f"too many pixels ({width}x{height}, the limit is {max_pixels})")


def _describe_stranger(prefix: bytes) -> str:
    if not prefix:
        return "empty file"
    if prefix.lstrip().lower().startswith((b"<!doctype", b"<html", b"<head")):
        return "an HTML page, not an image"
    return f"not an image ({', '.join(FORMATS)})"


def _compare_size(found: tuple[int, int], scanned: Sequence[int]) -> None:
    if found != tuple(scanned):
        now, then = ("x".join(map(str, size)) for size in (found, scanned))
        raise UnreadableImageError(f"changed since it was scanned: {now}, was {then}")


def _read_orientation(image: Image.Image) -> int:
    """EXIF orientation from what the header held, 1 where there is none or it is damaged.

    Not `image.getexif()`: for a PNG that decodes the whole picture first.
    """
    block = image.info.get("exif", b"")
    if not isinstance(block, bytes) or (b"\x12\x01" not in block and b"\x01\x12" not in block):
        return 1  # the tag's number is not there in either byte order
    try:
        exif = Image.Exif()
        exif.load(block)
        orientation = exif.get(_ORIENTATION_TAG, 1)
    except (SyntaxError, ValueError, TypeError, KeyError, IndexError, OSError, OverflowError, struct.error):
        return 1
    return orientation if isinstance(orientation, int) else 1


def _convert_pixels(image: Image.Image, channels: int) -> Pixels:
    """The loaded pixels as uint8 (H, W, channels), not yet turned upright."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in _FORMATS_WITH_16_BIT_I):
        return _replicate(_scale_16_bit(np.asarray(image)), channels)
    if image.mode in ("I", "F"):
        kind = "32-bit integer" if image.mode == "I" else "floating-point"
        raise UnreadableImageError(f"{kind} pixels have no defined 8-bit value")
    image.info.pop("transparency", None)  # alpha is dropped; Pillow would try to carry it over
    if image.mode in _GRAY_MODES:
        return _replicate(np.array(image if image.mode == "L" else image.convert("L")), channels)
    colour = image if image.mode == "RGB" else image.convert("RGB")  # which would be a copy
    return np.array(colour) if channels == 3 else np.array(colour.convert("L"))[:, :, None]


def _scale_16_bit(gray: npt.NDArray[np.generic]) -> Pixels:
    """(H, W) of 0..65535 to 0..255, rounded."""
    return ((gray.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _replicate(gray: Pixels, channels: int) -> Pixels:
    """(H, W) to (H, W, channels)."""
    return np.repeat(gray[:, :, None], channels, axis=2)
