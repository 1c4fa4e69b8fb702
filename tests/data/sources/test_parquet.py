from __future__ import annotations

import os
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.class_folders import scan, write_class_folders
from helpers.images import save_jpeg
from helpers.refusals import refused

from alexnet_dist.base.errors import DataError, MachineError
from alexnet_dist.data.files.index_files import FileRules
from alexnet_dist.data.index import BadFilesError, SampleIndex
from alexnet_dist.data.sources import parquet_packs
from alexnet_dist.data.sources.parquet import SOURCE, find_tables
from alexnet_dist.data.sources.source import SourceOptions

pa = pytest.importorskip("pyarrow")

from helpers.parquet_files import write_folder_as_parquet, write_parquet  # noqa: E402 (it needs pyarrow)

CLASSES = ("zebra", "ant")  # in the order of the file, which is not the alphabet's


@pytest.fixture
def pictures(tmp_path: Path) -> list[tuple[str | None, bytes | None]]:
    paths = [tmp_path / "made" / f"{number}.jpg" for number in range(6)]
    for number, path in enumerate(paths):
        save_jpeg(path, width=40 + number)
    return [(path.name, path.read_bytes()) for path in paths]


def options(tmp_path: Path, **more: Any) -> SourceOptions:
    parts = more.pop("parts", {"train": "train"})
    rules = FileRules(tmp_path / "cache", on_bad_file=more.pop("on_bad_file", "fail"))
    return SourceOptions("parquet", tmp_path / "root", parts, rules, **more)


def index(tmp_path: Path, key: str = "train", classes: tuple[str, ...] | None = None, **more: Any) -> SampleIndex:
    return SOURCE.list_split(options(tmp_path, **more), key, classes)


def read_bytes(found: SampleIndex) -> list[Any]:
    return [found.find_encoded(number) for number in range(len(found))]


def test_pictures_labels_and_classes_are_the_files(tmp_path: Path, pictures: list[Any]) -> None:
    write_parquet(tmp_path / "root/data/train-00000-of-00001.parquet", pictures, [0, 1, 0, 1, 0, 1], CLASSES, 4)
    found = index(tmp_path)
    assert found.classes == CLASSES
    assert found.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert read_bytes(found) == [pictures[number][1] for number in (0, 2, 4, 1, 3, 5)]
    assert found.sizes[:, 0].tolist() == [40, 42, 44, 41, 43, 45]
    assert found.paths[0] == "data/train-00000-of-00001.parquet!0/0.jpg"
    assert SOURCE.count_classes(options(tmp_path))[0] == 2
    assert len(SOURCE.list_files(options(tmp_path), "train").files) == 6  # type: ignore[misc]


def test_the_same_pictures_as_a_folder_are_the_same_set(tmp_path: Path) -> None:
    write_class_folders(tmp_path / "folder")
    folder = scan(tmp_path / "folder")
    write_folder_as_parquet(tmp_path / "folder", tmp_path / "root", folder.classes)
    found = index(tmp_path)
    assert found.classes == folder.classes
    assert found.labels.tolist() == folder.labels.tolist()
    assert (found.sizes == folder.sizes).all()
    assert (found.is_plain == folder.is_plain).all()
    for number in range(len(folder)):
        assert (found.load_pixels(number) == folder.load_pixels(number)).all()


