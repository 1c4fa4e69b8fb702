"""Every source is one of the table, opens, and says of itself what settings and verbs ask."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.archives import read_files, write_tar
from helpers.class_folders import scan, write_class_folders

from alexnet_dist.base.errors import DataError
from alexnet_dist.base.sources import SOURCES
from alexnet_dist.data.decode import Pixels, UnreadableImageError
from alexnet_dist.data.files.index_files import FileRules
from alexnet_dist.data.index import index_pixels
from alexnet_dist.data.sources.source import Source, SourceOptions, index_path, open_source


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_opens_and_knows_its_number_of_classes_or_why_not(name: str, tmp_path: Path) -> None:
    source = open_source(name)
    number, said = source.count_classes(SourceOptions(name, tmp_path, {"train": "train"}, FileRules(tmp_path)))
    assert isinstance(source, Source)
    assert (number is None) == any(words in said for words in ("no class folders", "not read here", "is there"))
    assert (source.list_files is not None) == (name in ("folder", "manifest", "tar", "parquet", "imagenet", "digits"))


def test_a_path_alone_is_indexed_as_settings_would(tmp_path: Path) -> None:
    write_class_folders(tmp_path / "train")
    index, rules = scan(tmp_path / "train"), FileRules(tmp_path / "cache")
    lines = [f"train/{path},{index.classes[label]}\n" for path, label in zip(index.paths, index.labels, strict=True)]
    (tmp_path / "train.csv").write_text("".join(lines))
    assert index_path(tmp_path / "train", rules).fingerprint() == index.fingerprint()
    write_tar(tmp_path / "train.tar", read_files(tmp_path / "train"))
    assert [path.partition("!")[2] for path in index_path(tmp_path / "train.tar", rules).paths] == [*index.paths]
    listed = index_path(tmp_path / "train.csv", rules)
    assert (listed.classes, listed.labels.tolist()) == (index.classes, index.labels.tolist())
    known = ("bird", *index.classes)
    for name in ("train", "train.csv"):
        assert index_path(tmp_path / name, rules, known).classes == known
        assert index_path(tmp_path / name, rules, known).labels.min() == 1
    with pytest.raises(DataError, match=r"no such folder.*did you mean 'train'"):
        index_path(tmp_path / "trian", rules)


class _Given:
    """Gives the same pixels for each path."""

    def __init__(self, pixels: Pixels) -> None:
        self.pixels = pixels

    def load(self, path: str) -> Pixels:
        return self.pixels


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        (np.zeros((4, 6, 3), np.float32), "its pixels are float32"),
        (np.zeros((4, 6), np.uint8), r"its pixels are uint8 \(4, 6\)"),
        (np.zeros((4, 6, 4), np.uint8), "not uint8"),
        (np.zeros((6, 4, 3), np.uint8), "changed since it was scanned: 4x6, was 6x4"),
    ],
)
def test_pixels_of_another_form_are_a_bad_file(pixels: Pixels, words: str) -> None:
    index = index_pixels(_Given(pixels), ["a"], np.zeros(1, np.int64), (6, 4), ["a"])
    assert not index.has_files
    assert index.place == ""
    with pytest.raises(UnreadableImageError, match=words):
        index.load_pixels(0)


@pytest.mark.parametrize("channels", [1, 3])
def test_gray_and_color_become_what_is_asked_for(channels: int) -> None:
    for depth in (1, 3):
        given = _Given(np.full((4, 6, depth), 7, np.uint8))
        index = index_pixels(given, ["a"], np.zeros(1, np.int64), (6, 4), ["a"])
        assert index.load_pixels(0, channels, window=(1, 1, 2, 3)).tolist() == [[[7] * channels] * 2] * 3
