from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.cards import CARD
from helpers.refusals import refused

from alexnet_dist.base.errors import CheckpointError
from alexnet_dist.inference.model_folder import (
    find_model_folder,
    read_card,
    read_model_weights,
    save_model_folder,
)

WEIGHTS = {"conv.weight": torch.randn(4, 3, 2, 2), "conv.bias": torch.randn(4)}


def test_model_folder_comes_back_equal_and_may_be_moved(tmp_path: Path) -> None:
    weights = WEIGHTS
    (tmp_path / "run").mkdir()
    save_model_folder(tmp_path / "run" / "model", weights, CARD)
    (tmp_path / "run").rename(tmp_path / "moved")
    folder = find_model_folder(tmp_path / "moved")
    assert folder == find_model_folder(tmp_path / "moved" / "model")
    assert read_card(folder) == CARD
    assert all(torch.equal(tensor, weights[name]) for name, tensor in read_model_weights(folder).items())


@pytest.mark.parametrize("path", ["nothing", "."])
def test_folder_without_a_model_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(CheckpointError, match="no model"):
        find_model_folder(tmp_path / path)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": 1}', '{"format": 99}', "\udcff"])
def test_damaged_card_is_refused(tmp_path: Path, text: str) -> None:
    save_model_folder(tmp_path / "model", WEIGHTS, CARD)
    (tmp_path / "model" / "manifest.json").unlink()
    (tmp_path / "model" / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(CheckpointError, match=r"damaged model|newer version"):
        read_card(tmp_path / "model")


@pytest.mark.parametrize(("name", "read"), [("model.safetensors", read_model_weights), ("config.json", read_card)])
def test_bit_flip_in_a_model_is_found(
    tmp_path: Path, name: str, read: Callable[[Path], Any], caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "model"
    save_model_folder(folder, WEIGHTS, CARD)
    data = (folder / name).read_bytes()
    flipped = data[:-1] + bytes([data[-1] ^ 1])
    (folder / name).write_bytes(data.replace(b'"step": 12', b'"step": 13') if name == "config.json" else flipped)
    assert f"sha256 of {name} differs" in refused(lambda: read(folder), CheckpointError)
    (folder / "manifest.json").unlink()  # the remedy
    with caplog.at_level("WARNING", "alexnet_dist"):
        read(folder)
    assert ["has no manifest.json" in text for text in caplog.messages] == [True] * (name == "config.json")


def test_classes_that_were_exchanged_are_found(tmp_path: Path) -> None:
    save_model_folder(tmp_path, WEIGHTS, CARD)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    values["classes"].reverse()
    path.write_text(json.dumps(values, indent=2) + "\n")
    assert "sha256 of config.json differs" in refused(lambda: read_card(tmp_path), CheckpointError)
