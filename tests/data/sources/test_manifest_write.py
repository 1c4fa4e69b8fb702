"""`prepare manifest` and `prepare subset`: what they write is read back as the same images, labels and classes."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.images import save_jpeg
from helpers.refusals import refused

from alexnet_dist.assembly.sets import Splits, build_splits
from alexnet_dist.cli.main import run
from alexnet_dist.cli.prepare.choice import pick_classes
from alexnet_dist.data.index import SampleIndex
from alexnet_dist.data.sources.manifest_write import format_class_list, format_manifest
from alexnet_dist.data.sources.subset import pick_names
from alexnet_dist.settings.schema import DataConfig

TEST_DATA = os.environ.get("ALEXNET_DIST_TEST_DATA")

ODD_CLASSES = (
    "cat",
    "red fox",
    "-rf",
    "'quoted' \"twice\"",
    "#1",
    "猫 ä",
    "A\u0308pfel",
    "cat.jpg",
    "two  spaces",
    "hard\xa0space",
    "back\\slash",
    "line\u2028separator",
    "a,b",
    os.fsdecode(b"\xff\xfe class"),
)
ODD_FILES = (
    "plain.jpg",
    "-v.jpg",
    " begins with a space.jpg",
    "0 cat.jpg",
    "cat",
    "tab\there.jpg",
    "return\rhere.jpg",
    "猫 \u00e4 a\u0308.png.jpg",
    "'\" #.JPG",
    "back\\slash.jpg",
    os.fsdecode(b"\xff\xfe.jpg"),
)


def fill(root: Path, classes: tuple[str, ...], files: tuple[str, ...] = ("0.jpg", "1.jpg", "more/2.jpg")) -> None:
    """A JPEG for each file of each class, of sizes that differ."""
    for number, (name, file) in enumerate((name, file) for name in classes for file in files):
        path = file if file.lower().endswith(".jpg") else f"{file}/inside.jpg"
        save_jpeg(root / name / path, width=16 + number % 7)


def read(source: str, root: Path, cache: Path, **data: Any) -> Splits:
    values: dict[str, Any] = {"val_fraction": 0.0, "cache_dir": str(cache), **data}
    return build_splits(DataConfig(source=source, root=str(root), **values), 0, False)  # type: ignore[arg-type]


def read_both(root: Path, out: Path, **names: str) -> tuple[Splits, Splits]:
    """The sets as folders, and as the manifests that were written of them."""
    lists = {key: str(out.resolve() / f"{key}.txt") for key in names}
    cache = out.parent / "cache"
    return read("folder", root, cache, **names), read("manifest", root, cache, **lists)


def assert_same_images(ours: SampleIndex | None, theirs: SampleIndex | None) -> None:
    assert ours is not None
    assert theirs is not None
    assert [os.path.join(ours.root, path) for path in ours.paths] == [
        os.path.join(theirs.root, path) for path in theirs.paths
    ]
    assert ours.classes == theirs.classes
    for name in ("labels", "sizes", "byte_sizes", "is_plain"):
        assert np.array_equal(getattr(ours, name), getattr(theirs, name)), name


def manifest(root: Path, out: Path, *words: str) -> int:
    return run("prepare", ["manifest", "--data", str(root), "--out", str(out), *words])


def subset(root: Path, out: Path, *words: str) -> int:
    return run("prepare", ["subset", "--data", str(root), "--out", str(out), *words])


@pytest.mark.parametrize(
    "classes",
    [ODD_CLASSES, ("0", "1", "10", "2"), ("1", "cat"), ("tab\tinside", "cat"), ("\ufeffmark", "zebra")],
    ids=["odd names", "integers", "an integer", "a tab", "a byte order mark"],
)
def test_manifests_are_read_back_as_the_folders(tmp_path: Path, classes: tuple[str, ...]) -> None:
    root, out = tmp_path / "data", tmp_path / "lists"
    fill(root / "my train", classes, ODD_FILES)
    fill(root / "test", classes[1:])
    assert manifest(root, out, "--train", "my train", "--test", "test/") == 0
    folders, lists = read_both(root, out, train="my train", test="test")
    assert_same_images(folders.train, lists.train)
    assert_same_images(folders.test, lists.test)
    assert not (out / "val.txt").exists()


@pytest.mark.parametrize("classes", [ODD_CLASSES, ("0", "1", "10", "2"), ("\ufeffmark", "zebra")])
def test_one_set_keeps_its_fingerprint(tmp_path: Path, classes: tuple[str, ...]) -> None:
    """Paths are relative to the same folder here, so nothing at all may differ."""
    fill(tmp_path / "data", classes, ODD_FILES)
    assert manifest(tmp_path / "data", tmp_path / "lists", "--train", ".") == 0
    folders, lists = read_both(tmp_path / "data", tmp_path / "lists", train=".")
    assert lists.train.paths == folders.train.paths
    assert lists.fingerprint == folders.fingerprint


@pytest.mark.skipif(TEST_DATA is None, reason="ALEXNET_DIST_TEST_DATA is not set")
@pytest.mark.parametrize(
    ("pack", "train", "test"), [("cat_dog", "train_data", "test_data"), ("fruits10", "train", "valid")]
)
def test_manifests_of_real_pictures(tmp_path: Path, pack: str, train: str, test: str) -> None:
    root, out = Path(str(TEST_DATA)) / pack, tmp_path / "lists"
    assert manifest(root, out, "--train", train, "--test", test) == 0
    folders, lists = read_both(root, out, train=train, test=test)
    assert len(lists.train) == 1000
    assert_same_images(folders.train, lists.train)
    assert_same_images(folders.test, lists.test)


def test_what_simple_names_look_like(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, out = tmp_path / "data", tmp_path / "lists"
    fill(root / "train", ("dog", "cat", "red fox"), ("1.jpg", "a b.jpg"))
    assert manifest(root, out) == 0
    assert (out / "classes.txt").read_text() == "cat\ndog\nred fox\n"
    assert (out / "train.txt").read_text() == (
        "train/cat/1.jpg cat\ntrain/cat/a b.jpg\tcat\ntrain/dog/1.jpg dog\ntrain/dog/a b.jpg\tdog\n"
        "train/red fox/1.jpg\tred fox\ntrain/red fox/a b.jpg\tred fox\n"
    )
    printed = capsys.readouterr().out
    assert "train        3       6  2 to 2" in printed
    assert f"use: --data.source manifest --data.root {root} --data.train {out / 'train.txt'}" in printed


def test_positions_stand_where_a_name_could_be_one() -> None:
    assert format_manifest({"a": ["x.jpg"], "b": ["y z.jpg"]}, ["a", "b"]) == b"x.jpg a\ny z.jpg\tb\n"
    assert format_manifest({"10": ["x.jpg"], "b": ["y z.jpg"]}, ["10", "b"]) == b"x.jpg 0\ny z.jpg\t1\n"


@pytest.mark.parametrize("name", [" cat", "cat\t", "c\nat", "cat\r"])
def test_a_name_that_would_change_is_refused(name: str) -> None:
    assert "cannot stand in a class list" in refused(lambda: format_class_list(["ape", name]))
    assert format_class_list(["ape", "c at"]) == b"ape\nc at\n"


def test_a_line_break_in_a_path_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path / "data" / "train", ("cat",), ("two\nlines.jpg",))
    assert manifest(tmp_path / "data", tmp_path / "lists") == 3
    line = capsys.readouterr().err
    assert "a picture cannot stand in a manifest (train/cat/two\\nlines.jpg)" in line
    assert line.count("\n") == 1
    assert not (tmp_path / "lists").exists()


def test_lists_are_replaced_on_request_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, out = tmp_path / "data", tmp_path / "lists"
    fill(root / "train", ("cat", "dog"))
    assert manifest(root, out) == 0
    before = (out / "train.txt").read_bytes()
    assert manifest(root, out) == 0  # equal content
    save_jpeg(root / "train" / "cat" / "new.jpg")
    fill(root / "test", ("cat",))
    assert manifest(root, out, "--test", "test") == 2
    assert "train.txt is there with other content; give another --out, or --overwrite" in capsys.readouterr().err
    assert (out / "train.txt").read_bytes() == before
    assert not (out / "test.txt").exists()
    assert manifest(root, out, "--test", "test", "--overwrite") == 0
    assert b"new.jpg" in (out / "train.txt").read_bytes()


def test_a_folder_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path / "data" / "train", ("cat",))
    (tmp_path / "file").write_text("")
    assert manifest(tmp_path / "data", tmp_path / "file" / "lists") == 5
    line = capsys.readouterr().err
    assert line.startswith("error: cannot write lists (")
    assert "Not a directory" in line
    assert line.count("\n") == 1


def test_nothing_is_written_among_the_images(tmp_path: Path) -> None:
    root = tmp_path / "data"
    fill(root / "train", ("cat", "dog"))
    before = sorted(root.rglob("*"))
    assert manifest(root, tmp_path / "lists") == 0
    assert sorted(root.rglob("*")) == before
    assert manifest(root, root) == 0
    assert {path.name for path in set(root.rglob("*")) - set(before)} == {"train.txt", "classes.txt"}


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--out", "x"], 2, "error: --data is missing"),
        (["--data", "DATA"], 2, "error: --out is missing"),
        (["--data", "DATA", "--out", "x", "--train", "../other"], 2, "error: --train lies outside --data"),
        (["--data", "DATA", "--out", "x", "--train", "trian"], 3, "error: no such folder"),
        (["--data", "DATA", "--out", "x", "--test", "test"], 3, "error: 1 class folder the training set does not have"),
        (["--data", "DATA", "--out", "x", "--tset", "test"], 2, "error: unknown option --tset"),
    ],
)
def test_a_mistake_is_one_line(
    tmp_path: Path, words: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(tmp_path / "train", ("cat", "dog"))
    fill(tmp_path / "test", ("wolf",))
    assert run("prepare", ["manifest", *(str(tmp_path) if word == "DATA" else word for word in words)]) == code
    line = capsys.readouterr().err
    assert line.startswith(message)
    assert line.count("\n") == 1


# -- subset -----------------------------------------------------------------------------------------------------------

ANIMALS = ("ape", "bat", "cat", "dog", "elk", "fox")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Six classes of eight training and four validation images."""
    fill(tmp_path / "data" / "train", ANIMALS, tuple(f"{number}.jpg" for number in range(8)))
    fill(tmp_path / "data" / "val", ANIMALS, tuple(f"v{number}.jpg" for number in range(4)))
    return tmp_path / "data"


