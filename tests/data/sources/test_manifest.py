"""Manifests: what a line means, which classes there are, and what is refused."""

from __future__ import annotations

import dataclasses
import logging
import os
import random
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.images import save_jpeg
from helpers.refusals import refused

from alexnet_dist.assembly.sets import Splits, build_splits
from alexnet_dist.base.errors import CheckpointError
from alexnet_dist.data.decode import read_header
from alexnet_dist.data.files import scan as header_scan
from alexnet_dist.data.index import BadFilesError, SampleIndex
from alexnet_dist.data.plan import Augmentation, Plan
from alexnet_dist.data.sources.manifest import scan_manifest
from alexnet_dist.data.sources.manifest_read import ListForm
from alexnet_dist.runs.evaluation import find_split
from alexnet_dist.settings.reader import build_config
from alexnet_dist.settings.schema import Config

NAMES = ("cat", "dog", "red fox")
PICTURES = ("cat/0.jpg", "cat/1.jpg", "dog/0.jpg", "dog/1.jpg", "red fox/0.jpg")
GOOD = "cat/0.jpg cat\ncat/1.jpg cat\ndog/0.jpg dog\ndog/1.jpg dog\nred fox/0.jpg\tred fox\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Five pictures; what is listed is written by each test."""
    for path in PICTURES:
        save_jpeg(tmp_path / "data" / path)
    return tmp_path / "data"


def scan(root: Path, text: str | bytes, name: str = "train.txt", **settings: Any) -> SampleIndex:
    """Write a manifest and index it; `classes` stand for a class list."""
    data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")
    (root / name).write_bytes(data)
    defaults: dict[str, Any] = {"classes": None, "on_bad_file": "fail", "cache_dir": root.parent / "cache"}
    values = defaults | settings
    form = dataclasses.replace(values.pop("form", ListForm()), has_positions=values["classes"] is not None)
    return scan_manifest(root, root / name, form=form, **values)


def test_index_of_a_manifest(root: Path) -> None:
    index = scan(root, GOOD)
    assert index.classes == NAMES
    assert index.paths == PICTURES
    assert index.labels.tolist() == [0, 0, 1, 1, 2]
    assert index.labels.dtype == np.int64
    assert index.sizes.tolist() == [[40, 24]] * 5
    assert index.byte_sizes.tolist() == [(root / path).stat().st_size for path in PICTURES]
    assert index.root == root
    assert index.load_pixels(4).shape == (24, 40, 3)


@pytest.mark.parametrize(
    "path",
    [
        "plain.jpg",
        "two  spaces, and a comma.jpg",
        "#1.jpg",
        "猫 ä.jpg",
        "line\u2028separator.jpg",
        "next\x85line.jpg",
        "hard\xa0space.jpg",
        "feed\x0c.jpg",
        "back\\slash.jpg",
        "'quotes' and \"quotes\".jpg",
        " begins with a space.jpg",
        "0.jpg 1",
        "no extension",
        os.fsdecode(b"\xff\xfe.jpg"),
    ],
)
@pytest.mark.parametrize("form", ["{} cat\n", "{}\tcat\n", "./{} cat\r\n", "{} 1\n", "{} 1", "\ufeff{}\t1\r\n\r\n"])
def test_any_name_survives(root: Path, path: str, form: str) -> None:
    save_jpeg(root / path, width=33, height=11)
    index = scan(root, form.format(path), classes=("ape", "cat"))
    assert index.paths == (path,)
    assert index.labels.tolist() == [1]
    assert index.sizes.tolist() == [[33, 11]]


@pytest.mark.parametrize(
    "line",
    [
        "cat\\0.jpg cat",
        ".\\cat\\0.jpg\tcat",
        "cat//0.jpg cat",
        "dog/../cat/0.jpg cat",
        "  cat/0.jpg   cat  ",
        "cat/0.jpg\t\tcat",
        "cat/0.jpg \t cat",
        "\n \t\ncat/0.jpg cat\n\n",
    ],
)
def test_ways_to_write_a_path(root: Path, line: str) -> None:
    assert scan(root, line).paths == ("cat/0.jpg",)


