from __future__ import annotations

import collections
import errno
import json
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from helpers.images import JPEG, encode, make_picture, save_jpeg
from PIL import Image

from alexnet_dist.base.durable import TEMPORARY, mark_name
from alexnet_dist.base.errors import DataError, MachineError, UsageError
from alexnet_dist.cli.main import run
from alexnet_dist.data.decode import Pixels
from alexnet_dist.data.engines import patience
from alexnet_dist.data.engines.cache import build as cache_build
from alexnet_dist.data.engines.cache import store as cache_store
from alexnet_dist.data.engines.cache.build import build_store, iterate_build
from alexnet_dist.data.engines.cache.store import Layout, check_cacheable, iterate_checks, lay_out, open_store
from alexnet_dist.data.engines.torchvision import resize_pixels
from alexnet_dist.data.files.names import Names
from alexnet_dist.data.index import BadFilesError, SampleIndex
from alexnet_dist.data.plan import Augmentation, Plan
from alexnet_dist.data.sources.folders import scan_folder
from alexnet_dist.data.sources.synthetic import synthetic_index

SHAPES = [(60, 40), (40, 60), (50, 50), (41, 90), (44, 44), (70, 45)]
LIMIT = 10**6


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three or so images in a chunk."""
    monkeypatch.setattr(cache_store, "CHUNK_BYTES", 14_000)
    monkeypatch.setattr(cache_store, "CHUNK_IMAGES", 5)


def write_images(root: Path) -> Path:
    """Two classes, twelve images of several shapes."""
    for number, (width, height) in enumerate(SHAPES):
        for name in ("cat", "dog"):
            save_jpeg(root / name / f"{number}.jpg", width, height)
    return root


def scan(root: Path, **changes: Any) -> SampleIndex:
    settings = {"classes": None, "on_bad_file": "fail", "cache_dir": root.parent / "scans", **changes}
    return scan_folder(root, **settings)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images")


def plan_layout(root: Path, resize: Any = 32, channels: int = 3, **changes: Any) -> Layout:
    return lay_out(root.parent / "cache", scan(root, **changes), resize, channels, LIMIT)


def build(layout: Layout, **changes: Any) -> None:
    build_store(layout, **{"workers": 0, "on_bad_file": "fail", "progress": False, **changes})


def build_some(layout: Layout, num_chunks: int) -> None:
    """As a process does that is stopped."""
    steps = iterate_build(layout, workers=0, on_bad_file="fail", progress=False)
    for _ in range(num_chunks):
        next(steps)
    steps.close()  # type: ignore[attr-defined]


def make_reference(layout: Layout, resize: Any, sample: int) -> Pixels:
    """What the reference makes of an image before it cuts it."""
    index = layout.index
    rows = Plan(index.sizes, Augmentation(1, resize), len(index), 0, shuffle=False).at(0)
    return resize_pixels(index.load_pixels(sample, layout.channels), *rows.resized[sample].tolist())


def find_differences(layout: Layout, resize: Any) -> list[int]:
    """Images that are not, bit by bit, what the reference makes of them."""
    store = open_store(layout)
    pairs = ((store.load(n).numpy(), make_reference(layout, resize, n)) for n in range(len(layout.index)))
    return [n for n, (found, expected) in enumerate(pairs) if not np.array_equal(found, expected)]


class Folder(NamedTuple):
    """Contents by name."""

    files: dict[str, bytes]

    @classmethod
    def read(cls, folder: Path) -> Folder:
        found = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
        return cls({path.relative_to(folder).as_posix(): path.read_bytes() for path in found})


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> collections.Counter[str]:
    """How often each file was decoded."""
    counts: collections.Counter[str] = collections.Counter()
    load = SampleIndex.load_pixels

    def count(index: SampleIndex, sample: int, *rest: Any) -> Pixels:
        counts[index.paths[sample]] += 1
        return load(index, sample, *rest)

    monkeypatch.setattr(SampleIndex, "load_pixels", count)
    return counts


# -- what is kept -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("resize", [32, (24, 30), None])
def test_images_are_kept_as_the_reference_resizes_them(root: Path, resize: Any, channels: int) -> None:
    layout = plan_layout(root, resize, channels)
    build(layout)
    assert layout.num_chunks > 1
    assert find_differences(layout, resize) == []


def test_that_comparison_notices_one_wrong_pixel(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_store.Store, "_check", lambda *_: None)  # which notices it, too
    layout = plan_layout(root)
    build(layout)
    damage(layout.chunk_path(1), lambda data: data[:7] + bytes([data[7] ^ 1]) + data[8:])
    assert find_differences(layout, 32) == [layout.chunk_ids(1).start]


def test_small_images_are_kept_at_their_own_size(tmp_path: Path) -> None:
    index = synthetic_index(6, 3, (20, 16), seed=0)
    enlarged, own = (lay_out(tmp_path, index, resize, 3, LIMIT) for resize in (100, None))
    assert enlarged.sizes.tolist() == [[20, 16]] * 6
    assert enlarged.folder == own.folder  # whatever they will be enlarged to
    assert lay_out(tmp_path, index, 8, 3, LIMIT).sizes.tolist() == [[10, 8]] * 6


def test_layout_leaves_no_gap(root: Path) -> None:
    layout = plan_layout(root)
    ends = layout.offsets + layout.sizes.prod(axis=1) * 3
    for number in range(layout.num_chunks):
        ids = list(layout.chunk_ids(number))
        assert [0, *ends[ids]] == [*layout.offsets[ids], layout.count_bytes(number)]
    assert layout.total_bytes == layout.sizes.prod(axis=1).sum() * 3
    assert [*range(12)] == [n for number in range(layout.num_chunks) for n in layout.chunk_ids(number)]


@pytest.mark.parametrize("limit", ["CHUNK_BYTES", "CHUNK_IMAGES"])
def test_a_chunk_has_an_image_at_least(root: Path, monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    monkeypatch.setattr(cache_store, limit, 1)
    assert plan_layout(root).bounds.tolist() == [*range(13)]


@dataclass(frozen=True)
class OtherPixels:
    """Not the pictures of the files."""

    def load(self, path: str) -> Pixels:
        return make_picture()


def test_key_stands_for_all_that_pixels_depend_on(root: Path) -> None:
    index = scan(root)
    sizes, byte_sizes = index.sizes.copy(), index.byte_sizes.copy()
    sizes[3, 0] += 1
    byte_sizes[3] += 1
    changed = [
        replace(index, sizes=sizes),
        replace(index, byte_sizes=byte_sizes),
        replace(index, paths=Names.of([*index.paths[:-1], "dog/other.jpg"])),
        replace(index, pixels=OtherPixels()),
        index.subset(range(11)),
    ]
    recipes = [(32, 3, LIMIT), (33, 3, LIMIT), ((32, 32), 3, LIMIT), (None, 3, LIMIT), (32, 1, LIMIT), (32, 3, 10**7)]
    layouts = [lay_out(root, other, 32, 3, LIMIT) for other in changed]
    layouts += [lay_out(root, index, *recipe) for recipe in recipes]
    assert len({layout.folder for layout in layouts}) == len(layouts)


def test_images_that_move_keep_their_cache(root: Path, decoded: collections.Counter[str]) -> None:
    build(plan_layout(root))
    root.rename(root.with_name("moved"))
    build(plan_layout(root.with_name("moved")))
    assert set(decoded.values()) == {1}


@pytest.mark.parametrize("crop", ["centre", "random", "random_resized"])
def test_recipe_that_needs_the_originals_is_refused(crop: str) -> None:
    if crop != "random_resized":
        check_cacheable(crop)
        return
    with pytest.raises(UsageError, match=r"random_resized needs the originals; use dali or torchvision"):
        check_cacheable(crop)


def test_nothing_is_written_among_the_images(root: Path) -> None:
    before = Folder.read(root)
    build(plan_layout(root))
    assert Folder.read(root) == before


# -- building ---------------------------------------------------------------------------------------------------------


@pytest.mark.heavy
def test_processes_build_what_one_builds(root: Path) -> None:
    layout = plan_layout(root)
    build(layout)
    expected = Folder.read(layout.folder)
    (layout.folder / cache_store.MANIFEST).unlink()
    for number in range(layout.num_chunks):
        layout.chunk_path(number).unlink()
    build(layout, workers=2)
    assert Folder.read(layout.folder) == expected


@dataclass(frozen=True)
class Deadly:
    """Kills the process that reads the seventh picture."""

    parent: int
    way: int = signal.SIGKILL

    def load(self, path: str) -> Pixels:
        if path == "6" and os.getpid() != self.parent:
            os.kill(os.getpid(), self.way)
        return make_picture()


@pytest.mark.heavy
def test_a_killed_worker_is_named(root: Path, tmp_path: Path) -> None:
    index = replace(scan(root), paths=Names.of(map(str, range(12))), pixels=Deadly(os.getpid()))
    index.sizes[:] = (40, 24)
    layout = lay_out(tmp_path, index, None, 3, LIMIT)
    with pytest.raises(MachineError, match="a decoding process was killed"):
        build(layout, workers=2)
    assert not layout.is_whole
    build(layout)
    assert layout.is_whole


@pytest.mark.heavy
@pytest.mark.slow  # the loader's own stays in the lane
def test_a_stopped_worker_is_named(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = replace(scan(root), paths=Names.of(map(str, range(12))), pixels=Deadly(os.getpid(), signal.SIGSTOP))
    index.sizes[:] = (40, 24)
    monkeypatch.setattr(patience, "LIMIT_SECONDS", 40)
    monkeypatch.setattr(patience, "TURN_SECONDS", 0.2)
    with pytest.raises(MachineError, match=r"no pictures for 40 s: worker \d+ is stopped; see to the process"):
        build(lay_out(tmp_path, index, None, 3, LIMIT), workers=2)


@pytest.mark.parametrize("name", ["cats", "0123456789abcdef", "fedcba9876543210"])
def test_a_users_folder_is_no_cache(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "00000.bin").touch()
    assert cache_store.is_cache(tmp_path / name) == (name != "cats")
    (tmp_path / name / "mine.jpg").touch()
    assert not cache_store.is_cache(tmp_path / name)


def test_a_stopped_build_goes_on_where_it_was(root: Path, decoded: collections.Counter[str]) -> None:
    layout = plan_layout(root)
    build_some(layout, 2)
    assert not layout.is_whole
    assert len(decoded) == layout.bounds[2]
    killed, users = mark_name(layout.folder / "00003.bin", TEMPORARY), layout.folder / "00003.bin.tmp"
    killed.write_bytes(b"of a killed process")
    users.write_bytes(b"of its user")
    build(layout)
    assert decoded == collections.Counter(layout.index.paths)  # each once
    assert not killed.exists()
    assert users.exists()
    assert find_differences(layout, 32) == []


def test_a_chunk_that_was_cut_in_a_stopped_build_is_made_again(root: Path, decoded: collections.Counter[str]) -> None:
    layout = plan_layout(root)
    build_some(layout, 2)
    damage(layout.chunk_path(0), lambda data: data[:-100])
    build(layout)
    assert decoded == collections.Counter(layout.index.paths) + collections.Counter(layout.index.paths[:3])
    assert find_differences(layout, 32) == []


def test_a_whole_cache_is_neither_decoded_nor_written_again(root: Path, decoded: collections.Counter[str]) -> None:
    layout = plan_layout(root)
    build(layout)
    before = list_writes(layout.folder)
    decoded.clear()
    build(plan_layout(root))
    assert not decoded
    assert list_writes(layout.folder) == before


def list_writes(folder: Path) -> dict[Path, tuple[int, ...]]:
    """What a file shows of being written: a look at it may change when it was last read."""
    stats = {path: path.stat() for path in folder.rglob("*")}
    return {path: (stat.st_ino, stat.st_size, stat.st_mtime_ns) for path, stat in stats.items()}


def test_two_builders_share_the_work(root: Path, decoded: collections.Counter[str], caplog: Any) -> None:
    layout = plan_layout(root)
    steps = iterate_build(layout, workers=0, on_bad_file="fail", progress=False)
    next(steps)
    other = threading.Thread(target=build, args=(layout,))
    with caplog.at_level(logging.INFO, logger="alexnet_dist"):
        other.start()
        while "waiting" not in caplog.text:
            assert other.is_alive()
    list(steps)
    other.join()
    assert decoded == collections.Counter(layout.index.paths)
    assert layout.is_whole


# -- images that change, and images that are bad ----------------------------------------------------------------------


def repaint(path: Path) -> None:
    """Another picture in the same file, later, with as many bytes."""
    data, stat = path.read_bytes(), path.stat()
    path.write_bytes(data[:-4] + bytes(255 - byte for byte in data[-4:]))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))


def test_an_image_that_was_edited_is_cached_again(root: Path, decoded: collections.Counter[str]) -> None:
    for path in root.rglob("*.jpg"):  # files whose length says nothing
        Image.open(path).save(path.with_suffix(".bmp"))
        path.unlink()
    layout = plan_layout(root)
    build(layout)
    repaint(root / "dog" / "2.bmp")
    assert find_differences(layout, 32) == [8]
    decoded.clear()
    edited = plan_layout(root)
    assert edited.folder == layout.folder
    build(edited)
    chunk = np.searchsorted(layout.bounds, 8, side="right") - 1
    assert decoded == collections.Counter(layout.index.paths[n] for n in layout.chunk_ids(chunk))
    assert find_differences(edited, 32) == []


@pytest.fixture
def damaged_root(root: Path) -> Path:
    """Two files are cut off in their pixels, with whole headers."""
    for name, (width, height) in (("cat/3.jpg", SHAPES[3]), ("dog/0.jpg", SHAPES[0])):
        (root / name).write_bytes(encode(Image.fromarray(make_picture(width, height)), **JPEG)[:700])
    return root


def test_all_bad_files_are_named(damaged_root: Path) -> None:
    layout = plan_layout(damaged_root)
    with pytest.raises(BadFilesError, match=r"unreadable image \(.*cat/3.jpg\): .*and 1 more; remove them") as caught:
        build(layout)
    assert [bad.path for bad in caught.value.bad_files] == ["cat/3.jpg", "dog/0.jpg"]
    assert caught.value.root == damaged_root


def test_bad_files_are_noted_where_they_are_skipped(damaged_root: Path) -> None:
    layout = plan_layout(damaged_root)
    build(layout, on_bad_file="skip")
    store = open_store(layout)
    assert list(store.bad_files) == [3, 6]
    assert "truncated" in store.bad_files[3]
    noted = json.loads((layout.folder / cache_store.MANIFEST).read_text())["bad_files"]
    assert [(sample, path) for sample, path, _ in noted] == [(3, "cat/3.jpg"), (6, "dog/0.jpg")]
    assert not store.load(3).any()


def test_a_bad_file_that_can_be_read_again_is_cached(
    damaged_root: Path, monkeypatch: pytest.MonkeyPatch, decoded: collections.Counter[str]
) -> None:
    """As after a lost connection or a wrong permission: the file itself does not change."""
    load, is_lost = SampleIndex.load_pixels, True

    def lose(index: SampleIndex, sample: int, *rest: Any) -> Pixels:
        if is_lost and index.paths[sample] == "cat/0.jpg":
            raise cache_build.UnreadableImageError("Permission denied")
        return load(index, sample, *rest)

    monkeypatch.setattr(SampleIndex, "load_pixels", lose)
    layout = plan_layout(damaged_root)
    build(layout, on_bad_file="skip")
    assert 0 in open_store(layout).bad_files
    is_lost = False
    decoded.clear()
    build(layout, on_bad_file="skip")
    assert list(open_store(layout).bad_files) == [3, 6]
    assert set(decoded) == {"cat/0.jpg", "cat/1.jpg", "cat/2.jpg", "cat/3.jpg", "dog/0.jpg"}  # a chunk and the bad


# -- damage -----------------------------------------------------------------------------------------------------------


def damage(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


def edit_manifest(path: Path, key: str, value: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))


DAMAGES: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "short chunk": ("00001.bin", lambda path: damage(path, lambda data: data[:-5000]), "bytes"),
    "long chunk": ("00001.bin", lambda path: damage(path, lambda data: data + b"more"), "bytes"),
    "empty chunk": ("00001.bin", lambda path: path.write_bytes(b""), "bytes"),
    "missing chunk": ("00001.bin", lambda path: path.unlink(), "No such file"),
    "foreign file": ("00001.bin", lambda path: path.write_bytes(os.urandom(20_000)), "bytes"),
    "flipped footer": ("00001.bin", lambda path: damage(path, lambda data: data[:-60] + b"?" + data[-59:]), "footer"),
    "other chunk": ("00001.bin", lambda path: path.write_bytes((path.parent / "00003.bin").read_bytes()), ""),
    "garbage manifest": ("manifest.json", lambda path: path.write_bytes(b"\0garbage"), "cannot be read"),
    "half manifest": ("manifest.json", lambda path: damage(path, lambda data: data[: len(data) // 2]), "cannot be"),
    "list": ("manifest.json", lambda path: path.write_text("[]"), "cannot be read"),
    "other version": ("manifest.json", lambda path: edit_manifest(path, "format", 2), "its format is 2"),
    "other images": ("manifest.json", lambda path: edit_manifest(path, "fingerprint", "ab"), "another cache"),
    "other sums": (
        "manifest.json",
        lambda path: path.write_text(path.read_text().replace('"sha256": "', '"sha256": "0')),
        "another sha256",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_refused_by_name_and_can_be_mended(root: Path, name: str) -> None:
    layout = plan_layout(root)
    build(layout)
    expected = Folder.read(layout.folder)
    file, change, why = DAMAGES[name]
    change(layout.folder / file)
    place = "0000[01].bin" if name == "other sums" else file
    match = rf"damaged image cache \(.*{place}\): .*{why}.*; delete it and run .*prepare.py cache"
    with pytest.raises(DataError, match=match):
        open_store(layout)
    with pytest.raises(DataError, match=match):
        build(layout)
    build(layout, repair=True)
    assert Folder.read(layout.folder) == expected


def test_images_that_were_never_cached_are_refused(root: Path) -> None:
    with pytest.raises(DataError, match=r"these images are not cached \(.*\); run .*prepare.py cache"):
        open_store(plan_layout(root))


def test_check_finds_a_flipped_bit(root: Path) -> None:
    layout = plan_layout(root)
    build(layout)
    assert sum(iterate_checks(layout)) == 12
    damage(layout.chunk_path(2), lambda data: data[:99] + bytes([data[99] ^ 4]) + data[100:])
    with pytest.raises(DataError, match=r"damaged image cache \(.*00002.bin\): its sha256 is"):
        list(iterate_checks(layout))


@pytest.mark.parametrize("is_old", [False, True], ids=["a sum for each image", "one for a chunk"])
def test_pixels_that_changed_are_never_used(root: Path, is_old: bool) -> None:
    layout = plan_layout(root)
    build(layout)
    damage(layout.chunk_path(1), lambda data: bytes([data[0] ^ 4]) + data[1:])
    store = open_store(layout)
    if is_old:  # what an older version wrote
        store = replace(store, footers=[replace(footer, sums=()) for footer in store.footers])
    ids = layout.chunk_ids(1)
    for sample in range(ids.start):
        assert np.array_equal(store.load(sample), make_reference(layout, 32, sample))
    with pytest.raises(DataError, match=r"00001.bin\): the pixels of \w+/\d.jpg are not those .* delete it"):
        store.load(ids.start)
    layout.chunk_path(1).unlink()  # the remedy
    build(layout, repair=True)
    assert find_differences(layout, 32) == []


@pytest.mark.parametrize("name", ["00001.bin", "manifest.json"])
def test_a_pipe_in_place_of_a_file_is_no_cache(root: Path, name: str) -> None:
    layout = plan_layout(root)
    build(layout)
    (layout.folder / name).unlink()
    os.mkfifo(layout.folder / name)
    with pytest.raises(DataError, match=r"damaged|not cached"):
        open_store(layout)


# -- the disk ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The third file that is flushed finds no space."""
    calls, sync = iter(range(100)), os.fsync

    def fail(descriptor: int) -> None:
        if next(calls) >= 4:  # a chunk takes two: the file, the folder
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        yield