def test_what_was_unpacked_is_used_again_and_made_anew_where_it_is_not_the_same(
    tmp_path: Path, pictures: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_parquet(tmp_path / "root/train.parquet", pictures, [0, 1, 0, 1, 0, 1], CLASSES)
    before = read_bytes(index(tmp_path))
    (pack,) = (tmp_path / "cache").rglob("*.pack")
    with monkeypatch.context() as patch:
        patch.setattr(parquet_packs, "_read_batches", None)  # nobody reads the file again
        assert read_bytes(index(tmp_path)) == before
    labels = next(pack.parent.glob("*-labels.npy"))
    for spoil in (pack.unlink, lambda: pack.write_bytes(b"half"), labels.unlink):
        spoil()
        assert read_bytes(index(tmp_path)) == before
    write_parquet(file, pictures[::-1], [0, 1, 0, 1, 0, 1], CLASSES)
    os.utime(file, ns=(1, 1))
    assert sorted(map(bytes, read_bytes(index(tmp_path)))) == sorted(map(bytes, before))
    assert len(list((tmp_path / "cache").rglob("*.pack"))) == 1  # that of the file as it was is gone


def test_labels_of_every_kind(tmp_path: Path, pictures: list[Any]) -> None:
    train, val = tmp_path / "root/train.parquet", tmp_path / "root/validation.parquet"
    write_parquet(train, pictures, list("bababa"))
    assert index(tmp_path).classes == ("a", "b")
    write_parquet(train, pictures, [0, 2, 0, 2, 0, 2])
    assert index(tmp_path).classes == ("0", "1", "2")
    write_parquet(train, pictures, pa.array(list("bababa")).dictionary_encode())
    assert index(tmp_path).labels.tolist() == [0, 0, 0, 1, 1, 1]
    write_parquet(train, pictures, [0, 1, 0, 1, 0, 1], CLASSES)
    write_parquet(val, pictures, [0, 0, 0, 1, 1, 1], CLASSES[::-1])  # the names in another order
    parts = {"train": "train", "val": "validation"}
    assert index(tmp_path, "val", CLASSES, parts=parts).labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert read_bytes(index(tmp_path, "val", CLASSES, parts=parts))[0] == pictures[3][1]


def test_columns_of_other_names_and_kinds(tmp_path: Path, pictures: list[Any]) -> None:
    data = [data for _, data in pictures]
    table = pa.table({"scan": data, "thumb": data[::-1], "fine": [0, 1] * 3, "coarse": [0] * 6})
    (tmp_path / "root").mkdir()
    import pyarrow.parquet as pq

    pq.write_table(table, tmp_path / "root/train.parquet")
    assert "data.columns.path" in refused(lambda: index(tmp_path))
    assert "'scan', 'thumb'" in refused(lambda: index(tmp_path, columns={"path": "picture"}))
    assert "holds no pictures" in refused(lambda: index(tmp_path, columns={"path": "fine"}))
    assert "data.columns.label" in refused(lambda: index(tmp_path, columns={"path": "scan"}))
    found = index(tmp_path, columns={"path": "scan", "label": "fine"})
    assert read_bytes(found) == [data[number] for number in (0, 2, 4, 1, 3, 5)]
    assert found.paths[0] == "train.parquet!0"


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("train", ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"]),
        ("validation", ["data/validation-00000-of-00001.parquet"]),
        ("test", ["default/test/0000.parquet"]),
        ("extra", ["extra.parquet"]),
        ("data/train-*.parquet", ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"]),
        ("data/train-0000{0..0}-of-00002.parquet", ["data/train-00000-of-00002.parquet"]),
        ("default", ["default/test/0000.parquet"]),
        ("extra.parquet", ["extra.parquet"]),
    ],
)
def test_files_of_a_split(tmp_path: Path, name: str, files: list[str]) -> None:
    there = [
        *("data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "extra.parquet"),
        *("data/validation-00000-of-00001.parquet", "default/test/0000.parquet", "data/train.txt"),
    ]
    for file in there:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    assert [path.relative_to(tmp_path).as_posix() for path in find_tables(tmp_path, name, "train")] == files
    line = refused(lambda: find_tables(tmp_path, "val", "val"))
    assert "'train', 'validation'" in line
    assert "set --data.val validation" in line


@pytest.mark.parametrize("spoiled", ["cut", "text", "empty"])
def test_a_file_that_is_no_parquet(tmp_path: Path, pictures: list[Any], spoiled: str) -> None:
    file = write_parquet(tmp_path / "root/train.parquet", pictures, [0, 1] * 3, CLASSES)
    file.write_bytes({"cut": file.read_bytes()[:-100], "text": b"hello" * 100, "empty": b""}[spoiled])
    assert str(file) in refused(lambda: index(tmp_path))


def test_a_damaged_page_is_said_and_leaves_no_pack(tmp_path: Path, pictures: list[Any]) -> None:
    file = write_parquet(tmp_path / "root/train.parquet", pictures, [0, 1] * 3, CLASSES)
    data = bytearray(file.read_bytes())
    data[4:400] = bytes(396)
    file.write_bytes(bytes(data))
    assert str(file) in refused(lambda: index(tmp_path))
    assert not list((tmp_path / "cache").rglob("*.pack*"))


def test_rows_that_give_no_picture(tmp_path: Path, pictures: list[Any]) -> None:
    spoiled = [("gone.jpg", None), (None, None), ("text.jpg", b"hello"), *pictures[3:]]
    write_parquet(tmp_path / "root/train.parquet", spoiled, [0, 1, 0, None, 0, 1], CLASSES)
    with pytest.raises(BadFilesError) as error:
        index(tmp_path)
    reasons = {bad.path: bad.reason for bad in error.value.bad_files}
    assert reasons["train.parquet!0/gone.jpg"] == "its row has no bytes, only the path 'gone.jpg'"
    assert reasons["train.parquet!1"] == "its row has no bytes"
    assert reasons["train.parquet!3/3.jpg"] == "its row has no label"
    assert len(reasons) == 4
    found = index(tmp_path, on_bad_file="skip")
    assert read_bytes(found) == [pictures[4][1], pictures[5][1]]


@pytest.mark.parametrize(
    ("labels", "classes", "words"),
    [
        ([-1] * 6, CLASSES, "a set without labels"),
        ([0, 2] * 3, CLASSES, "there are 2 names"),
        ([0, -7] * 3, None, "number no classes"),
        ([], CLASSES, "it has no rows"),
    ],
)
def test_labels_that_are_none(
    tmp_path: Path, pictures: list[Any], labels: list[int], classes: tuple[str, ...] | None, words: str
) -> None:
    values = pa.array(labels, type=pa.int64())
    write_parquet(tmp_path / "root/train.parquet", pictures[: len(labels)], values, classes)
    assert words in refused(lambda: index(tmp_path))


def test_files_of_one_set_that_differ(tmp_path: Path, pictures: list[Any]) -> None:
    write_parquet(tmp_path / "root/train-0.parquet", pictures, [0, 1] * 3, CLASSES)
    write_parquet(tmp_path / "root/train-1.parquet", pictures, [0, 1] * 3, CLASSES[::-1])
    assert "differ" in refused(lambda: index(tmp_path))
    write_parquet(tmp_path / "root/val.parquet", pictures, [0, 1] * 3, ("zebra", "bee"))
    parts = {"val": "val"}
    assert "'bee'" in refused(lambda: index(tmp_path, "val", CLASSES, parts=parts))


def test_a_disk_that_is_too_small(tmp_path: Path, pictures: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    write_parquet(tmp_path / "root/train.parquet", pictures, [0, 1] * 3, CLASSES)
    usage = namedtuple("usage", "total used free")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage(10, 9, 1))
        assert "data.cache_dir" in refused(lambda: index(tmp_path), MachineError)
    assert len(index(tmp_path)) == 6


def test_a_missing_root_is_said(tmp_path: Path) -> None:
    assert "data.root" in refused(lambda: SOURCE.check(options(tmp_path)), DataError)


def test_the_root_may_be_the_file(tmp_path: Path, pictures: list[Any]) -> None:
    file = write_parquet(tmp_path / "root", pictures, [0, 1] * 3, CLASSES)
    assert file.is_file()
    assert index(tmp_path).paths[0] == "root!0/0.jpg"


def test_many_rows_keep_their_places(tmp_path: Path, pictures: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_packs, "_ROWS", 5)  # batches that fit no group of rows
    many = [(None, pictures[number % 6][1]) for number in range(100)]
    write_parquet(tmp_path / "root/train.parquet", many, list(np.arange(100) % 2), CLASSES, rows_per_group=13)
    rows = [*range(0, 100, 2), *range(1, 100, 2)]
    assert read_bytes(index(tmp_path)) == [many[row][1] for row in rows]
