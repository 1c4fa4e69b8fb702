"""Whose a folder is, and where results may go."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.cards import CARD
from helpers.refusals import refused
from helpers.tiny import tiny_config

from alexnet_dist.base.errors import MachineError, UsageError
from alexnet_dist.base.run_record import MARKER, Kind
from alexnet_dist.cli.main import run
from alexnet_dist.inference.model_folder import save_model_folder
from alexnet_dist.runs.folder import open_folder, open_run_folder
from alexnet_dist.runs.ownership import is_made_here, mark_folder, owns
from alexnet_dist.runs.targets import check_output_dir, check_target
from alexnet_dist.settings.reader import dump_config
from alexnet_dist.settings.schema import DataConfig

RUN_JSON: dict[str, Any] = {"versions": {"torch": "2"}, "starts": [{"step": 0}]}


def snapshot(folder: Path) -> dict[str, bytes | str | None]:
    """Everything below a folder, links as what they lead to."""
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


def make(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("mine\n")
    return folder


def write_settings(path: Path, comment: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(comment + dump_config(tiny_config(path.parent)))


# -- folders ----------------------------------------------------------------------------------------------------------


def project_with_settings(folder: Path) -> None:
    make(folder, "model/net.py", "model.old/net.py", "metrics.csv")
    write_settings(folder / "config.yaml", "# my settings\n")


def project_with_checkpoints(folder: Path) -> None:
    write_settings(folder / "config.yaml")
    make(folder, "checkpoints/step-5/mine.pt")


def table_in_a_run(folder: Path) -> None:
    (make(folder, "metrics.csv") / "run.json").write_text(json.dumps(RUN_JSON))


FOREIGN: list[Callable[[Path], object]] = [
    project_with_settings,
    project_with_checkpoints,
    table_in_a_run,
    lambda folder: make(folder, "run.json"),
    lambda folder: make(folder, "model/net.py"),
    lambda folder: make(folder, ".gitignore"),
    lambda folder: make(folder, "x.tmp"),
    lambda folder: make(folder, MARKER),
    lambda folder: write_settings(folder / "config.yaml"),
    lambda folder: make(folder, "fold-1/net.py"),
    lambda folder: mark_folder(folder, "plots"),
]


@pytest.mark.parametrize("new", [False, True])
@pytest.mark.parametrize("kind", ["run", "crossval"])
@pytest.mark.parametrize("fill", FOREIGN)
def test_a_folder_of_somebody_else_is_refused_untouched(
    tmp_path: Path, fill: Callable[[Path], object], kind: Kind, new: bool
) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    fill(folder)
    before = snapshot(tmp_path)
    assert "--output_dir" in refused(lambda: open_folder(folder, new, kind), UsageError) or fill is table_in_a_run
    assert snapshot(tmp_path) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["project"]


def earlier_run(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(RUN_JSON))


def earlier_run_without_run_json(folder: Path) -> None:
    write_settings(folder / "config.yaml")
    (folder / "checkpoints").mkdir()


def marked_run(folder: Path) -> None:
    folder.mkdir()
    mark_folder(folder, "run")


RUNS: list[Callable[[Path], None]] = [earlier_run, earlier_run_without_run_json, marked_run]


@pytest.mark.parametrize("begin", [*RUNS, Path.mkdir, lambda folder: make(folder, ".lock", ".gitkeep")])
def test_a_run_goes_on_and_its_users_files_stay(tmp_path: Path, begin: Callable[[Path], None]) -> None:
    folder = tmp_path / "run"
    begin(folder)
    open_run_folder(folder, new=False).release()
    assert is_made_here(folder, "run")
    make(folder, "model.old/a", "checkpoints/step-5.old/a", "metrics.csv.bak", "notes.tmp", "plots/mine.png")
    before = snapshot(folder)
    open_run_folder(folder, new=False).release()
    assert snapshot(folder) == before


@pytest.mark.parametrize("begin", RUNS)
def test_a_cross_validation_of_an_earlier_version_goes_on(tmp_path: Path, begin: Callable[[Path], None]) -> None:
    folder = tmp_path / "study"
    folder.mkdir()
    begin(folder / "fold-1")
    open_folder(folder, False, "crossval").release()
    assert "not a run" in refused(lambda: open_folder(folder, False, "run"), UsageError)


@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "run.log", "metrics.csv", "summary.json", "tensorboard", "plots", "checkpoints", "model"]
)
def test_a_link_in_a_run_is_refused_untouched(tmp_path: Path, name: str) -> None:
    marked_run(tmp_path / "run")
    make(tmp_path, "mine/events.out.tfevents.1")
    (tmp_path / "run" / name).symlink_to(tmp_path / "mine")
    before = snapshot(tmp_path)
    line = refused(lambda: open_run_folder(tmp_path / "run", new=False), MachineError)
    assert line.startswith(f"{name} is a symbolic link (")
    assert snapshot(tmp_path) == before


def test_something_else_than_a_file_is_refused(tmp_path: Path) -> None:
    marked_run(tmp_path / "run")
    os.mkfifo(tmp_path / "run" / "metrics.jsonl")
    assert "is no file" in refused(lambda: open_run_folder(tmp_path / "run", new=False), MachineError)


@pytest.mark.parametrize("new", [False, True])
def test_a_file_in_the_place_of_the_folder_stays(tmp_path: Path, new: bool) -> None:
    (tmp_path / "run").write_text("mine")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    for name in ("run", "gone"):
        assert "has the name" in refused(lambda name=name: open_run_folder(tmp_path / name, new), UsageError)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gone", "run"]
    assert (tmp_path / "run").read_text() == "mine"


def test_new_does_not_rename_the_folder_it_runs_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marked_run(tmp_path / "run")
    monkeypatch.chdir(tmp_path / "run")
    assert "--new cannot rename" in refused(lambda: open_run_folder(Path(), new=True), UsageError)


def test_training_beside_a_users_files_leaves_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "project"
    project_with_settings(folder)
    before = snapshot(tmp_path)
    assert run("train", ["--config", str(folder / "config.yaml"), "--output_dir", str(folder), "--quiet"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: this folder is not a run of alexnet_dist ({folder}): it holds config.yaml, ")
    assert snapshot(tmp_path) == before


# -- images and roots -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("out", ["data", "data/train/out", "", ".", "/", "~"])
@pytest.mark.parametrize(
    "data", [{"root": "data"}, {"root": None, "train": "data/train"}, {"source": "manifest", "image_dir": "train"}]
)
def test_results_never_lie_among_the_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str, data: dict[str, Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = DataConfig(**{"root": "data", **data})
    with pytest.raises(UsageError, match="--output_dir"):
        check_output_dir(os.path.expanduser(out), settings)
    for beside in ("data2", "runs/data", "data/run0", "data/training"):
        check_output_dir(beside, settings)
    earlier_run(tmp_path / "old" / "train" / "run2")
    check_output_dir("old/train/run2", DataConfig(root="old"))  # it began under an earlier version


# -- files that are asked for -----------------------------------------------------------------------------------------


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    marked_run(tmp_path / "run")
    save_model_folder(tmp_path / "run" / "model", {"w": torch.zeros(1)}, CARD)
    shutil.copytree(tmp_path / "run" / "model", tmp_path / "given")
    return tmp_path / "run"


OWN = ["run/run.json", "run/model/model.safetensors", "run/checkpoints/step-5/state.json", "given/config.json"]
OWN += ["run/metrics.csv", "run/.alexnet_dist", "run/plots/new.png", "run/model/../model/manifest.json", "link"]


@pytest.mark.parametrize("name", OWN)
def test_a_file_of_a_run_is_never_a_target(run_folder: Path, name: str) -> None:
    (run_folder.parent / "link").symlink_to(run_folder / "model" / "model.safetensors")
    assert owns(run_folder.parent / name)
    line = refused(lambda: check_target(str(run_folder.parent / name), overwrite=True), UsageError)
    assert "a file that a run keeps itself" in line


@pytest.mark.parametrize("name", ["run/net.onnx", "run/model/net.onnx", "given/net.onnx", "new.json"])
def test_a_new_file_may_lie_anywhere(run_folder: Path, name: str) -> None:
    path = run_folder.parent / name
    assert check_target(str(path), overwrite=False) == path
    path.touch()
    line = refused(lambda: check_target(str(path), overwrite=False), UsageError)
    assert line.startswith(f"--out is there already ({path}); ")
    assert check_target(str(path), overwrite=True) == path


@pytest.mark.parametrize(("out", "words"), [("", "is empty"), (" ", "is empty"), ("/dev/null", "is no ordinary file")])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_target_that_is_no_file_is_refused(out: str, words: str, overwrite: bool) -> None:
    assert words in refused(lambda: check_target(out, overwrite), UsageError)
    assert "is a folder" in refused(lambda: check_target(".", overwrite), UsageError)


VERBS = {
    "evaluate": ["--model", "RUN"],
    "export": ["--model", "RUN"],
    "doctor": [],
    "estimate": ["--images_per_second", "9", "--link_gbits", "1"],
}


@pytest.mark.parametrize("verb", VERBS)
def test_verbs_replace_no_file(run_folder: Path, verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    mine = run_folder.parent / "mine.json"
    mine.write_text("mine")
    words = [str(run_folder) if word == "RUN" else word for word in VERBS[verb]]
    assert run(verb, [*words, "--out", str(mine)]) == 2
    assert capsys.readouterr().err.startswith(f"error: --out is there already ({mine}); ")
    assert run(verb, [*words, "--out", str(run_folder / "model" / "config.json"), "--overwrite"]) == 2
    assert "a file that a run keeps itself" in capsys.readouterr().err
    assert mine.read_text() == "mine"


def test_a_link_that_leads_back_to_itself_is_refused(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to("loop")
    assert str(loop) in refused(lambda: check_target(str(loop), overwrite=True), UsageError)
    check_output_dir(str(loop), DataConfig(root=str(tmp_path / "data")))
    assert str(loop) in refused(lambda: open_folder(loop, False, "run"), UsageError)
