from __future__ import annotations

import dataclasses
import hashlib
import logging
import multiprocessing
import os
import pickle
import re
import shutil
import subprocess
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.images import make_picture, save_jpeg
from PIL import Image

from alexnet_dist.base.errors import DataError, MachineError, UsageError
from alexnet_dist.data.decode import UnreadableImageError, convert_to_luma, read_header
from alexnet_dist.data.files import scan as header_scan
from alexnet_dist.data.index import (
    BadFilesError,
    SampleIndex,
    scan_folder,
    split_validation,
    synthetic_index,
)
from alexnet_dist.data.sources import folders as class_folders
from alexnet_dist.data.sources.digits import prepare_digits

TEST_DATA = os.environ.get("ALEXNET_DIST_TEST_DATA")


def scan(root: Path, **settings: Any) -> SampleIndex:
    defaults: dict[str, Any] = {"classes": None, "on_bad_file": "fail", "cache_dir": root.parent / "cache"}
    return scan_folder(root, **(defaults | settings))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three classes with 2, 3 and 4 images; one nested, one of another size."""
    folder = tmp_path / "train"
    for name, count in (("cat", 2), ("dog", 3), ("red fox", 4)):
        for number in range(count):
            save_jpeg(folder / name / f"{number}.jpg")
    save_jpeg(folder / "dog" / "more" / "wide.JPEG", width=64, height=16)
    return folder


@pytest.fixture
def header_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths whose headers were really read."""
    reads: list[str] = []

    def read(path: str, max_pixels: int) -> tuple[int, int]:
        reads.append(path)
        return read_header(path, max_pixels)

    monkeypatch.setattr(header_scan, "read_header", read)
    return reads


def refused(root: Path, **settings: Any) -> str:
    """The one line with which a scan is refused."""
    with pytest.raises(DataError) as error:
        scan(root, **settings)
    assert error.value.exit_code == 3
    line = str(error.value)
    assert "\n" not in line
    assert ";" in line  # a remedy
    return line


