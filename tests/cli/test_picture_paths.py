"""Which image files the words of `predict` mean."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pytest

from alexnet_dist.base.errors import DataError
from alexnet_dist.cli.main import run
from alexnet_dist.cli.picture_paths import find_pictures


@pytest.fixture
def album(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty files: nothing here is decoded. It is the current folder."""
    names = ("b.jpg", "a.PNG", "notes.txt", "deep/er/c.webp", "deep/d.jpg", ".hidden.jpg", "x[1].jpg", "empty/readme")
    packed = ("packed/a-0.tar", "packed/a-1.tar", "packed/b.parquet", "packed/readme")
    for name in names + packed:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["b.jpg", "a.PNG"], ["b.jpg", "a.PNG"]),
        (["notes.txt"], ["notes.txt"]),  # it gets its row, with the reason
        (["gone.jpg"], ["gone.jpg"]),
        (["deep"], ["deep/d.jpg", "deep/er/c.webp"]),
        (["deep/"], ["deep/d.jpg", "deep/er/c.webp"]),
        (["*.jpg"], ["b.jpg", "x[1].jpg"]),
        (["*"], ["a.PNG", "b.jpg", "x[1].jpg"]),
        (["**/*.[jw]*"], ["b.jpg", "deep/d.jpg", "deep/er/c.webp", "x[1].jpg"]),
        (["x[1].jpg"], ["x[1].jpg"]),  # a file of this name is there: no pattern
        (["deep", "b.jpg", "?.PNG", "b.jpg"], ["deep/d.jpg", "deep/er/c.webp", "b.jpg", "a.PNG", "b.jpg"]),
        (["b.{jpg,gif}"], ["b.jpg", "b.gif"]),
        (["packed"], ["packed/a-0.tar", "packed/a-1.tar", "packed/b.parquet"]),
        (["packed/a-{1..2}.tar"], ["packed/a-1.tar", "packed/a-2.tar"]),  # one that is missing gets its row
        (["packed/*"], ["packed/a-0.tar", "packed/a-1.tar", "packed/b.parquet"]),
        (["packed/a-0.tar!x[1].jpg"], ["packed/a-0.tar!x[1].jpg"]),
        (
            ["packed/{a-0.tar,b.parquet}!{1,2}"],
            [f"packed/{name}!{n}" for name in ("a-0.tar", "b.parquet") for n in "12"],
        ),
    ],
)
def test_words(album: Path, words: list[str], expected: list[str]) -> None:
    assert find_pictures(words, None) == expected


@pytest.mark.parametrize(
    ("word", "expected"),
    [("empty", "a folder without an image (empty)"), ("*.tiff", "nothing matches"), ("no*s.*", "none of the 1 names")],
)
def test_a_folder_or_pattern_without_an_image_is_one_line(
    album: Path, capsys: pytest.CaptureFixture[str], word: str, expected: str
) -> None:
    assert run("predict", ["--model", "nowhere", word]) == 3
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert expected in lines[0]


def test_a_pattern_does_not_open_a_pipe(album: Path) -> None:
    os.mkfifo("pipe.jpg")
    assert find_pictures(["[bp]*.jpg"], None) == ["b.jpg"]


LISTED = b"\xef\xbb\xbfb.jpg\r\n\r\nwith space.jpg\n*.jpg\ndeep\n\xff.png"


@pytest.mark.parametrize("name", ["list.txt", "-"])
def test_a_list_is_taken_line_by_line_as_it_stands(album: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    Path("list.txt").write_bytes(LISTED)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(LISTED)))
    listed = ["b.jpg", "with space.jpg", "*.jpg", "deep", os.fsdecode(b"\xff.png")]
    assert find_pictures([], name) == listed
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(LISTED)))
    assert find_pictures(["a.PNG"], name) == ["a.PNG", *listed]


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"", "it is empty"), (b"\n \r\n", "it is empty"), (b"a.jpg\0b.jpg", "zero bytes"), (None, "no such list")],
)
def test_a_list_that_names_nothing_is_refused(album: Path, content: bytes | None, expected: str) -> None:
    if content is not None:
        Path("list.txt").write_bytes(content)
    with pytest.raises(DataError, match=expected):
        find_pictures(["b.jpg"], "list.txt")


def test_a_device_is_no_list() -> None:
    with pytest.raises(DataError, match="it is a device"):
        find_pictures([], "/dev/full")


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("**/*.jpg", ["a.jpg", "one/b.jpg", "one/two/c.jpg"]),
        ("**", ["a.jpg", "one/b.jpg", "one/two/c.jpg"]),
        ("one/**/*.jpg", ["one/b.jpg", "one/two/c.jpg"]),
        ("o*/**/c.*", ["one/two/c.jpg"]),
        ("**/two/**/*.jpg", ["one/two/c.jpg"]),
    ],
)
def test_a_pattern_of_any_depth_ends_where_links_go_in_circles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, expected: list[str]
) -> None:
    (tmp_path / "one" / "two").mkdir(parents=True)
    for path in ("a.jpg", "one/b.jpg", "one/two/c.jpg"):
        (tmp_path / path).write_bytes(b"")
    for way in ("up", "again"):  # two at each step: glob would follow 2 to the power of 40 paths
        (tmp_path / "one" / way).symlink_to("..")
        (tmp_path / "one" / "two" / way).symlink_to("../..")
    monkeypatch.chdir(tmp_path)
    assert find_pictures([pattern], None) == expected
    assert find_pictures([str(tmp_path / pattern)], None) == [str(tmp_path / path) for path in expected]
