"""Whether a run goes on, from where and with what: decided by values, one at a time."""

from __future__ import annotations

import functools
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from helpers.refusals import refused
from helpers.tiny import tiny_config

from alexnet_dist.assembly.kernels import PLAIN, Kernels
from alexnet_dist.base.errors import CheckpointError, UsageError
from alexnet_dist.base.nested import flatten
from alexnet_dist.base.run_record import find_run
from alexnet_dist.data.engines.dali import engine as dali_engine
from alexnet_dist.runs import resume
from alexnet_dist.runs.folder import read_settings, store_settings
from alexnet_dist.runs.resume import (
    KEPT,
    Resumption,
    compare_settings,
    decide,
    find_kernels_before,
    find_origin,
    is_over,
    keep_engine,
    keep_precision,
)
from alexnet_dist.settings.reader import build_config
from alexnet_dist.settings.schema import Config
from alexnet_dist.training.checkpoint import Checkpoint, save_checkpoint

OURS, OTHERS = "0" * 16, "1" * 16
DATA = {"fingerprint": "f" * 64, "num_train": 8}


def make_checkpoint(folder: Path, step: int, run_id: str | None = OURS) -> Path:
    facts = {"run_id": run_id, "data_fingerprint": DATA["fingerprint"]} if run_id is not None else {}
    folder.mkdir(parents=True, exist_ok=True)
    return save_checkpoint(folder, step, Checkpoint({}, {}, facts), keep=9)


# -- from where -------------------------------------------------------------------------------------------------------


def test_a_new_folder_begins_at_step_0_with_an_id_of_its_own(tmp_path: Path) -> None:
    first, second = (find_origin(tmp_path, None, None, has_record=False) for _ in range(2))
    assert (first.checkpoint, first.is_foreign, first.notes) == (None, False, [])
    assert first.run_id != second.run_id


@pytest.mark.parametrize("named", [None, "2", "step-00000002"])
def test_a_run_goes_on_from_its_newest_checkpoint_or_a_named_one(tmp_path: Path, named: str | None) -> None:
    two, three = make_checkpoint(tmp_path, 2), make_checkpoint(tmp_path, 3)
    expected = two if named is not None else three
    assert find_origin(tmp_path, named, OURS, has_record=True) == (OURS, expected, False, [])


def test_a_damaged_checkpoint_is_passed_over_and_named(tmp_path: Path) -> None:
    two = make_checkpoint(tmp_path, 2)
    (make_checkpoint(tmp_path, 3) / "state.json").write_text("{}")
    found = find_origin(tmp_path, None, OURS, has_record=True)
    assert found.checkpoint == two
    assert "step-00000003 is damaged" in found.notes[0]


@pytest.mark.parametrize(("run_id", "is_foreign"), [(OURS, False), (OTHERS, True), (None, True)])
def test_a_checkpoint_from_elsewhere_is_ours_where_it_says_so(
    tmp_path: Path, run_id: str | None, is_foreign: bool
) -> None:
    elsewhere = make_checkpoint(tmp_path / "copy", 3, run_id)
    found = find_origin(tmp_path / "run", str(elsewhere), OURS, has_record=True)
    assert found == (OURS, elsewhere, is_foreign, [])


def test_another_runs_checkpoint_is_refused_where_the_run_has_its_own(tmp_path: Path) -> None:
    elsewhere = make_checkpoint(tmp_path / "copy", 3, OTHERS)
    make_checkpoint(tmp_path / "run", 2)
    line = refused(lambda: find_origin(tmp_path / "run", str(elsewhere), OURS, has_record=True), CheckpointError)
    assert "this run has checkpoints of its own" in line


@pytest.mark.parametrize(("has_record", "is_known"), [(False, True), (True, False)])
def test_a_run_whose_id_is_lost_is_that_of_its_checkpoint(tmp_path: Path, has_record: bool, is_known: bool) -> None:
    """A run of an older version has a record and no id: its checkpoints do not say whose they are."""
    make_checkpoint(tmp_path, 3, OTHERS if is_known else None)
    found = find_origin(tmp_path, None, None, has_record)
    assert (found.run_id == OTHERS) == is_known
    assert ["is taken to be that of step-00000003" in note for note in found.notes] == [True] * is_known


@pytest.mark.parametrize(
    ("resumption", "expected"),
    [
        (Resumption(OURS), "from step 0"),
        (Resumption(OURS, Path("run/checkpoints/step-00000007")), "resumed from step-00000007"),
        (Resumption(OURS, Path("other/step-7"), is_foreign=True), "begins from step 7 of another run, other/step-7"),
    ],
)
def test_the_user_is_told_where_a_run_begins(resumption: Resumption, expected: str) -> None:
    assert resumption.describe(7) == expected
    assert resumption.goes_on == expected.startswith("resumed")


