"""Pictures in larger files are the same pictures, for the scan, for the verification and for every engine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.class_folders import scan, spoil_files, write_class_folders
from helpers.loaders import make_loader

from alexnet_dist.data.decode import UnreadableImageError
from alexnet_dist.data.engines.cache.build import build_store, read_change_times
from alexnet_dist.data.engines.cache.store import lay_out
from alexnet_dist.data.files import containers as containers_module
from alexnet_dist.data.files.containers import MOST_OPEN, Containers
from alexnet_dist.data.files.index_files import FileRules, index_files
from alexnet_dist.data.files.scan import FileSet, FoundFile
from alexnet_dist.data.files.verify import verify_files
from alexnet_dist.data.index import SampleIndex
from alexnet_dist.data.plan import Augmentation

RECIPE = Augmentation(crop_size=16, resize=24, crop="random", horizontal_flip=0.5)


def pack_files(folder: Path, paths: Sequence[str], place: Path, num_packs: int) -> FileSet:
    """The files one after another in a few larger files, in turn."""
    bodies: list[list[bytes]] = [[b"head"] for _ in range(num_packs)]
    offsets = []
    for number, path in enumerate(paths):
        body = bodies[number % num_packs]
        offsets.append(sum(map(len, body)))
        body.append((folder / path).read_bytes())
    names = tuple(f"pack-{number}" for number in range(num_packs))
    for name, body in zip(names, bodies, strict=True):
        (place / name).write_bytes(b"".join(body))
    stats = [(place / name).stat() for name in names]
    numbers = np.arange(len(paths)) % num_packs
    containers = Containers(
        names,
        np.array([stat.st_size for stat in stats]),
        np.array([stat.st_mtime_ns for stat in stats]),
        numbers.astype(np.int32),
        np.array(offsets),
    )
    files = [
        FoundFile(f"{names[number]}!{path}", (folder / path).stat().st_size, stats[number].st_mtime_ns)
        for number, path in zip(numbers.tolist(), paths, strict=True)
    ]
    return FileSet(place, files, containers=containers)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_class_folders(tmp_path / "images")
    return tmp_path / "images"


@pytest.fixture
def files(folder: Path) -> SampleIndex:
    return scan(folder)


@pytest.fixture
def packed(folder: Path, files: SampleIndex, tmp_path: Path) -> SampleIndex:
    images = pack_files(folder, files.paths, tmp_path, 2)
    return index_files(images, files.labels, files.classes, FileRules(tmp_path / "cache"))


def test_an_index_of_parts_is_the_one_of_files_but_for_their_places(files: SampleIndex, packed: SampleIndex) -> None:
    assert [path.partition("!")[2] for path in packed.paths] == list(files.paths)
    for field in ("labels", "sizes", "byte_sizes", "is_plain"):
        np.testing.assert_array_equal(getattr(packed, field), getattr(files, field))
    some = packed.subset([7, 2])
    assert some.containers is not None
    np.testing.assert_array_equal(some.load_pixels(0), files.load_pixels(7))
    np.testing.assert_array_equal(some.load_pixels(1), files.load_pixels(2))
    only = packed.subset([0]).containers
    assert only is not None
    assert only.names == ("pack-0",)


@pytest.mark.parametrize(
    ("engine", "workers"),
    [
        ("torchvision", 0),
        pytest.param("torchvision", 1, marks=pytest.mark.heavy),
        ("cache", 0),
        pytest.param("dali", 0, marks=pytest.mark.heavy),
    ],
)
def test_engines_make_the_same_batches_of_parts(
    files: SampleIndex, packed: SampleIndex, engine: str, workers: int, tmp_path: Path
) -> None:
    if engine == "dali":
        pytest.importorskip("nvidia.dali")
    made = []
    for number, index in enumerate((files, packed)):
        loader = make_loader(index, RECIPE, engine=engine, workers=workers, cache_dir=tmp_path / str(number))
        if engine == "cache":
            layout = lay_out(loader.cache_dir, index, RECIPE.resize, 3, loader.max_pixels)
            build_store(layout, workers=0, on_bad_file="fail", progress=False)
        made.append(list(loader.batches(0, 4)))
    for one, two in zip(*made, strict=True):
        assert one.num_images == two.num_images > 0
        assert torch.equal(one.ids, two.ids)
        assert torch.equal(one.images, two.images)
        assert torch.equal(one.labels, two.labels)


@pytest.mark.parametrize("engine", ["torchvision", pytest.param("dali", marks=pytest.mark.heavy)])
def test_a_container_that_changes_is_not_read(packed: SampleIndex, engine: str) -> None:
    if engine == "dali":
        pytest.importorskip("nvidia.dali")
    packed.load_pixels(0)  # it is open now
    with (packed.root / "pack-0").open("r+b") as pack:
        pack.write(b"tail")
    os.utime(packed.root / "pack-0", (1, 1))
    (packed.root / "pack-1").unlink()
    containers_module._open_file.cache_clear()
    loader = make_loader(packed, RECIPE, engine=engine, global_batch_size=len(packed))
    (batch,) = loader.batches(0, 1)
    assert batch.num_images == 0
    reasons = {bad.path: bad.reason for bad in batch.bad_files}
    assert reasons == {
        packed.locate(number): "its container changed since it was listed"
        if number % 2 == 0
        else "its container: No such file or directory"
        for number in range(len(packed))
    }
    assert (read_change_times(packed) == np.where(np.arange(len(packed)) % 2, 0, 10**9)).all()


def test_bad_parts_are_found_by_scan_and_verification(folder: Path, tmp_path: Path) -> None:
    spoil_files(folder)
    cut = folder / "dog" / "1.jpg"
    cut.write_bytes(cut.read_bytes()[:-200])
    paths = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))
    images = pack_files(folder, paths, tmp_path, 3)
    one = FileSet(folder, [FoundFile(path, (folder / path).stat().st_size, 0) for path in paths])

    def verify(some: FileSet, cache: str) -> list[str]:
        return verify_files(some, cache_dir=tmp_path / cache, max_pixels=10**6, workers=2, progress=False)

    reasons = verify(images, "a")
    assert reasons == verify(one, "b")
    assert sum(map(bool, reasons)) == 5
    labels = np.zeros(len(paths), np.int64)
    rules = FileRules(tmp_path / "a", on_bad_file="skip")
    index = index_files(images, labels, ("a",), rules)
    assert {bad.path.partition("!")[2] for bad in index.bad_files} == {
        path for path, reason in zip(paths, reasons, strict=True) if reason
    }
    assert [index.load_pixels(number).shape[2] for number in range(len(index))] == [3] * (len(paths) - 5)


def test_few_containers_are_open_at_once(folder: Path, tmp_path: Path) -> None:
    paths = ["cat/0.jpg"] * (MOST_OPEN + 20)
    images = pack_files(folder, paths, tmp_path, len(paths))
    assert images.containers is not None
    containers_module._open_file.cache_clear()
    before = len(os.listdir("/proc/self/fd"))
    for position, file in enumerate(images.files):
        assert images.containers.read(tmp_path, position, file.byte_size)[:2] == b"\xff\xd8"
    assert len(os.listdir("/proc/self/fd")) - before <= MOST_OPEN
    with pytest.raises(UnreadableImageError, match="ends within"):
        images.containers.read(tmp_path, 0, 10**6)
    containers_module._open_file.cache_clear()
    assert len(os.listdir("/proc/self/fd")) <= before
