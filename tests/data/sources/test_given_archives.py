"""Archives, and parquet files, that stand in the place of a folder of images on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.archives import write_tar, write_zip

from alexnet_dist.data.sources.given_folder import name_set, recognize_folder

SHARDS = ["train-0000.tar", "train-0001.tar", "val-0000.tar"]


@pytest.mark.parametrize(
    ("archives", "place", "found"),
    [
        ({name: ["a/1.jpg"] for name in SHARDS}, "", {"train": "train-*.tar", "val": "val-*.tar"}),
        (
            {"train.tar": ["a/1.jpg"], "validation.zip": ["a/1.jpg"]},
            "",
            {"train": "train.tar", "val": "validation.zip"},
        ),
        ({"train/0.tar": ["a/1.jpg"], "test/0.tar": ["a/1.jpg"]}, "", {"train": "train", "test": "test"}),
        ({"pets.tar": ["train/a/1.jpg", "valid/b/1.jpg"]}, "pets.tar", {"train": "train", "val": "valid"}),
        ({"pets.zip": ["x/y/Train/a/1.jpg", "x/y/dev/b/1.jpg"]}, "pets.zip", {"train": "x/y/Train", "val": "x/y/dev"}),
        ({"pets.tar": ["a/1.jpg", "b/1.jpg"]}, "pets.tar", {"train": "."}),
    ],
)
def test_archives_are_recognized(
    archives: dict[str, list[str]], place: str, found: dict[str, str], tmp_path: Path
) -> None:
    for name, members in archives.items():
        write: Any = write_zip if name.endswith(".zip") else write_tar
        write(tmp_path / name, dict.fromkeys(members, b"x"))
    settings = recognize_folder(tmp_path / place).settings
    assert settings["data.source"] == "tar"
    assert {key: settings[f"data.{key}"] for key in ("train", "val", "test") if settings[f"data.{key}"]} == found
    assert name_set(tmp_path / place, "val")["data.val"] == found.get("val", ".")


@pytest.mark.parametrize(
    ("files", "place", "found"),
    [
        (["data/train-00000-of-00001.parquet", "data/test-0.parquet"], "", {"train": "train", "test": "test"}),
        (["train.parquet", "validation.parquet"], "", {"train": "train", "val": "validation"}),
        (["pets.parquet"], "", {"train": "."}),
        (["pets.parquet"], "pets.parquet", {"train": "pets.parquet"}),
    ],
)
def test_parquet_files_are_recognized(files: list[str], place: str, found: dict[str, str], tmp_path: Path) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    settings = recognize_folder(tmp_path / place).settings
    assert settings["data.source"] == "parquet"
    assert {key: settings[f"data.{key}"] for key in ("train", "val", "test") if settings[f"data.{key}"]} == found
    assert name_set(tmp_path / place, "val")["data.val"] == found.get("val", place or ".")
