"""Cross-validation on one and two processes: each fold is the run that train makes, and a kill changes nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.dist_helper import Group, run_processes, start_processes
from helpers.tiny import tiny_config
from safetensors.torch import load_file

from alexnet_dist.base.errors import AlexNetDistError, CheckpointError, DataError, InterruptedRunError, UsageError
from alexnet_dist.cli.crossval import configure_fold, cross_validate
from alexnet_dist.cli.evaluate import evaluate_model
from alexnet_dist.cli.train import train
from alexnet_dist.inference.checkpoints import list_checkpoints
from alexnet_dist.settings.schema import Config
from alexnet_dist.tracking.trackers import read_rows

NUM_FOLDS = 3


def make_config(out: Path, **overrides: Any) -> Config:
    values = {"data__folds": NUM_FOLDS, "train__epochs": 2, "checkpoint__every_steps": 2}
    return tiny_config(out, **(values | overrides))


def validate(out: Path, overrides: dict[str, Any]) -> list[float]:
    sys.stderr = sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (a child of the test: its messages are not the test's)
    return [result.top1 for result in cross_validate(make_config(out, **overrides))]


def validate_until_stopped(out: Path, overrides: dict[str, Any]) -> int:
    try:
        validate(out, overrides)
    except InterruptedRunError as error:
        return error.exit_code
    return 0


def train_fold(out: Path, fold: int) -> None:
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (as above)
    train(configure_fold(make_config(out), fold))


def read_table(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "crossval.json").read_text())
    return found


def read_weights(out: Path, fold: int) -> dict[str, torch.Tensor]:
    newest = list_checkpoints(out / f"fold-{fold}" / "checkpoints")[0]
    return load_file(newest / "weights.safetensors")


def assert_same_weights(ours: Path, theirs: Path, fold: int) -> None:
    first, second = read_weights(ours, fold), read_weights(theirs, fold)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def strip_time(table: dict[str, Any]) -> list[dict[str, Any]]:
    return [{key: value for key, value in fold.items() if key != "train_seconds"} for fold in table["folds"]]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cross-validation by one process, not to be written to."""
    out = tmp_path_factory.mktemp("study") / "study"
    run_processes(1, validate, out, {})
    return out


