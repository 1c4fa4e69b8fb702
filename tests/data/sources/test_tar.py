"""`data.source: tar`: the same pictures, labels and order as a folder's, whatever the archive; and bad archives."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.archives import read_files, write_nested, write_shards, write_tar, write_zip
from helpers.class_folders import scan, write_class_folders
from helpers.images import save_jpeg
from helpers.refusals import refused

from alexnet_dist.base.errors import DataError
from alexnet_dist.data.files.index_files import FileRules
from alexnet_dist.data.index import BadFilesError, SampleIndex
from alexnet_dist.data.sources import tar_index
from alexnet_dist.data.sources.source import SourceOptions, open_source
from alexnet_dist.data.sources.tar import find_wanted
from alexnet_dist.data.sources.tar_index import list_pictures, write_listing_out

SOURCE = open_source("tar")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root: Path = tmp_path_factory.mktemp("pictures") / "images"
    write_class_folders(root)
    save_jpeg(root / "dog" / ("long" * 30) / f"{'name' * 20}.jpg")
    return root


@pytest.fixture(scope="module")
def files(folder: Path) -> dict[str, bytes]:
    return read_files(folder)


@pytest.fixture(scope="module")
def expected(folder: Path) -> SampleIndex:
    return scan(folder)


def options_of(root: Path, train: str = "train", **values: Any) -> SourceOptions:
    rules = FileRules(root.parent / "cache", on_bad_file=values.pop("on_bad_file", "fail"))
    parts = values.pop("parts", {"train": train})
    return SourceOptions("tar", root, parts, rules, **values)


def index(root: Path, train: str = "train", **values: Any) -> SampleIndex:
    options = options_of(root, train, **values)
    SOURCE.check(options)
    return SOURCE.list_split(options, "train", None)


def inner_name(path: str) -> str:
    return path.partition("!")[2].replace(".tar!", "/")


WRITERS: dict[str, tuple[Callable[[Path, Mapping[str, bytes]], Any], str]] = {
    "tar": (lambda root, files: write_tar(root / "set.tar", files), "set.tar"),
    "pax": (lambda root, files: write_tar(root / "set.tar", files, tarfile.PAX_FORMAT), "set"),
    "below": (
        lambda root, files: write_tar(root / "a.tar", {f"./a/train/{n}": files[n] for n in files}),
        "a.tar!a/train",
    ),
    "common": (lambda root, files: write_tar(root / "a.tar", {f"a/train/{n}": files[n] for n in files}), "a.tar"),
    "nested": (lambda root, files: write_nested(root / "set.tar", files), "set.tar"),
    "zip": (lambda root, files: write_zip(root / "set.zip", files), "set.zip"),
    "shards": (lambda root, files: write_shards(root, files, 3), "train-{0000..0002}.tar"),
    "glob": (lambda root, files: write_shards(root, files, 3), "train-*.tar"),
    "folder": (lambda root, files: write_shards(root / "train", files, 2), "train"),
    "info": (
        lambda root, files: (
            write_shards(root, files, 2),
            (root / "_info.json").write_text(
                json.dumps({"splits": {"training": {"filenames": ["train-0001.tar", "train-0000.tar"]}}})
            ),
        ),
        "training",
    ),
}


@pytest.mark.parametrize("form", WRITERS)
def test_an_archive_is_its_folder(form: str, files: dict[str, bytes], expected: SampleIndex, tmp_path: Path) -> None:
    write, name = WRITERS[form]
    write(tmp_path / "data", files)
    for _ in range(2):  # listed, and from what is kept
        found = index(tmp_path / "data", name)
        assert [inner_name(path).removeprefix("./").removeprefix("a/train/") for path in found.paths] == [
            *expected.paths
        ]
        assert found.classes == expected.classes
        for field in ("labels", "sizes", "byte_sizes", "is_plain"):
            np.testing.assert_array_equal(getattr(found, field), getattr(expected, field))
        for number in range(len(found)):
            np.testing.assert_array_equal(found.load_pixels(number), expected.load_pixels(number))


def test_a_root_may_be_an_archive(files: dict[str, bytes], expected: SampleIndex, tmp_path: Path) -> None:
    root = write_tar(
        tmp_path / "set.tar", {f"{part}/{name}": files[name] for part in ("train", "val") for name in files}
    )
    options = options_of(root, parts={"train": "train", "val": "val"})
    train = SOURCE.list_split(options, "train", None)
    val = SOURCE.list_split(options, "val", train.classes)
    assert [path.removeprefix("set.tar!val/") for path in val.paths] == list(expected.paths)
    assert train.root == tmp_path
    with pytest.raises(DataError, match=r"folders of sets where classes should be.*set.tar.*!train'"):
        index(root, ".")
    with pytest.raises(DataError, match="no 'other' in it; its folders are train, train/dog, val, val/dog"):
        index(root, "other")


JSON = [
    ({"label": "cat"}, {}),
    ({"id": 7, "class_name": "cat"}, {}),
    ({"label": 5, "kind": "cat"}, {"columns": {"label": "kind"}}),
]


@pytest.mark.parametrize(("sample", "values"), JSON)
def test_labels_from_json(sample: dict[str, Any], values: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    picture = (folder / "cat" / "0.jpg").read_bytes()
    key = next(key for key in sample if sample[key] == "cat")
    members: dict[str, bytes] = {}
    for number, name in enumerate(("cat", "dog", "cat")):
        members |= {f"{number}.jpg": picture, f"{number}.json": json.dumps(sample | {key: name}).encode()}
        members |= {f"{number}.mask.png": b"no picture", f"{number}.txt": b"a caption"}
    write_tar(tmp_path / "data" / "train.tar", members)
    found = index(tmp_path / "data", **values)
    assert found.classes == ("cat", "dog")
    assert [*zip(map(inner_name, found.paths), found.labels.tolist(), strict=True)] == [
        ("0.jpg", 0),
        ("2.jpg", 0),
        ("1.jpg", 1),
    ]


def test_integers_are_positions(folder: Path, tmp_path: Path) -> None:
    picture, root = (folder / "cat" / "0.jpg").read_bytes(), tmp_path / "data"
    for part, labels in (("train", (0, 0, 2)), ("val", (1, 2))):
        members = {f"{n}.cls": str(label).encode() for n, label in enumerate(labels)}
        members |= {f"{n}.jpg": picture for n in range(len(labels))}
        write_tar(root / f"{part}.tar", members)
    options = options_of(root, parts={"train": "train", "val": "val"})
    train = SOURCE.list_split(options, "train", None)
    assert (train.classes, train.labels.tolist()) == (("0", "1", "2"), [0, 0, 2])
    assert SOURCE.list_split(options, "val", train.classes).labels.tolist() == [1, 2]
    (root / "classes.txt").write_text("ant\nbee\ncat\n")
    train = SOURCE.list_split(options, "train", None)
    assert (train.classes, train.labels.tolist()) == (("ant", "bee", "cat"), [0, 0, 2])
    assert SOURCE.list_split(options, "val", train.classes).labels.tolist() == [1, 2]
    (root / "classes.txt").write_text("ant\nbee\n")
    assert "val.tar!1.jpg" in refused(lambda: SOURCE.list_split(options, "val", ("ant", "bee")))


@pytest.mark.parametrize("named", ["member", "key", "whole"])
def test_labels_from_a_list(named: str, folder: Path, tmp_path: Path) -> None:
    picture, root = (folder / "cat" / "0.jpg").read_bytes(), tmp_path / "data"
    write_tar(root / "train.tar", {f"some/{number}.jpg": picture for number in range(4)})
    name = {"member": "some/{}.jpg", "key": "some/{}", "whole": "train.tar!some/{}.jpg"}[named]
    labels = ["dog", "cat", "dog"]
    rows = ["file,label", *(f"{name.format(number)},{label}" for number, label in enumerate(labels))]
    (root / "labels.csv").write_text("\n".join(rows))
    found = index(root, labels="labels.csv")
    assert found.classes == ("cat", "dog")
    assert [*map(inner_name, found.paths)] == ["some/1.jpg", "some/0.jpg", "some/2.jpg"]
    (root / "labels.csv").write_text("\n".join([*rows, "some/9.jpg,cat"]))
    assert "some/9.jpg): the archives have no such member" in refused(lambda: index(root, labels="labels.csv"))


def test_kept_lists_follow_their_archives(files: dict[str, bytes], tmp_path: Path, monkeypatch: Any) -> None:
    listed: list[str] = []
    monkeypatch.setattr(
        tar_index, "list_members", lambda path, inner=tar_index.list_members: listed.append(path.name) or inner(path)
    )
    root = tmp_path / "data"
    write_shards(root, files, 3)
    first = index(root, "train-*.tar")
    assert sorted(listed) == [f"train-000{number}.tar" for number in range(3)]
    listed.clear()
    assert index(root, "train-*.tar").fingerprint() == first.fingerprint()
    assert listed == []
    os.utime(root / "train-0001.tar", (1, 1))
    write_tar(root / "train-0003.tar", {"more/x.jpg": next(iter(files.values())), "more/x.cls": b"cat"})
    more = index(root, "train-*.tar")
    assert len(more) == len(first) + 1
    assert "train-0003.tar!more/x.jpg" in more.paths
    for suffix, count in ((".set", 0), (".index", 0), (".set", 4)):  # one of the two is enough
        for kept in (root.parent / "cache" / "archives").rglob(f"*{suffix}"):
            data = kept.read_bytes()
            kept.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        listed.clear()
        assert index(root, "train-*.tar").fingerprint() == more.fingerprint()
        assert len(listed) == count
    (root / "classes.txt").write_text("red fox\ndog\ncat\n")
    again = index(root, "train-*.tar")
    assert again.classes == ("red fox", "dog", "cat")
    assert again.labels.tolist() == sorted(again.labels.tolist())


def test_a_list_beside_archives_serves_their_copies(files: dict[str, bytes], tmp_path: Path, monkeypatch: Any) -> None:
    root, copy = tmp_path / "one" / "data", tmp_path / "two" / "data"
    write_shards(root, files, 3)
    options = options_of(root, "train-*.tar")
    wanted = find_wanted(options, "train")
    listing, _ = list_pictures(wanted, options.rules)
    path = write_listing_out(root, wanted, listing)
    shutil.copytree(root, copy)
    for number, place in enumerate(sorted(copy.glob("*.tar"))):
        os.utime(place, (number, number))  # a copy has times of its own
    monkeypatch.setattr(tar_index, "list_members", None)
    assert index(copy, "train-*.tar").fingerprint() == index(root, "train-*.tar").fingerprint()
    monkeypatch.undo()
    other = tmp_path / "three" / "data"
    write_shards(other, dict(list(files.items())[::-1]), 3)  # other pictures, with which the list does not fit
    shutil.copy(path, other)
    assert len(index(other, "train-*.tar")) == len(files)


def write_wds_index(path: Path) -> None:
    """What wds2idx writes."""
    with tarfile.open(path) as archive:
        members = [(Path(m.name).suffix[1:], m.offset_data, m.size, m.name) for m in archive if m.isreg()]
    lines = [
        " ".join(str(part) for member in members[at : at + 2] for part in member) for at in range(0, len(members), 2)
    ]
    path.with_suffix(".idx").write_text("\n".join([f"v1.2 {len(lines)}", *lines]) + "\n")


@pytest.mark.parametrize("is_stale", [False, True])
def test_an_index_of_wds2idx_is_used_where_it_fits(
    files: dict[str, bytes], tmp_path: Path, monkeypatch: Any, is_stale: bool, caplog: pytest.LogCaptureFixture
) -> None:
    root, files = tmp_path / "data", {name: data for name, data in files.items() if " " not in name}
    write_shards(root, files, 1)
    write_wds_index(root / "train-0000.tar")
    if is_stale:
        write_shards(root, dict(list(files.items())[1:]), 1)
    else:
        monkeypatch.setattr(tar_index, "list_members", None)
    assert len(index(root, "train-0000.tar")) == len(files) - is_stale
    assert ("train-0000.idx does not fit" in caplog.text) == is_stale


# -- bad archives -----------------------------------------------------------------------------------------------------


def one_class(folder: Path, **more: bytes) -> dict[str, bytes]:
    picture = (folder / "cat" / "0.jpg").read_bytes()
    return {f"cat/{number}.jpg": picture for number in range(3)} | {f"dog/{n}.jpg": picture for n in range(3)} | more


def test_what_a_tar_may_not_do_is_passed_over(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "data" / "train.tar"
    write_tar(path, one_class(folder))
    with tarfile.open(path, "a") as archive:
        for name, kind, target in (
            ("cat/link.jpg", tarfile.SYMTYPE, "/etc/passwd"),
            ("cat/hard.jpg", tarfile.LNKTYPE, "cat/0.jpg"),
            ("cat/device.jpg", tarfile.CHRTYPE, ""),
            ("cat/pipe.jpg", tarfile.FIFOTYPE, ""),
            ("/cat/absolute.jpg", tarfile.REGTYPE, ""),
            ("cat/../../up.jpg", tarfile.REGTYPE, ""),
            ("cat/._mac.jpg", tarfile.REGTYPE, ""),
            ("__MACOSX/x.jpg", tarfile.REGTYPE, ""),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            archive.addfile(info)
    with caplog.at_level(logging.WARNING):
        assert len(index(path.parent)) == 6
    assert "4 links, devices and sparse files passed over" in caplog.text
    assert "2 names that lead out of the archive passed over" in caplog.text


def cut(data: bytes, at: float) -> bytes:
    return data[: int(len(data) * at)]


def lie(data: bytes) -> bytes:
    """The header of the second member says that it is much larger."""
    second = 512 + -(-int(data[124:135], 8) // 512) * 512
    info = tarfile.TarInfo.frombuf(data[second : second + 512], "utf-8", "strict")
    info.size = 10**9
    return data[:second] + info.tobuf() + data[second + 512 :]


BAD: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "cut": (lambda data: cut(data, 0.25), r"a damaged archive \(.*train.tar\): cut short"),
    "cut at its end": (lambda data: data.rstrip(b"\0")[:-1], r"train.tar\): cut short: 'dog/2.jpg' ends at byte"),
    "no end": (lambda data: data[: len(data.rstrip(b"\0")) // 512 * 512 + 512], "it has no end mark"),
    "lies": (lie, r"cut short: 'cat/1.jpg' ends at byte 1,000,0\d\d,\d\d\d"),
    "junk": (lambda data: b"\1" * 5000, r"not an archive \(.*\): no header at byte 0"),
    "empty": (lambda data: b"", r"not an archive \(.*\): cut short: it has no end mark"),
    "gzip": (lambda data: b"\x1f\x8b" + data, "a packed archive.*gunzip"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_damaged_archive_is_one_line(case: str, folder: Path, tmp_path: Path) -> None:
    spoil, said = BAD[case]
    path = write_tar(tmp_path / "data" / "train.tar", one_class(folder))
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(DataError, match=said):
        index(path.parent)
    if case in ("cut", "lies", "no end", "cut at its end"):
        found = index(path.parent, on_bad_file="skip")
        assert len(found) == {"cut": 2, "lies": 1, "no end": 6, "cut at its end": 5}[case]
    assert not list((tmp_path / "cache").rglob("*.index"))


def test_bad_members_are_named(folder: Path, tmp_path: Path) -> None:
    root, picture = tmp_path / "data", (folder / "cat" / "0.jpg").read_bytes()
    members = {"n/1.jpg": picture, "n/1.cls": b"cat", "n/2.jpg": picture[:50], "n/2.cls": b"cat", "n/3.jpg": picture}
    members |= {"n/4.cls": b"dog", "n/5.jpg": b"", "n/5.cls": b"dog", "n/6.jpg": picture, "n/6.cls": b" "}
    write_tar(root / "train-0003.tar", members | {"n/7.jpg": picture, "n/7.cls": b"cat"})
    with pytest.raises(BadFilesError) as caught:
        index(root, "train-0003")
    assert {bad.path: bad.reason.partition(":")[0] for bad in caught.value.bad_files} == {
        "train-0003.tar!n/2.jpg": "damaged image",
        "train-0003.tar!n/3.jpg": "it has no label",
        "train-0003.tar!n/4.cls": "a label without a picture",
        "train-0003.tar!n/5.jpg": "empty file",
        "train-0003.tar!n/6.jpg": "its label is empty",
    }
    found = index(root, "train-0003", on_bad_file="skip")
    assert [*map(inner_name, found.paths)] == ["n/1.jpg", "n/7.jpg"]


def test_names_and_keys_that_stand_twice(folder: Path, tmp_path: Path) -> None:
    picture, path = (folder / "cat" / "0.jpg").read_bytes(), tmp_path / "data" / "train.tar"
    write_tar(path, {"a/1.jpg": picture, "b/1.jpg": picture})
    with tarfile.open(path, "a") as archive:
        archive.add(folder / "cat" / "0.jpg", "a/1.jpg")
    assert "a name stands twice in an archive (" in refused(lambda: index(path.parent))
    write_tar(path, {"1.jpg": picture, "1.png": picture, "1.cls": b"cat"})
    assert "two pictures with one key" in refused(lambda: index(path.parent))


def test_other_refusals(folder: Path, tmp_path: Path) -> None:
    root, picture = tmp_path / "data", (folder / "cat" / "0.jpg").read_bytes()
    write_zip(root / "deflated.zip", one_class(folder), zipfile.ZIP_DEFLATED)
    assert "is a compressed member" in refused(lambda: index(root, "deflated.zip"))
    (root / "bad.zip").write_bytes((root / "deflated.zip").read_bytes()[:400])
    assert "a damaged zip" in refused(lambda: index(root, "bad.zip"))
    write_tar(root / "train-0.tar", one_class(folder))
    assert "train-1.tar): 2 of 3 are not there" in refused(lambda: index(root, "train-{0..2}.tar"))
    assert "no such archive" in refused(lambda: index(root, "other"))
    assert "did you mean 'train-0.tar'" in refused(lambda: index(root, "train0.tar"))
    assert "too many names" in refused(lambda: index(root, "{0..99999}{0..99999}.tar"))
    write_tar(root / "text.tar", {"a/readme.txt": b"x"})
    assert "archives without a picture" in refused(lambda: index(root, "text"))
    write_tar(root / "flat.tar", {"1.jpg": picture, "2.jpg": picture})
    assert "no folder names its class" in refused(lambda: index(root, "flat"))
    write_tar(root / "json.tar", {"1.jpg": picture, "1.json": b'{"caption": "x", "n": 1}'})
    assert "no 'label' among 'caption', 'n'; set data.columns.label" in refused(lambda: index(root, "json"))
    write_tar(root / "list.tar", {"1.jpg": picture, "1.json": b'{"label": [1]}'})
    assert "'label' is list, not a name or an integer" in refused(lambda: index(root, "list"))
    write_tar(root / "mixed.tar", {"1.jpg": picture, "1.cls": b"1", "2.jpg": picture, "2.cls": b"cat"})
    assert "names and integers as labels" in refused(lambda: index(root, "mixed"))
    write_tar(root / "many.tar", {f"a/{number}.jpg": b"" for number in range(3000)})
    assert "... and 2999 more" in refused(lambda: index(root, "many"), BadFilesError)
