"""What a model's config.json may say: one wrong value anywhere is refused by its key, before anything is made of it."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.cards import CARD
from helpers.refusals import refused
from safetensors.torch import save_file

from alexnet_dist import AlexNet
from alexnet_dist.base.errors import CheckpointError
from alexnet_dist.cli.evaluate import evaluate_model
from alexnet_dist.cli.export import export_model
from alexnet_dist.cli.predict import predict_files
from alexnet_dist.data.plan import Augmentation
from alexnet_dist.inference.model_folder import pack_card, read_card, read_fitting_card, save_model_folder
from alexnet_dist.models import build_model, make_spec, spec_to_dict
from alexnet_dist.settings.schema import AugmentConfig

SOURCE = {"step": 12, "settings": {"data": {"max_pixels": 1000}}, "data_fingerprint": "0" * 64}
VALUES: dict[str, Any] = json.loads(pack_card(dataclasses.replace(CARD, source=SOURCE)))
EVALUATION, SCALE, SPEC = "preprocessing.evaluation.", "preprocessing.normalization.", "spec."


def change(path: str, value: Any) -> dict[str, Any]:
    """The file's values with one of them another."""
    values = copy.deepcopy(VALUES)
    *folders, last = path.split(".")
    inner = values
    for folder in folders:
        inner = inner[folder]
    inner[last] = value
    return values