# -- the whole answer -------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run that has ended after three updates."""
    make_checkpoint(tmp_path / "checkpoints", 3)
    record = {
        "run_id": OURS,
        "data": DATA,
        "engine": "torchvision",
        "precision": "bf16",
        "pretrained": {"weights": "x"},
        "device": "cpu",
        "kernels": {"maps": "reference", "groups": "apart", "conv1": "direct", "reason": "asked for"},
        "cuda_graph": {"wanted": False, "reason": "it failed", "failure": "other bits"},
    }
    (tmp_path / "run.json").write_text(json.dumps(record))
    (tmp_path / "summary.json").write_text(json.dumps({"status": "finished", "step": 3}))
    store_settings(tmp_path, tiny_config(tmp_path))
    return tmp_path


def test_all_that_a_start_needs_to_know_is_in_one_record(run: Path) -> None:
    found = decide(run, tiny_config(run, optimizer__lr=0.5))
    assert found == Resumption(
        run_id=OURS,
        checkpoint=run / "checkpoints" / "step-00000003",
        changed={"optimizer.lr": (0.01, 0.5)},
        images=DATA,
        engine=resume.Choice("torchvision", KEPT),
        kernels=Kernels("reference", "apart", "direct", "reference", "reference", "reference", KEPT),
        graph_failure="other bits",
        device="cpu",
        pretrained={"weights": "x"},
        was_finished=True,
        ended_at=3,
    )


def test_a_checkpoint_speaks_for_a_run_whose_record_is_lost(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("alexnet_dist").propagate = True
    for name in ("run.json", ".alexnet_dist"):
        (run / name).unlink()
    with caplog.at_level(logging.WARNING, "alexnet_dist"):
        found = decide(run, tiny_config(run))
    assert (found.run_id, found.images, found.engine) == (OURS, {"fingerprint": DATA["fingerprint"]}, None)
    assert "the run is taken to be that of step-00000003" in caplog.text


def test_a_start_with_another_runs_checkpoint_is_compared_with_nothing(run: Path, tmp_path: Path) -> None:
    found = decide(tmp_path / "other", tiny_config(tmp_path / "other", seed=9), str(run / "checkpoints/step-00000003"))
    assert (found.is_foreign, found.is_named, found.goes_on) == (True, True, False)
    assert (found.changed, found.images) == ({}, {})


@pytest.mark.parametrize("named", [None, "another run's"])
def test_an_ended_run_without_checkpoints_is_not_begun_again(run: Path, tmp_path: Path, named: str | None) -> None:
    ended, config = tmp_path / "ended", tiny_config(tmp_path / "ended", checkpoint__keep=0, train__epochs=9)
    ended.mkdir()
    (ended / "summary.json").write_bytes((run / "summary.json").read_bytes())
    (ended / "run.json").write_text(json.dumps({"run_id": "f" * 16, "data": DATA}))
    store_settings(ended, config)
    with pytest.raises(UsageError, match=r"^this run has ended .*start afresh with --new"):
        decide(ended, config, str(run / "checkpoints" / "step-00000003") if named else None)


# -- with what --------------------------------------------------------------------------------------------------------


def test_kernels_stay_what_they_were_on_a_device_of_that_kind(run: Path) -> None:
    found = decide(run, tiny_config(run))
    assert found.keep_kernels("cpu") == Kernels(
        "reference", "apart", "direct", "reference", "reference", "reference", KEPT
    )
    assert found.keep_kernels("cuda") is None


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_runs_of_older_versions_go_on_with_the_kernels_that_those_had(run: Path, device: str) -> None:
    record = json.loads((run / "run.json").read_text())
    del record["kernels"]
    (run / "run.json").write_text(json.dumps(record | {"device": device}))
    assert decide(run, tiny_config(run)).keep_kernels(device) == Kernels(*PLAIN, KEPT)
    assert find_kernels_before(None, goes_on=False) is None


@pytest.mark.parametrize(("requested", "expected"), [("auto", ("bf16", KEPT)), ("fp32", None)])
def test_auto_stays_with_the_precision_that_the_run_began_with(run: Path, requested: str, expected: Any) -> None:
    assert keep_precision(run, requested) == expected
    assert keep_precision(run / "nowhere", requested) is None


@pytest.mark.parametrize("kept", ["dali", "torchvision", "cache"])
def test_auto_stays_with_the_engine_that_the_run_began_with(monkeypatch: pytest.MonkeyPatch, kept: str) -> None:
    monkeypatch.setattr(dali_engine, "find_dali", lambda: None)
    assert keep_engine("auto", kept, "random") == (kept, KEPT)
    assert keep_engine("auto", None, "random") is None
    assert keep_engine("torchvision", kept, "random") is None


@pytest.mark.parametrize(
    ("kept", "crop", "obstacle"),
    [("dali", "random", "DALI is not installed"), ("cache", "random_resized", "this recipe needs the originals")],
)
def test_an_engine_that_is_gone_gives_way_with_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, kept: str, crop: str, obstacle: str
) -> None:
    monkeypatch.setattr(dali_engine, "find_dali", lambda: "DALI is not installed")
    logging.getLogger("alexnet_dist").propagate = True
    with caplog.at_level(logging.WARNING, "alexnet_dist"):
        assert keep_engine("auto", kept, crop) == ("torchvision", f"{kept} cannot go on: {obstacle}")
    (record,) = caplog.records
    assert (kept in record.getMessage(), obstacle in record.getMessage()) == (True, True)


