from __future__ import annotations

import logging
import os
import pickle
import shutil
import subprocess
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.class_folders import scan, spoil_files
from helpers.images import make_picture, save_jpeg
from PIL import Image

from alexnet_dist.base.errors import DataError
from alexnet_dist.data.index import BadFilesError
from alexnet_dist.data.sources import folders as class_folders

TEST_DATA = os.environ.get("ALEXNET_DIST_TEST_DATA")


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


@pytest.mark.heavy
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