def write(folder: Path, values: Any) -> Path:
    """A model folder with this config.json, and no manifest."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(values if isinstance(values, str) else json.dumps(values))
    return folder


def test_what_is_written_is_read(tmp_path: Path) -> None:
    assert read_card(write(tmp_path / "model", VALUES)) == dataclasses.replace(CARD, source=SOURCE)
    ten = dataclasses.replace(CARD, evaluation=Augmentation(64, color_jitter=(0.1, 0.2, 0.3, 0.4), lighting="common"))
    assert read_card(write(tmp_path / "model", pack_card(ten).decode())) == ten


WRONG: dict[str, tuple[Any, ...]] = {
    SPEC + "num_classes": (10**30, 0, -1, 1.5, "3", True, None, 2),
    SPEC + "image_size": (10**30, 65, 0, [64]),
    SPEC + "conv_channels": ([10**6] * 5, [8] * 4, 8, ["8"] * 5, [8.0] * 5, None),
    SPEC + "lrn_alpha": (1e308, "1", -1),
    SPEC + "dropout": (1, math.nan, "0.5"),
    EVALUATION + "crop_size": (0, -5, "64", 1.5, 65, 64.0, True, None, 10**30),
    EVALUATION + "resize": ("big", [1], [1, 2, 3], 0, 1.5, [0, 64], [64, "64"], 10**9, {}),
    EVALUATION + "views": (0, 2, "1", True, None),
    EVALUATION + "crop": ("weird", None, 1),
    EVALUATION + "color_jitter": (0.5, [0.1], "strong", [math.nan] * 4, [-1, 0, 0, 0], 1e308),
    EVALUATION + "horizontal_flip": (2, "yes", None, math.inf),
    EVALUATION + "lighting": ("bright", 1, []),
    EVALUATION + "crop_scale": ([1], [0, 1], None, [1, 2]),
    EVALUATION + "nonsense": (1, None),
    SCALE + "mean": ([1, 2], [1] * 4, "123", None, [1, 2, "3"], [math.inf] * 3, [1e300] * 3),
    SCALE + "std": ([1, 2], [0, 1, 1], [-1, 1, 1], None, [True] * 3, [10**400] * 3, [math.nan] * 3),
    SCALE + "median": ([1, 2, 3],),
    "source.settings.data.max_pixels": ("1000", None, math.inf, 0, 1.5, True, 10**30),
    "source.settings.data": (None, "text", []),
    "source.settings": (None, "text", []),
    "source.data_fingerprint": (1, []),
    "classes": ([1, 2, 3], ["a", None, "c"], [], "abc", None, ["a"] * 4, ["x" * 10**6] * 3, {}),
    "variant": ("papre", None, [], {}),
    "spec": (None, "text", [], 1),
    "preprocessing": (None, "text", [], 1),
    "source": (None, "text", [], 1),
    EVALUATION[:-1]: (None, [], "text", {}),
    SCALE[:-1]: (None, [], {"mean": [1, 2, 3]}),
    "format": ("1", None, 0, 1.0, True, []),
}


def test_a_setting_and_what_a_file_says_of_it_have_the_same_range() -> None:
    settings = {item.name: item.metadata for item in dataclasses.fields(AugmentConfig)}
    recipe = {item.name: item.metadata for item in dataclasses.fields(Augmentation) if item.name in settings}
    assert len(recipe) > 9
    assert recipe == {name: settings[name] for name in recipe}


@pytest.mark.parametrize(("path", "value"), [(path, value) for path, values in WRONG.items() for value in values])
def test_a_wrong_value_is_refused_by_its_key(tmp_path: Path, path: str, value: Any) -> None:
    line = refused(lambda: read_card(write(tmp_path / "model", change(path, value))), CheckpointError)
    key = path.rpartition(".")[2]
    named = {"median": "normalization", "num_classes": "classes", "image_size": "crop_size", "evaluation": "crop_size"}
    assert key in line or named[key] in line
    assert len(line) < 200 + len(str(tmp_path))


NASTY = [None, True, -1, 10**400, 1e308, math.nan, "", "\x1b[31m", "9" * 400, [], [[1]], {}, {"a": {}}]


@pytest.mark.parametrize("value", NASTY, ids=lambda value: repr(value)[:20])
def test_any_value_anywhere_is_read_or_refused_in_one_line(tmp_path: Path, value: Any) -> None:
    def walk(values: Any, path: str) -> list[str]:
        inner = values.items() if isinstance(values, dict) else []
        return [name for key, part in inner for name in (f"{path}{key}", *walk(part, f"{path}{key}."))]

    for path in walk(VALUES, ""):
        folder = write(tmp_path / "model", change(path, value))
        try:
            card = read_card(folder)
        except CheckpointError as error:
            assert len(str(error)) < 200 + len(str(tmp_path))  # noqa: PT017 (a value is taken or refused)
        else:
            assert isinstance(card.max_pixels, int)


@pytest.mark.parametrize(
    "text",
    ["[" * 10**5, '{"format": ' + "[" * 10**5, '{"format": 1' + "0" * 5000 + "}", "1e", "\x00"],
    ids=["list", "inside", "digits", "cut", "zero"],
)
@pytest.mark.parametrize("name", ["config.json", "manifest.json"])
def test_json_without_end_is_refused(tmp_path: Path, text: str, name: str) -> None:
    folder = write(tmp_path / "model", VALUES)
    (folder / name).write_text(text)
    assert "damaged model" in refused(lambda: read_card(folder), CheckpointError)


@pytest.mark.parametrize("name", ["config.json", "manifest.json"])
def test_json_of_gigabytes_is_refused_unread(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path / "model", VALUES)
    with (folder / name).open("wb") as file:
        file.truncate(3 * 10**9)  # a sparse file
    start = time.monotonic()
    refused(lambda: read_card(folder), CheckpointError)
    assert time.monotonic() - start < 5


def test_a_network_is_not_built_for_weights_that_do_not_fit(tmp_path: Path) -> None:
    """The description asks for 8 GB, the weights are a few kilobytes."""
    spec = make_spec("paper", num_classes=3, image_size=64, fc_width=40_000)
    folder = write(tmp_path / "model", {**VALUES, "spec": spec_to_dict(spec)})
    save_file({"features.0.weight": torch.zeros(3)}, folder / "model.safetensors")
    uses: list[Callable[[], object]] = [
        lambda: read_fitting_card(folder),
        lambda: list(predict_files(folder, [], 1, "cpu")),
        lambda: export_model(folder, "onnx", tmp_path / "x.onnx"),
        lambda: evaluate_model(folder, "val", {"data.workers": 0}, 8),
        lambda: AlexNet.from_pretrained(folder),
    ]
    for use in uses:
        start = time.monotonic()
        assert "do not fit the network" in refused(use, CheckpointError)
        assert time.monotonic() - start < 5


def test_a_model_that_fits_is_read(tmp_path: Path) -> None:
    weights = build_model(CARD.spec, seed=0).state_dict()
    save_model_folder(tmp_path / "model", weights, CARD)
    assert read_fitting_card(tmp_path / "model") == CARD
