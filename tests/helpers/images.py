"""Odd images made in memory, with the pixels they must decode to, and files that must be refused.

Pillow is used to write, never to say what is expected: the expected pixels are known by construction.
"""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.PngImagePlugin import PngInfo

Pixels = npt.NDArray[np.uint8]

WIDTH, HEIGHT = 40, 24
# At quality 100 without chroma subsampling a smooth picture comes back within rounding of the two transforms.
JPEG_TOLERANCE = 3
JPEG = {"format": "JPEG", "quality": 100, "subsampling": 0}

LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d7a" * 16 + b"\nsize 12345\n"

# How the upright picture has to be turned to be stored under an EXIF orientation.
STORED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@dataclass(frozen=True)
class GoodImage:
    """A file's name and bytes, and the upright RGB it decodes to within `tolerance`."""

    name: str
    data: bytes
    rgb: Pixels  # (H, W, 3)
    tolerance: int = 0


@dataclass(frozen=True)
class BadImage:
    """A file that must be refused with a reason that matches `reason`."""

    name: str
    data: bytes
    reason: str
    has_good_header: bool = False


def make_picture(width: int = WIDTH, height: int = HEIGHT) -> Pixels:
    """uint8 (height, width, 3), smooth, and different in each of its eight orientations."""
    column = np.linspace(20, 220, width)[None, :]
    row = np.linspace(30, 200, height)[:, None]
    channels = [column + 0 * row, row + 0 * column, (column + row) / 3]
    return np.stack(channels, axis=2).astype(np.uint8)


def make_gray(width: int = WIDTH, height: int = HEIGHT) -> Pixels:
    """uint8 (height, width)."""
    return np.ascontiguousarray(make_picture(width, height)[:, :, 2])


def encode(image: Image.Image, **options: object) -> bytes:
    """The bytes of a file."""
    stream = io.BytesIO()
    image.save(stream, **options)  # type: ignore[arg-type]
    return stream.getvalue()


def save_jpeg(path: Path, width: int = WIDTH, height: int = HEIGHT) -> Path:
    """A good JPEG of this size; its folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(Image.fromarray(make_picture(width, height)), **JPEG))
    return path


def exif_block(orientation: int, *, big_endian: bool = False) -> bytes:
    """An EXIF block with one entry, by hand."""
    order, mark = (">", b"MM") if big_endian else ("<", b"II")
    entry = struct.pack(f"{order}HHIHH", 0x0112, 3, 1, orientation, 0)
    return b"Exif\0\0" + mark + struct.pack(f"{order}HI", 42, 8) + struct.pack(f"{order}H", 1) + entry + b"\0\0\0\0"


def png_by_hand(width: int, height: int, depth: int, color_type: int, rows: bytes) -> bytes:
    """A PNG with any header; `rows` are the raw bytes of the picture, without filter bytes."""
    stride = len(rows) // height if rows else 0
    filtered = b"".join(b"\0" + rows[first : first + stride] for first in range(0, len(rows), stride or 1))
    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(filtered)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


def add_segment(jpeg: bytes, marker: int, body: bytes, behind: bytes = b"") -> bytes:
    """With one more segment behind JFIF's, and bytes behind it that belong to no segment."""
    where = 4 + int.from_bytes(jpeg[4:6], "big")
    return jpeg[:where] + struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body + behind + jpeg[where:]


def move_to_end(png: bytes, kind: bytes) -> bytes:
    """With a chunk moved to where it is the last before the end."""
    start = png.index(kind) - 4
    stop = start + 12 + int.from_bytes(png[start : start + 4], "big")
    return png[:start] + png[stop:-12] + png[start:stop] + png[-12:]


def replicate(gray: npt.NDArray[np.generic]) -> Pixels:
    """(H, W) to uint8 (H, W, 3)."""
    return np.stack([gray] * 3, axis=2).astype(np.uint8)


def good_images() -> list[GoodImage]:
    """The zoo."""
    return [*_oriented(), *_plain(), *_gray(), *_with_alpha_or_palette(), *_sixteen_bit(), *_with_many_frames()]


