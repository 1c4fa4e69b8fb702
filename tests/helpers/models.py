"""A model folder of random weights, and pictures for it."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from alexnet_dist.data.engines.loader import Normalization
from alexnet_dist.data.plan import Augmentation
from alexnet_dist.inference.model_folder import ModelCard, save_model_folder
from alexnet_dist.models import build_model
from helpers.images import make_picture
from helpers.tiny import tiny_spec


def write_model_and_pictures(folder: Path, classes: tuple[str, ...] = ("cat", "dog"), **source: object) -> Path:
    """A model in model/, and in pictures/ three good files, one that is none, and one too small; the folder."""
    (folder / "pictures").mkdir(parents=True)
    for number in range(3):
        Image.fromarray(make_picture(80 + 13 * number, 120)).save(folder / "pictures" / f"{number}.png")
    (folder / "pictures" / "3.png").write_text("no picture")
    Image.new("RGB", (1, 3000)).save(folder / "pictures" / "4.png")
    spec = tiny_spec(init="kaiming")
    scale = Normalization((120.0, 110.0, 100.0), (60.0, 61.0, 62.0))
    card = ModelCard("paper", spec, classes, Augmentation(crop_size=64, resize=None), scale, source)
    save_model_folder(folder / "model", build_model(spec, seed=1).state_dict(), card)
    return folder