def test_a_full_disk_keeps_what_was_there(root: Path, request: pytest.FixtureRequest) -> None:
    older = plan_layout(root, 24)
    build(older)
    expected = Folder.read(older.folder)
    layout = plan_layout(root)
    with pytest.MonkeyPatch.context():
        request.getfixturevalue("full_disk")
        with pytest.raises(MachineError, match=r"cannot write .*No space left on device; .*--data.cache_dir"):
            build(layout)
    assert Folder.read(older.folder) == expected
    assert sorted(Folder.read(layout.folder).files) == ["00000.bin", "00001.bin"]


def test_a_build_goes_on_after_a_full_disk(
    root: Path, request: pytest.FixtureRequest, decoded: collections.Counter[str]
) -> None:
    layout, sync = plan_layout(root), os.fsync
    request.getfixturevalue("full_disk")
    with pytest.raises(MachineError):
        build(layout)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", sync)
        build(layout)
    failed = layout.index.paths[layout.bounds[2] : layout.bounds[3]]
    assert decoded == collections.Counter(layout.index.paths) + collections.Counter(failed)
    assert find_differences(layout, 32) == []


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = plan_layout(root)
    free = layout.total_bytes - 1
    monkeypatch.setattr("shutil.disk_usage", lambda place: collections.namedtuple("U", "free")(free))
    with pytest.raises(MachineError, match=r"too little space for the image cache .*: .* are needed, .* are free"):
        build(layout)
    assert not layout.folder.parent.exists()
    free += 1
    build(layout)