def _oriented() -> list[GoodImage]:
    rgb = make_picture()
    upright = Image.fromarray(rgb)
    images = []
    for orientation in range(1, 9):
        stored = upright.transpose(STORED[orientation]) if orientation in STORED else upright
        data = encode(stored, **JPEG, exif=exif_block(orientation))
        images.append(GoodImage(f"exif-{orientation}.jpg", data, rgb, JPEG_TOLERANCE))
    turned = upright.transpose(STORED[6])
    xmp = b'http://ns.adobe.com/xap/1.0/\0<x:xmpmeta><rdf:li tiff:Orientation="6"/></x:xmpmeta>'
    spaced = b"<x:xmpmeta><rdf:li tiff:Orientation = ' 6 '/></x:xmpmeta>"
    png = encode(turned, format="PNG", exif=exif_block(6))
    profile, packed_profile, packet = PngInfo(), PngInfo(), PngInfo()
    raw_exif = f"\nexif\n{len(exif_block(6)):8}\n{exif_block(6).hex()}\n"  # as ImageMagick keeps EXIF
    profile.add_text("Raw profile type exif", raw_exif)
    packed_profile.add_text("Raw profile type exif", raw_exif, zip=True)
    word = PngInfo()  # Pillow keeps a text of this name where it keeps what the header says
    word.add_text("interlace", "1")
    packet.add_itxt("XML:com.adobe.xmp", xmp[29:])
    with_profile, with_packed, with_packet = (
        encode(turned, format="PNG", pnginfo=info) for info in (profile, packed_profile, packet)
    )
    with_frames = encode(turned, format="PNG", pnginfo=packet, save_all=True, append_images=[turned.rotate(180)])
    with_word = encode(upright, format="PNG", pnginfo=word)
    return [
        *images,
        GoodImage("xmp-spaced.jpg", add_segment(encode(turned, **JPEG), 0xE1, xmp[:29] + spaced), rgb, JPEG_TOLERANCE),
        GoodImage("xmp-spaced.tiff", encode(turned, format="TIFF", tiffinfo={700: spaced}), rgb),
        GoodImage("xmp-6-tag-6.tiff", encode(turned, format="TIFF", tiffinfo={700: spaced, 0x0112: 6}), rgb),
        GoodImage("raw-profile.png", with_packed, rgb),
        GoodImage("xmp-6.jpg", add_segment(encode(turned, **JPEG), 0xE1, xmp), rgb, JPEG_TOLERANCE),
        GoodImage("xmp-6-exif-1.jpg", add_segment(images[0].data, 0xE1, xmp), rgb, JPEG_TOLERANCE),
        GoodImage("xmp-6.webp", encode(turned, format="WEBP", lossless=True, xmp=xmp[29:]), rgb),
        GoodImage("xmp-6.tiff", encode(turned, format="TIFF", tiffinfo={700: xmp[29:]}), rgb),
        GoodImage("exif-after-idat.png", move_to_end(png, b"eXIf"), rgb),
        GoodImage("xmp-after-idat.png", move_to_end(with_packet, b"iTXt"), rgb),
        GoodImage("xmp-after-frames.png", move_to_end(with_frames, b"iTXt"), rgb),
        GoodImage("raw-profile-after-idat.png", move_to_end(with_packed, b"zTXt"), rgb),
        GoodImage("raw-text-after-idat.png", move_to_end(with_profile, b"tEXt"), rgb),
        GoodImage("interlace-after-idat.png", move_to_end(with_word, b"tEXt"), rgb),
        GoodImage(
            "exif-motorola.jpg", encode(turned, **JPEG, exif=exif_block(6, big_endian=True)), rgb, JPEG_TOLERANCE
        ),
        GoodImage("exif-9.jpg", encode(upright, **JPEG, exif=exif_block(9)), rgb, JPEG_TOLERANCE),
        GoodImage("exif-damaged.jpg", encode(upright, **JPEG, exif=exif_block(6)[:-12]), rgb, JPEG_TOLERANCE),
        GoodImage("exif-garbage.jpg", encode(upright, **JPEG, exif=b"Exif\0\0\x12\x01\x01\x12"), rgb, JPEG_TOLERANCE),
        GoodImage("exif.png", encode(turned, format="PNG", exif=exif_block(6)), rgb),
        GoodImage("exif.webp", encode(turned, format="WEBP", lossless=True, exif=exif_block(6)), rgb),
        GoodImage("orientation.tiff", encode(turned, format="TIFF", tiffinfo={0x0112: 6}), rgb),
        GoodImage("packed.tif", encode(turned, format="TIFF", compression="tiff_lzw", tiffinfo={0x0112: 6}), rgb),
    ]


