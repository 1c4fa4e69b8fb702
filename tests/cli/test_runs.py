"""`runs` and `compare`: tables that fit 80 columns, files for programs, one line for a mistake."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path

import pytest
from helpers.past_runs import add_checkpoint, make_run
from helpers.terminal import Terminal

from alexnet_dist.cli.compare import draw_curve, name_letters
from alexnet_dist.cli.main import run

EVIL = "x\x1b[2J<script>"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four runs, which no test changes."""
    folder = tmp_path_factory.mktemp("shelf") / "runs"
    make_run(folder / "alpha", top1=(0.5, 0.75), test=0.7)
    make_run(folder / "beta", top1=(0.6, 0.9), settings={"optimizer__lr": 0.5})
    make_run(folder / "gamma", top1=(0.2,), status="interrupted", settings={"seed": 1})
    make_run(folder / ("long-" * 20 + "name"), top1=(0.1,), status=None)
    return folder


def call(capsys: pytest.CaptureFixture[str], verb: str, *words: object, code: int = 0) -> str:
    """What a verb prints, which ends with an exit code: an error where it is not 0."""
    assert run(verb, [str(word) for word in words]) == code
    captured = capsys.readouterr()
    assert (captured.err == "") == (code == 0)
    return captured.err if code else captured.out


def test_a_run_is_a_row(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = call(capsys, "runs", runs).splitlines()
    assert lines[0].split() == ["name", "recipe", "state", "best", "test", "epochs", "time", "size"]
    assert lines[1].split()[:6] == ["alpha", "finished", "75.00%", "70.00%", "2/2", "0:10"]
    assert lines[3].split()[:4] == ["gamma", "interrupted", "20.00%", "1/1"]
    assert lines[-1].startswith("4 runs, ")


def test_a_table_fits_the_terminal(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for verb, words in (("runs", [runs]), ("compare", [runs])):
        terminal = Terminal()
        monkeypatch.setattr(sys, "stdout", terminal)
        assert run(verb, [str(word) for word in words]) == 0
        assert max(map(len, terminal.screens())) <= 80
        assert "long-lo" in terminal.getvalue()


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["--sort", "best"], ["beta", "alpha", "gamma", "long"]),
        (["--sort", "best", "--reverse"], ["long", "gamma", "alpha", "beta"]),
        (["--sort", "test"], ["alpha", "beta", "gamma", "long"]),
        (["--where", "state=finished"], ["alpha", "beta"]),
        (["--where", "best>=0.75", "--where", "optimizer.lr<0.1"], ["alpha"]),
        (["--where", "test!="], ["alpha"]),
        (["--where", "train.max_steps=null"], ["alpha", "beta", "gamma", "long"]),
        (["--where", "seed = 1"], ["gamma"]),
        (["--where", "best>2"], []),
    ],
)
def test_rows_are_sorted_and_chosen(
    runs: Path, capsys: pytest.CaptureFixture[str], words: list[str], names: list[str]
) -> None:
    found = json.loads(call(capsys, "runs", runs, "--format", "json", *words))
    assert [row["name"].split("-")[0] for row in found] == names


def test_programs_get_all_digits_and_no_formula(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_run(tmp_path / "=1+1", top1=(1 / 3,)).parent
    make_run(tmp_path / EVIL)
    text = call(capsys, "runs", folder, "--format", "csv")
    first, second = csv.DictReader(io.StringIO(text))
    assert (first["name"], float(first["best"])) == ("'=1+1", 1 / 3)
    assert second["name"] == "x\\x1b[2J<script>"
    assert [row["name"] for row in json.loads(call(capsys, "runs", folder, "--format", "json"))] == ["=1+1", EVIL]
    for verb in ("runs", "compare"):
        assert "\x1b" not in call(capsys, verb, folder)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["nowhere"], "error: no folder with runs (nowhere); give a run folder, or a folder of runs"),
        (["runs", "--sort", "stat"], "error: --sort: no column 'stat' (command line); did you mean state?"),
        (["runs", "--where", "optimizer.lrr=1"], "did you mean optimizer.lr?"),
        (["runs", "--where", "best"], "--where 'best' cannot be read"),
        (["runs", "other"], "error: more than one folder (command line)"),
    ],
)
def test_a_mistake_is_one_line(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str], line: str
) -> None:
    monkeypatch.chdir(runs.parent)
    error = call(capsys, "runs", *words, code=2)
    assert line in error
    assert error.count("\n") == 1