def test_a_name_with_a_backslash_comes_before_a_separator(root: Path) -> None:
    save_jpeg(root / "cat\\0.jpg", width=50)
    assert scan(root, "cat\\0.jpg cat\n").sizes.tolist() == [[50, 24]]


def test_an_absolute_path_inside_the_root_is_made_relative(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    text = f"{root}/cat/0.jpg cat\n{tmp_path / 'link'}/dog/0.jpg dog\n"
    (root / "train.txt").write_text(text)
    index = scan_manifest(
        tmp_path / "link",
        tmp_path / "link" / "train.txt",
        classes=None,
        form=ListForm(),
        on_bad_file="fail",
        cache_dir=tmp_path / "cache",
    )
    assert index.paths == ("cat/0.jpg", "dog/0.jpg")


def test_links_in_the_root_are_followed(root: Path, tmp_path: Path) -> None:
    save_jpeg(tmp_path / "elsewhere" / "a.jpg")
    (root / "owl").symlink_to(tmp_path / "elsewhere")
    assert scan(root, "owl/a.jpg owl\n").paths == ("owl/a.jpg",)


@pytest.mark.parametrize("separator", [" ", "\t"])
@pytest.mark.parametrize("name", ["red fox", "Apple Golden 1", "big dog"])
def test_class_names_with_spaces(root: Path, separator: str, name: str) -> None:
    """`Apple Golden 1` ends with an integer and `big dog` with another class: the file that is there decides."""
    index = scan(root, f"cat/0.jpg{separator}{name}\ndog/0.jpg dog\n", classes=("dog", name, "fox"))
    assert dict(zip(index.paths, index.labels.tolist(), strict=True)) == {"cat/0.jpg": 1, "dog/0.jpg": 0}


def test_class_names_are_the_same_in_any_spelling_of_unicode(root: Path) -> None:
    index = scan(root, "cat/0.jpg A\u0308pfel\ncat/1.jpg \u00c4pfel\n", classes=("Birne", "\u00c4pfel"))
    assert index.labels.tolist() == [1, 1]
    assert scan(root, "cat/0.jpg A\u0308pfel\ncat/1.jpg \u00c4pfel\n").classes == ("\u00c4pfel",)


@pytest.mark.parametrize(
    ("text", "paths"),
    [
        ("cat/0.jpg,cat\ndog/0.jpg,dog\n", ["cat/0.jpg", "dog/0.jpg"]),
        ("path,label\r\ncat/0.jpg,cat\r\n", ["cat/0.jpg"]),
        ("filename,width,label\ncat/0.jpg,40,cat\n", ["cat/0.jpg"]),
        ('"cat/0.jpg","cat"\n,,\n"a ""b"", c.jpg",dog\n', ["cat/0.jpg", 'a "b", c.jpg']),
        ('"two\nlines.jpg",cat\n', ["two\nlines.jpg"]),
        ("\ufeffcat\\0.jpg, cat\n", ["cat/0.jpg"]),
    ],
)
@pytest.mark.parametrize("classes", [None, ("cat", "dog")])
def test_csv(root: Path, text: str, paths: list[str], classes: tuple[str, ...] | None) -> None:
    for name in ('a "b", c.jpg', "two\nlines.jpg"):
        save_jpeg(root / name)
    assert list(scan(root, text, "LIST.Csv", classes=classes).paths) == paths


def test_the_first_row_of_a_csv_is_a_picture_when_it_names_one(root: Path) -> None:
    line = refused(lambda: scan(root, "gone.jpg,cat\ncat/0.jpg,dog\n", "a.csv"))
    assert "gone.jpg" in line
    assert "No such file" in line


def test_a_header_of_text_is_no_picture(root: Path) -> None:
    assert scan(root, "image label\n" + GOOD).classes == NAMES
    save_jpeg(root / "image")
    assert len(scan(root, "image label\n" + GOOD)) == len(PICTURES) + 1


def test_classes_without_a_list(root: Path) -> None:
    assert scan(root, "cat/0.jpg zebra\ndog/0.jpg ape\n").classes == ("ape", "zebra")
    index = scan(root, "cat/0.jpg 2\ncat/1.jpg 0\ndog/0.jpg 01\n")
    assert index.classes == ("0", "1", "2")
    assert index.paths == ("cat/1.jpg", "dog/0.jpg", "cat/0.jpg")


def test_numbers_keep_their_order_beyond_nine(root: Path) -> None:
    for number in range(12):
        save_jpeg(root / f"{number}.jpg")
    index = scan(root, "".join(f"{number}.jpg {number}\n" for number in range(12)))
    assert index.classes == tuple(map(str, range(12)))
    assert index.labels.tolist() == list(range(12))
    assert index.paths[10] == "10.jpg"


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("cat/0.jpg cat\ncat/1.jpg\n", ":2", ["without a label", "PATH LABEL"]),
        ("my cat.jpg\n", ":1", ["without a label"]),
        ("cat/0.jpg\t\n", ":1", ["without a label"]),
        ("cat/0.jpg,cat\n", ":1", ["without a label", ".csv"]),
        ("\tcat\n", ":1", ["without a label"]),
        ("cat/0.jpg 0\ncat/1.jpg -1\n", ":2", ["label -1 is out of range", "negative"]),
        ("cat/0.jpg 0\ncat/1.jpg 2\n", ":2", ["label 2 is out of range", "number of pictures, 2"]),
        ("cat/0.jpg 0\ncat/1.jpg " + "9" * 5000 + "\n", ":2", ["999... is out of range"]),
        ("cat/0.jpg 1\ncat/1.jpg 2\ndog/0.jpg 2\n", ":1", ["count from 0", "subtract 1"]),
        ("cat/0.jpg cat\ncat/1.jpg 1\n", "", ["names and integers", "line 1 has 'cat'", "line 2 has 1", "classes.txt"]),
        ("cat/0.jpg cat\n/etc/passwd cat\n", ":2", ["leads out of data.root", "'/etc/passwd'"]),
        ("../x.jpg cat\n", ":1", ["leads out of data.root"]),
        ("cat/../../x.jpg cat\n", ":1", ["leads out of data.root"]),
        ("..\\x.jpg cat\n", ":1", ["leads out of data.root"]),
        ("C:\\data\\x.jpg cat\n", ":1", ["leads out of data.root", "C:"]),
        ("\\\\server\\x.jpg cat\n", ":1", ["leads out of data.root"]),
        ("cat/0.jpg cat\nd\0og.jpg dog\n", ":2", ["zero byte"]),
        ("cat/0.jpg red fox\n", ":1", ["a label with spaces", "'red fox'", "TAB"]),
        ("cat/0.jpg cat\n./cat/0.jpg dog\n", ":2", ["two labels", "'dog' here and 'cat' in line 1"]),
        ("", "", ["empty"]),
        ("\n \n\t\r\n", "", ["empty"]),
    ],
)
def test_lines_that_cannot_be_meant(root: Path, text: str, place: str, words: list[str]) -> None:
    line = refused(lambda: scan(root, text))
    assert f"({root}/train.txt{place}):" in line or f"({root}/train.txt{place});" in line
    assert [word for word in words if word not in line] == []


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("cat/0.jpg 0\ncat/1.jpg 3\n", ":2", ["label 3 is out of range", "the last class is 2"]),
        ("cat/0.jpg 1\ndog/0.jpg 2\ndog/1.jpg 3\n", ":3", ["label 3", "count from 0", "subtract 1"]),
        ("cat/0.jpg -1\n", ":1", ["negative"]),
        ("cat/0.jpg cat\ncat/1.jpg dgo\n", ":2", ["unknown class 'dgo'", "did you mean 'dog'?"]),
        ("cat/0.jpg 1.0\n", ":1", ["unknown class '1.0'", "'cat', 'dog', 'red fox'"]),
        ("cat/0.jpg red dog fox\n", ":1", ["unknown class 'fox'"]),
        ("a red.jpg\n", ":1", ["without a label"]),
        ("cat/0.jpg 0\ncat\\0.jpg dog\n", ":2", ["two labels"]),
    ],
)
def test_labels_that_are_not_in_the_list(root: Path, text: str, place: str, words: list[str]) -> None:
    line = refused(lambda: scan(root, text, classes=NAMES))
    assert f"({root}/train.txt{place}):" in line or f"({root}/train.txt{place});" in line
    assert [word for word in words if word not in line] == []


