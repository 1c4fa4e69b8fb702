"""plots/ of a run: drawn after training, drawn again by evaluate, and never the reason why a run fails."""

from __future__ import annotations

import base64
import importlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.images import save_jpeg
from helpers.tiny import tiny_config
from helpers.verbs import call_well

from alexnet_dist.base.durable import read_csv
from alexnet_dist.base.run_record import MARKER
from alexnet_dist.cli.main import run
from alexnet_dist.figures import canvas
from alexnet_dist.runs import plots, report_tracker
from alexnet_dist.runs.ownership import FIRST_WORDS, mark_folder
from alexnet_dist.settings.reader import dump_config

OF_A_SET = {"confusion.png", "worst.png", "worst_explained.png", "classes.csv", "predictions.csv"}
ALL = OF_A_SET | {"curves.png", "conv1.png", "inputs.png"}
SHORT = {"train__epochs": 1, "log__plots": True}


def train(folder: Path, processes: int = 1, **overrides: Any) -> str:
    settings = folder / "tiny.yaml"
    settings.write_text(dump_config(tiny_config(folder / "run", **{**SHORT, **overrides})))
    return call_well("train", "--config", settings, processes=processes)


def list_plots(run_folder: Path) -> set[str]:
    return {path.name for path in (run_folder / "plots").iterdir()} - {MARKER}


def read_classes(run_folder: Path) -> list[dict[str, str]]:
    return read_csv(run_folder / "plots" / "classes.csv")


def count_right(run_folder: Path) -> float:
    return sum(round(float(row["top1"] or 0) * int(row["count"])) for row in read_classes(run_folder))


