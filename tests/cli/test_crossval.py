"""How many folds a cross-validation has."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from alexnet_dist.cli.main import run


@pytest.mark.parametrize(
    ("below", "above", "words", "expected"),
    [
        ("", "", [], 5),
        ("folds: 3", "", [], 3),  # what a file builds on counts as much as what it says itself
        ("folds: 3", "folds: 4", [], 4),
        ("folds: 3", "folds: 4", ["--folds", "6"], 6),
        ("folds: 3", "", ["--data.folds", "7"], 7),
    ],
)
def test_the_number_of_folds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], below: str, above: str, words: list[str], expected: int
) -> None:
    common = ["source: synthetic", *filter(None, [below])]
    (tmp_path / "below.yaml").write_text("data: {" + ", ".join(common) + "}\ntrain: {epochs: 1}\n")
    (tmp_path / "above.yaml").write_text("base: below\ndata: {" + above + "}\n")
    assert run("crossval", ["--config", str(tmp_path / "above.yaml"), "--print_config", *words]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["data"]["folds"] == expected