def test_damaged_csv_names_the_line(root: Path) -> None:
    assert f"{root}/a.csv:2" in refused(lambda: scan(root, 'cat/0.jpg,cat\n"cat/1.jpg,cat\n', "a.csv"))


def test_utf16_is_named(root: Path) -> None:
    assert "UTF-16" in refused(lambda: scan(root, GOOD.encode("utf-16")))


def _remove(path: Path) -> None:
    path.unlink()


def _make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(("spoil", "words"), [(_remove, ["no such"]), (_make_folder, ["it is a folder"])])
@pytest.mark.parametrize("name", ["train.txt", "names.txt"])
def test_a_file_that_is_none(root: Path, spoil: Callable[[Path], None], words: list[str], name: str) -> None:
    (root / "train.txt").write_text(GOOD)
    (root / "names.txt").write_text("cat\ndog\nred fox\n")
    spoil(root / name)
    line = refused(lambda: split(root, classes="names.txt"))
    assert str(root / name) in line
    assert [word for word in words if word not in line] == []


def test_a_manifest_without_permission(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, mode: str) -> bytes:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse)  # the superuser may read any file
        assert "Permission denied; mend the permissions" in refused(lambda: split(root))


def test_repeated_lines_count_once(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "alexnet_dist"):
        index = scan(root, GOOD + "./cat/0.jpg cat\ncat\\0.jpg cat\n")
    assert index.paths == PICTURES
    assert "2 lines passed over" in caplog.text


