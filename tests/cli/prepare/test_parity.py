from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.images import save_jpeg
from PIL import Image

from alexnet_dist.base.errors import MachineError
from alexnet_dist.cli.main import run
from alexnet_dist.data.engines.choose import ENGINES
from alexnet_dist.data.engines.loader import Batch, Loader
from alexnet_dist.data.engines.parity import _cut_tiles
from alexnet_dist.data.plan import StepPlan

OURS = ENGINES["torchvision"]
WIDE, HIGH = (75, 50), (40, 90)  # width and height of two of the pictures


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Noise, in which every displacement shows, and one smooth JPEG; two class folders."""
    dice = np.random.default_rng(0)
    for name, (width, height) in {"cat/wide": WIDE, "cat/high": HIGH, "dog/square": (64, 64)}.items():
        path = tmp_path / "photos" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(dice.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    save_jpeg(tmp_path / "photos" / "dog" / "smooth.jpg", 50, 60)
    return tmp_path / "photos"


def parity(folder: Path, *words: str) -> tuple[int, dict[str, Any]]:
    """Exit code and report of a comparison of torchvision with the engine `other`."""
    with pytest.MonkeyPatch.context() as patch:
        printed: list[str] = []
        patch.setattr("builtins.print", lambda text, **_: printed.append(text))
        fixed = ["--data", str(folder), "--resize", "48", "--crop", "32", "--format", "json"]
        code = run("prepare", ["parity", *fixed, *words])
    return code, json.loads("".join(printed))


def compare(folder: Path, other: Callable[..., Iterator[Batch]], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The comparison of torchvision with another engine."""
    monkeypatch.setitem(ENGINES, "other", other)
    code, report = parity(folder, "--engines", "torchvision", "other")
    assert code == 0
    (comparison,) = report["comparisons"]
    return dict(comparison)


class Altered:
    """A plan or an index with another method in place of one of its own."""

    def __init__(self, real: Any, **methods: Any) -> None:
        self._real = real
        self.__dict__.update(methods)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def with_rows(change: Callable[[StepPlan], StepPlan], crop: str = "") -> Callable[..., Iterator[Batch]]:
    """An engine that carries out another plan, or only one with this crop."""

    def iterate(loader: Loader, start: int, stop: int) -> Iterator[Batch]:
        plan: Any = loader.plan
        if crop in ("", plan.augmentation.crop):
            plan = Altered(loader.plan, at=lambda step: change(loader.plan.at(step)))
        yield from OURS(replace(loader, plan=plan), start, stop)

    return iterate


def with_pixels(change: Callable[[Any], None]) -> Callable[..., Iterator[Batch]]:
    """An engine that decodes otherwise."""

    def iterate(loader: Loader, start: int, stop: int) -> Iterator[Batch]:
        def load(*arguments: Any) -> Any:
            pixels = loader.index.load_pixels(*arguments)
            change(pixels)
            return pixels

        index: Any = Altered(loader.index, load_pixels=load)
        yield from OURS(replace(loader, index=index), start, stop)

    return iterate


# -- differences ------------------------------------------------------------------------------------------------------


def test_an_engine_equals_itself(folder: Path) -> None:
    code, report = parity(folder, "--engines", "torchvision", "torchvision")
    (comparison,) = report["comparisons"]
    assert code == 0
    assert report["num_images"] == 4
    assert [stage["stage"] for stage in comparison["stages"]] == ["decode", "resize", "crop", "final"]
    for stage in comparison["stages"]:
        assert (stage["num_images"], stage["maximum"], stage["mean"], stage["worst"]) == (4, 0, 0, "")
    assert comparison["may_be_exchanged"] is True
    assert comparison["verdict"].startswith("they may be exchanged")


def brighten(pixels: Any) -> None:
    pixels[...] = np.minimum(pixels, 235) + 20


def stretch(rows: StepPlan) -> StepPlan:
    is_resized = (rows.resized != rows.windows[:, 2:]).any(axis=1, keepdims=True)
    return rows._replace(resized=rows.resized + is_resized)


def displace(rows: StepPlan) -> StepPlan:
    return rows._replace(corners=np.maximum(rows.corners - 1, 0))


def forget_flips(rows: StepPlan) -> StepPlan:
    return rows._replace(flips=np.zeros_like(rows.flips))


def forget_lighting(rows: StepPlan) -> StepPlan:
    return rows._replace(shifts=np.zeros_like(rows.shifts))


