"""`report`: where the page goes, and what is never overwritten."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.past_runs import make_run

from alexnet_dist.base.errors import MachineError
from alexnet_dist.cli.main import run
from alexnet_dist.figures import vega


@pytest.fixture(autouse=True)
def _vega(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vega, "load_vega", lambda: "window.vegaEmbed=()=>0;window.vegaLite=0;")


def call(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = run("report", [str(word) for word in words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_one_run_has_its_page_in_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_run(tmp_path / "a")
    for _ in range(2):  # its own page is replaced
        code, out, _ = call(capsys, folder)
        assert (code, out.split(",")[0]) == (0, f"report: {folder}/report.html")
    (folder / "report.html").write_text("<p>mine</p>")
    code, _, error = call(capsys, folder)
    assert code == 2
    assert "report.html is not one that this program wrote" in error
    assert (folder / "report.html").read_text() == "<p>mine</p>"


def test_several_runs_have_theirs_where_it_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        make_run(tmp_path / "runs" / name)
    monkeypatch.chdir(tmp_path)
    assert "--out is missing" in call(capsys, "runs")[2]
    assert call(capsys, "runs", "--out", "both.html")[0] == 0
    assert "2 runs beside each other" in (tmp_path / "both.html").read_text()
    assert "--out is there already" in call(capsys, "runs", "--out", "both.html")[2]
    assert "a file that a run keeps itself" in call(capsys, "runs", "--out", "runs/a/report.html")[2]


@pytest.mark.parametrize("words", [[], ["nowhere"]])
def test_a_mistake_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    code, out, error = call(capsys, *words)
    assert (code, out, error.count("\n")) == (2, "", 1)


def test_without_vega_there_is_a_page_and_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> str:
        raise MachineError("vl-convert-python is not installed", remedy="pip install vl-convert-python")

    monkeypatch.setattr(vega, "load_vega", fail)
    code, out, _ = call(capsys, make_run(tmp_path / "a"))
    assert code == 0
    assert out.endswith("without charts: vl-convert-python is not installed; pip install vl-convert-python\n")
