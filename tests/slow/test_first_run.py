"""The notebook of the docs, cell by cell, in a fresh folder."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest
from helpers.pages import ROOT

pytest.importorskip("ipykernel")
pytest.importorskip("nbclient")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the notebook works."""
    return tmp_path_factory.mktemp("first_run")


@pytest.fixture(scope="module")
def cells(folder: Path) -> list[Any]:
    """Its cells of code, executed."""
    program = runpy.run_path(str(ROOT / "docs" / "run_notebook.py"))
    return [cell for cell in program["run_notebook"](program["NOTEBOOK"], folder).cells if cell.cell_type == "code"]


def find_cell(cells: list[Any], code: str) -> Any:
    (cell,) = (cell for cell in cells if code in cell.source)
    return cell


def read_numbers(cells: list[Any], code: str, pattern: str) -> list[float]:
    """The numbers in what a cell says."""
    said = "".join(output.get("text", "") for output in find_cell(cells, code).outputs)
    match = re.search(pattern, said)
    assert match is not None, said
    return [float(number) for number in match.groups()]


def test_it_learns(cells: list[Any], folder: Path) -> None:
    (top1,) = read_numbers(
        cells, 'summary["best_top1"]', r"([\d.]+)% of the validation pictures are right after epoch \d"
    )
    wrong, total = read_numbers(cells, "predictions.csv", r"(\d+) of (\d+) are wrong")
    assert top1 > 90
    assert 1 - wrong / total == pytest.approx(top1 / 100, abs=0.01)  # figures are of model/, the best weights
    assert sorted(path.name for path in folder.iterdir()) == ["runs"]
    assert not list(folder.glob("runs/first/checkpoints/step-*"))


@pytest.mark.parametrize(
    ("code", "kind"),
    [("curves.png", "image/png"), ("conv1.png", "image/png"), ("Picture.open", "image/png")],
)
def test_it_shows_pictures(cells: list[Any], code: str, kind: str) -> None:
    (output,) = find_cell(cells, code).outputs
    assert len(output.data[kind]) > 1000


def test_it_names_digits_that_it_has_not_seen(cells: list[Any]) -> None:
    said = find_cell(cells, "import make_index, predict").outputs[-1].text
    rows = re.findall(r"^a (\d) is named (\d): \2 \d+%, \d \d+%, \d \d+%$", said, re.MULTILINE)
    assert len(rows) == 6
    assert sum(digit == name for digit, name in rows) >= 5


def test_a_loop_of_ones_own_learns(cells: list[Any]) -> None:
    first, last = read_numbers(cells, "make_loader(", r"loss ([\d.]+) at the beginning, ([\d.]+) at the end")
    assert last < 0.7 * first
    assert read_numbers(cells, "make_loader(", r"(\d+) batches an epoch, the first of \((\d+), 1, 64, 64\)") == [29, 64]


def test_features_know_digits(cells: list[Any]) -> None:
    assert read_numbers(cells, "create_feature_extractor", r"\((\d+), (\d+)\)") == [359, 256]
    same, total = read_numbers(cells, "similarity", r"the same digit for (\d+) of (\d+) pictures")
    assert same / total > 0.8


def test_nothing_is_red(cells: list[Any]) -> None:
    assert [output for cell in cells for output in cell.outputs if output.get("name") == "stderr"] == []