def test_the_order_of_lines_does_not_matter(root: Path) -> None:
    save_jpeg(root / "dog" / "1.jpg", width=64)
    index = scan(root, GOOD)
    lines = GOOD.splitlines(keepends=True)
    random.Random(0).shuffle(lines)
    assert "".join(lines) != GOOD
    shuffled = scan(root, "".join(lines))
    assert shuffled.paths == index.paths
    assert shuffled.fingerprint() == index.fingerprint()
    steps = [Plan(part.sizes, Augmentation(crop_size=8), 4, seed=3, shuffle=True).at(7) for part in (index, shuffled)]
    for first, second in zip(*steps, strict=True):
        assert np.array_equal(first, second)
    relabeled = scan(root, GOOD.replace("dog/1.jpg dog", "dog/1.jpg cat"))
    assert relabeled.fingerprint() != index.fingerprint()


def test_missing_and_damaged_pictures_fail_together(root: Path) -> None:
    (root / "cat" / "1.jpg").write_bytes(b"")
    os.mkfifo(root / "pipe.jpg")
    text = GOOD + "gone.jpg cat\npipe.jpg dog\ndog dog\n"
    with pytest.raises(BadFilesError) as error:
        scan(root, text)
    reasons = {bad.path: bad.reason for bad in error.value.bad_files}
    expected = {"cat/1.jpg": "empty file", "gone.jpg": "No such file or directory", "pipe.jpg": "not a file"}
    assert reasons == {**expected, "dog": "not a file"}
    index = scan(root, text, on_bad_file="skip")
    assert {bad.path: bad.reason for bad in index.bad_files} == reasons
    assert index.paths == ("cat/0.jpg", "dog/0.jpg", "dog/1.jpg", "red fox/0.jpg")
    assert index.labels.tolist() == [0, 1, 1, 2]


