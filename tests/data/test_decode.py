from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers.images import BadImage, GoodImage, bad_images, encode, good_images, make_picture, png_by_hand
from PIL import Image, ImageFile

from alexnet_dist.data import decode
from alexnet_dist.data.decode import UnreadableImageError, convert_to_luma, decode_image, read_header

GOOD = good_images()
BAD = bad_images()
TEST_DATA = os.environ.get("ALEXNET_DIST_TEST_DATA")


@pytest.fixture(autouse=True)
def refuse_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def by_name(image: GoodImage | BadImage) -> str:
    return image.name


@pytest.mark.parametrize("image", GOOD, ids=by_name)
def test_good_image_decodes_to_the_pixels_it_was_made_of(image: GoodImage, tmp_path: Path) -> None:
    path = tmp_path / image.name
    path.write_bytes(image.data)

    pixels = decode_image(path)

    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable
    assert pixels.shape == image.rgb.shape
    difference = np.abs(pixels.astype(int) - image.rgb.astype(int))
    assert difference.max() <= image.tolerance
    assert read_header(path)[:2] == (pixels.shape[1], pixels.shape[0])
    assert np.array_equal(decode_image(image.data), pixels)
    assert read_header(memoryview(image.data)) == read_header(path)


@pytest.mark.parametrize("image", GOOD, ids=by_name)
def test_one_channel_is_the_luma_of_three(image: GoodImage) -> None:
    rgb = decode_image(image.data, channels=3)
    gray = decode_image(image.data, channels=1)

    assert gray.shape == (*rgb.shape[:2], 1)
    assert gray.flags.c_contiguous
    exact = rgb @ np.array([0.299, 0.587, 0.114])  # ITU-R 601
    assert np.abs(gray[:, :, 0] - exact).max() <= 0.51  # rounding, and Pillow's weights of 16 bits
    assert np.array_equal(gray, convert_to_luma(rgb))


@pytest.mark.parametrize("image", GOOD, ids=by_name)
def test_a_window_is_a_part_of_the_whole(image: GoodImage, monkeypatch: pytest.MonkeyPatch) -> None:
    for channels in (1, 3):
        whole = decode_image(image.data, channels)
        height, width = whole.shape[:2]
        x, y = width // 3, height // 4
        for strip_pixels in (2**20, 100):  # at once, and in strips
            with monkeypatch.context() as patch:
                patch.setattr(decode, "STRIP_PIXELS", strip_pixels)
                window = (x, y, width - 2 * x, height - y)
                part = decode_image(image.data, channels, size=(width, height), window=window)
            assert np.array_equal(part, whole[y:, x : width - x]), (channels, strip_pixels)
            assert part.flags.c_contiguous
            assert part.flags.writeable


@pytest.mark.parametrize("image", [image for image in GOOD if image.rgb.shape[0] != image.rgb.shape[1]], ids=by_name)
def test_another_size_than_at_the_scan_is_refused(image: GoodImage) -> None:
    height, width = image.rgb.shape[:2]
    decode_image(image.data, size=np.array([width, height]))
    with pytest.raises(UnreadableImageError, match=f"changed since it was scanned: {width}x{height}, was {height}x"):
        decode_image(image.data, size=(height, width), window=(0, 0, 1, 1))


def test_the_eight_orientations_are_told_apart() -> None:
    # A decoder that ignored EXIF, or mixed up two orientations, would be seen: stored pictures all differ.
    stored = [
        np.array(Image.open(io.BytesIO(image.data))) for image in GOOD if re.match(r"exif-[1-8]\.jpg", image.name)
    ]
    assert len(stored) == 8
    for first in range(8):
        for second in range(first):
            same_shape = stored[first].shape == stored[second].shape
            assert not same_shape or np.abs(stored[first].astype(int) - stored[second]).max() > 50


@pytest.mark.parametrize("image", BAD, ids=by_name)
def test_bad_image_is_refused_with_a_reason(image: BadImage, tmp_path: Path) -> None:
    path = tmp_path / image.name
    path.write_bytes(image.data)

    with pytest.raises(UnreadableImageError, match=image.reason) as refused:
        decode_image(path)

    reason = str(refused.value)
    assert "\n" not in reason
    assert len(reason) <= 160
    assert image.name not in reason
    if image.has_good_header:
        assert min(read_header(path)[:2]) > 0
    else:
        with pytest.raises(UnreadableImageError, match=image.reason):
            read_header(path)


def test_missing_file_and_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImageError, match=r"^No such file or directory$"):
        read_header(tmp_path / "none.jpg")
    with pytest.raises(UnreadableImageError, match=r"^Is a directory$"):
        decode_image(tmp_path)


def test_no_truncation_gives_a_picture() -> None:
    data = encode(Image.fromarray(make_picture()), format="JPEG", quality=90)
    for cut in range(0, len(data) - 2, 37):  # the end marker alone may be missing
        with pytest.raises(UnreadableImageError):
            decode_image(data[:cut])


def test_random_damage_ends_in_a_picture_or_a_reason() -> None:
    for seed in range(40):
        rng = np.random.default_rng(seed)
        image = GOOD[int(rng.integers(len(GOOD)))]
        data = np.frombuffer(image.data, np.uint8).copy()
        where = rng.integers(0, len(data), 8)
        data[where] = rng.integers(0, 256, 8)
        with contextlib.suppress(UnreadableImageError):
            assert decode_image(data.tobytes(), max_pixels=1_000_000).shape[2] == 3, seed


def test_limit_is_checked_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(Image.fromarray(make_picture(20, 10)), format="PNG")
    assert read_header(data, max_pixels=200)[:2] == (20, 10)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(UnreadableImageError, match=r"too many pixels \(20x10, the limit is 199\)"):
        decode_image(data, max_pixels=199)


def test_a_higher_limit_is_not_held_back_by_pillow() -> None:
    assert read_header(png_by_hand(60_000, 60_000, 8, 2, b""), max_pixels=10**10)[:2] == (60_000, 60_000)


def test_lack_of_memory_is_not_a_fault_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: ImageFile.ImageFile) -> None:
        raise MemoryError

    data = encode(Image.fromarray(make_picture()), format="BMP")
    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    with pytest.raises(MemoryError):
        decode_image(data)


def test_wrong_channels_are_a_bug() -> None:
    with pytest.raises(ValueError, match="channels must be 1 or 3"):
        decode_image(GOOD[0].data, channels=4)


def test_threads_agree_and_leave_no_warning() -> None:
    wrong: list[str] = []

    def decode_all(first: int) -> None:
        for image in GOOD[first:] + GOOD[:first]:
            if np.abs(decode_image(image.data).astype(int) - image.rgb).max() > image.tolerance:
                wrong.append(image.name)

    threads = [threading.Thread(target=decode_all, args=(7 * number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.heavy
def test_import_needs_no_torch() -> None:
    code = "import sys, alexnet_dist.data.index; print(*{'torch', 'sklearn', 'scipy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.skipif(TEST_DATA is None, reason="ALEXNET_DIST_TEST_DATA is not set")
def test_real_photographs_decode_as_pillow_does() -> None:
    paths = sorted(Path(str(TEST_DATA), "imagenet_sample").glob("*/*"))[::10]
    assert len(paths) == 20
    for path in paths:
        with Image.open(path) as image:
            expected = np.asarray(image.convert("RGB"))
        pixels = decode_image(path)
        assert np.array_equal(pixels, expected)
        assert read_header(path)[:2] == (pixels.shape[1], pixels.shape[0])
