"""A set that lies beside the training set and that no setting names is said in one line."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from images import save_jpeg

from alexnet_dist.commands.splits import build_splits
from alexnet_dist.config import DataConfig


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