def _plain() -> list[GoodImage]:
    rgb = make_picture()
    image = Image.fromarray(rgb)
    ink = np.dstack([rgb, np.full((HEIGHT, WIDTH), 40, np.uint8)])  # cyan, magenta, yellow, black
    on_paper = ((255 - ink[:, :, :3].astype(float)) * (255 - 40) / 255).round().astype(np.uint8)
    dot, line = make_picture(1, 1), make_picture(300, 1)
    png, jpeg = encode(image, format="PNG"), encode(image, **JPEG)
    return [
        GoodImage("junk.jpg", add_segment(jpeg, 0xFE, b"hello", behind=b"junk\xff\0"), rgb, JPEG_TOLERANCE),
        GoodImage("fill-bytes.jpg", add_segment(jpeg, 0xFE, b"hello", behind=b"\xff\xff"), rgb, JPEG_TOLERANCE),
        GoodImage("data-behind.png", png + b"behind", rgb),
        GoodImage("progressive.jpg", encode(image, **JPEG, progressive=True), rgb, JPEG_TOLERANCE),
        # The conversion rounds once more, after the two of JPEG.
        GoodImage("cmyk.jpg", encode(Image.fromarray(ink, "CMYK"), **JPEG), on_paper, JPEG_TOLERANCE + 1),
        GoodImage("plain.bmp", encode(image, format="BMP"), rgb),
        GoodImage("plain.ppm", encode(image, format="PPM"), rgb),
        GoodImage("plain.webp", encode(image, format="WEBP", lossless=True), rgb),
        GoodImage("plain.tiff", encode(image, format="TIFF"), rgb),
        GoodImage("really-a-png.jpg", png, rgb),
        GoodImage("Grüße an 猫 \N{CAT FACE}.png", png, rgb),
        GoodImage("two  spaces, a comma and 'quotes'.png", png, rgb),
        GoodImage("dot.png", encode(Image.fromarray(dot), format="PNG"), dot),
        GoodImage("dot.jpg", encode(Image.fromarray(dot), **JPEG), dot, JPEG_TOLERANCE),
        GoodImage("line.png", encode(Image.fromarray(line), format="PNG"), line),
    ]


def _gray() -> list[GoodImage]:
    gray = make_gray()
    image = Image.fromarray(gray)
    bits = gray > 90
    return [
        GoodImage("gray.png", encode(image, format="PNG"), replicate(gray)),
        GoodImage("gray.jpg", encode(image, format="JPEG", quality=100), replicate(gray), JPEG_TOLERANCE),
        GoodImage("gray.pgm", encode(image, format="PPM"), replicate(gray)),
        GoodImage("one-bit.png", encode(Image.fromarray(bits), format="PNG"), replicate(bits * 255)),
        GoodImage("one-bit.tiff", encode(Image.fromarray(bits), format="TIFF"), replicate(bits * 255)),
        GoodImage("gray-key.png", encode(image, format="PNG", transparency=int(gray[0, 0])), replicate(gray)),
    ]


