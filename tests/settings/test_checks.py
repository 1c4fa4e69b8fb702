"""Settings that no run can mean are refused in one line, each with its key, its place and what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from alexnet_dist.base.errors import UsageError
from alexnet_dist.models import LAYER_NAMES
from alexnet_dist.settings.checks import PERIODS
from alexnet_dist.settings.reader import build_config, load_config
from alexnet_dist.settings.schema import Config, LayerFactors, walk_fields

BASE: dict[str, Any] = {"data.source": "synthetic", "train.epochs": 1}

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"schedule.halve_every_steps": 100}, "schedule.halve_every_steps has no effect: schedule constant does not count"),
    (
        {"schedule.name": "halve_every", "schedule.step_epochs": 2},
        "schedule.step_epochs has no effect: schedule halve_",
    ),
    ({"schedule.name": "step", "schedule.halve_every_steps": 9}, "in it, halve_every does; leave it out"),
    ({"schedule.name": "poly", "schedule.patience": 2}, "schedule.patience has no effect"),
    ({"schedule.name": "halve_every_epochs"}, "wrong value for schedule.name"),
    ({"schedule.power": 0.0}, "schedule.power is out of range"),
    ({"data.source": "folder"}, "data.root is missing: source folder reads images there"),
    ({"data.source": "manifest"}, "data.root is missing: source manifest reads images there"),
    ({"data.source": "cifar10"}, "set --data.root FOLDER or --data.download true"),
    ({"data.classes": "names.txt"}, "data.classes has no effect: source synthetic has its own class names"),
    ({"data.download": True}, "data.download has no effect: source synthetic cannot be downloaded"),
    (
        {"data.source": "folder", "data.root": "x", "data.val_fraction": 0.0, "train.early_stop": 3},
        "train.early_stop needs a validation set",
    ),
    (
        {"data.source": "folder", "data.root": "x", "data.val_fraction": 0.0, "schedule.name": "plateau"},
        "schedule.name needs a validation set",
    ),
    ({"data.fold": 2}, "data.fold has no effect: data.folds is null"),
    ({"data.folds": 1}, "data.folds is out of range"),
    ({"data.folds": 4, "data.fold": 5}, "data.fold is out of range: got 5, and there are 4 folds"),
    ({"data.folds": 4, "data.val": "val"}, "data.folds and data.val exclude each other: a fold of data.train is the"),
    ({"optimizer.freeze": list(LAYER_NAMES)}, "optimizer.freeze is too long: all layers are frozen: nothing learns"),
    ({"optimizer.freeze": ["conv6"]}, "wrong value for optimizer.freeze"),
    ({"optimizer.freeze_from_epoch": 3}, "optimizer.freeze_from_epoch has no effect: optimizer.freeze names no layer"),
    ({"optimizer.lr_factors.conv1": 0.0}, "optimizer.lr_factors.conv1 is out of range"),
    ({"optimizer.lr_factors.conv9": 0.5}, "unknown key optimizer.lr_factors.conv9"),
    ({"augment.lighting_epochs": 3}, "augment.lighting_epochs has no effect: augment.lighting is null"),
    ({"augment.color_jitter": [0.4, 0.4, 0.4]}, "augment.color_jitter has the wrong length: got 3 values; give 4"),
    ({"augment.color_jitter": [0.4, 0.4, 0.4, 0.6]}, "augment.color_jitter is out of range: hue is 0.6"),
    ({"augment.color_jitter": [-0.1, 0.4, 0.4, 0.1]}, "augment.color_jitter is out of range: got -0.1"),
    ({"model.relu_after_pool": [True]}, "model.relu_after_pool has the wrong length: got 1 values; give 3"),
    ({"train.early_stop": 0}, "train.early_stop is out of range"),
    (
        {"parallel.strategy": "towers", "model.variant": "torchvision"},
        "parallel.strategy towers needs a network of two towers: model.variant is torchvision; use paper or source2012",
    ),
    (
        {"parallel.exchange_at": "none", "model.variant": "ungrouped"},
        "parallel.exchange_at none needs a network of two towers: model.variant is ungrouped",
    ),
    ({"parallel.exchange": "bf16"}, "parallel.exchange has no effect: parallel.strategy is ddp; leave it out"),
    ({"parallel.shard_size": 2}, "parallel.shard_size has no effect: parallel.strategy is ddp"),
    (
        {"parallel.strategy": "towers", "parallel.hybrid_schedule": "batch_by_batch"},
        "parallel.hybrid_schedule has no effect: parallel.strategy is towers",
    ),
    ({"parallel.strategy": "hybrid", "parallel.shard_size": 0}, "parallel.shard_size is out of range"),
    ({"parallel.gradient_compression": "int8"}, "wrong value for parallel.gradient_compression"),
]


@pytest.mark.parametrize(("values", "message"), REFUSED, ids=[message[:40] for _, message in REFUSED])
def test_a_contradiction_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        build_config({**BASE, **values})
    assert message in str(caught.value)


ACCEPTED: list[dict[str, Any]] = [
    {"schedule.name": "halve_every", "schedule.halve_every_steps": 100},
    {"schedule.name": "step", "schedule.step_epochs": 2},
    {"schedule.name": "plateau", "schedule.patience": 2},
    {"data.source": "cifar10", "data.download": True},
    {"data.source": "manifest", "data.root": "x", "data.classes": "names.txt"},
    {"optimizer.freeze": list(LAYER_NAMES), "optimizer.freeze_from_epoch": 3},
    {"augment.lighting": "source2012", "augment.lighting_epochs": 0},
    {"augment.color_jitter": [0.4, 0.4, 0.4, 0.5]},
    {"parallel.strategy": "towers", "parallel.exchange": "fp16", "parallel.exchange_at": "fc_only"},
    {"parallel.exchange_at": "none", "parallel.gradient_compression": "bf16"},
    {"parallel.strategy": "hybrid", "parallel.shard_size": 2, "parallel.hybrid_schedule": "batch_by_batch"},
    {"data.folds": 4, "data.fold": 4},
    {"data.source": "folder", "data.root": "x", "data.val_fraction": 0.0, "data.folds": 2, "train.early_stop": 3},
    {"data.source": "folder", "data.root": "x", "data.val": "val", "data.val_fraction": 0.0, "train.early_stop": 3},
]


@pytest.mark.parametrize("values", ACCEPTED, ids=str)
def test_what_can_be_meant_is_accepted(values: dict[str, Any]) -> None:
    build_config({**BASE, **values})


def test_a_schedule_on_the_command_line_leaves_the_files_period_behind(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("data: {source: synthetic}\ntrain: {epochs: 1}\nschedule: {name: step, step_epochs: 20}\n")
    assert load_config(str(file), {"schedule.name": "cosine"}).schedule.step_epochs == 30
    assert load_config(str(file), {"schedule.name": "step"}).schedule.step_epochs == 20
    with pytest.raises(UsageError, match=r"schedule\.halve_every_steps has no effect"):
        load_config(str(file), {"schedule.name": "cosine", "schedule.halve_every_steps": 9})


def test_the_layers_are_those_of_the_network() -> None:
    assert tuple(key for key, _ in walk_fields(LayerFactors)) == LAYER_NAMES


def test_periods_are_settings() -> None:
    assert set(PERIODS.values()) <= {key for key, _ in walk_fields(Config)}