@functools.cache
@functools.cache
def make_config(**values: Any) -> Config:
    given = {key.replace("__", "."): value for key, value in values.items()}
    return build_config({"data.source": "synthetic", "train.epochs": 2, "tracking.name": "1e3"} | given)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.epochs", 5),
        ("train.micro_batch_size", 8),
        ("device", "cpu"),
        ("data.engine", "torchvision"),
        ("data.workers", 3),
        ("data.root", "elsewhere"),
        ("checkpoint.keep", 7),
        ("log.every_steps", 1),
        ("tracking.wandb", "offline"),
        ("data.on_bad_file", "skip"),
        ("train.early_stop", 3),
        ("optimizer.lr", 0.5),
        ("schedule.warmup_steps", 3),
    ],
)
def test_setting_that_may_change_is_reported_and_stored(tmp_path: Path, key: str, value: Any) -> None:
    store_settings(tmp_path, make_config())
    assert compare_settings(tmp_path, make_config()) == {}
    changed, before = make_config(**{key: value}), flatten(make_config())[key]
    assert compare_settings(tmp_path, changed) == {key: (before, value)}
    store_settings(tmp_path, changed)
    assert compare_settings(tmp_path, changed) == {}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", 1),
        ("optimizer.momentum", 0.5),
        ("train.global_batch_size", 64),
        ("augment.crop", "centre"),
        ("model.dropout", 0.25),
        ("precision", "fp32"),
        ("data.val_fraction", 0.3),
    ],
)
def test_other_changes_are_refused_with_the_difference(tmp_path: Path, key: str, value: Any) -> None:
    store_settings(tmp_path, make_config())
    with pytest.raises(UsageError, match=rf"{key} was .*, is {value}; .*--new"):
        compare_settings(tmp_path, make_config(**{key: value}))


def test_the_runs_own_copy_of_its_settings_comes_before_config_yaml(run: Path) -> None:
    """The same for a start that goes on, and for an evaluation."""
    path = run / "config.yaml"
    path.write_text(path.read_text().replace("seed: 0", "seed: 1"))
    assert read_settings(run)[0]["seed"] == 0
    path.unlink()
    assert read_settings(run)[1]["seed"] == str(run / ".alexnet_dist")
    assert find_run(run / "model") == find_run(run / "checkpoints" / "step-00000003") == run
    (run / ".alexnet_dist").unlink()
    assert find_run(run / "model") is None
    assert "config.yaml of this run is missing" in refused(lambda: read_settings(run), CheckpointError)


@pytest.mark.parametrize(
    ("summary", "train", "expected"),
    [
        ({}, {"train.epochs": 1}, False),
        ({"status": "interrupted", "step": 8, "epoch": 2, "stopped_early": False}, {"train.epochs": 1}, False),
        ({"status": "finished", "step": 8, "epoch": 2, "stopped_early": False}, {"train.epochs": 2}, True),
        ({"status": "finished", "step": 8, "epoch": 2, "stopped_early": False}, {"train.epochs": 3}, False),
        ({"status": "finished", "step": 8, "epoch": 2, "stopped_early": True}, {"train.epochs": 3}, True),
        ({"status": "finished", "step": 8, "epoch": 2, "stopped_early": False}, {"train.max_steps": 9}, False),
    ],
)
def test_a_fold_is_over_when_it_has_trained_for_as_long_as_it_should(
    summary: dict[str, Any], train: dict[str, Any], expected: bool
) -> None:
    assert is_over(summary, build_config({"data.source": "synthetic", **train}).train) == expected
