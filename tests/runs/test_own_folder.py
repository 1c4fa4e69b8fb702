"""Where a run goes whose folder nobody chose, when its name is taken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from helpers.tiny import tiny_config
from helpers.verbs import call, call_well

from alexnet_dist.cli import crossval
from alexnet_dist.runs.folder import read_settings, store_settings
from alexnet_dist.runs.own_folder import explain_taken, find_own_folder
from alexnet_dist.runs.ownership import LOCK
from alexnet_dist.settings.reader import dump_config, names_output_dir
from alexnet_dist.training.checkpoint import Checkpoint, save_checkpoint

OTHER = {"optimizer__momentum": 0.5}  # may not change within a run
RATE = {"optimizer__lr": 0.5}  # may


def begin_run(folder: Path, status: str = "interrupted", has_checkpoint: bool = True, **values: Any) -> Path:
    """What a start finds of a run of tiny_config, which has five epochs."""
    folder.mkdir(parents=True)
    if has_checkpoint:
        (folder / "checkpoints").mkdir()
        save_checkpoint(folder / "checkpoints", 20, Checkpoint({}, {}, {}), keep=2)
    (folder / "summary.json").write_text(json.dumps({"status": status, "step": 20, "epoch": 5}))
    store_settings(folder, tiny_config(folder, **values))
    return folder


@pytest.mark.parametrize(
    ("run", "values", "why"),
    [
        ({}, {}, ""),
        ({}, OTHER, "optimizer.momentum was 0.9, is 0.5"),
        ({"has_checkpoint": False}, OTHER, ""),
        ({}, RATE, ""),
        ({"status": "failed"}, RATE, ""),
        ({"status": "finished"}, {}, ""),
        ({"status": "finished"}, RATE, "optimizer.lr was 0.01, is 0.5"),
        ({"status": "finished", "has_checkpoint": False}, {}, ""),
        ({"status": "finished", "has_checkpoint": False}, OTHER, "optimizer.momentum was 0.9, is 0.5"),
        ({"status": "finished", "has_checkpoint": False}, RATE, "optimizer.lr was 0.01, is 0.5"),
        ({"status": "finished"}, {**RATE, "train__epochs": 9}, ""),
        ({"status": "finished"}, {"data__workers": 1, "checkpoint__keep": 3}, ""),
    ],
)
def test_a_name_is_taken_by_a_run_that_this_one_would_not_go_on_with(
    run: dict[str, Any], values: dict[str, Any], why: str, tmp_path: Path
) -> None:
    folder = begin_run(tmp_path / "name", **run)
    assert explain_taken(tiny_config(folder, **values)) == why


@pytest.mark.parametrize(("values", "why"), [({}, ""), (RATE, "optimizer.lr was 0.01, is 0.5")])
def test_a_run_that_is_going_on_keeps_its_name_from_other_trials(
    values: dict[str, Any], why: str, tmp_path: Path
) -> None:
    folder = begin_run(tmp_path / "name", has_checkpoint=False)
    with FileLock(folder / LOCK):
        assert explain_taken(tiny_config(folder, **values)) == why
    assert explain_taken(tiny_config(folder, **values)) == ""


def test_the_first_free_name_or_that_of_the_same_settings_is_taken(tmp_path: Path) -> None:
    first = begin_run(tmp_path / "name")
    begin_run(tmp_path / "name-2", optimizer__momentum=0.1)
    config = tiny_config(first, **OTHER)
    found, note = find_own_folder(config, explain_taken)
    assert found == tiny_config(tmp_path / "name-3", **OTHER)
    assert note == f"{first} is a run with other settings (optimizer.momentum was 0.9, is 0.5): " + (
        f"this one goes to {tmp_path}/name-3"
    )
    assert find_own_folder(tiny_config(first), explain_taken) == (tiny_config(first), "")
    same = tiny_config(first, optimizer__momentum=0.1)
    assert find_own_folder(same, explain_taken)[0].output_dir == str(tmp_path / "name-2")


def test_all_folds_go_where_none_has_other_settings(tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "name", data__folds=2)
    begin_run(tmp_path / "name" / "fold-2", data__folds=2, data__fold=2)
    assert find_own_folder(config, crossval._explain_taken) == (config, "")
    other = tiny_config(tmp_path / "name", data__folds=2, **RATE)
    found, note = find_own_folder(other, crossval._explain_taken)
    assert (found.output_dir, "optimizer.lr was 0.01, is 0.5" in note) == (str(tmp_path / "name-2"), True)


@pytest.mark.parametrize(
    ("text", "given", "expected"),
    [
        ("", {}, False),
        ("output_dir: x\n", {}, True),
        ("", {"output_dir": "x"}, True),
        ("seed: 1\n", {"seed": 2}, False),
    ],
)
def test_a_folder_is_chosen_by_a_file_or_a_command_line(
    text: str, given: dict[str, Any], expected: bool, tmp_path: Path
) -> None:
    (tmp_path / "c.yaml").write_text(text)
    assert names_output_dir(str(tmp_path / "c.yaml"), given) is expected
    assert names_output_dir(None, given) is ("output_dir" in given)


@pytest.mark.heavy
def test_processes_agree_on_the_folder_and_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = dump_config(tiny_config(tmp_path, train__epochs=1)).splitlines()
    Path("name.yaml").write_text("\n".join(line for line in settings if not line.startswith("output_dir")))
    call_well("train", "--config", "name.yaml", processes=2)
    words = ("train", "--config", "name.yaml", "--optimizer.momentum", "0.5")
    said = "runs/name is a run with other settings (optimizer.momentum was 0.9, is 0.5): this one goes to runs/name-2\n"
    first = call_well(*words, processes=2)
    assert first.count(said) == 1
    assert read_settings(Path("runs/name-2"))[0]["optimizer.momentum"] == 0.5
    again = call_well(*words, processes=2)
    assert again.count(said) == 1
    assert "this run is finished" in again
    assert sorted(path.name for path in Path("runs").iterdir()) == ["name", "name-2"]
    code, (error,), _ = call(*words, "--output_dir", "runs/name")
    assert (code, error.startswith("error: this run was started with other settings (runs/name): ")) == (2, True)
