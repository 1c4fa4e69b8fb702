from __future__ import annotations

import re
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.class_folders import scan, write_class_folders
from helpers.images import save_jpeg
from helpers.refusals import refused

from alexnet_dist.base.durable import parse_json
from alexnet_dist.base.progress import Progress
from alexnet_dist.data.files.index_files import FileRules
from alexnet_dist.data.index import SampleIndex
from alexnet_dist.data.sources.source import SourceOptions, open_source
from alexnet_dist.data.sources.tar_write import name_keys, plan_shards, write_shards

SAMPLE = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")  # webdataset's rule of keys and endings


def write(index: SampleIndex, out: Path, labels: Sequence[str] = ("cls",), shard_bytes: int = 8000) -> list[Path]:
    out.mkdir(exist_ok=True)
    shards = plan_shards(index, "train", 0, shard_bytes, has_json=False)
    with Progress("", len(index), shown=False) as bar:
        assert write_shards(index, shards, out, labels, bar) == [(out / s.name).stat().st_size for s in shards]
    return [out / shard.name for shard in shards]


def read_samples(paths: Sequence[Path]) -> dict[str, dict[str, bytes]]:
    """As webdataset groups them: members that follow each other and have one key."""
    samples: dict[str, dict[str, bytes]] = {}
    last = ""
    for path in paths:
        with tarfile.open(path) as tar:
            for member in tar:
                match = SAMPLE.match(member.name)
                assert match is not None
                assert (match[1] == last) == (match[1] in samples)
                last = match[1]
                stream = tar.extractfile(member)
                assert stream is not None
                samples.setdefault(last, {})[match[2]] = stream.read()
    return samples


@pytest.fixture
def folder(tmp_path: Path) -> SampleIndex:
    write_class_folders(tmp_path / "pictures")
    return scan(tmp_path / "pictures")


def test_each_picture_is_a_sample_with_its_label(folder: SampleIndex, tmp_path: Path) -> None:
    paths = write(folder, tmp_path / "out", ("cls", "json"))
    assert len(paths) > 1
    assert all(path.stat().st_size < 8000 + 2 * tarfile.RECORDSIZE for path in paths)
    samples = read_samples(paths)
    assert len(samples) == len(folder)
    for number, path in enumerate(folder.paths):
        key, _, ending = path.rpartition(".")
        sample = samples[key]
        assert sample[ending.lower()] == (folder.root / path).read_bytes()
        assert int(sample["cls"]) == folder.labels[number]
        facts = parse_json(sample["json"])
        assert facts == {"label": folder.labels[number], "class_name": path.split("/")[0], "path": path}


def test_the_same_seed_gives_the_same_bytes_and_another_one_another_order(folder: SampleIndex, tmp_path: Path) -> None:
    first = [path.read_bytes() for path in write(folder, tmp_path / "one")]
    assert [path.read_bytes() for path in write(folder, tmp_path / "two")] == first
    order = [sample for shard in plan_shards(folder, "train", 0, 8000, has_json=False) for sample in shard.samples]
    other = [sample for shard in plan_shards(folder, "train", 1, 8000, has_json=False) for sample in shard.samples]
    assert sorted(order) == sorted(other) == list(range(len(folder)))
    assert order != other


@pytest.mark.parametrize("labels", [("cls",), ("json",)])
@pytest.mark.parametrize("has_dots", [False, True])
def test_source_tar_reads_the_same_set(
    folder: SampleIndex, tmp_path: Path, labels: tuple[str, ...], has_dots: bool
) -> None:
    if has_dots:  # keys have none, and are sorted otherwise
        for name in ("a.b.jpg", "a_b.jpg", "a-b.jpg", "a0.jpg", "a.jpeg", "a.jpg", "x.y/1.jpg", "x/1.jpg"):
            save_jpeg(folder.root / folder.classes[0] / name, width=20 + len(name))
        folder = scan(folder.root)
    write(folder, tmp_path / "out", labels)
    (tmp_path / "out" / "classes.txt").write_text("".join(f"{name}\n" for name in folder.classes))
    kind = labels[0]
    options = SourceOptions(
        "tar", tmp_path / "out", {"train": "train-*.tar"}, FileRules(tmp_path / "cache"), labels=kind
    )
    found = open_source("tar").list_split(options, "train", None)
    assert found.classes == folder.classes
    assert found.labels.tolist() == folder.labels.tolist()
    assert (found.sizes == folder.sizes).all()
    encoded = [found.find_encoded(number) for number in range(len(found))]
    assert encoded == [(folder.root / path).read_bytes() for path in folder.paths]


def test_shards_are_packed_again_from_shards(folder: SampleIndex, tmp_path: Path) -> None:
    write(folder, tmp_path / "out")
    (tmp_path / "out" / "classes.txt").write_text("".join(f"{name}\n" for name in folder.classes))
    options = SourceOptions("tar", tmp_path / "out", {"train": "train-*.tar"}, FileRules(tmp_path / "cache"))
    found = open_source("tar").list_split(options, "train", folder.classes)
    assert read_samples(write(found, tmp_path / "again")).keys() == read_samples(write(folder, tmp_path / "out")).keys()


def test_webdataset_reads_them(folder: SampleIndex, tmp_path: Path) -> None:
    wds = pytest.importorskip("webdataset")
    urls = list(map(str, write(folder, tmp_path / "out", ("cls", "json"))))
    found: list[Any] = list(wds.WebDataset(urls, shardshuffle=False).decode("rgb8").to_tuple("jpg;jpeg", "cls", "json"))
    assert len(found) == len(folder)
    by_path = {path: number for number, path in enumerate(folder.paths)}
    for pixels, label, facts in found:
        number = by_path[facts["path"]]
        assert label == folder.labels[number]
        assert np.abs(pixels.astype(int) - folder.load_pixels(number).astype(int)).max() <= 2  # another decoder


@pytest.mark.parametrize(
    ("paths", "keys"),
    [
        (["a/1.jpg", "a/2.JPEG", "b/1.jpg"], ["a/1", "a/2", "b/1"]),
        (["a/x.y.jpg", "a/x_y.jpg", "a/x.y.png"], ["a/x_y", "a/x_y-2", "a/x_y-3"]),
        (["a.b/1.jpg"], ["a.b/1"]),
        (["a/.jpg", "no ending", "../up.jpg"], ["a/picture", "no ending", "up"]),
        (["t.tar!a/1.jpg", "u.tar!a/1.jpg", "f.parquet!17", "f.parquet!18/x.jpg"], ["a/1", "a/1-2", "17", "18/x"]),
    ],
)
def test_keys_are_unlike_and_end_at_no_dot(paths: list[str], keys: list[str]) -> None:
    assert name_keys(paths) == keys


def test_a_picture_that_has_gone_leaves_no_shard(folder: SampleIndex, tmp_path: Path) -> None:
    (folder.root / folder.paths[3]).unlink()
    assert folder.paths[3] in refused(lambda: write(folder, tmp_path / "out", shard_bytes=10**9))
    assert list((tmp_path / "out").iterdir()) == []