def test_a_subset_of_named_classes(root: Path, tmp_path: Path) -> None:
    words = ["--val", "val", "--classes", "fox", "bat", "--per_class", "3", "--val_per_class", "2"]
    assert subset(root, tmp_path / "lists", *words) == 0
    folders, lists = read_both(root, tmp_path / "lists", train="train", val="val")
    assert lists.train.classes == ("bat", "fox")
    assert np.bincount(lists.train.labels).tolist() == [3, 3]
    assert lists.val is not None
    assert np.bincount(lists.val.labels).tolist() == [2, 2]
    assert set(lists.train.paths) < {f"train/{path}" for path in folders.train.paths}
    assert all(
        path.split("/")[1] == lists.train.classes[label]
        for path, label in zip(lists.train.paths, lists.train.labels, strict=True)
    )


def test_a_subset_follows_the_seed_and_grows(root: Path, tmp_path: Path) -> None:
    choices: dict[str, SampleIndex] = {}
    for name, count, seed in (("small", 2, 1), ("again", 2, 1), ("large", 5, 1), ("other", 2, 2)):
        out = tmp_path / name / "lists"
        assert subset(root, out, "--num_classes", "3", "--per_class", str(count), "--seed", str(seed)) == 0
        choices[name] = read_both(root, out, train="train")[1].train
    assert choices["small"].fingerprint() == choices["again"].fingerprint()
    assert choices["small"].classes == choices["large"].classes
    assert len(choices["small"].classes) == 3
    assert set(choices["small"].paths) < set(choices["large"].paths)
    assert choices["small"].paths != choices["other"].paths


