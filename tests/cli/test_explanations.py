"""`predict --explain`: where the figures lie, what they show, and what is never replaced."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.archives import write_tar
from helpers.models import write_model_and_pictures
from helpers.refusals import refused
from PIL import Image

from alexnet_dist.base.errors import MachineError, UsageError
from alexnet_dist.cli.explanations import (
    Drawing,
    check_explained,
    explain_batch,
    place_explanations,
)
from alexnet_dist.cli.main import run
from alexnet_dist.cli.networks import open_network
from alexnet_dist.data.sources.loose import open_pictures
from alexnet_dist.inference.explain import explain_classes
from alexnet_dist.inference.predict import load_pictures, predict_batch
from alexnet_dist.runs.ownership import mark_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_and_pictures(tmp_path_factory.mktemp("explain"))


@pytest.mark.parametrize(
    ("paths", "figures"),
    [
        (["a/b/1.jpg"], ["1.jpg.png"]),
        (["a/b/1.jpg", "a/c/1.jpg", "a/c/1.png"], ["b/1.jpg.png", "c/1.jpg.png", "c/1.png.png"]),
        (["x.tar!a/1.jpg", "x.tar!2.jpg"], ["x.tar!a/1.jpg.png", "x.tar!2.jpg.png"]),
        (["../1.jpg", "./2.jpg"], ["1.jpg.png", None]),
        (["1.jpg", "1.jpg"], ["1.jpg.png", "1.jpg.png"]),
        ([], []),
    ],
)
def test_a_figure_has_its_pictures_path(tmp_path: Path, paths: list[str], figures: list[str | None]) -> None:
    found = place_explanations(Drawing(tmp_path, overwrite=False), paths)
    for path, figure in zip(paths, figures, strict=True):
        wanted = f"{Path.cwd().name}/2.jpg.png" if figure is None else figure
        assert found[path] == tmp_path / wanted


def test_pictures_are_explained_as_the_network_sees_them(folder: Path) -> None:
    model, card = open_network(folder, "cpu")
    (batch,) = load_pictures(model, card, open_pictures([str(folder / "pictures" / f"{n}.png") for n in range(5)]))
    assert batch.good == [0, 1, 2]
    predictions = predict_batch(model, card, batch, 1)
    explained = explain_batch(model, card, batch, predictions)
    assert sorted(explained) == [0, 1, 2]
    labels = torch.tensor([card.classes.index(predictions[number].label or "") for number in range(3)])
    wanted = explain_classes(model, batch.images[:3], labels).numpy()
    for number in range(3):
        assert np.array_equal(explained[number].evidence, wanted[number])
        with Image.open(folder / "pictures" / f"{number}.png") as opened:
            left, top = (opened.width - 64) // 2, (opened.height - 64) // 2
            crop = np.asarray(opened.convert("RGB"))[top : top + 64, left : left + 64]
        assert np.abs(explained[number].picture.astype(int) - crop).max() <= 1


@pytest.mark.heavy
def test_each_picture_that_is_named_has_a_figure(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(folder), str(folder / "pictures"), "--explain", str(tmp_path / "a" / "b")]
    assert run("predict", words[:2]) == 3
    plain = capsys.readouterr().out
    assert run("predict", words) == 3  # two of the files cannot be read
    assert capsys.readouterr().out == plain
    figures = {path.name: path.read_bytes() for path in (tmp_path / "a" / "b").iterdir()}
    assert sorted(figures) == ["0.png.png", "1.png.png", "2.png.png"]
    assert run("predict", words) == 2
    assert "an explanation would replace a file" in capsys.readouterr().err
    assert run("predict", [*words, "--overwrite"]) == 3
    assert {path.name: path.read_bytes() for path in (tmp_path / "a" / "b").iterdir()} == figures
    (tmp_path / "a" / "b" / "1.png.png").write_bytes(b"mine")
    assert run("predict", [*words, "--overwrite"]) == 2
    assert "it is no figure of this program's" in capsys.readouterr().err
    assert (tmp_path / "a" / "b" / "1.png.png").read_bytes() == b"mine"


def test_pictures_of_an_archive_are_explained(folder: Path, tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", {f"a/{n}.png": (folder / "pictures" / f"{n}.png").read_bytes() for n in range(2)})
    assert run("predict", [str(folder), str(tmp_path / "x.tar"), "--explain", str(tmp_path / "out"), "--quiet"]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0.png.png", "1.png.png"]


def test_what_cannot_be_meant_is_refused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = str(folder / "pictures")
    (tmp_path / "file").write_text("")
    (tmp_path / "run").mkdir()
    mark_folder(tmp_path / "run", "run")
    for word, given, why in (
        ("", [], "--explain is empty"),
        (str(tmp_path / "file"), [], "--explain is a file"),
        (str(tmp_path / "run" / "plots"), [], "a run keeps it itself"),
        (f"{pictures}/explained", [pictures], "--explain lies among the pictures"),
        (pictures, [pictures], "--explain lies among the pictures"),
    ):
        assert why in refused(lambda word=word, given=given: check_explained(word, given), UsageError)
    assert check_explained(str(tmp_path / "new"), [pictures]) == tmp_path / "new"
    monkeypatch.setattr("alexnet_dist.figures.canvas.is_installed", lambda package: False)
    assert "matplotlib is not installed" in refused(lambda: check_explained("new", []), MachineError)


def test_a_folder_that_cannot_be_written_is_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "b").write_text("")  # where a folder has to be
    paths = [str(tmp_path / name / "0.png") for name in ("a", "b")]
    for path in paths:
        Path(path).parent.mkdir()
        shutil.copy(folder / "pictures" / "0.png", path)
    assert run("predict", [str(folder), *paths, "--explain", str(tmp_path / "out")]) == 5
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "cannot write" in line
    assert "--explain" in line
