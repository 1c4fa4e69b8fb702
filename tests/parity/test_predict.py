"""predict computes what evaluation computes: the same input and, in batches of one size, the same logits, bit by bit.

With another number of images in a batch a matrix product may be summed in another order: logits then agree to rounding.
predict computes in fp32 whatever the run's precision, so evaluation is asked for fp32 here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.dist_helper import run_processes
from helpers.images import make_picture, save_jpeg
from helpers.tiny import tiny_spec
from PIL import Image
from torch import Tensor

from alexnet_dist.cli.evaluate import evaluate_model
from alexnet_dist.cli.predict import predict_files
from alexnet_dist.data.engines.loader import Normalization
from alexnet_dist.data.plan import Augmentation
from alexnet_dist.inference.model_folder import ModelCard, save_model_folder
from alexnet_dist.models import AlexNet, build_model
from alexnet_dist.settings.reader import build_config

NUM_PICTURES = 9
ROUNDING = 1e-6  # of logits, beside the largest; measured 1e-7


def write_pictures(root: Path) -> list[str]:
    """JPEGs and PNGs of several shapes, color and gray, below class folders; their paths in evaluation's order."""
    paths = []
    for number in range(NUM_PICTURES):
        path = root / "val" / f"class {number % 3}" / f"{number}.{'png' if number % 2 else 'jpg'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        width, height = 80 + 13 * number, 120 - 5 * number
        if number % 2:
            Image.fromarray(make_picture(width, height)).convert("L" if number == 5 else "RGB").save(path)
        else:
            save_jpeg(path, width, height)
        paths.append(str(path))
    return sorted(paths)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of random weights with its pictures."""
    folder = tmp_path_factory.mktemp("predict")
    write_pictures(folder / "data")
    save_tiny_model(folder, Augmentation(crop_size=64, resize=72))
    return folder


def save_tiny_model(folder: Path, recipe: Augmentation) -> None:
    spec = tiny_spec(init="kaiming")  # with the other ones the pictures hardly reach the logits
    settings = {"data.root": str(folder / "data"), "data.val": "val", "train.epochs": 1, "data.workers": 0}
    card = ModelCard(
        variant="paper",
        spec=spec,
        classes=tuple(f"class {label}" for label in range(3)),
        evaluation=recipe,
        normalization=Normalization((120.0, 110.0, 100.0), (60.0, 61.0, 62.0)),
        source={"settings": dataclasses.asdict(build_config(settings))},
    )
    save_model_folder(folder / "model", build_model(spec, seed=1).state_dict(), card)


def watch(action: Callable[..., Any], *args: Any) -> list[tuple[Tensor, Tensor]]:
    """What the network got and gave, batch by batch."""
    seen: list[tuple[Tensor, Tensor]] = []
    plain = AlexNet.forward

    def forward(model: AlexNet, images: Tensor) -> Tensor:
        logits = plain(model, images)
        seen.append((images.clone(), logits.clone()))
        return logits

    AlexNet.forward = forward  # type: ignore[method-assign] (in a child process)
    action(*args)
    return seen


def evaluate_all(folder: Path, batch_size: int) -> list[tuple[Tensor, Tensor]]:
    given = {"precision": "fp32", "device": "cpu", "data.workers": 0}
    return watch(evaluate_model, folder / "model", "val", given, batch_size)


def predict_all(folder: Path, paths: list[str]) -> list[tuple[Tensor, Tensor]]:
    return watch(lambda: list(predict_files(folder / "model", paths, 3, "cpu")))


def predict_each(folder: Path, paths: list[str]) -> list[tuple[Tensor, Tensor]]:
    return watch(lambda: [list(predict_files(folder / "model", [path], 3, "cpu")) for path in paths])


def list_pictures(folder: Path) -> list[str]:
    return sorted(map(str, (folder / "data").rglob("*.*")))


@pytest.fixture(scope="module")
def evaluated(folder: Path) -> tuple[Tensor, Tensor]:
    """The network's input and its logits."""
    ((seen,),) = run_processes(1, evaluate_all, folder, NUM_PICTURES)
    return seen


def test_equal_batches_give_equal_bits(folder: Path, evaluated: tuple[Tensor, Tensor]) -> None:
    ((seen,),) = run_processes(1, predict_all, folder, list_pictures(folder))
    assert all(map(torch.equal, seen, evaluated))


def test_one_picture_has_the_same_input_and_nearly_the_same_logits(
    folder: Path, evaluated: tuple[Tensor, Tensor]
) -> None:
    (alone,) = run_processes(1, predict_each, folder, list_pictures(folder))
    assert torch.equal(torch.cat([pixels for pixels, _ in alone]), evaluated[0])
    difference = torch.cat([logits for _, logits in alone]) - evaluated[1]
    assert difference.abs().max() <= ROUNDING * evaluated[1].abs().max()


def test_another_recipe_gives_other_bits(folder: Path, tmp_path: Path, evaluated: tuple[Tensor, Tensor]) -> None:
    """The control: a model that was trained with a resize one pixel larger."""
    save_tiny_model(tmp_path, Augmentation(crop_size=64, resize=73))
    ((seen,),) = run_processes(1, predict_all, tmp_path, list_pictures(folder))
    assert not torch.equal(seen[0], evaluated[0])
    assert (seen[1] - evaluated[1]).abs().max() > 100 * ROUNDING * evaluated[1].abs().max()
