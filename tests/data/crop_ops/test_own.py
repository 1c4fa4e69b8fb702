"""The augmentation that docs/engines.md shows how to add works as the page says, under every engine."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.loaders import make_loader
from helpers.pages import ROOT, read_code

from alexnet_dist.base.bounds import bounded
from alexnet_dist.data.crop_ops.operations import OPERATIONS, Operation
from alexnet_dist.data.engines.cache.build import build_store
from alexnet_dist.data.engines.cache.engine import find_layout
from alexnet_dist.data.engines.choose import find_obstacle
from alexnet_dist.data.plan import Augmentation
from alexnet_dist.data.sources.synthetic import synthetic_index

CODE, PURPOSE, LINE, FIELD, KEYWORD = read_code("engines.md")
NAME = "random_grayscale"


def make_recipe(probability: float) -> Augmentation:
    """With the page's field, and its keyword."""
    text = f"class Extended(Augmentation):\n{FIELD}"
    names: dict[str, Any] = {"Augmentation": Augmentation, "bounded": bounded}
    exec(text, names)
    extended = dataclasses.dataclass(frozen=True)(names["Extended"])
    augment = SimpleNamespace(**{NAME: probability})
    recipe: Augmentation = eval(f"extended(24, None, 'random', {KEYWORD})", {"extended": extended, "augment": augment})
    return recipe


@pytest.fixture
def _is_added(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's file, and its line in the table."""
    module = ModuleType(NAME)
    monkeypatch.setitem(sys.modules, NAME, module)
    exec(CODE, module.__dict__)
    names: dict[str, Any] = {NAME: module, "Operation": Operation}
    exec(PURPOSE, names)
    for name, operation in eval(f"{{{LINE}}}", names).items():
        monkeypatch.setitem(OPERATIONS, name, operation)


@pytest.mark.usefixtures("_is_added")
@pytest.mark.parametrize("engine", ["torchvision", "cache", "dali"])
def test_it_is_carried_out_by_every_engine(engine: str, tmp_path: Path) -> None:
    if find_obstacle(engine):
        pytest.skip(str(find_obstacle(engine)))
    index = synthetic_index(16, 2, (30, 27), seed=3)
    loader = make_loader(index, make_recipe(0.5), engine=engine, cache_dir=tmp_path, global_batch_size=6)
    if engine == "cache":
        build_store(find_layout(loader), workers=0, on_bad_file="fail", progress=False)
    plain = make_loader(index, make_recipe(0.0), global_batch_size=6)
    std, mean = (torch.tensor(values)[:, None, None] for values in (plain.normalization.std, plain.normalization.mean))
    num_gray = 0
    for batch, expected, step in zip(loader.batches(0, 3), plain.batches(0, 3), range(3), strict=True):
        is_gray = torch.from_numpy(loader.plan.at(step).drawn[NAME][:, 0] > 0) & batch.mask.bool()
        num_gray += int(is_gray.sum())
        torch.testing.assert_close(batch.images[~is_gray], expected.images[~is_gray], rtol=1e-6, atol=1e-5)
        pixels = batch.images[is_gray] * std + mean  # (n, 3, S, S)
        torch.testing.assert_close(pixels[:, :1].expand_as(pixels), pixels, rtol=0, atol=1e-3)
        changes = (batch.images - expected.images).abs().amax(dim=(1, 2, 3))
        assert (changes[is_gray] > 0.1).all()
    assert 0 < num_gray < len(index)


def test_the_page_names_what_is_there() -> None:
    """The next free purpose, and the places where its lines go."""
    purposes = (ROOT / "alexnet_dist/data/draws.py").read_text()
    number = PURPOSE.split("=")[1].strip()
    assert f"range({number})" in purposes
    places = {"settings/schema.py": "class AugmentConfig", "data/plan.py": "class Augmentation"}
    places |= {"assembly/loaders.py": "def build_augmentation", "data/crop_ops/operations.py": "\nOPERATIONS: "}
    for path, text in places.items():
        assert text in (ROOT / "alexnet_dist" / path).read_text()
        assert f"alexnet_dist/{path}" in (ROOT / "docs/engines.md").read_text()
