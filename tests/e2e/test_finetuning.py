"""Runs that begin with the weights of others, on one process and on two."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from helpers.tiny import tiny_config
from helpers.verbs import call
from safetensors.torch import load_file

from alexnet_dist.base.durable import hash_file
from alexnet_dist.settings.reader import dump_config


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a run on 3 classes."""
    folder = tmp_path_factory.mktemp("finetuning")
    (folder / "first.yaml").write_text(dump_config(tiny_config(folder / "first", train__epochs=1)))
    code, _, text = call("train", "--config", folder / "first.yaml")
    assert code == 0, text
    return folder / "first"


@pytest.mark.parametrize(("part", "processes"), [(".", 2), ("model", 1), ("model/model.safetensors", 1)])
def test_another_number_of_classes(first: Path, tmp_path: Path, part: str, processes: int) -> None:
    """All layers but the last are the first run's: frozen, they stay so, and the last one learns."""
    weights = first / part
    config = tiny_config(
        tmp_path / "second",
        data__synthetic_classes=5,
        train__epochs=1,
        model__pretrained=str(weights),
        optimizer__freeze=["conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7"],
    )
    (tmp_path / "second.yaml").write_text(dump_config(config))
    code, _, text = call("train", "--config", tmp_path / "second.yaml", processes=processes)
    assert code == 0, text
    assert text.count("fc8 is new: 5 outputs here, 3 there") == 1
    before, after = (load_file(folder / "model" / "model.safetensors") for folder in (first, tmp_path / "second"))
    changed = {name for name in after if after[name].shape != before[name].shape or after[name].ne(before[name]).any()}
    assert changed == {"classifier.6.weight", "classifier.6.bias"}
    origin = {
        "weights": str(weights),
        "sha256": hash_file(first / "model" / "model.safetensors"),
        "changes": ["fc8 is new: 5 outputs here, 3 there"],
    }
    assert json.loads((tmp_path / "second" / "run.json").read_text())["pretrained"] == origin
    source = json.loads((tmp_path / "second" / "model" / "config.json").read_text())["source"]
    assert source["pretrained"] == {**origin, "weights": weights.name}  # the folder is given away


def test_a_resumed_run_still_says_where_its_weights_came_from(first: Path, tmp_path: Path) -> None:
    given = Path(shutil.copytree(first / "model", tmp_path / "given"))
    config = tiny_config(tmp_path / "second", train__epochs=1, model__pretrained=str(given))
    (tmp_path / "second.yaml").write_text(dump_config(config))
    assert call("train", "--config", tmp_path / "second.yaml")[0] == 0
    facts = json.loads((tmp_path / "second" / "run.json").read_text())["pretrained"]
    shutil.rmtree(given)
    code, _, text = call("train", "--config", tmp_path / "second.yaml", "--train.epochs", "2")
    assert code == 0, text
    assert json.loads((tmp_path / "second" / "run.json").read_text())["pretrained"] == facts
    assert facts["changes"] == []