@pytest.fixture(scope="module", params=[1, 2], ids=["one process", "two processes"])
def reference(
    request: pytest.FixtureRequest, study: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[int, Path]:
    """An undisturbed cross-validation, and its number of processes."""
    if request.param == 1:
        return 1, study
    out = tmp_path_factory.mktemp("reference") / "study"
    results = run_processes(request.param, validate, out, {})
    assert results == [results[0]] * request.param
    return request.param, out


def test_the_table_repeats_the_runs(reference: tuple[int, Path]) -> None:
    world_size, out = reference
    table = read_table(out)
    assert (table["status"], table["processes"], len(table["folds"])) == ("finished", world_size, NUM_FOLDS)
    for fold in table["folds"]:
        folder = out / f"fold-{fold['fold']}"
        summary = json.loads((folder / "summary.json").read_text())
        assert fold["top1"] == summary["final_top1"]
        assert fold["best_top1"] == summary["best_top1"]
        assert fold["num_val"] == len((folder / "held_out.csv").read_text().splitlines()) - 1
        assert fold["num_train"] + fold["num_val"] == 40
    assert table["mean"]["top1"] == pytest.approx(sum(fold["top1"] for fold in table["folds"]) / NUM_FOLDS)


def test_every_image_is_held_out_once(reference: tuple[int, Path]) -> None:
    lists = [(reference[1] / f"fold-{fold}" / "held_out.csv").read_text().splitlines()[1:] for fold in (1, 2, 3)]
    assert len({line for lines in lists for line in lines}) == sum(map(len, lists)) == 40


@pytest.mark.parametrize("reference", [pytest.param(1, marks=pytest.mark.slow), 2], indirect=True)
@pytest.mark.parametrize("fold", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_a_fold_is_the_run_that_train_makes(reference: tuple[int, Path], tmp_path: Path, fold: int) -> None:
    """The first shows that folds are ordinary runs, the last that those before it leave nothing behind, either."""
    world_size, out = reference
    run_processes(world_size, train_fold, tmp_path / "study", fold)
    assert_same_weights(tmp_path / "study", out, fold)
    if fold > 1:
        shutil.copytree(out / "fold-1", tmp_path / "other" / f"fold-{fold}")
        with pytest.raises(AssertionError):  # folds differ: the comparison sees something
            assert_same_weights(tmp_path / "other", out, fold)


def wait_for_fold(out: Path, fold: int, group: Group) -> None:
    """Until a fold has logged its third update, or the processes have ended."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not group.has_ended():
        if any(row["step"] >= 3 for row in read_rows(out / f"fold-{fold}" / "metrics.jsonl")):
            return
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("reference", "number"),
    [
        pytest.param(1, signal.SIGKILL, id="kill"),
        pytest.param(2, signal.SIGTERM, id="stop", marks=pytest.mark.slow),
    ],
    indirect=["reference"],
)
def test_a_stop_in_the_second_fold_changes_nothing(
    reference: tuple[int, Path], tmp_path: Path, number: signal.Signals
) -> None:
    world_size, undisturbed = reference
    out = tmp_path / "study"
    group = start_processes(world_size, validate_until_stopped, out, {})
    wait_for_fold(out, 2, group)
    ranks = [world_size - 1] if number == signal.SIGTERM else range(world_size)
    for rank in ranks:
        os.kill(group.children[rank], number)
    group.wait(seconds=30)
    if number == signal.SIGTERM:
        codes = [torch.load(group.folder / f"result-{rank}") for rank in range(world_size)]
        assert codes == [128 + signal.SIGTERM] * world_size
    assert not (out / "fold-3" / "summary.json").exists()
    partial = read_table(out)
    assert (partial["status"], [fold["fold"] for fold in partial["folds"]]) == ("unfinished", [1])
    starts = (out / "fold-1" / "run.json").read_text()

    run_processes(world_size, validate, out, {})
    assert (out / "fold-1" / "run.json").read_text() == starts  # read, not trained again
    assert len(json.loads((out / "fold-2" / "run.json").read_text())["starts"]) == 2
    assert strip_time(read_table(out)) == strip_time(read_table(undisturbed))
    for fold in (2, 3):
        assert_same_weights(out, undisturbed, fold)
    shutil.rmtree(group.folder)


@pytest.mark.parametrize("reference", [2], indirect=True)
def test_folds_do_not_depend_on_the_number_of_processes(reference: tuple[int, Path], study: Path) -> None:
    _, out = reference
    for name in (f"fold-{fold}/held_out.csv" for fold in range(1, NUM_FOLDS + 1)):
        assert (study / name).read_text() == (out / name).read_text()


# -- what is read again -----------------------------------------------------------------------------------------------


def describe_refusal(out: Path, overrides: dict[str, Any]) -> tuple[type[AlexNetDistError], str]:
    try:
        validate(out, overrides)
    except AlexNetDistError as error:
        return type(error), str(error)
    raise AssertionError("nothing is refused")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"optimizer__lr": 0.5}, "optimizer.lr was 0.01, is 0.5"),
        ({"data__folds": 4}, "data.folds was 3, is 4"),
        ({"seed": 1}, "seed was 0, is 1"),
    ],
)
def test_a_table_of_unequal_folds_is_refused(study: Path, overrides: dict[str, Any], words: str) -> None:
    before = read_table(study)
    [(kind, line)] = run_processes(1, describe_refusal, study, overrides)
    assert kind is UsageError
    assert words in line
    assert read_table(study) == before


def test_other_images_are_refused(study: Path, tmp_path: Path) -> None:
    out = tmp_path / "study"
    shutil.copytree(study, out)
    facts = json.loads((out / "fold-2" / "run.json").read_text())
    facts["data"]["fingerprint"] = "of other images"
    (out / "fold-2" / "run.json").write_text(json.dumps(facts))
    [(kind, line)] = run_processes(1, describe_refusal, out, {})
    assert kind is DataError
    assert f"the images changed since this fold was trained ({out / 'fold-2'})" in line


def test_a_finished_fold_without_checkpoints_is_still_compared(study: Path, tmp_path: Path) -> None:
    out = tmp_path / "study"
    shutil.copytree(study, out)
    shutil.rmtree(out / "fold-2" / "checkpoints")
    [(kind, line)] = run_processes(1, describe_refusal, out, {"optimizer__momentum": 0.5})
    assert kind is UsageError
    assert "optimizer.momentum was 0.9, is 0.5" in line
    shutil.rmtree(out / "fold-1")
    shutil.rmtree(out / "fold-3")
    [(kind, line)] = run_processes(1, describe_refusal, out, {"optimizer__momentum": 0.5})
    assert kind is UsageError


def test_a_fold_whose_run_json_is_lost_is_compared_with_its_checkpoint(study: Path, tmp_path: Path) -> None:
    out = tmp_path / "study"
    shutil.copytree(study, out)
    (out / "fold-2" / "summary.json").unlink()  # it had begun
    (out / "fold-2" / "run.json").unlink()
    marker = out / "fold-2" / ".alexnet_dist"
    marker.write_text(json.dumps({**json.loads(marker.read_text()), "facts": {}}))
    run_processes(1, validate, out, {})
    assert len(read_table(out)["folds"]) == 3


@pytest.mark.parametrize(("key", "value"), [("step", "many"), ("train_seconds", None), ("best_top1", [])])
def test_a_damaged_fold_is_one_line(study: Path, tmp_path: Path, key: str, value: Any) -> None:
    out = tmp_path / "study"
    shutil.copytree(study, out)
    summary = json.loads((out / "fold-2" / "summary.json").read_text())
    (out / "fold-2" / "summary.json").write_text(json.dumps(summary | {key: value}))
    [(kind, line)] = run_processes(1, describe_refusal, out, {})
    assert kind is CheckpointError
    assert f"a finished fold is damaged ({out / 'fold-2'})" in line
    if key == "step":
        shutil.move(out / "fold-2", tmp_path / "away")  # the remedy
        run_processes(1, validate, out, {})
        assert len(read_table(out)["folds"]) == 3


@pytest.mark.slow
def test_more_epochs_go_on_in_each_fold(study: Path, tmp_path: Path) -> None:
    out = tmp_path / "study"
    shutil.copytree(study, out)
    run_processes(1, validate, out, {"train__epochs": 3})
    assert [fold["epoch"] for fold in read_table(out)["folds"]] == [3, 3, 3]


@pytest.mark.slow
def test_new_keeps_the_old_table(study: Path, tmp_path: Path) -> None:
    out = tmp_path / "study"
    shutil.copytree(study, out)
    run_processes(1, start_afresh, out)
    assert strip_time(read_table(tmp_path / "study.1")) == strip_time(read_table(out))
    assert len(json.loads((out / "fold-1" / "run.json").read_text())["starts"]) == 1


def test_a_fold_can_be_evaluated_afterwards(study: Path, tmp_path: Path) -> None:
    """The fold is found again from the model alone; its weights are the best ones."""
    fold = read_table(study)["folds"][1]
    [result] = run_processes(1, evaluate_fold, study / "fold-2", {})
    assert result["num_examples"] == fold["num_val"]
    assert result["top1"] == pytest.approx(fold["best_top1"])
    [other] = run_processes(1, evaluate_fold, study / "fold-2", {"data.val": "test"})
    assert other["num_examples"] == 40 // 8  # another set takes the fold's place


def evaluate_fold(run: Path, given: dict[str, Any]) -> dict[str, Any] | None:
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (as above)
    return evaluate_model(run, "val", {"data.workers": 0, **given}, 16)


def start_afresh(out: Path) -> None:
    sys.stderr = sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (as above)
    cross_validate(make_config(out), new=True)


def try_validating(out: Path, overrides: dict[str, Any]) -> str:
    try:
        validate(out, overrides)
    except AlexNetDistError as error:
        return f"{error.exit_code} {error}"
    return ""


def test_folds_that_train_alike_take_another_rate_afresh_only(tmp_path: Path) -> None:
    """A fold by itself may go on with a lower rate; folds that are compared may not."""
    out = tmp_path / "out"
    (diverged,) = run_processes(1, try_validating, out, {"optimizer__lr": 1e5, "checkpoint__every_steps": 1})
    assert diverged.startswith("6 ")
    assert diverged.endswith("use --new, as all folds train alike")
    shutil.rmtree(out)
    run_processes(1, train_fold, out, 1)
    (refused,) = run_processes(1, try_validating, out, {"optimizer__lr": 0.005})
    assert refused.startswith("2 ")
    assert "optimizer.lr was 0.01, is 0.005" in refused
    assert "--new" in refused