def test_cleaning_says_what_and_how_much_and_asks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = add_checkpoint(make_run(tmp_path / "alpha"), 8)
    said = call(capsys, "runs", tmp_path, "--clean")
    assert "alpha            1  2 kB" in said
    assert said.endswith("Nothing was removed. --yes removes them.\n")
    assert checkpoint.exists()
    assert call(capsys, "runs", tmp_path, "--clean", "--yes").endswith("Removed: 2 kB are free.\n")
    assert not checkpoint.exists()
    assert call(capsys, "runs", tmp_path, "--clean").startswith("Nothing to remove")


def test_cleaning_takes_yes_for_an_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = add_checkpoint(make_run(tmp_path / "alpha"), 8)
    for answer, stays in (("n\n", True), ("", True), ("y\n", False)):
        monkeypatch.setattr(sys, "stdin", Terminal(answer))
        assert "Remove them? [y/N] " in call(capsys, "runs", tmp_path, "--clean")
        assert checkpoint.exists() == stays


# -- compare ----------------------------------------------------------------------------------------------------------


def test_two_runs_stand_beside_each_other(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = call(capsys, "compare", runs / "alpha", runs / "beta")
    assert [line.split() for line in text.splitlines()] == [
        ["run", "state", "best", "epoch", "test", "time"],
        ["A", "alpha", "finished", "75.00%", "2", "70.00%", "0:10"],
        ["B", "beta", "finished", "90.00%", "2", "0:10"],
        [],
        ["settings", "that", "differ", "A", "B"],
        ["optimizer.lr", "0.01", "0.5"],
        [],
        ["validation", "top-1,", "epoch", "A", "B"],
        ["1", "50.00%", "60.00%"],
        ["2", "75.00%", "90.00%"],
        [],
        ["A", "▁▅"],
        ["B", "▃█"],
        ["from", "50.00%", "(lowest", "mark)", "to", "90.00%", "(highest),", "an", "epoch", "a", "mark"],
    ]


def test_seeds_are_summarized(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(3):
        make_run(tmp_path / f"s{seed}", top1=(0.5 + seed / 10,), settings={"seed": seed})
    text = call(capsys, "compare", tmp_path)
    assert ["best", "60.00%", "10.00%", "50.00%", "70.00%"] in [line.split() for line in text.splitlines()]
    values = json.loads(call(capsys, "compare", tmp_path, "--format", "json"))
    assert values["seeds"][0]["mean"] == pytest.approx(0.6)
    assert values["settings_that_differ"]["seed"] == {"s0": "0", "s1": "1", "s2": "2"}
    assert [row["validation"][0]["top1"] for row in values["runs"]] == pytest.approx([0.5, 0.6, 0.7])


def test_a_table_of_many_runs_is_cut_into_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(9):
        make_run(tmp_path / f"r{number:02}", settings={"optimizer__lr": (10 + number) / 1000})
    text = call(capsys, "compare", tmp_path)
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("settings that differ") == 2
    header, *rows = csv.reader(io.StringIO(call(capsys, "compare", tmp_path, "--format", "csv")))
    assert [row[header.index("optimizer.lr")] for row in rows][-1] == "0.018"


def test_runs_of_one_name_are_told_apart_by_their_paths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("one", "two"):
        make_run(tmp_path / name / "same")
    text = call(capsys, "compare", tmp_path / "one", tmp_path / "two" / "same", tmp_path / "one" / "same")
    assert text.count("one/same") == text.count("two/same") == 1
    assert "no setting differs" in text


def test_one_run_is_no_comparison(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "two runs are needed" in call(capsys, "compare", runs / "alpha", code=2)


def test_a_curve_fits_a_line_and_any_terminal() -> None:
    assert draw_curve([0.0, 0.5, 1.0], 0.0, 1.0) == "▁▅█"
    assert draw_curve([0.0, 1.0], 0.0, 1.0, is_unicode=False) == "_@"
    assert draw_curve([0.3] * 200, 0.3, 0.3) == "▁" * 60
    assert name_letters(27)[-2:] == ["Z", "A1"]