def test_a_choice_does_not_depend_on_the_order_or_on_what_else_is_there() -> None:
    names = [f"picture {number}.jpg" for number in range(200)]
    chosen = pick_names(names, 50, seed=3)
    assert chosen == [name for name in names if name in set(chosen)]
    assert len(chosen) == 50
    shuffled = random.Random(0).sample(names, len(names))
    assert sorted(pick_names(shuffled, 50, seed=3)) == sorted(chosen)
    assert len(set(pick_names([*names, "new.jpg"], 50, seed=3)) - set(chosen)) <= 1
    assert len(set(pick_names(names, 50, seed=4)) - set(chosen)) > 10
    halves = [sum(name in chosen for name in half) for half in (names[:100], names[100:])]
    assert min(halves) > 10  # drawn from all over the list


def test_all_images_of_picked_classes(root: Path, tmp_path: Path) -> None:
    assert subset(root, tmp_path / "lists", "--num_classes", "2") == 0
    assert len(read_both(root, tmp_path / "lists", train="train")[1].train) == 16


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--classes", "cat", "dgo"], 2, "error: unknown class 'dgo' (--classes): no such folder; did you mean 'dog'?"),
        (["--num_classes", "7"], 3, "error: too few classes: 7 are asked for, there are 6; set --num_classes 6"),
        (["--per_class", "9"], 3, "error: too few images ("),
        (["--num_classes", "2", "--val", "val", "--val_per_class", "5"], 3, "error: too few images ("),
        (["--num_classes", "0"], 2, "error: --num_classes must be 1 or more"),
        (["--num_classes", "2", "--classes", "cat"], 2, "error: --classes and --num_classes exclude each other"),
        (["--num_classes", "2", "--val_per_class", "5"], 2, "error: --val_per_class has no effect: --val names no"),
        ([], 2, "error: the subset would be the set"),
        (["--per_class", "many"], 2, "error: cannot read the command line"),
    ],
)
def test_a_subset_that_cannot_be_had(
    root: Path, tmp_path: Path, words: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert subset(root, tmp_path / "lists", *words) == code
    line = capsys.readouterr().err
    assert line.startswith(message)
    assert line.count("\n") == 1
    assert not (tmp_path / "lists").exists()


def test_a_validation_set_without_the_picked_classes(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(root / "others", ("ape",))
    assert subset(root, tmp_path / "lists", "--val", "others", "--classes", "cat", "dog") == 3
    assert "none of 'cat', 'dog' has a folder there" in capsys.readouterr().err


def test_classes_are_named_in_any_spelling_of_unicode() -> None:
    assert pick_classes(["A\u0308pfel", "Birne"], ["\u00c4pfel"], None, seed=0) == ["A\u0308pfel"]