@pytest.fixture(scope="module", autouse=True)
def _quick_figures() -> Iterator[None]:
    """Coarse ones, and what draws them is imported here, once, and not by each run for itself."""
    for name in ("matplotlib.figure", "matplotlib.backends.backend_agg", "matplotlib.layout_engine", "sklearn.metrics"):
        importlib.import_module(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(canvas, "DPI", 30)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its figures; tests take copies."""
    folder = tmp_path_factory.mktemp("plots")
    text = train(folder, train__epochs=2, data__test="test")
    assert "not drawn" not in text
    return folder / "run"


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def test_a_run_has_its_figures(trained: Path) -> None:
    assert list_plots(trained) == ALL
    summary = json.loads((trained / "summary.json").read_text())
    assert [row["class"] for row in read_classes(trained)] == ["class-000", "class-001", "class-002"]
    assert sum(int(row["count"]) for row in read_classes(trained)) == 5
    assert count_right(trained) == summary["best_top1"] * 5
    predictions = read_csv(trained / "plots" / "predictions.csv")
    assert sum(row["right"] == "True" for row in predictions) == count_right(trained)
    for row in predictions:
        is_right = row["true_class"] == row["predicted_class"]
        assert row["right"] == str(is_right)
        assert (row["confidence"] == row["true_confidence"]) == is_right
        assert row["path"].startswith(f"{row['true_class']}/")


@pytest.mark.parametrize("strategy", [pytest.param("ddp", marks=pytest.mark.slow), "towers"])
def test_one_of_several_processes_draws_the_whole_network(tmp_path: Path, strategy: str) -> None:
    text = train(tmp_path, processes=2, parallel__strategy=strategy)
    assert "not drawn" not in text
    assert text.count("figures: ") == 1
    assert list_plots(tmp_path / "run") == ALL
    assert sum(int(row["count"]) for row in read_classes(tmp_path / "run")) == 5


@pytest.mark.parametrize("split", [None, pytest.param("test", marks=pytest.mark.slow)])
def test_without_a_validation_set(tmp_path: Path, split: str | None) -> None:
    for part in ("train", "test"):
        for number, name in enumerate(("$\\frac_a", "=犬 dog", "n02102040")):
            (tmp_path / "data" / part / name).mkdir(parents=True)
            save_jpeg(tmp_path / "data" / part / name / "a.jpg", 80 + number, 90)
    settings = {"data__source": "folder", "data__root": str(tmp_path / "data"), "data__test": split}
    text = train(tmp_path, **settings, data__val_fraction=0.0, train__global_batch_size=3, augment__resize=70)
    assert "not drawn" not in text
    assert list_plots(tmp_path / "run") == (ALL if split else ALL - OF_A_SET)
    if split:
        paths = [row["path"] for row in read_csv(tmp_path / "run" / "plots" / "predictions.csv")]
        assert sorted(paths) == [f"test/{name}/a.jpg" for name in ("$\\frac_a", "=犬 dog", "n02102040")]
        words = [row["words"] for row in read_classes(tmp_path / "run")]
        assert words == ["", "", "English springer"]


def test_no_figures_where_they_are_not_wanted(tmp_path: Path) -> None:
    text = train(tmp_path, log__plots=False)
    assert "drawing figures" not in text
    assert not (tmp_path / "run" / "plots").exists()


def test_without_matplotlib_a_run_ends_well_and_names_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    text = train(tmp_path)
    (line,) = [line for line in text.splitlines() if "figures" in line]
    assert line.startswith("no figures: ")
    assert "pip install matplotlib" in line
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "finished"


@pytest.mark.parametrize(
    ("broken", "lost", "num_lines"),
    [
        (["judge_set"], OF_A_SET, 1),
        (["draw_curves", "draw_contact_sheet"], {"curves.png", "worst.png", "worst_explained.png", "inputs.png"}, 4),
    ],
)
def test_what_cannot_be_drawn_costs_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: list[str], lost: set[str], num_lines: int
) -> None:
    def fail(*args: object) -> None:
        raise ValueError("no\ncolors")

    for name in broken:
        monkeypatch.setattr(plots, name, fail)
    text = train(tmp_path)
    lines = [line for line in text.splitlines() if "not drawn (ValueError: no colors)" in line]
    assert len(lines) == num_lines
    assert list_plots(tmp_path / "run") == ALL - lost
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "finished"


def test_a_plots_folder_that_cannot_be_made_costs_a_warning(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    mark_folder(tmp_path / "run", "run")
    (tmp_path / "run" / "plots").write_text("in the way")
    assert "plots/ not drawn (FileExistsError" in train(tmp_path)


def test_a_signal_while_drawing_ends_the_drawing_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = plots.evaluate

    def ask_to_stop(*args: Any, **keywords: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return plain(*args, **keywords)

    monkeypatch.setattr(plots, "evaluate", ask_to_stop)
    assert "not drawn (InterruptedRunError: Stopped by SIGTERM" in train(tmp_path)
    assert not (tmp_path / "run" / "plots").exists()
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "finished"


# -- again ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_finished_run_is_drawn_again_only_where_its_figures_are_gone(copied: Path) -> None:
    words = ["--config", copied / "config.yaml", "--output_dir", copied]
    for names in (
        ("curves.png", "conv1.png", "inputs.png"),
        ("classes.csv", "predictions.csv"),
        ("confusion.png", "worst.png"),
    ):
        for name in names:
            (copied / "plots" / name).unlink()
        assert f"({', '.join(names)})" in call_well("train", *words)
        assert list_plots(copied) == ALL
    shutil.rmtree(copied / "plots")
    assert "figures: " in call_well("train", *words)
    assert list_plots(copied) == ALL
    assert "figures: " not in call_well("train", *words)


def test_figures_of_an_earlier_end_are_drawn_again_after_a_kill(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(*args: object) -> None:
        raise KeyboardInterrupt  # passes through, as a kill does

    before = (copied / "plots" / "curves.png").read_bytes()
    words = ["--config", str(copied / "config.yaml"), "--output_dir", str(copied), "--train.epochs", "3"]
    with monkeypatch.context() as patch:
        patch.setattr(plots, "_draw_curves", kill)
        assert run("train", words) == 130
    assert (copied / "plots" / "curves.png").read_bytes() == before  # of the second epoch
    assert "figures: " in call_well("train", *words)
    assert (copied / "plots" / "curves.png").read_bytes() != before
    assert "figures: " not in call_well("train", *words)


@pytest.mark.slow
def test_figures_of_weights_that_are_gone_are_drawn_again(copied: Path) -> None:
    words = ["--config", copied / "config.yaml", "--output_dir", copied]
    shutil.rmtree(copied / "model")
    text = call_well("train", *words)
    assert "it now holds the last ones" in text
    assert "figures: " in text
    assert list_plots(copied) == ALL
    shutil.rmtree(copied / "model")
    assert "figures: " not in call_well("train", *words)  # the same weights again


@pytest.mark.slow
def test_another_way_to_the_same_step_is_drawn_again(copied: Path) -> None:
    words = ["--config", copied / "config.yaml", "--output_dir", copied, "--optimizer.lr", 0.002, "--resume_from", 6]
    before = (copied / "plots" / "curves.png").read_bytes()
    assert "figures: " in call_well("train", *words)
    assert (copied / "plots" / "curves.png").read_bytes() != before


def test_evaluate_leaves_a_users_figures_beside_a_given_model(trained: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(trained / "model", tmp_path / "given")
    (folder / "plots").mkdir()
    (folder / "plots" / "conv1.png").write_text("mine")
    text = call_well("evaluate", "--model", folder, "--plots", "--data.workers", "0")
    assert "move plots/ away" in text
    assert [path.name for path in (folder / "plots").iterdir()] == ["conv1.png"]
    assert (folder / "plots" / "conv1.png").read_text() == "mine"


@pytest.mark.parametrize("verb", ["train", "evaluate"])
def test_a_users_figures_in_a_run_stay(copied: Path, verb: str) -> None:
    mine = [copied / "plots" / name for name in ("curves.png", "confusion.png", "classes.csv", "predictions.csv")]
    for path in mine:
        path.write_text("mine")
    (copied / "plots" / "conv1.png").write_bytes(before := b"ours" + (copied / "plots" / "conv1.png").read_bytes()[4:])
    words = ["--config", copied / "config.yaml", "--output_dir", copied, "--train.epochs", "3"]
    text = call_well(verb, *(words if verb == "train" else ["--model", copied, "--plots", "--data.workers", "0"]))
    assert "classes.csv, confusion.png, curves.png, predictions.csv not drawn by this version: they stay" in text
    assert [path.read_text() for path in mine] == ["mine"] * 4
    assert (copied / "plots" / "conv1.png").read_bytes() != before


@pytest.mark.parametrize(("processes", "name"), [(1, "."), pytest.param(2, "model", marks=pytest.mark.slow)])
def test_evaluate_draws_again(trained: Path, copied: Path, processes: int, name: str) -> None:
    shutil.rmtree(copied / "plots")
    words = ["--model", copied / name, "--plots", "--data.workers", "0", "--batch_size", "2"]
    text = call_well("evaluate", *words, processes=processes)
    assert "not drawn" not in text
    assert list_plots(copied) == ALL
    files = ("curves.png", "conv1.png", "confusion.png", "classes.csv", "predictions.csv", "inputs.png")
    ours, theirs = ([(folder / "plots" / file).read_bytes() for file in files] for folder in (copied, trained))
    assert [file for file, one, other in zip(files, ours, theirs, strict=True) if one != other] == []


def test_evaluate_draws_the_set_that_it_evaluates(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_tracker, "load_vega", lambda: "")
    page = copied / "report.html"
    page.write_bytes(FIRST_WORDS[page.name])
    text = call_well("evaluate", "--model", copied, "--split", "test", "--plots", "--ten_crop", "--data.workers", "0")
    result = json.loads(text[text.index("{") : text.rindex("}") + 1])
    assert count_right(copied) == result["top1"] * 5
    confusion = base64.b64encode((copied / "plots" / "confusion.png").read_bytes()).decode()
    assert confusion in page.read_text()


def test_a_model_folder_on_its_own_has_all_but_the_curves(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "model", tmp_path / "given")
    call_well("evaluate", "--model", tmp_path / "given", "--plots", "--data.workers", "0")
    assert list_plots(tmp_path / "given") == ALL - {"curves.png"}


def test_evaluate_refuses_to_draw_without_matplotlib(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert run("evaluate", ["--model", str(trained), "--plots"]) == 5
    assert "pip install matplotlib" in capsys.readouterr().err
