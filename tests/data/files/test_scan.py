from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.class_folders import scan, spoil_files
from helpers.images import save_jpeg
from helpers.refusals import refused
from helpers.terminal import Terminal

from alexnet_dist.data.decode import read_header
from alexnet_dist.data.files import scan as header_scan
from alexnet_dist.data.files.scan import FileSet, FoundFile, scan_headers


@pytest.fixture
def header_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths whose headers were really read."""
    reads: list[str] = []

    def read(path: str, max_pixels: int) -> tuple[int, int]:
        reads.append(path)
        return read_header(path, max_pixels)

    monkeypatch.setattr(header_scan, "read_header", read)
    return reads


def test_too_many_pixels_are_refused_also_from_the_cache(root: Path) -> None:
    assert len(scan(root, max_pixels=64 * 16)) == 10
    assert "too many pixels (64x16" in refused(lambda: scan(root, max_pixels=64 * 16 - 1))


def test_second_scan_reads_no_header(root: Path, header_reads: list[str]) -> None:
    first = scan(root)
    assert len(header_reads) == 10
    header_reads.clear()
    second = scan(root)
    assert header_reads == []
    assert np.array_equal(first.sizes, second.sizes)


def test_changed_and_new_files_are_read_again(root: Path, header_reads: list[str]) -> None:
    scan(root)
    header_reads.clear()
    save_jpeg(root / "cat" / "0.jpg", width=90, height=70)
    save_jpeg(root / "cat" / "new.jpg")
    os.utime(root / "cat" / "1.jpg", ns=(1, 1))  # same bytes, other time
    (root / "dog" / "0.jpg").unlink()
    index = scan(root)
    assert sorted(header_reads) == [str(root / "cat" / name) for name in ("0.jpg", "1.jpg", "new.jpg")]
    assert index.sizes[0].tolist() == [90, 70]
    header_reads.clear()
    scan(root)
    assert header_reads == []


def cache_file(root: Path) -> Path:
    (path,) = (root.parent / "cache" / "scans").iterdir()  # nothing else is left behind
    return path


def _cut(data: bytes) -> bytes:
    return data[:-3]


def _flip_one_digit(data: bytes) -> bytes:
    return data.replace(b",24,1\r\n", b",25,1\r\n", 1)


def _change_version(data: bytes) -> bytes:
    return re.sub(rb"scan \d+", b"scan 1", data, count=1)


def _clear(data: bytes) -> bytes:
    return b""


@pytest.mark.parametrize("damage", [_cut, _flip_one_digit, _change_version, _clear])
def test_damaged_cache_is_rebuilt(root: Path, header_reads: list[str], damage: Callable[[bytes], bytes]) -> None:
    expected = scan(root)
    good = cache_file(root).read_bytes()
    assert damage(good) != good
    cache_file(root).write_bytes(damage(good))
    header_reads.clear()
    assert np.array_equal(scan(root).sizes, expected.sizes)
    assert len(header_reads) == 10
    assert cache_file(root).read_bytes() == good


def test_unwritable_cache_only_costs_time(root: Path, tmp_path: Path) -> None:
    (tmp_path / "occupied").write_text("a file where the folder should be")
    assert len(scan(root, cache_dir=tmp_path / "occupied")) == 10


def test_failed_write_leaves_the_old_cache(
    root: Path, header_reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    scan(root)
    good = cache_file(root).read_bytes()
    save_jpeg(root / "cat" / "new.jpg")

    def fill_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(header_scan.os, "fsync", fill_disk)
        assert len(scan(root)) == 11
    assert cache_file(root).read_bytes() == good


def test_a_scan_shows_how_far_it_is(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(path, path.stat()) for path in sorted(root.rglob("*.[jJ]*"))]
    files = [FoundFile(path.relative_to(root).as_posix(), stat.st_size, stat.st_mtime_ns) for path, stat in found]

    def see(progress: bool) -> str:
        monkeypatch.setattr("sys.stderr", screen := Terminal())
        scan_headers(FileSet(root, files), cache_dir=root.parent / str(progress), max_pixels=10**6, progress=progress)
        return screen.getvalue()

    assert see(progress=False) == ""
    assert "0/10" in see(progress=True)


def test_bad_files_are_never_remembered(root: Path, header_reads: list[str]) -> None:
    spoil_files(root)
    scan(root, on_bad_file="skip")
    header_reads.clear()
    scan(root, on_bad_file="skip")
    assert len(header_reads) == 4


@pytest.mark.parametrize(
    "name", ["a,b 'c'.jpg", 'say "x".jpg', "two\r\nlines.jpg", "猫 ä.jpg", os.fsdecode(b"\xff\xfe.jpg")]
)
def test_odd_names_survive_the_cache(root: Path, header_reads: list[str], name: str) -> None:
    save_jpeg(root / "cat" / name, width=33, height=11)
    scan(root)
    header_reads.clear()
    index = scan(root)
    assert header_reads == []
    position = index.paths.index(f"cat/{name}")
    assert index.sizes[position].tolist() == [33, 11]
    assert index.load_pixels(position).shape == (11, 33, 3)
    assert len(index.fingerprint()) == 64


def test_roots_do_not_share_a_cache(root: Path, tmp_path: Path) -> None:
    scan(root)
    shutil.copytree(root, tmp_path / "val")
    save_jpeg(tmp_path / "val" / "cat" / "0.jpg", width=90, height=70)
    scan(tmp_path / "val")
    assert len(list((tmp_path / "cache" / "scans").iterdir())) == 2