def test_nothing_readable_is_an_error_even_when_skipping(root: Path) -> None:
    assert "all 1 files are unreadable" in refused(lambda: scan(root, "gone.jpg cat\n", on_bad_file="skip"))


# -- the sets of a run ------------------------------------------------------------------------------------------------


def configure(root: Path, **data: Any) -> Config:
    values = {"source": "manifest", "root": str(root), "train": "train.txt", "cache_dir": str(root.parent / "cache")}
    return build_config({"train.epochs": 1, **{f"data.{key}": value for key, value in (values | data).items()}})


def split(root: Path, **data: Any) -> Splits:
    return build_splits(configure(root, **data).data, 0, False)


def test_sets_of_one_root_do_not_push_each_other_out_of_the_cache(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []

    def read(path: str, max_pixels: int) -> tuple[int, int]:
        reads.append(path)
        return read_header(path, max_pixels)

    monkeypatch.setattr(header_scan, "read_header", read)
    (root / "train.txt").write_text(GOOD)
    (root / "val.txt").write_text("dog/0.jpg dog\n")
    first = split(root, val="val.txt")
    assert len(reads) == 6
    second = split(root, val="val.txt")
    assert len(reads) == 6
    assert first.fingerprint == second.fingerprint


def test_a_class_list_beside_the_training_manifest_orders_the_classes(root: Path) -> None:
    (root / "lists").mkdir()
    (root / "lists" / "classes.txt").write_bytes(b"\xef\xbb\xbfred fox\r\ndog\r\ncat \r\n\r\n")
    (root / "lists" / "train.txt").write_text("cat/0.jpg 2\ndog/0.jpg dog\nred fox/0.jpg red fox\n")
    (root / "val.txt").write_text("cat/1.jpg 2\n")
    splits = split(root, train="lists/train.txt", val="val.txt", test="val.txt")
    assert splits.train.classes == ("red fox", "dog", "cat")
    assert splits.train.labels.tolist() == [0, 1, 2]
    assert splits.val is not None
    assert splits.test is not None
    assert splits.val.labels.tolist() == splits.test.labels.tolist() == [2]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cat\ndog\ncat\n", [":3", "'cat' stands in line 1 already"]),
        ("\u00c4pfel\nA\u0308pfel\n", [":2", "stands twice"]),
        ("cat\n\ndog\n", [":2", "empty line"]),
        ("\n\n", ["the class list is empty"]),
        ("cat\nd\0og\n", [":2", "zero byte"]),
    ],
)
def test_a_class_list_that_cannot_be_meant(root: Path, text: str, words: list[str]) -> None:
    (root / "train.txt").write_text(GOOD)
    (root / "names.txt").write_text(text)
    line = refused(lambda: split(root, classes="names.txt"))
    assert [word for word in [str(root / "names.txt"), *words] if word not in line] == []


def test_a_class_list_beside_another_set_must_be_the_same(root: Path) -> None:
    (root / "other").mkdir()
    (root / "train.txt").write_text(GOOD)
    (root / "other" / "val.txt").write_text("cat/0.jpg 1\n")
    (root / "other" / "classes.txt").write_text("dog\ncat\nred fox\n")
    line = refused(lambda: split(root, val="other/val.txt"))
    assert "class 0 is 'dog' there and 'cat' in training" in line
    (root / "other" / "classes.txt").write_text("cat\ndog\nred fox\n")
    splits = split(root, val="other/val.txt")
    assert splits.val is not None
    assert splits.val.labels.tolist() == [1]


def test_integers_need_a_list_where_training_has_names(root: Path) -> None:
    (root / "train.txt").write_text(GOOD)
    (root / "val.txt").write_text("cat/0.jpg 0\n")
    assert "an integer label without a class list" in refused(lambda: split(root, val="val.txt"))


