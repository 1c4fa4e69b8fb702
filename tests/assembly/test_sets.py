"""Sets that are not named, not there, or not apart are said in one line."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from helpers.images import save_jpeg

from alexnet_dist.assembly.sets import build_splits
from alexnet_dist.base.errors import DataError
from alexnet_dist.settings.schema import DataConfig


def list_warnings(root: Path, caplog: pytest.LogCaptureFixture, **data: Any) -> list[str]:
    with caplog.at_level(logging.WARNING, "alexnet_dist"):
        build_splits(DataConfig(root=str(root), cache_dir=str(root / "cache"), val_fraction=0.25, **data), 0, False)
    return [message for message in caplog.messages if "is not used" in message]


def save_sets(root: Path, *names: str) -> None:
    for name in names:
        for number in range(8):
            save_jpeg(root / name / "ab"[number % 2] / f"{number}.jpg")


@pytest.mark.parametrize(
    ("names", "data", "words"),
    [
        (["train", "val"], {}, ["val lies beside train and is not used: --data.val val validates on it"]),
        (["train", "Valid"], {}, ["--data.val Valid "]),
        (["train", "validation", "test"], {}, ["--data.val validation ", "--data.test test reads it at the end"]),
        (["train_data", "test_data"], {"train": "train_data"}, ["--data.test test_data "]),
        (["x/train", "x/val"], {"train": "x/train"}, ["--data.val x/val "]),
        (["train", "val", "test"], {"val": "val", "test": "test"}, []),
        (["train", "val", "test"], {"val": "test", "test": "val"}, []),
        (["train", "val"], {"folds": 2, "fold": 1}, []),
        (["train", "extra"], {}, []),
    ],
)
def test_folders(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, names: list[str], data: dict[str, Any], words: list[str]
) -> None:
    save_sets(tmp_path, *names)
    warnings = list_warnings(tmp_path, caplog, **data)
    assert len(warnings) == len(words)
    assert all(word in warning for word, warning in zip(words, warnings, strict=True))


def test_lists(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_sets(tmp_path, "val")
    for name in ("train.csv", "valid.csv", "valid.txt"):
        (tmp_path / name).write_text("".join(f"val/{'ab'[n % 2]}/{n}.jpg,{'ab'[n % 2]}\n" for n in range(8)))
    warnings = list_warnings(tmp_path, caplog, source="manifest", train="train.csv")
    assert warnings == [
        "data      valid.csv lies beside train.csv and is not used: --data.val valid.csv validates on it"
    ]


def build(root: Path, **data: Any) -> Any:
    return build_splits(DataConfig(root=str(root), cache_dir=str(root / "cache"), val_fraction=0, **data), 0, False)


@pytest.mark.parametrize(
    ("there", "data", "remedy"),
    [
        (["train", "valid"], {"val": "val"}, {"val": "valid"}),
        (["Train"], {}, {"train": "Train"}),
        (["x/train", "x/dev"], {"train": "x/train", "val": "x/val"}, {"val": "x/dev"}),
    ],
)
def test_a_missing_set_is_answered_with_the_option_that_works(
    tmp_path: Path, there: list[str], data: dict[str, Any], remedy: dict[str, str]
) -> None:
    save_sets(tmp_path, *there)
    with pytest.raises(DataError, match="no such folder") as caught:
        build(tmp_path, **data)
    ((key, value),) = remedy.items()
    assert str(caught.value).endswith(f"; did you mean --data.{key} {value}?")
    build(tmp_path, **{**data, **remedy})


def test_a_file_as_the_root_is_said_to_be_one(tmp_path: Path) -> None:
    (tmp_path / "pets.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"data.root is no folder \(.*pets.zip\): it is a file; .*--data.source tar"):
        build(tmp_path / "pets.zip")


@pytest.mark.parametrize("is_link", [False, True])
def test_folders_that_share_pictures_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture, is_link: bool) -> None:
    save_sets(tmp_path, "train", "val")
    (tmp_path / "again").symlink_to("train")
    for val, count in (("val", 0), ("again" if is_link else "train", 8)):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "alexnet_dist"):
            build(tmp_path, val=val)
        lines = [line for line in caplog.messages if "in more than one of" in line]
        assert lines == [f"{count} pictures are in more than one of train, val and test ('a/0.jpg')"] * (count > 0)


def test_classes_that_are_not_found_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_sets(tmp_path / "train", "train")  # as an archive was unpacked
    with caplog.at_level(logging.WARNING, "alexnet_dist"):
        build(tmp_path)
        assert f"if the classes are its folders, name {tmp_path}/train/train as the set" in caplog.text
        caplog.clear()
        (tmp_path / "train" / "train" / "gone").symlink_to("/nowhere/gone")
        (tmp_path / "train" / "train" / "list.txt").symlink_to("/nowhere/list.txt")
        build(tmp_path, train="train/train")
    assert caplog.messages == [f"{tmp_path}/train/train: 1 link without a target, which may be missing classes, 'gone'"]


def test_the_sets_that_are_there_are_named(tmp_path: Path) -> None:
    save_sets(tmp_path, "train", "test")
    splits = build(tmp_path, test="test")
    assert list(splits.named().items()) == [("train", splits.train), ("test", splits.test)]
    assert splits.counts() == {"train": 8, "val": 0, "test": 8}
