"""images.csv.gz is there, whole and of these images, and is not made again where it is."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from alexnet_dist.base.durable import hash_file
from alexnet_dist.runs.image_list import IMAGES, Image, Images, Key, keep_image_list, read_image_list

FOUND: Images = {("train", "a/1.jpg"): (10, "a"), ("val", "b/odd\nname.jpg"): (20, "b")}


def _refuse() -> Iterator[tuple[Key, Image]]:
    raise AssertionError("nothing is to be listed")
    yield  # type: ignore[unreachable]


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def _edit(path: Path) -> None:
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()).replace(b"10", b"11")))


def test_a_list_that_is_whole_stays(tmp_path: Path) -> None:
    digest = keep_image_list(tmp_path, None, FOUND.items())
    assert digest == hash_file(tmp_path / IMAGES)
    before = (tmp_path / IMAGES).stat().st_mtime_ns
    assert keep_image_list(tmp_path, digest, _refuse()) == digest
    assert (tmp_path / IMAGES).stat().st_mtime_ns == before
    assert read_image_list(tmp_path) == FOUND


@pytest.mark.parametrize("damage", [Path.unlink, _cut, _edit, lambda path: path.write_bytes(b"")])
def test_a_damaged_list_is_written_again(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    digest = keep_image_list(tmp_path, None, FOUND.items())
    damage(tmp_path / IMAGES)
    assert read_image_list(tmp_path) != FOUND
    assert keep_image_list(tmp_path, digest, FOUND.items()) == digest
    assert read_image_list(tmp_path) == FOUND


def test_images_without_files_have_no_list(tmp_path: Path) -> None:
    assert keep_image_list(tmp_path, None, ()) is None
    assert not (tmp_path / IMAGES).exists()