@pytest.mark.parametrize(
    ("engine", "stage"),
    [
        (with_pixels(brighten), "decode"),
        (with_rows(stretch), "resize"),
        (with_rows(displace, "centre"), "crop"),
        (with_rows(forget_flips), "final"),
        (with_rows(forget_lighting), "final"),
    ],
    ids=["brightened", "stretched", "displaced", "not flipped", "not lit"],
)
def test_a_defect_is_found_and_its_stage_named(
    folder: Path, engine: Callable[..., Iterator[Batch]], stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    comparison = compare(folder, engine, monkeypatch)
    assert comparison["may_be_exchanged"] is False
    assert f"after stage {stage} they differ" in comparison["verdict"]
    before = [found for found in comparison["stages"] if found["stage"] == stage]
    assert before[0]["worst"] != ""


@pytest.mark.parametrize("corner", [(0, 0), (0, -1), (-1, 0), (-1, -1), (25, 40)])
def test_decode_sees_every_pixel(folder: Path, corner: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil_one(pixels: Any) -> None:
        if pixels.shape[:2] == (WIDE[1], WIDE[0]):
            pixels[corner] ^= 255

    stages = compare(folder, with_pixels(spoil_one), monkeypatch)["stages"]
    assert stages[0]["maximum"] > 0
    assert stages[0]["worst"] == "cat/wide.png"


def test_a_small_difference_lets_engines_be_exchanged(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil_little(pixels: Any) -> None:
        pixels[::6, ::6] += np.where(pixels[::6, ::6] < 250, 4, 0).astype(np.uint8)

    comparison = compare(folder, with_pixels(spoil_little), monkeypatch)
    assert comparison["may_be_exchanged"] is True
    assert comparison["stages"][0]["maximum"] == 4
    assert 0.05 < comparison["stages"][0]["mean"] < 0.2


def test_differences_are_measured_in_gray_levels(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def add_ten(loader: Loader, start: int, stop: int) -> Iterator[Batch]:
        for batch in OURS(loader, start, stop):
            std = batch.images.new_tensor(loader.normalization.std)[:, None, None]
            yield batch._replace(images=batch.images + 10 / std)

    for stage in compare(folder, add_ten, monkeypatch)["stages"]:
        assert stage["maximum"] == pytest.approx(10, abs=1e-3)
        assert stage["mean"] == pytest.approx(10, abs=1e-3)


def test_an_engine_with_other_samples_is_our_bug(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def swap(rows: StepPlan) -> StepPlan:
        return rows.take(np.arange(len(rows.ids))[::-1])

    monkeypatch.setitem(ENGINES, "other", with_rows(swap))
    with pytest.raises(RuntimeError, match="same plan"):
        parity(folder, "--engines", "torchvision", "other")


def test_gray_pictures_are_compared(folder: Path) -> None:
    code, report = parity(folder, "--engines", "torchvision", "torchvision", "--channels", "1")
    assert code == 0
    assert report["comparisons"][0]["may_be_exchanged"] is True


@pytest.mark.parametrize("side", [1, 2, 8, 16])
@pytest.mark.parametrize("size", [(16, 16), (17, 16), (16, 31), (50, 33), (16, 300)])
def test_tiles_cover_a_picture(size: tuple[int, int], side: int) -> None:
    seen = np.zeros((size[1], size[0]), np.bool_)
    for number, x, y in _cut_tiles(7, np.array(size), side).tolist():
        assert number == 7
        assert 0 <= x <= size[0] - side
        assert 0 <= y <= size[1] - side
        seen[y : y + side, x : x + side] = True
    assert seen.all()


@pytest.mark.parametrize("engine", sorted(set(ENGINES) - {"torchvision"}))
def test_every_engine_may_be_exchanged_with_the_reference(tmp_path: Path, engine: str) -> None:
    if engine == "dali":
        pytest.importorskip("nvidia.dali")
    for number, (width, height) in enumerate([(150, 100), (120, 170), (97, 130)]):
        save_jpeg(tmp_path / "photos" / f"{number}.jpg", width, height)
    code, report = parity(tmp_path / "photos", "--engines", "torchvision", engine)
    (comparison,) = report["comparisons"]
    assert code == 0
    assert comparison["may_be_exchanged"] is True, comparison["verdict"]
    assert comparison["stages"][0]["maximum"] == 0  # decoding on a CPU is the same to the bit


# -- which images -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("limit", "count"), [(1, 1), (2, 2), (3, 3), (4, 4), (200, 4)])
def test_limit_takes_so_many_images(folder: Path, limit: int, count: int) -> None:
    _, report = parity(folder, "--engines", "torchvision", "torchvision", "--limit", str(limit))
    assert report["num_images"] == count
    assert all(stage["num_images"] == count for stage in report["comparisons"][0]["stages"])


def test_bad_files_are_listed(folder: Path) -> None:
    (folder / "dog" / "empty.jpg").write_bytes(b"")
    whole = (folder / "dog" / "smooth.jpg").read_bytes()
    (folder / "dog" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    code, report = parity(folder, "--engines", "torchvision", "torchvision")
    assert code == 3
    assert [bad["path"] for bad in report["bad_files"]] == ["dog/cut.jpg", "dog/empty.jpg"]
    assert report["comparisons"][0]["may_be_exchanged"] is True


def test_a_line_that_a_resize_would_blow_up_is_listed(folder: Path) -> None:
    save_jpeg(folder / "dog" / "line.jpg", 1, 30_000)
    code, report = parity(folder, "--engines", "torchvision", "torchvision")
    assert code == 3
    reason = "it would become too large: 48 x 1440000 after augment.resize"
    assert report["bad_files"] == [{"path": "dog/line.jpg", "reason": reason}]


def test_a_file_that_one_engine_refuses_settles_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = (folder / "dog" / "smooth.jpg").read_bytes()
    (folder / "dog" / "cut.jpg").write_bytes(whole[: len(whole) // 2])

    def overlook(loader: Loader, start: int, stop: int) -> Iterator[Batch]:
        for batch in OURS(loader, start, stop):
            yield batch._replace(bad_files=[])

    monkeypatch.setitem(ENGINES, "other", overlook)
    code, report = parity(folder, "--engines", "torchvision", "other")
    assert code == 0
    (comparison,) = report["comparisons"]
    assert comparison["refused_by_one"] == [{"path": "dog/cut.jpg", "engine": "torchvision"}]
    assert "torchvision alone refuses 'dog/cut.jpg'" in comparison["verdict"]
    assert comparison["may_be_exchanged"] is False


def test_folders_without_classes_and_odd_names_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "flat").mkdir()
    save_jpeg(tmp_path / "flat" / "two\nlines 'ä'.jpg", 60, 60)
    save_jpeg(tmp_path / "flat" / "b.jpg", 60, 60)
    (tmp_path / "flat" / "bad\n.jpg").write_bytes(b"<html>")
    words = ["--data", str(tmp_path / "flat"), "--engines", "torchvision", "torchvision", "--resize", "32"]
    assert run("prepare", ["parity", *words, "--crop", "32"]) == 3
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("2 images of")
    assert r"bad\n.jpg: an HTML page, not an image" in lines
    assert any(line.startswith("final") for line in lines)


def test_nothing_is_written_below_the_folder(folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    parity(folder, "--engines", "torchvision", "torchvision")
    assert sorted(folder.rglob("*")) == before


# -- what a user can get wrong ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code", "parts"),
    [
        ([], 2, ["no images are named", "--data.root"]),
        (["FOLDER", "--data.source", "tar"], 2, ["a folder and --data.source exclude each other"]),
        (["FOLDER", "--config", "digits"], 2, ["a folder and --config exclude each other"]),
        (["FOLDER", "--data", "FOLDER"], 2, ["more than one folder"]),
        (["--data.source", "synthetic", "--split", "test"], 2, ["there is no test set", "--data.test"]),
        (["--data", "FOLDER", "--engines", "torchvision"], 2, ["one engine"]),
        (["--data", "FOLDER", "--engines", "torchvision", "magic"], 2, ["unknown engine 'magic'", "torchvision"]),
        (["--data", "FOLDER", "--resize", "100", "--crop", "101"], 2, ["crop is larger", "101"]),
        (["--data", "FOLDER", "--limit", "0"], 2, ["--limit must be 1 or more"]),
        (["--data", "FOLDER", "--limit", "many"], 2, ["limit", "many"]),
        (["--data", "FOLDER", "--sise", "3"], 2, ["--sise"]),
        (["--data", "FOLDER/none", "--engines", "torchvision", "torchvision"], 3, ["no such folder", "none"]),
        (["--data", "FOLDER/empty", "--engines", "torchvision", "torchvision"], 3, ["a folder without an image"]),
        (["--data", "FOLDER/bad", "--engines", "torchvision", "torchvision"], 3, ["no readable image", "empty file"]),
        (["--data", "FOLDER", "--engines", "torchvision", "absent"], 5, ["absent is not installed", "pip"]),
    ],
)
def test_words_that_cannot_be_meant(
    folder: Path,
    words: list[str],
    code: int,
    parts: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(loader: Loader, start: int, stop: int) -> Iterator[Batch]:
        raise MachineError("absent is not installed", remedy="pip install absent")
        yield

    monkeypatch.setitem(ENGINES, "absent", fail)
    (folder / "empty").mkdir()
    (folder / "bad").mkdir()
    (folder / "bad" / "a.jpg").write_bytes(b"")
    assert run("prepare", ["parity", *(word.replace("FOLDER", str(folder)) for word in words)]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert all(part in line for part in parts), line
