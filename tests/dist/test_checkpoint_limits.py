"""Checkpoints that are not what a run wrote: of another run, under other names, with values that no version writes."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.dist_helper import run_processes
from helpers.images import save_jpeg
from helpers.tiny import tiny_config
from PIL import Image
from safetensors.torch import load_file, save_file

from alexnet_dist.base.durable import MANIFEST, hash_file
from alexnet_dist.base.errors import AlexNetDistError, UsageError
from alexnet_dist.cli.evaluate import evaluate_model
from alexnet_dist.cli.predict import predict_files
from alexnet_dist.cli.train import train
from alexnet_dist.inference.checkpoints import list_checkpoints
from alexnet_dist.tracking.trackers import read_rows
from alexnet_dist.training import checkpoint as checkpoint_module

LENGTH = {"train__epochs": None, "train__max_steps": 6, "checkpoint__keep": 3}
LONGER = LENGTH | {"train__max_steps": 8}


def try_train(folder: Path, overrides: dict[str, Any], resume_from: str | None = None) -> str:
    """Go on with a run; "" or the error."""
    with contextlib.redirect_stderr(io.StringIO()):
        try:
            train(tiny_config(folder, **overrides), resume_from=resume_from)
        except AlexNetDistError as error:
            return f"{error.exit_code} {error}"
    return ""


def go_on(folder: Path, overrides: dict[str, Any] | None = None, resume_from: str | None = None) -> str:
    (outcome,) = run_processes(1, try_train, folder, LONGER if overrides is None else overrides, resume_from)
    return str(outcome)


def try_each(folder: Path, changes: list[Callable[[Path], None]]) -> list[str]:
    """What going on says after each change of the newest checkpoint, which lies in a fresh copy of the run."""
    outcomes = []
    for number, change in enumerate(changes):
        copy = folder.with_name(f"copy{number}")
        shutil.copytree(folder, copy)
        newest = list_checkpoints(copy / "checkpoints")[0]
        change(newest)
        seal(newest)
        before = (copy / "metrics.jsonl").read_bytes()
        outcome = try_train(copy, LONGER)
        outcomes.append(outcome)
        if outcome:
            assert (copy / "metrics.jsonl").read_bytes() == before, "a refused start touches nothing"
    return outcomes


def seal(checkpoint: Path) -> None:
    """Make the manifest say what the files are."""
    digests = {path.name: hash_file(path) for path in sorted(checkpoint.iterdir()) if path.name != MANIFEST}
    (checkpoint / MANIFEST).write_text(json.dumps({"sha256": digests}))


def read_state(checkpoint: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((checkpoint / "state.json").read_text())
    return state


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 6 updates with checkpoints of 3 and 6."""
    folder = tmp_path_factory.mktemp("limits") / "run"
    assert go_on(folder, LENGTH) == ""
    return folder


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run with another seed."""
    folder = tmp_path_factory.mktemp("limits") / "other"
    assert go_on(folder, LENGTH | {"seed": 1}) == ""
    return folder


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    shutil.copytree(run, tmp_path / "run")
    return tmp_path / "run"


# -- values that no version writes ------------------------------------------------------------------------------------


def set_value(path: str, value: Any) -> Callable[[Path], None]:
    def change(checkpoint: Path) -> None:
        state = read_state(checkpoint)
        *parents, key = path.split(".")
        inner = state
        for parent in parents:
            inner = inner[parent]
        if value is ...:
            del inner[key]
        else:
            inner[key] = value
        (checkpoint / "state.json").write_text(json.dumps(state))

    return change


def write_text(text: str) -> Callable[[Path], None]:
    return lambda checkpoint: void((checkpoint / "state.json").write_text(text))


def void(value: object) -> None:
    """Nothing."""


def change_tensors(name: str, change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def apply(checkpoint: Path) -> None:
        tensors = dict(load_file(checkpoint / name))
        change(tensors)
        save_file(tensors, checkpoint / name)

    return apply


MOMENTUM = "momentum_buffer/features.0.bias"
HOSTILE: dict[str, tuple[Callable[[Path], None], str]] = {
    "format text": (set_value("format", "1"), "format of state.json is '1'"),
    "format null": (set_value("format", None), "format of state.json is None"),
    "format list": (set_value("format", [1]), "format of state.json"),
    "no format": (set_value("format", ...), "format of state.json is 'missing'"),
    "newer format": (set_value("format", 2), "checkpoint of a newer version"),
    "no train": (set_value("train", ...), "train is no object"),
    "train a list": (set_value("train", []), "train is no object"),
    "no plateau": (set_value("train.plateau", ...), "train.plateau is missing"),
    "plateau a number": (set_value("train.plateau", 3), "train.plateau is no object"),
    "newer field": (set_value("train.ema", 0.5), "train.ema is unknown"),
    "step text": (set_value("train.step", "6"), "train.step is '6'"),
    "another step": (set_value("train.step", 5), "two steps, 6 and 5"),
    "best true": (set_value("train.best_top1", True), "train.best_top1 is 'True'"),
    "loss infinite": (set_value("train.window.loss_sum", float("inf")), "train.window.loss_sum is not finite"),
    "metrics_bytes text": (set_value("metrics_bytes", "many"), "metrics_bytes of state.json"),
    "metrics_bytes negative": (set_value("metrics_bytes", -4), "metrics_bytes of state.json"),
    "tensor missing": (
        change_tensors("optimizer.safetensors", lambda t: void(t.pop(MOMENTUM))),
        "is missing; name another one",
    ),
    "tensor unknown": (
        change_tensors("optimizer.safetensors", lambda t: t.update({"exp/a": torch.zeros(2)})),
        "is unknown; name another one",
    ),
    "momentum of another shape": (
        change_tensors("optimizer.safetensors", lambda t: t.update({MOMENTUM: torch.zeros(1)})),
        "is (1,) there and (8,) here",
    ),
    "fp16 weights": (
        change_tensors("weights.safetensors", lambda t: t.update({"features.0.bias": t["features.0.bias"].half()})),
        "features.0.bias is float16",
    ),
}


def test_values_that_no_version_writes_are_one_line(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    changes = [change for change, _ in HOSTILE.values()]
    (outcomes,) = run_processes(1, try_each, tmp_path / "run", changes)
    for (name, (_, part)), outcome in zip(HOSTILE.items(), outcomes, strict=True):
        assert outcome.startswith("4 "), (name, outcome)
        assert part in outcome, f"{name}: {outcome[-160:]}"


MENDED: dict[str, Callable[[Path], None]] = {
    "no metrics_bytes": set_value("metrics_bytes", ...),
    "no run id": set_value("run_id", ...),
    "no card": lambda checkpoint: (checkpoint / "config.json").unlink(),
    "unchanged": void,
}


def test_what_older_versions_wrote_goes_on(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    (outcomes,) = run_processes(1, try_each, tmp_path / "run", list(MENDED.values()))
    assert dict(zip(MENDED, outcomes, strict=True)) == dict.fromkeys(MENDED, "")
    ends = {len(read_rows(tmp_path / f"copy{number}" / "metrics.jsonl")) for number in range(len(MENDED))}
    assert len(ends) == 1  # also where the checkpoint does not say how many bytes of the rows are its own


# -- names ------------------------------------------------------------------------------------------------------------


def test_other_names_are_no_checkpoints_of_the_run(copy: Path) -> None:
    newest = list_checkpoints(copy / "checkpoints")[0]
    others = [copy / "checkpoints" / name for name in ("step-²", "step-٣", "best", "step-final")]
    for other_name in others:
        shutil.copytree(newest, other_name)
    assert go_on(copy) == ""
    assert all(other_name.is_dir() for other_name in others)


@pytest.mark.parametrize("place", ["checkpoints/best", "../backup"])
def test_a_copy_under_another_name_can_be_named(copy: Path, place: str) -> None:
    shutil.copytree(copy / "checkpoints" / "step-00000003", copy / place)
    assert go_on(copy, resume_from="best" if place.endswith("best") else str(copy / place)) == ""
    starts = json.loads((copy / "run.json").read_text())["starts"]
    assert starts[-1]["step"] == 3
    assert [row["step"] for row in read_rows(copy / "metrics.jsonl") if row["event"] == "train"] == [2, 4, 6, 8]


# -- whether a run goes on --------------------------------------------------------------------------------------------


def other_setting(copy: Path) -> dict[str, Any]:
    return {"optimizer__momentum": 0.5}


def other_seed(copy: Path) -> dict[str, Any]:
    return {"seed": 1}


def other_images(copy: Path) -> dict[str, Any]:
    facts = json.loads((copy / "run.json").read_text())
    facts["data"]["fingerprint"] = "of other images"
    (copy / "run.json").write_text(json.dumps(facts))
    return {}


OTHER_SETTINGS = "2 this run was started with other settings"


@pytest.mark.parametrize(
    ("place", "change", "refusal"),
    [
        ("checkpoints/abandoned-1/step-00000006", other_images, "3 the images changed since this run began"),
        ("checkpoints/best", other_setting, OTHER_SETTINGS),
        ("../backup/step-00000006", other_seed, OTHER_SETTINGS),
    ],
)
def test_a_run_goes_on_as_it_was_wherever_its_checkpoint_lies(
    copy: Path, place: str, change: Callable[[Path], dict[str, Any]], refusal: str
) -> None:
    (copy / place).parent.mkdir(exist_ok=True)
    (copy / "checkpoints" / "step-00000006").rename(copy / place)
    shutil.rmtree(copy / "checkpoints" / "step-00000003")
    facts = (copy / "run.json").read_bytes()
    named = "best" if place.endswith("best") else str(copy / place)
    assert go_on(copy, LONGER | change(copy), named).startswith(refusal)
    (copy / "run.json").write_bytes(facts)
    assert go_on(copy, resume_from=named) == ""
    assert [start["step"] for start in json.loads((copy / "run.json").read_text())["starts"]] == [0, 6]


def test_a_run_without_a_checkpoint_takes_new_settings(copy: Path) -> None:
    for name in ("step-00000003", "step-00000006"):
        shutil.rmtree(copy / "checkpoints" / name)
    assert go_on(copy, LENGTH | {"seed": 1, "optimizer__momentum": 0.5}) == ""
    assert [start["step"] for start in json.loads((copy / "run.json").read_text())["starts"]] == [0, 0]


# -- another run's ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [["step-00000006"], ["step-00000003", "step-00000006"]])
@pytest.mark.parametrize("named", [None, "step-00000006"])
def test_a_checkpoint_of_another_run_is_refused(copy: Path, other: Path, names: list[str], named: str | None) -> None:
    for name in names:
        shutil.rmtree(copy / "checkpoints" / name)
        shutil.copytree(other / "checkpoints" / name, copy / "checkpoints" / name)
    before = (copy / "metrics.jsonl").read_bytes()
    outcome = go_on(copy, resume_from=named)
    assert outcome.startswith("4 a checkpoint of another run lies here")
    assert (copy / "metrics.jsonl").read_bytes() == before


def test_another_runs_checkpoint_is_no_part_of_this_run(copy: Path, other: Path) -> None:
    outcome = go_on(copy, resume_from=str(other / "checkpoints" / "step-00000006"))
    assert outcome.startswith("4 this run has checkpoints of its own")


def test_a_new_run_begins_from_another_ones_checkpoint(other: Path, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    checkpoint = other / "checkpoints" / "step-00000006"
    assert go_on(begun, resume_from=str(checkpoint)) == ""
    start = json.loads((begun / "run.json").read_text())["starts"][0]
    assert (start["step"], start["begins_from"]) == (6, str(checkpoint))
    assert {row["step"] for row in read_rows(begun / "metrics.jsonl")} == {8}
    assert (begun / "model" / "model.safetensors").is_file()
    newest = list_checkpoints(begun / "checkpoints")[0]
    assert read_state(newest)["run_id"] == json.loads((begun / "run.json").read_text())["run_id"]
    assert read_state(newest)["run_id"] != read_state(checkpoint)["run_id"]
    assert go_on(begun, LONGER | {"train__max_steps": 9}) == ""  # and is then a run like any other
    assert read_state(list_checkpoints(begun / "checkpoints")[0])["step"] == 9


@pytest.mark.parametrize("named", ["step-00000003", "3", "checkpoints"])
def test_new_and_a_checkpoint_of_the_old_run_exclude_each_other(copy: Path, named: str) -> None:
    named = named if named != "checkpoints" else str(copy / "checkpoints" / "step-00000003")
    with pytest.raises(UsageError, match=r"--output_dir|leave out --new"):
        train(tiny_config(copy), new=True, resume_from=named)
    assert list_steps(copy) == [6, 3]
    assert not copy.with_name("run.1").exists()


@pytest.mark.parametrize("damage", ["inside a line", "emptied", "beyond the end"])
def test_metrics_are_never_cut_inside_a_line(copy: Path, damage: str) -> None:
    metrics, newest = copy / "metrics.jsonl", list_checkpoints(copy / "checkpoints")[0]
    if damage == "emptied":
        metrics.write_bytes(b"")
    else:
        set_value("metrics_bytes", 10 if damage == "inside a line" else 10**9)(newest)
        seal(newest)
    assert go_on(copy) == ""
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [row["step"] for row in rows if row["event"] == "train"] == ([8] if damage == "emptied" else [2, 4, 6, 8])
    assert "metrics.jsonl is not what it was at step 6" in (copy / "run.log").read_text()


# -- retention --------------------------------------------------------------------------------------------------------


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) * 3 // 4] ^= 4
    path.write_bytes(data)


def list_steps(folder: Path) -> list[int]:
    return [int(path.name[5:]) for path in list_checkpoints(folder / "checkpoints")]


def test_damaged_checkpoints_do_not_count(copy: Path) -> None:
    flip_a_bit(copy / "checkpoints" / "step-00000006" / "weights.safetensors")
    every = {"checkpoint__every_steps": 1, "checkpoint__keep": 1}
    assert go_on(copy, LONGER | every | {"train__max_steps": 5}) == ""
    assert list_steps(copy) == [6, 5]  # 6 is damaged: 5 is all that there is, and it stays
    assert go_on(copy, LONGER | every) == ""
    assert list_steps(copy) == [8]


def test_a_retention_that_counts_damaged_ones_is_noticed(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def prune(folder: Path, newest: Path, keep: int, verdicts: dict[Path, bool]) -> None:
        for path in list_checkpoints(folder)[keep:]:
            shutil.rmtree(path)

    monkeypatch.setattr(checkpoint_module, "prune_checkpoints", prune)
    flip_a_bit(copy / "checkpoints" / "step-00000006" / "weights.safetensors")
    every = {"checkpoint__every_steps": 1, "checkpoint__keep": 1}
    assert go_on(copy, LONGER | every | {"train__max_steps": 5}) == ""
    assert list_steps(copy) == [6]  # nothing is left to go on from


def test_a_finished_run_holds_as_many_as_are_to_be_kept(copy: Path) -> None:
    assert list_steps(copy) == [6, 3]
    assert go_on(copy, LENGTH | {"checkpoint__keep": 1}) == ""
    assert list_steps(copy) == [6]


def test_going_back_sets_the_later_ones_aside(copy: Path) -> None:
    every = {"checkpoint__every_steps": 1}
    assert go_on(copy, LONGER | every | {"train__max_steps": 5}, "3") == ""
    assert list_steps(copy) == [5, 4, 3]
    assert list_steps(copy.parent / "run") == [5, 4, 3]
    aside = copy / "checkpoints" / "abandoned-1"
    assert sorted(path.name for path in aside.iterdir()) == ["metrics.jsonl", "model", "step-00000006"]
    assert go_on(copy, LONGER | every) == ""  # a plain start goes on with the new line
    assert [start["step"] for start in json.loads((copy / "run.json").read_text())["starts"]][-2:] == [3, 5]
    assert go_on(copy, LONGER | {"train__max_steps": 9}, str(aside / "step-00000006")) == ""  # and one can return
    steps = [row["step"] for row in read_rows(copy / "metrics.jsonl") if row["event"] == "train"]
    assert steps == [2, 4, 6, 8, 9]


# -- model/ -----------------------------------------------------------------------------------------------------------


def make_pictures(root: Path) -> dict[str, Any]:
    """Class folders without a validation set; the settings that name them."""
    for number, part in enumerate(("train", "test")):
        for name in "abc":
            for picture in range(4):
                save_jpeg(root / part / name / f"{picture}.jpg", 72 + picture, 80 + number)
    return {"data__source": "folder", "data__root": str(root), "data__val_fraction": 0.0}


def judge(folder: Path, split: str) -> float:
    with contextlib.redirect_stderr(io.StringIO()):
        result = evaluate_model(folder, split, {"data.workers": 0}, 12)
    assert result is not None
    return float(result["loss"])


def find_test_row(folder: Path) -> dict[str, Any]:
    (row,) = [row for row in read_rows(folder / "metrics.jsonl") if row["event"] == "test"]
    return row


def assert_tested(folder: Path, step: int) -> None:
    """The test row is of this step, and of the weights that are in model/."""
    row = find_test_row(folder)
    assert row["step"] == step
    assert row["loss"] == pytest.approx(run_processes(1, judge, folder, "test")[0], rel=1e-5)
    assert json.loads((folder / "summary.json").read_text())["test_top1"] == row["top1"]


@pytest.mark.parametrize(
    ("overrides", "has_val", "test"),
    [(LENGTH, True, "test"), (LENGTH, False, None), (LONGER, True, None), (LONGER, False, "test")],
    ids=["finished, val and test", "finished, neither", "goes on, val", "goes on, test"],
)
def test_a_run_always_ends_with_its_model(
    tmp_path: Path, has_val: bool, test: str | None, overrides: dict[str, Any]
) -> None:
    folder = tmp_path / "run"
    data = {"data__test": test} | ({} if has_val else make_pictures(tmp_path / "data"))
    assert go_on(folder, LENGTH | data) == ""
    summary = json.loads((folder / "summary.json").read_text())
    shutil.move(folder / "model", tmp_path / "deployed")
    assert go_on(folder, overrides | data) == ""
    card = json.loads((folder / "model" / "config.json").read_text())
    again = json.loads((folder / "summary.json").read_text())
    assert card["source"]["step"] == again["step"]
    assert card["source"].get("val_top1") == again["best_top1"] == again["final_top1"]
    assert ("val_top1" in card["source"]) is has_val
    if test:
        assert_tested(folder, again["step"])
    if overrides is LENGTH:
        assert again["final_top1"] == summary["final_top1"]
        assert "it now holds the last ones, of step 6" in (folder / "run.log").read_text()
    newest = load_file(list_checkpoints(folder / "checkpoints")[0] / "weights.safetensors")
    kept = load_file(folder / "model" / "model.safetensors")
    assert all(torch.equal(kept[name], tensor) for name, tensor in newest.items())


def test_a_model_that_is_made_again_is_tested_again(tmp_path: Path) -> None:
    folder, settings = tmp_path / "run", LENGTH | {"data__test": "test"}
    assert go_on(folder, settings) == ""
    assert_tested(folder, 6)
    before = find_test_row(folder)
    shutil.rmtree(folder / "model")
    assert go_on(folder, settings) == ""
    assert_tested(folder, 6)
    assert find_test_row(folder)["loss"] != before["loss"]  # the best evaluation had been that of step 4


def test_a_run_that_ends_earlier_is_tested_there(tmp_path: Path) -> None:
    folder, settings = tmp_path / "run", LENGTH | {"data__test": "test"}
    assert go_on(folder, settings) == ""
    assert go_on(folder, settings | {"train__max_steps": 3}, "3") == ""
    assert_tested(folder, 3)


def test_other_test_images_are_tested_again(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    settings = LENGTH | make_pictures(tmp_path / "data") | {"data__test": "test"}
    assert go_on(folder, settings) == ""
    facts = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(facts | {"bad_files": ["test/a/0.jpg"]}))
    (tmp_path / "data" / "test" / "a" / "0.jpg").unlink()
    assert go_on(folder, settings) == ""
    assert find_test_row(folder)["num_examples"] == 11


# -- checkpoints as models --------------------------------------------------------------------------------------------


def predict(model: Path, picture: Path, weights: str = "best") -> str:
    try:
        (row,) = predict_files(model, [str(picture)], 3, "cpu", weights)
    except AlexNetDistError as error:
        return f"{error.exit_code} {error}"
    return " ".join(f"{name}:{value:.6f}" for name, value in sorted(row.top))


def predict_each(run: Path, picture: Path) -> dict[str, str]:
    """What the run's weights say of a picture, by the way in which they are named."""
    newest, older = list_checkpoints(run / "checkpoints")
    said = {"model": predict(run, picture), "last": predict(run, picture, "last")}
    said |= {"newest": predict(newest, picture), "older": predict(older, picture)}
    flip_a_bit(newest / "weights.safetensors")
    said |= {"last intact": predict(run, picture, "last"), "damaged": predict(newest, picture)}
    (older / "config.json").unlink()
    said["card of model/"] = predict(older, picture)
    shutil.rmtree(run / "model")
    said |= {"no card": predict(older, picture), "no model": predict(run, picture)}
    return said


def test_a_checkpoint_is_a_model(copy: Path, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (72, 72, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    (said,) = run_processes(1, predict_each, copy, tmp_path / "picture.png")
    assert said["last"] == said["newest"] != said["model"]  # the best evaluation was that of step 4
    assert said["older"] == said["last intact"] == said["card of model/"] != said["newest"]
    assert said["damaged"].startswith("4 damaged model")
    assert said["no card"].startswith("4 this checkpoint does not say what its weights are")
    assert said["no model"].startswith("4 no model")
    assert "give " in said["no model"]
    assert "step-00000006" in said["no model"]
