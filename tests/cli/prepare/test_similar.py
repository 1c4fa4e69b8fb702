"""`prepare similar`: near-duplicates that were planted are found, and nothing else."""

from __future__ import annotations

import csv
import itertools
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from helpers.models import write_model_and_pictures
from PIL import Image

from alexnet_dist.cli.main import run
from alexnet_dist.runs.similar import Features, _center, _Search

WORDS = ("--data.workers", "0", "--device", "cpu", "--quiet")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_and_pictures(tmp_path_factory.mktemp("similar"))


def draw(rng: np.random.Generator) -> Image.Image:
    """A picture of large patches, unlike any other."""
    patches = rng.integers(0, 256, (6, 7, 3), dtype=np.uint8)
    return Image.fromarray(patches).resize((90, 80), Image.Resampling.BICUBIC)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Twelve pictures to train on, six to validate, four to test; three are copies, encoded again or mirrored."""
    rng = np.random.default_rng(5)
    root = tmp_path / "pictures"
    drawn = {}
    for part, count in (("train", 12), ("val", 4), ("test", 3)):
        for number, kind in zip(range(count), itertools.cycle(("cat", "dog")), strict=False):
            path = root / part / kind / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            drawn[path.relative_to(root).as_posix()] = image = draw(rng)
            image.save(path)
    drawn["train/cat/0.png"].save(root / "val" / "cat" / "encoded.jpg", quality=60)
    flipped = drawn["train/dog/1.png"].transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    flipped.save(root / "val" / "cat" / "flipped.jpg", quality=80)  # and of another class
    drawn["val/cat/2.png"].save(root / "test" / "cat" / "again.jpg", quality=70)
    return root


def find(folder: Path, pictures: Path, *words: str) -> list[dict[str, str]]:
    out = pictures.parent / "similar.csv"
    out.unlink(missing_ok=True)
    assert run("prepare", ["similar", str(folder), str(pictures), *WORDS, "--out", str(out), *words]) == 0
    with out.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.heavy
@pytest.mark.parametrize("layer", ["conv5", "fc6"])
def test_copies_are_found_and_nothing_else(
    folder: Path, pictures: Path, layer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = find(folder, pictures, "--layer", layer, "--threshold", "0.97")
    columns = ("set", "path", "other_set", "other_path", "mirrored", "class", "other_class")
    found = sorted(tuple(row[name] for name in columns) for row in rows)
    assert found == [
        ("test", "test/cat/again.jpg", "val", "val/cat/2.png", "False", "cat", "cat"),
        ("val", "val/cat/encoded.jpg", "train", "train/cat/0.png", "False", "cat", "cat"),
        ("val", "val/cat/flipped.jpg", "train", "train/dog/1.png", "True", "cat", "dog"),
    ]
    said = capsys.readouterr().out
    assert "2 of 6 val images are nearly the same as one of train: 2 pairs" in said
    assert "0 of 4 test images are nearly the same as one of train: 0 pairs" in said
    assert "1 of 4 test images are nearly the same as one of val: 1 pairs" in said
    assert "train/dog/1.png (mirrored)" in said


@pytest.mark.heavy
def test_without_a_validation_set_a_part_is_held_out(folder: Path, pictures: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    (pictures / "train").rename(alone)
    for number in range(12, 30):
        draw(np.random.default_rng(number)).save(alone / "cat" / f"{number}.png")
        draw(np.random.default_rng(100 + number)).save(alone / "dog" / f"{number}.png")
    rows = find(folder, alone, "--threshold", "0.2", "--most", "5")
    assert len(rows) == 5
    assert {(row["set"], row["other_set"]) for row in rows} == {("val", "train")}
    values = [float(row["similarity"]) for row in rows]
    assert values == sorted(values, reverse=True)


def test_damaged_pictures_are_left_out(folder: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = pictures / "val" / "cat" / "encoded.jpg"
    path.write_bytes(path.read_bytes()[:-400])
    (pictures / "train" / "cat" / "none.jpg").write_text("no picture")
    out = pictures.parent / "similar.csv"
    words = [word for word in WORDS if word != "--quiet"]
    assert run("prepare", ["similar", str(folder), str(pictures), *words, "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert "encoded.jpg" in said.err
    assert "1 of 5 val images" in said.out


@pytest.mark.parametrize(
    ("words", "code", "why"),
    [
        (["--layer", "fc9"], 2, "give one of conv1, conv2"),
        (["--threshold", "1.5"], 2, "--threshold is 1.5"),
        (["--threshold", "nan"], 2, "Got value: nan"),
        (["--most", "0"], 2, "--most must be 1 or more"),
        (["more"], 2, "more than one folder"),
        (["--data.root", "x"], 2, "exclude each other"),
        (["--data.val", "null", "--data.test", "null", "--data.val_fraction", "0"], 3, "there is one set alone"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    folder: Path, pictures: Path, words: list[str], code: int, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("prepare", ["similar", str(folder), str(pictures), *words, *WORDS]) == code
    assert why in capsys.readouterr().err


def test_a_model_without_its_run_needs_a_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("prepare", ["similar", str(folder), *WORDS]) == 2
    assert "data.root" in capsys.readouterr().err


def normalize(rows: npt.NDArray[np.float64], center: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    shifted = rows - center
    return np.asarray(shifted / np.linalg.norm(shifted, axis=1, keepdims=True))


@pytest.mark.parametrize("most", [3, 40, 100_000])
@pytest.mark.parametrize("chunk", [1, 7, 50])
def test_a_search_in_chunks_finds_what_the_whole_table_has(chunk: int, most: int) -> None:
    rng = np.random.default_rng(0)
    kept, mirrored, others = (rng.standard_normal((count, 4)) for count in (20, 20, 50))
    center = kept.mean(axis=0)
    table = np.stack([normalize(others, center) @ normalize(rows, center).T for rows in (kept, mirrored)])
    cosines = table.max(axis=0)  # (others, kept)
    wanted = sorted(
        (-cosines[row, column], column, row, bool(table[:, row, column].argmax()))
        for row, column in np.argwhere(cosines >= 0.5)
    )
    middle = torch.from_numpy(center)
    ids = np.arange(20)
    search = _Search(_center(Features(ids, torch.from_numpy(kept), torch.from_numpy(mirrored)), middle), 0.5, most)
    for start in range(0, 50, chunk):
        rows = torch.from_numpy(others[start : start + chunk])
        search.add(_center(Features(np.arange(start, start + len(rows)), rows, rows[:0]), middle))
    found = search.finish(("val", "train"), 50)
    assert found.num_pairs == len(wanted)
    assert found.num_alike == len({column for _, column, *_ in wanted})
    pairs = list(zip(*(column.tolist() for column in found.pairs), strict=True))
    assert [pair[:2] for pair in pairs] == [(column, row) for _, column, row, _ in wanted[:most]]
    assert [pair[3] for pair in pairs] == [flag for *_, flag in wanted[:most]]
    assert [pair[2] for pair in pairs] == pytest.approx([-value for value, *_ in wanted[:most]])