def test_only_what_is_missing_needs_space(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = plan_layout(root)
    build_some(layout, 2)
    free = sum(map(layout.count_bytes, range(2, layout.num_chunks)))
    monkeypatch.setattr("shutil.disk_usage", lambda place: collections.namedtuple("U", "free")(free))
    build(layout)


def test_a_cache_folder_that_cannot_be_made_is_named(root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    layout = lay_out(tmp_path / "file", scan(root), 32, 3, LIMIT)
    with pytest.raises(MachineError, match=r"cannot write .*Not a directory; .*--data.cache_dir"):
        build(layout)


def test_a_disk_that_gives_back_something_else_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = plan_layout(root)
    monkeypatch.setattr("alexnet_dist.data.engines.cache.chunks.hash_pixels", lambda path, num_bytes: "0" * 64)
    with pytest.raises(MachineError, match=r"cannot keep images .*what was read back is not what was written"):
        build(layout)
    assert Folder.read(layout.folder) == Folder({})


# -- the verb ---------------------------------------------------------------------------------------------------------


def prepare(root: Path, *words: str) -> int:
    settings = [f"--data.root={root.parent}", f"--data.train={root.name}", f"--data.cache_dir={root.parent / 'cache'}"]
    recipe = ["--augment.resize=64", "--augment.crop=centre", "--model.image_size=64", "--data.workers=0"]
    shape = ["--model.variant=torchvision", "--data.source=folder", "--data.val_fraction=0.25"]
    return run("prepare", ["cache", "--config", "smoke", *settings, *recipe, *shape, *words])


def test_verb_builds_checks_and_says_what(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare(root) == 0
    assert prepare(root, "--check") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if " images, " in line]
    assert [line.split()[:2] for line in lines] == [["train", "9"], ["val", "3"]] * 2
    folders = {line.partition(" s: ")[2] for line in lines}
    assert folders == set(map(str, (root.parent / "cache" / "images").iterdir()))
    assert " 0 bad, 0.1 MB, " in lines[0]


def test_verb_says_what_other_caches_take(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(root)
    assert "other caches" not in capsys.readouterr().out
    prepare(root, "--augment.resize=[64, 64]", "--data.val_fraction=0")
    parent = root.parent / "cache" / "images"
    assert f"2 other caches in {parent} take 0.1 MB; delete those that no run needs" in capsys.readouterr().out


def test_verb_names_a_flipped_bit(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(root)
    chunk = min((root.parent / "cache" / "images").rglob("00000.bin"))
    damage(chunk, lambda data: bytes([data[0] ^ 1]) + data[1:])
    capsys.readouterr()
    assert prepare(root, "--check") == 3
    assert capsys.readouterr().err.startswith(f"error: damaged image cache ({chunk}): its sha256")


@pytest.mark.parametrize(
    ("word", "code", "why"),
    [
        ("--augment.crop=random_resized", 2, "needs the originals; use dali or torchvision"),
        ("--augment.resize=63", 3, "smaller than the crop of 64: "),
        ("--check", 3, "these images are not cached"),
        ("--data.cache_dir=/dev/null", 5, "--data.cache_dir"),
    ],
)
def test_verb_ends_with_the_code_of_its_error(
    root: Path, capsys: pytest.CaptureFixture[str], word: str, code: int, why: str
) -> None:
    assert prepare(root, word) == code
    assert why in capsys.readouterr().err


def test_pixels_are_mapped_not_copied(root: Path) -> None:
    layout = plan_layout(root)
    build(layout)
    store = open_store(layout)
    assert store.load(0).untyped_storage().data_ptr() == store.chunks[0].data_ptr()
    assert store.load(5).dtype == torch.uint8