def _with_alpha_or_palette() -> list[GoodImage]:
    rgb, gray = make_picture(), make_gray()
    alpha = np.linspace(0, 255, WIDTH * HEIGHT).astype(np.uint8).reshape(HEIGHT, WIDTH)
    colors = np.array([[250, 10, 20], [30, 240, 50], [60, 70, 230], [200, 200, 0]], np.uint8)
    indices = (np.arange(WIDTH * HEIGHT).reshape(HEIGHT, WIDTH) // 7 % 4).astype(np.uint8)
    palette = Image.fromarray(indices, "P")
    palette.putpalette(colors.tobytes())
    rgba, gray_alpha = Image.fromarray(np.dstack([rgb, alpha])), Image.fromarray(np.dstack([gray, alpha]), "LA")
    expanded = colors[indices]
    return [
        GoodImage("rgba.png", encode(rgba, format="PNG"), rgb),
        GoodImage("rgba.tiff", encode(rgba, format="TIFF"), rgb),
        GoodImage("rgba.webp", encode(rgba, format="WEBP", lossless=True, exact=True), rgb),
        GoodImage("gray-alpha.png", encode(gray_alpha, format="PNG"), replicate(gray)),
        GoodImage("color-key.png", encode(Image.fromarray(rgb), format="PNG", transparency=(20, 30, 16)), rgb),
        GoodImage("palette.png", encode(palette, format="PNG"), expanded),
        GoodImage("palette-alpha.png", encode(palette, format="PNG", transparency=b"\x00\x40\xff\x80"), expanded),
        GoodImage("palette-key.png", encode(palette, format="PNG", transparency=1), expanded),
        GoodImage("palette.gif", encode(palette, format="GIF"), expanded),
        GoodImage("palette.bmp", encode(palette, format="BMP"), expanded),
    ]


def _sixteen_bit() -> list[GoodImage]:
    values = np.linspace(0, 65535, WIDTH * HEIGHT).astype(np.uint16).reshape(HEIGHT, WIDTH)
    scaled = replicate(np.rint(values / 257.0))
    image = Image.fromarray(values)
    big_endian = values.astype(">u2").tobytes()
    color = np.dstack([values, values.T.reshape(HEIGHT, WIDTH), values[::-1]])
    return [
        GoodImage("gray-16.png", encode(image, format="PNG"), scaled),
        GoodImage("gray-16.tiff", encode(image, format="TIFF"), scaled),
        GoodImage(
            "gray-16-big.tiff", encode(Image.frombytes("I;16B", (WIDTH, HEIGHT), big_endian), format="TIFF"), scaled
        ),
        GoodImage("gray-16.pgm", f"P5 {WIDTH} {HEIGHT} 65535\n".encode() + big_endian, scaled),
        # Pillow reads color of 16 bits as its high byte, which differs from value / 257 by at most 1.
        GoodImage(
            "color-16.png",
            png_by_hand(WIDTH, HEIGHT, 16, 2, color.astype(">u2").tobytes()),
            (color >> 8).astype(np.uint8),
        ),
    ]


def _with_many_frames() -> list[GoodImage]:
    first = np.full((HEIGHT, WIDTH, 3), (200, 40, 60), np.uint8)
    frames = [Image.fromarray(first), Image.fromarray(255 - first), Image.fromarray(make_picture())]
    many = {"save_all": True, "append_images": frames[1:]}
    return [
        GoodImage("animated.gif", encode(frames[0], format="GIF", **many), first),
        GoodImage("animated.webp", encode(frames[0], format="WEBP", lossless=True, **many), first),
        GoodImage("animated.png", encode(frames[0], format="PNG", **many), first),
        GoodImage("pages.tiff", encode(frames[0], format="TIFF", **many), first),
    ]


def bad_images() -> list[BadImage]:
    """Files that look like images by their names."""
    image = Image.fromarray(make_picture())
    jpeg = encode(image, **JPEG)
    png = encode(image, format="PNG", compress_level=0)
    scanline = png.index(b"IDAT") + 40
    text = PngInfo()
    text.add_text("a", "b", zip=True)
    with_text = encode(image, format="PNG", pnginfo=text)
    floats = Image.fromarray(np.zeros((4, 4), np.float32))
    integers = Image.fromarray(np.full((4, 4), 70_000, np.int32))
    return [
        *_truncated(image, jpeg),
        BadImage("empty.jpg", b"", "^empty file$"),
        BadImage("error-404.jpg", b"<!DOCTYPE html><html><body>404</body></html>", "^an HTML page, not an image$"),
        BadImage("text.png", b"hello\nworld\n", "^not an image"),
        BadImage("lfs-pointer.jpg", LFS_POINTER, "^not an image"),
        BadImage("drawing.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "^not an image"),
        BadImage("damaged-header.jpg", jpeg[:3] + b"\0" * 200, "^damaged JPEG header"),
        BadImage("damaged-data.png", png[:scanline] + b"\xff" * 60 + png[scanline + 60 :], "damaged", True),
        BadImage(
            "damaged-text-behind.png", move_to_end(with_text.replace(b"a\0\0", b"a\0\1"), b"zTXt"), "damaged", True
        ),
        BadImage("float.tiff", encode(floats, format="TIFF"), "floating-point", True),
        BadImage("integer.tiff", encode(integers, format="TIFF"), "32-bit integer", True),
        BadImage("flat.png", png_by_hand(0, 10, 8, 2, b""), "damaged|no pixels"),
        # Above our limit; above the size at which Pillow warns; above the size at which it raises.
        BadImage("bomb-small.png", png_by_hand(8000, 7000, 8, 2, b""), r"^too many pixels \(8000x7000, the limit is 5"),
        BadImage("bomb-medium.png", png_by_hand(10_000, 10_000, 8, 2, b""), "^too many pixels"),
        BadImage("bomb-large.png", png_by_hand(60_000, 60_000, 8, 2, b""), "^too many pixels"),
    ]


def _truncated(image: Image.Image, jpeg: bytes) -> list[BadImage]:
    """Each format cut off in the middle of its pixels."""
    whole = {
        "baseline.jpg": jpeg,
        "progressive.jpg": encode(image, **JPEG, progressive=True),
        "plain.png": encode(image, format="PNG", compress_level=0),
        "plain.bmp": encode(image, format="BMP"),
        "plain.ppm": encode(image, format="PPM"),
        "plain.gif": encode(image, format="GIF"),
        "plain.webp": encode(image, format="WEBP", lossless=True),
    }
    cut = [
        BadImage(f"cut-{name}", data[: len(data) * 6 // 10], ".", name != "plain.webp") for name, data in whole.items()
    ]
    with_end = BadImage("cut-with-an-end.jpg", jpeg[: len(jpeg) * 6 // 10] + b"\xff\xd9", "truncated", True)
    return [*cut, with_end, BadImage("cut-in-header.jpg", jpeg[:100], ".")]