def test_a_name_that_training_lacks(root: Path) -> None:
    (root / "train.txt").write_text(GOOD)
    (root / "val.txt").write_text("cat/0.jpg cats\n")
    line = refused(lambda: split(root, val="val.txt"))
    assert f"{root}/val.txt:1" in line
    assert "did you mean 'cat'?" in line


def test_pictures_in_two_sets_are_counted(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    (root / "train.txt").write_text(GOOD)
    (root / "val.txt").write_text("./cat/0.jpg cat\ndog\\0.jpg dog\n")
    (root / "test.txt").write_text("cat/0.jpg cat\n")
    with caplog.at_level(logging.WARNING, "alexnet_dist"):
        split(root, val="val.txt", test="test.txt")
    assert "2 pictures are in more than one of train, val and test ('cat/0.jpg')" in caplog.text


def test_a_part_of_the_training_manifest_can_be_held_out(root: Path) -> None:
    (root / "train.txt").write_text("".join(GOOD.splitlines(keepends=True)[:4]))
    splits = split(root, val_fraction=0.5)
    assert splits.is_held_out
    assert splits.val is not None
    assert sorted([*splits.train.paths, *splits.val.paths]) == sorted(PICTURES[:4])


# -- evaluation -------------------------------------------------------------------------------------------------------


def find(root: Path, classes: tuple[str, ...], trained_on: str | None = None, **data: Any) -> SampleIndex:
    card: Any = types.SimpleNamespace(classes=classes, data_fingerprint=trained_on)
    return find_split(configure(root, **{"val": "val.txt", **data}), card, "val", False)


def test_evaluation_numbers_a_manifest_by_the_models_classes(root: Path) -> None:
    (root / "val.txt").write_text("dog/0.jpg dog\ncat/0.jpg cat\n")  # numbered by itself this set would say 0, 1
    index = find(root, ("dog", "ape", "cat"))
    assert index.classes == ("dog", "ape", "cat")
    assert dict(zip(index.paths, index.labels.tolist(), strict=True)) == {"dog/0.jpg": 0, "cat/0.jpg": 2}


def test_evaluation_by_integers(root: Path) -> None:
    (root / "val.txt").write_text("cat/0.jpg 1\n")
    assert "without a class list" in refused(lambda: find(root, ("ape", "cat")))
    assert find(root, ("0", "1")).labels.tolist() == [1]
    (root / "classes.txt").write_text("ape\ncat\n")
    assert find(root, ("ape", "cat")).labels.tolist() == [1]


@pytest.mark.parametrize(
    ("names", "word"),
    [("ape\ncat\ndog\n", "'dog'"), ("ape\n", "'cat'"), ("cat\nape\n", "order")],
)
def test_evaluation_with_another_class_list(root: Path, names: str, word: str) -> None:
    (root / "val.txt").write_text("cat/0.jpg 0\n")
    (root / "classes.txt").write_text(names)
    line = refused(lambda: find(root, ("ape", "cat")), CheckpointError)
    assert "the data's classes are not the model's" in line
    assert word in line


def test_evaluation_of_a_class_that_the_model_lacks(root: Path) -> None:
    (root / "val.txt").write_text("cat/0.jpg wolf\n")
    assert "'wolf'" in refused(lambda: find(root, ("ape", "cat")), CheckpointError)


def test_evaluation_of_a_held_out_part_in_another_order(root: Path) -> None:
    (root / "train.txt").write_text("".join(GOOD.splitlines(keepends=True)[:4]))
    trained_on = split(root, val_fraction=0.5).fingerprint
    found = find(root, ("cat", "dog"), trained_on, val=None, val_fraction=0.5)
    assert found.classes == ("cat", "dog")
    line = refused(lambda: find(root, ("dog", "cat"), trained_on, val=None, val_fraction=0.5), CheckpointError)
    assert "order" in line
