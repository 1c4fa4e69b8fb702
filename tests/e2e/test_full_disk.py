"""A disk that is really full: one line, exit code 5, and nothing half written that the next start trusts."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers.archives import read_files, write_shards
from helpers.object_server import Objects, serving
from helpers.parquet_files import write_folder_as_parquet
from PIL import Image

from alexnet_dist.assembly.public_loader import make_index
from alexnet_dist.cli.main import run
from alexnet_dist.cli.prepare import pack
from alexnet_dist.data.engines.cache import build
from alexnet_dist.data.remote import keep
from alexnet_dist.data.sources import parquet_packs

SMALL, LARGE = 1_200_000, 64_000_000  # bytes of the disk
CLASSES = ("ant", "bee")


def _mount(place: Path, *options: str) -> None:
    done = subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", str(place)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk; pictures of twice its size lie beside it."""
    place = tmp_path / "disk"
    place.mkdir()
    _mount(place, "-o", f"size={SMALL}")
    dice = np.random.default_rng(0)
    for number in range(40):
        path = tmp_path / "pictures" / CLASSES[number % 2] / f"{number:02d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(dice.integers(0, 256, (200, 180, 3), np.uint8)).save(path, quality=95)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture
def store(disk: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The pictures in a bucket, as `s3://pics/flowers`."""
    files = read_files(disk.with_name("pictures"))
    with serving(Objects({f"pics/flowers/{name}": data for name, data in files.items()})) as server:
        for name, value in {"ENDPOINT_URL": server.address, "ACCESS_KEY_ID": "k", "SECRET_ACCESS_KEY": "s"}.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        yield


@pytest.fixture
def no_look_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is needed is held against what is free before; a disk that fills up meanwhile is met in the middle."""
    for module in (build, keep, pack, parquet_packs):
        monkeypatch.setattr(module, "check_space", lambda *_: None)


def _fill(disk: Path) -> None:
    with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def _fetch(disk: Path, pictures: Path) -> list[str]:
    return ["fetch", "s3://pics/flowers", "--data.cache_dir", str(disk)]


def _unpack(disk: Path, pictures: Path) -> list[str]:
    root = pictures.parent / "tables"
    if not root.is_dir():
        write_folder_as_parquet(pictures, root, CLASSES, num_files=1)
    words = ["--data.source", "parquet", "--data.root", str(root), "--data.cache_dir", str(disk)]
    return ["verify", *words, "--out", str(pictures.parent / "bad.csv"), "--overwrite"]


def _pack(disk: Path, pictures: Path) -> list[str]:
    words = ["--data.root", str(pictures), "--data.train", ".", "--data.cache_dir", str(pictures.parent / "cache")]
    return ["pack", *words, "--shard_mb", "1", "--out", str(disk / "shards"), "--overwrite"]


def _index(disk: Path, pictures: Path) -> list[str]:
    root = pictures.parent / "shards"
    if not root.is_dir():
        write_shards(root, read_files(pictures), 2)
        _fill(disk)
    words = ["--data.source", "tar", "--data.root", str(root), "--data.train", "train-*.tar"]
    return ["index", *words, "--data.cache_dir", str(pictures.parent / "cache"), "--out", str(disk)]


def _cache(disk: Path, pictures: Path) -> list[str]:
    words = ["--data.root", str(pictures), "--data.train", ".", "--data.val", "null", "--data.workers", "0"]
    return ["cache", "--config", "imagenet_subset", *words, "--data.cache_dir", str(disk), "--augment.resize", "256"]


@pytest.mark.usefixtures("no_look_before", "store")
@pytest.mark.parametrize("make", [_fetch, _unpack, _pack, _index, _cache])
def test_a_full_disk(
    disk: Path,
    tmp_path: Path,
    make: Callable[[Path, Path], list[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    pictures = tmp_path / "pictures"
    files = read_files(pictures)
    words = make(disk, pictures)
    assert run("prepare", words) == 5
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "No space left on device" in line
    assert str(disk) in line
    assert run("prepare", words) == 5  # and again: nothing is taken for whole
    _mount(disk, "-o", f"remount,size={LARGE}")
    assert run("prepare", words) == 0
    capsys.readouterr()
    if make is _fetch:
        (place,) = disk.glob("fetched/*/files")
        assert read_files(place) == files
    elif make is _pack:
        packed = make_index(disk / "shards", part="train", source="tar", cache_dir=tmp_path / "cache")
        assert [packed.find_encoded(sample) for sample in range(len(packed))] == [*files.values()]
    elif make is _cache:
        assert run("prepare", [*words, "--check"]) == 0


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("make", [_fetch, _unpack, _pack, _cache])
def test_what_does_not_fit_is_said_before(
    disk: Path, tmp_path: Path, make: Callable[[Path, Path], list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("prepare", make(disk, tmp_path / "pictures")) == 5
    assert "error: too little space" in capsys.readouterr().err
    assert sum(path.stat().st_size for path in disk.rglob("*") if path.is_file()) < 100_000


def test_a_full_cache_folder_costs_time_alone(disk: Path, tmp_path: Path) -> None:
    write_shards(tmp_path / "shards", read_files(tmp_path / "pictures"), 2)
    _fill(disk)
    for _ in range(2):
        assert len(make_index(tmp_path / "shards", "train-*.tar", source="tar", cache_dir=disk / "cache")) == 40
    assert not os.path.lexists(disk / "cache") or not list((disk / "cache").rglob("*.set"))