def test_index_of_class_folders(root: Path) -> None:
    index = scan(root)

    assert index.classes == ("cat", "dog", "red fox")
    assert index.paths[:2] == ("cat/0.jpg", "cat/1.jpg")
    assert index.paths[2:6] == ("dog/0.jpg", "dog/1.jpg", "dog/2.jpg", "dog/more/wide.JPEG")
    assert index.labels.dtype == np.int64
    assert index.labels.tolist() == [0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
    assert index.sizes.dtype == np.int32
    assert index.sizes[[0, 5]].tolist() == [[40, 24], [64, 16]]
    assert index.byte_sizes[5] == (root / "dog/more/wide.JPEG").stat().st_size
    assert index.bad_files == ()
    assert len(index) == 10
    assert index.load_pixels(5, 3, 10_000).shape == (16, 64, 3)
    assert index.load_pixels(5, channels=1).shape == (16, 64, 1)
    assert pickle.loads(pickle.dumps(index)).fingerprint() == index.fingerprint()  # it travels to worker processes


def test_stray_files_and_folders_are_ignored(root: Path) -> None:
    expected = scan(root).paths
    save_jpeg(root / ".ipynb_checkpoints" / "a.jpg")
    save_jpeg(root / "__MACOSX" / "a.jpg")
    save_jpeg(root / "cat" / ".hidden" / "a.jpg")
    save_jpeg(root / "cat" / "._0.jpg")
    save_jpeg(root / "beside-the-classes.jpg")
    (root / "cat" / "notes.txt").write_text("not a picture")
    os.mkfifo(root / "cat" / "pipe.jpg")
    assert scan(root).paths == expected


def test_links_are_followed_but_not_in_circles(root: Path, tmp_path: Path) -> None:
    save_jpeg(tmp_path / "elsewhere" / "a.jpg")
    (root / "owl").symlink_to(tmp_path / "elsewhere")
    (root / "cat" / "link.jpg").symlink_to(root / "cat" / "0.jpg")
    (root / "cat" / "upwards").symlink_to(root)
    (root / "dog" / "same").symlink_to(".")
    index = scan(root)
    assert index.classes == ("cat", "dog", "owl", "red fox")
    assert [path for path in index.paths if path.startswith(("cat", "owl"))] == [
        "cat/0.jpg",
        "cat/1.jpg",
        "cat/link.jpg",
        "owl/a.jpg",
    ]
    assert len(index) == 12


def test_links_between_classes_are_refused_and_end(root: Path) -> None:
    """Each of three folders leads to the others: paths without end, and every picture would have every label."""
    names = ("cat", "dog", "red fox")
    for name in names:
        for other in set(names) - {name}:
            (root / name / other).symlink_to(f"../{other}")
    line = refused(root)
    assert "a folder lies in two classes, 'cat' and 'dog'" in line
    assert "one folder, through a link; remove the link" in line


@pytest.mark.parametrize("link", ["kitten", "dog/another"])
def test_one_folder_with_two_labels_is_refused(root: Path, link: str) -> None:
    (root / link).symlink_to(root / "cat")
    assert "a folder lies in two classes" in refused(root)


def test_folders_are_read_once_whatever_links_lead_to_them(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = scan(root).paths
    for level in range(12):  # 2,048 ways to the last one
        (root / "cat" / "deep" / str(level)).mkdir(parents=True)
    for level in range(11):
        for way in "ab":
            (root / "cat" / "deep" / str(level) / way).symlink_to(f"../{level + 1}")
    (root / "loop").symlink_to(root)
    with caplog.at_level(logging.WARNING, "alexnet_dist"):
        assert scan(root).paths == expected
    assert "23 links passed over, to folders that are read already or hold the link, 'loop', 'cat/deep" in caplog.text


def test_a_picture_in_two_classes_is_said(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    (root / "dog" / "again.jpg").symlink_to(root / "cat" / "0.jpg")
    os.link(root / "cat" / "1.jpg", root / "red fox" / "again.jpg")
    (root / "cat" / "twice.jpg").symlink_to("0.jpg")  # of one class: no label is wrong
    with caplog.at_level(logging.WARNING, "alexnet_dist"):
        scan(root)
    assert "2 pictures in more than one class, through links" in caplog.text


def test_without_links_no_places_are_compared(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A million of them are half a second at each start."""
    monkeypatch.setattr(np, "lexsort", lambda *_: pytest.fail("compared"))
    assert len(class_folders.list_images(root, ["cat", "dog", "red fox"])) == 3


SYSTEM = [".ipynb_checkpoints", "$RECYCLE.BIN", "System Volume Information", "lost+found", "@eaDir", "__MACOSX"]


@pytest.mark.parametrize("place", ["", "cat"])
def test_folders_of_the_system_are_passed_over_in_one_line(
    root: Path, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    expected = scan(root).paths
    for name in SYSTEM:
        save_jpeg(root / place / name / "a.jpg")
    with caplog.at_level(logging.WARNING, "alexnet_dist"):
        assert scan(root).paths == expected
    (line,) = caplog.messages
    assert "6 folders of the system or hidden passed over" in line
    assert sum(name in line for name in SYSTEM) == 5  # and 1 more


def test_pictures_of_other_kinds_are_counted(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a.heic", "b.HEIC", "c.svg"):
        (root / "cat" / name).write_bytes(b"")
    with caplog.at_level(logging.WARNING, "alexnet_dist"):
        scan(root)
    assert "pictures of a kind that is not read: 2 .heic, 1 .svg" in caplog.text
    (root / "eel").mkdir()
    (root / "eel" / "a.heic").write_bytes(b"")
    assert "'eel'; pictures of a kind that is not read: 1 .heic; add images" in refused(root)


def test_the_val_of_tiny_imagenet_becomes_class_folders_by_the_remedy(tmp_path: Path) -> None:
    val = tmp_path / "tiny val"
    for number in range(4):
        save_jpeg(val / "images" / f"val_{number}.JPEG")
    table = "".join(f"val_{number}.JPEG\tn0{number % 2}\t0\t0\t9\t9\n" for number in range(4))
    (val / "val_annotations.txt").write_text(table)
    line = refused(val)
    assert "val_annotations.txt has the classes of images/" in line
    subprocess.run(["bash", "-c", line.partition("images/; ")[2]], check=True)
    assert scan(val).paths == ("n00/val_0.JPEG", "n00/val_2.JPEG", "n01/val_1.JPEG", "n01/val_3.JPEG")


def test_folders_of_sets_are_no_classes(root: Path) -> None:
    (root.parent / "val").mkdir()
    root.rename(root.parent / "train")
    line = refused(root.parent)
    assert line.startswith(f"folders of sets where classes should be ({root.parent}): it holds train, val; ")


@pytest.mark.parametrize(
    ("there", "missing"),
    [("valid", "val"), ("validation", "val"), ("Train", "train"), ("tets", "test")],
)
def test_a_missing_folder_is_said_with_what_lies_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: str, missing: str
) -> None:
    (tmp_path / "pets" / there).mkdir(parents=True)
    (tmp_path / "pets" / "readme.txt").write_text("")
    monkeypatch.chdir(tmp_path)
    line = refused(Path("pets") / missing)
    assert str(tmp_path / "pets" / missing) in line  # where it looked, whatever the working folder
    assert "'readme.txt'" in line
    assert f"did you mean '{there}'?" in line
    assert f"'{tmp_path}' has 'pets'" in refused(Path("other") / missing)


def test_link_to_nowhere_is_a_bad_file(root: Path) -> None:
    (root / "cat" / "gone.jpg").symlink_to(root / "nowhere")
    (root / "cat" / "itself.jpg").symlink_to("itself.jpg")
    reasons = {bad.path: bad.reason for bad in scan(root, on_bad_file="skip").bad_files}
    assert reasons == {
        "cat/gone.jpg": "No such file or directory",
        "cat/itself.jpg": "Too many levels of symbolic links",
    }


def test_classes_are_matched_by_name(root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_jpeg(tmp_path / "val" / "red fox" / "a.jpg")
    save_jpeg(tmp_path / "val" / "cat" / "b.jpg")
    with caplog.at_level(logging.WARNING, "alexnet_dist"):
        index = scan(tmp_path / "val", classes=scan(root).classes)
    assert index.classes == ("cat", "dog", "red fox")
    assert index.paths == ("cat/b.jpg", "red fox/a.jpg")
    assert index.labels.tolist() == [0, 2]  # numbered by itself this set would say 1
    assert "'dog'" in caplog.text


def test_unicode_spelling_of_a_class_does_not_matter(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "Äpfel") for form in ("NFC", "NFD"))
    save_jpeg(tmp_path / "val" / decomposed / "a.jpg")
    assert scan(tmp_path / "val", classes=["Birnen", composed]).labels.tolist() == [1]
    save_jpeg(tmp_path / "val" / composed / "a.jpg")
    assert "two folders of one class" in refused(tmp_path / "val", classes=["Birnen", composed])


def _empty_two_classes(root: Path) -> None:
    (root / "eel").mkdir()
    (root / "emu" / "nested").mkdir(parents=True)


def _leave_images_only(root: Path) -> None:
    shutil.rmtree(root)
    save_jpeg(root / "a.jpg")


def _empty(root: Path) -> None:
    shutil.rmtree(root)
    root.mkdir()


def _make_file(root: Path) -> None:
    shutil.rmtree(root)
    root.write_text("")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (shutil.rmtree, ["no such folder", "data.root"]),
        (_make_file, ["not a folder"]),
        (_empty, ["no class folders", "ROOT/CLASS/IMAGE"]),
        (_leave_images_only, ["no class folders", "directly", "ROOT/CLASS/IMAGE"]),
        (_empty_two_classes, ["2 class folders without an image", "'eel', 'emu'"]),
    ],
)
def test_folder_that_cannot_be_meant(root: Path, spoil: Callable[[Path], None], words: list[str]) -> None:
    spoil(root)
    line = refused(root)
    assert str(root) in line
    assert [word for word in words if word not in line] == []


def test_class_that_training_lacks_is_named(root: Path) -> None:
    classes = scan(root).classes
    save_jpeg(root / "Cat" / "a.jpg")
    line = refused(root, classes=classes)
    assert line.startswith(f"1 class folder the training set does not have ({root}): 'Cat' (training has 'cat'); ")
    for number in range(7):
        save_jpeg(root / f"{number}" / "a.jpg")
    assert "8 class folders the training set does not have" in refused(root, classes=classes)
    assert "'0', '1', '2', '3', '4' and 3 more" in refused(root, classes=classes)


def test_folder_without_permission(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(class_folders.os, "scandir", refuse)  # the superuser may list any folder
    assert "Permission denied; mend the permissions" in refused(root)


def spoil_files(root: Path) -> None:
    (root / "dog" / "empty.jpg").write_bytes(b"")
    (root / "dog" / "page.jpg").write_bytes(b"<html></html>")
    (root / "cat" / "text.png").write_bytes(b"hello")
    (root / "red fox" / "cut.jpg").write_bytes((root / "red fox" / "0.jpg").read_bytes()[:50])


def test_bad_files_fail_together(root: Path) -> None:
    spoil_files(root)
    line = refused(root)
    assert line.startswith(f"unreadable image ({root}/cat/text.png): not an image")
    assert line.endswith("... and 3 more; remove them or set data.on_bad_file: skip")
    with pytest.raises(BadFilesError) as error:
        scan(root)
    assert len(error.value.bad_files) == 4


def test_bad_files_are_left_out(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = scan(root)
    spoil_files(root)
    with caplog.at_level(logging.WARNING, "alexnet_dist"):
        index = scan(root, on_bad_file="skip")
    assert index.paths == expected.paths
    assert np.array_equal(index.sizes, expected.sizes)
    assert index.fingerprint() == expected.fingerprint()
    assert [bad.path for bad in index.bad_files] == ["cat/text.png", "dog/empty.jpg", "dog/page.jpg", "red fox/cut.jpg"]
    assert index.bad_files[1].reason == "empty file"
    assert "4 of 14 images" in caplog.text


def test_nothing_readable_is_an_error_even_when_skipping(root: Path) -> None:
    for path in root.glob("*/**/*.*"):
        path.write_bytes(b"")
    assert "all 10 files are unreadable" in refused(root, on_bad_file="skip")


def test_too_many_pixels_are_refused_also_from_the_cache(root: Path) -> None:
    assert len(scan(root, max_pixels=64 * 16)) == 10
    assert "too many pixels (64x16" in refused(root, max_pixels=64 * 16 - 1)


def test_second_scan_reads_no_header(root: Path, header_reads: list[str]) -> None:
    first = scan(root)
    assert len(header_reads) == 10
    header_reads.clear()
    second = scan(root)
    assert header_reads == []
    assert np.array_equal(first.sizes, second.sizes)


def test_changed_and_new_files_are_read_again(root: Path, header_reads: list[str]) -> None:
    scan(root)
    header_reads.clear()
    save_jpeg(root / "cat" / "0.jpg", width=90, height=70)
    save_jpeg(root / "cat" / "new.jpg")
    os.utime(root / "cat" / "1.jpg", ns=(1, 1))  # same bytes, other time
    (root / "dog" / "0.jpg").unlink()
    index = scan(root)
    assert sorted(header_reads) == [str(root / "cat" / name) for name in ("0.jpg", "1.jpg", "new.jpg")]
    assert index.sizes[0].tolist() == [90, 70]
    header_reads.clear()
    scan(root)
    assert header_reads == []


def cache_file(root: Path) -> Path:
    (path,) = (root.parent / "cache" / "scans").iterdir()  # nothing else is left behind
    return path


def _cut(data: bytes) -> bytes:
    return data[:-3]


def _flip_one_digit(data: bytes) -> bytes:
    return data.replace(b",24,1\r\n", b",25,1\r\n", 1)


def _change_version(data: bytes) -> bytes:
    return re.sub(rb"scan \d+", b"scan 1", data, count=1)


def _clear(data: bytes) -> bytes:
    return b""


@pytest.mark.parametrize("damage", [_cut, _flip_one_digit, _change_version, _clear])
def test_damaged_cache_is_rebuilt(root: Path, header_reads: list[str], damage: Callable[[bytes], bytes]) -> None:
    expected = scan(root)
    good = cache_file(root).read_bytes()
    assert damage(good) != good
    cache_file(root).write_bytes(damage(good))
    header_reads.clear()
    assert np.array_equal(scan(root).sizes, expected.sizes)
    assert len(header_reads) == 10
    assert cache_file(root).read_bytes() == good


def test_unwritable_cache_only_costs_time(root: Path, tmp_path: Path) -> None:
    (tmp_path / "occupied").write_text("a file where the folder should be")
    assert len(scan(root, cache_dir=tmp_path / "occupied")) == 10


def test_failed_write_leaves_the_old_cache(
    root: Path, header_reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    scan(root)
    good = cache_file(root).read_bytes()
    save_jpeg(root / "cat" / "new.jpg")

    def fill_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(header_scan.os, "fsync", fill_disk)
        assert len(scan(root)) == 11
    assert cache_file(root).read_bytes() == good


def test_bar_appears_only_when_a_scan_is_slow(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    scan(root, progress=True, cache_dir=root.parent / "first")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(header_scan, "_BAR_DELAY_SECONDS", 0.0)
    scan(root, progress=False, cache_dir=root.parent / "second")
    assert capsys.readouterr().err == ""
    scan(root, progress=True, cache_dir=root.parent / "third")
    assert "10/10" in capsys.readouterr().err


def test_bad_files_are_never_remembered(root: Path, header_reads: list[str]) -> None:
    spoil_files(root)
    scan(root, on_bad_file="skip")
    header_reads.clear()
    scan(root, on_bad_file="skip")
    assert len(header_reads) == 4


@pytest.mark.parametrize(
    "name", ["a,b 'c'.jpg", 'say "x".jpg', "two\r\nlines.jpg", "猫 ä.jpg", os.fsdecode(b"\xff\xfe.jpg")]
)
def test_odd_names_survive_the_cache(root: Path, header_reads: list[str], name: str) -> None:
    save_jpeg(root / "cat" / name, width=33, height=11)
    scan(root)
    header_reads.clear()
    index = scan(root)
    assert header_reads == []
    position = index.paths.index(f"cat/{name}")
    assert index.sizes[position].tolist() == [33, 11]
    assert index.load_pixels(position).shape == (11, 33, 3)
    assert len(index.fingerprint()) == 64


def test_roots_do_not_share_a_cache(root: Path, tmp_path: Path) -> None:
    scan(root)
    shutil.copytree(root, tmp_path / "val")
    save_jpeg(tmp_path / "val" / "cat" / "0.jpg", width=90, height=70)
    scan(tmp_path / "val")
    assert len(list((tmp_path / "cache" / "scans").iterdir())) == 2


def test_fingerprint_does_not_depend_on_the_place(root: Path, tmp_path: Path) -> None:
    index = scan(root)
    shutil.copytree(root, tmp_path / "copy")
    assert scan(tmp_path / "copy").fingerprint() == index.fingerprint()
    assert index.subset(np.arange(10)[::-1]).fingerprint() == index.fingerprint()


def _change_label(index: SampleIndex) -> SampleIndex:
    return dataclasses.replace(index, labels=np.roll(index.labels, 1))


def _change_byte_size(index: SampleIndex) -> SampleIndex:
    return dataclasses.replace(index, byte_sizes=index.byte_sizes + (np.arange(10) == 4))


def _change_name(index: SampleIndex) -> SampleIndex:
    return dataclasses.replace(index, paths=("cat/00.jpg", *index.paths[1:]))


def _change_class(index: SampleIndex) -> SampleIndex:
    return dataclasses.replace(index, classes=("cat", "dog", "red wolf"))


def _drop_one(index: SampleIndex) -> SampleIndex:
    return index.subset(range(9))


@pytest.mark.parametrize("change", [_change_label, _change_byte_size, _change_name, _change_class, _drop_one])
def test_fingerprint_sees_a_change(root: Path, change: Callable[[SampleIndex], SampleIndex]) -> None:
    index = scan(root)
    assert change(index).fingerprint() != index.fingerprint()


def test_subset_keeps_samples_together(root: Path) -> None:
    index = scan(root)
    part = index.subset([5, 0])
    assert part.paths == ("dog/more/wide.JPEG", "cat/0.jpg")
    assert part.labels.tolist() == [1, 0]
    assert part.sizes.tolist() == [[64, 16], [40, 24]]
    assert part.byte_sizes.tolist() == index.byte_sizes[[5, 0]].tolist()
    assert part.classes == index.classes
    assert part.load_pixels(0).shape == (16, 64, 3)
    assert len(index.subset([])) == 0


def test_file_that_changed_after_the_scan_is_refused(root: Path) -> None:
    index = scan(root)
    save_jpeg(root / "cat" / "0.jpg", width=10, height=10)
    with pytest.raises(UnreadableImageError, match=r"changed since it was scanned: 10x10, was 40x24"):
        index.load_pixels(0)


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5])
def test_split_is_stratified_and_complete(fraction: float) -> None:
    index = synthetic_index(600, 4, (8, 8), seed=0).subset([i for i in range(600) if i % 4 or i % 8])  # unequal classes
    train, val = split_validation(index, fraction, seed=1)
    assert sorted(train.paths + val.paths) == sorted(index.paths)
    order = {path: position for position, path in enumerate(index.paths)}
    for part in (train, val):
        positions = [order[path] for path in part.paths]
        assert positions == sorted(positions)
        assert part.classes == index.classes
    wanted = np.bincount(index.labels) * fraction
    assert np.abs(np.bincount(val.labels) - wanted).max() <= 1
    assert len(val) == round(len(index) * fraction)


def test_split_follows_the_seed() -> None:
    index = synthetic_index(200, 4, (8, 8), seed=0)
    first, again, other = (split_validation(index, 0.2, seed)[1].paths for seed in (7, 7, 2**40 + 1))
    assert first == again
    assert first != other


def test_split_reports_bad_files_once(root: Path) -> None:
    spoil_files(root)
    train, val = split_validation(scan(root, on_bad_file="skip"), 0.4, seed=0)
    assert len(train.bad_files) == 4
    assert val.bad_files == ()


@pytest.mark.parametrize(
    ("counts", "fraction", "name"),
    [
        ((1, 9, 9), 0.3, "class-000"),
        ((9, 9, 2), 0.1, "class-002"),
        ((30, 30, 3), 0.1, "class-002"),
        ((9, 4, 9), 0.95, "class-001"),
    ],
)
def test_split_names_the_class_that_is_too_small(counts: tuple[int, ...], fraction: float, name: str) -> None:
    labels = np.repeat(np.arange(3), counts)
    ids = labels + 3 * np.concatenate([np.arange(count) for count in counts])  # in a synthetic set, class = id mod 3
    index = synthetic_index(90, 3, (8, 8), seed=0).subset(ids)
    with pytest.raises(DataError, match=f"cannot split off a validation set.*{name}.*; ") as error:
        split_validation(index, fraction, seed=0)
    assert error.value.exit_code == 3


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_split_refuses_a_fraction_that_is_none(fraction: float) -> None:
    with pytest.raises(UsageError, match=r"data\.val_fraction"):
        split_validation(synthetic_index(90, 3, (8, 8), seed=0), fraction, seed=0)


def hash_folder(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*/*")):
        digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


@pytest.mark.parametrize("name", ["README", "cats/1.jpg", "7/mine.jpg", "3/digit-1.jpg", "7/digit-0042.jpg/1.jpg"])
def test_a_folder_of_digits_that_is_its_users_stays(tmp_path: Path, name: str) -> None:
    path = tmp_path / "cache" / "digits" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(UsageError, match=r"data\.cache_dir"):
        prepare_digits(tmp_path / "cache")
    assert path.read_text() == "mine"


def test_digits(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    folder = prepare_digits(tmp_path / "cache")
    index = scan(folder)
    assert len(index) == 1797
    assert index.classes == tuple("0123456789")
    digits = load_digits()
    numbers = [int(path[-8:-4]) for path in index.paths]
    assert index.labels.tolist() == digits.target[numbers].tolist()
    assert (index.sizes == 8).all()
    pixels = np.stack([index.load_pixels(sample_id, channels=1)[:, :, 0] for sample_id in range(0, 1797, 50)])
    assert np.abs(pixels - digits.images[numbers[::50]] * 255 / 16).mean() < 3  # JPEG of quality 95 on sharp edges
    before = hash_folder(folder)
    (folder / "3" / "digit-0003.jpg").unlink()  # no longer complete: written again
    assert hash_folder(prepare_digits(tmp_path / "cache")) == before
    assert hash_folder(prepare_digits(tmp_path / "other")) == before
    assert [path.name for path in (tmp_path / "cache").glob(".*")] == [".digits.lock"]


def test_complete_digits_are_not_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = prepare_digits(tmp_path)
    monkeypatch.setattr("alexnet_dist.data.sources.digits._replace_digits", lambda folder: pytest.fail("written again"))
    assert prepare_digits(tmp_path) == folder


def test_two_processes_prepare_digits_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=prepare_digits, args=(tmp_path,)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(scan(tmp_path / "digits")) == 1797
    assert not list(tmp_path.glob(".digits.new*"))


def test_digits_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "occupied").write_text("")
    with pytest.raises(MachineError, match=r"cannot write digits.*data\.cache_dir"):
        prepare_digits(tmp_path / "occupied")


def test_synthetic_pixels_depend_on_nothing_but_seed_and_number() -> None:
    index = synthetic_index(40, 3, (20, 12), seed=5)
    assert index.classes == ("class-000", "class-001", "class-002")
    assert index.labels.tolist() == [number % 3 for number in range(40)]
    assert index.sizes[7].tolist() == [20, 12]
    pixels = index.load_pixels(7, 3, 10_000)
    assert pixels.shape == (12, 20, 3)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable
    np.random.seed(3)
    assert np.array_equal(index.load_pixels(7), pixels)
    assert np.array_equal(synthetic_index(9, 3, (20, 12), seed=5).subset([7]).load_pixels(0), pixels)
    assert np.array_equal(index.load_pixels(7, channels=1), convert_to_luma(pixels))
    assert not np.array_equal(index.load_pixels(10), pixels)
    assert not np.array_equal(synthetic_index(40, 3, (20, 12), seed=6).load_pixels(7), pixels)


def test_synthetic_bytes_are_the_same_everywhere() -> None:
    index = synthetic_index(2000, 1000, (33, 17), seed=-1)
    digest = hashlib.sha256(b"".join(index.load_pixels(number).tobytes() for number in (0, 1, 999, 1999)))
    assert digest.hexdigest()[:16] == "030d3de9e9a06eb2"


def test_synthetic_fingerprint_sees_the_settings() -> None:
    sets = [
        synthetic_index(*settings)
        for settings in ((9, 3, (8, 8), 0), (9, 3, (8, 8), 1), (9, 3, (8, 9), 0), (9, 4, (8, 8), 0), (8, 3, (8, 8), 0))
    ]
    assert len({index.fingerprint() for index in sets}) == 5
    assert synthetic_index(9, 3, (8, 8), 0).fingerprint() == sets[0].fingerprint()


def test_synthetic_classes_can_be_learnt_across_seeds() -> None:
    means = []
    for seed in (0, 1):
        index = synthetic_index(100, 10, (32, 32), seed)
        means.append(np.stack([index.load_pixels(number).mean(axis=(0, 1)) for number in range(100)]))
    distances = np.linalg.norm(means[1][:, None] - means[0][None], axis=2)  # (100 of seed 1, 100 of seed 0)
    nearest = distances.argmin(axis=1) % 10
    assert (nearest == np.arange(100) % 10).mean() > 0.9


@pytest.mark.skipif(TEST_DATA is None, reason="ALEXNET_DIST_TEST_DATA is not set")
@pytest.mark.parametrize(
    ("name", "num_images", "num_classes"), [("fruits10/train", 1000, 10), ("imagenet_sample", 200, 200)]
)
def test_real_folders(tmp_path: Path, name: str, num_images: int, num_classes: int) -> None:
    index = scan(Path(str(TEST_DATA), name), cache_dir=tmp_path)
    assert (len(index), len(index.classes)) == (num_images, num_classes)
    for sample_id in range(0, num_images, num_images // 10):
        with Image.open(index.root / index.paths[sample_id]) as image:
            assert index.sizes[sample_id].tolist() == list(image.size)
        assert index.load_pixels(sample_id).shape[2] == 3


def test_picture_of_the_helper_is_not_symmetric() -> None:
    picture = make_picture(12, 12).astype(int)
    turns = [np.rot90(side, turn) for side in (picture, picture[:, ::-1]) for turn in range(4)]
    assert all(np.abs(turns[a] - turns[b]).max() > 50 for a in range(8) for b in range(a))
