"""The source that docs/data-sources.md shows how to add works as the page says, with every engine."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from helpers.array_files import save_npy_folders
from helpers.loaders import make_loader
from helpers.pages import read_code

from alexnet_dist.assembly.sets import build_splits
from alexnet_dist.base.errors import DataError
from alexnet_dist.base.sources import SOURCES, SourceFacts
from alexnet_dist.data.engines.cache.build import build_store
from alexnet_dist.data.engines.cache.engine import find_layout
from alexnet_dist.data.engines.choose import find_obstacle
from alexnet_dist.data.plan import Augmentation
from alexnet_dist.settings.schema import DataConfig

CODE, LINE = read_code("data-sources.md")
RECIPE = Augmentation(crop_size=64, resize=None, crop="random", horizontal_flip=0.5)


@pytest.fixture
def npy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The page's module, with its line in the table; `tmp_path` has arrays."""
    (tmp_path / "npy_source.py").write_text(CODE)
    spec = importlib.util.spec_from_file_location("npy_source", tmp_path / "npy_source.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "npy_source", module)
    spec.loader.exec_module(module)
    ((name, facts),) = eval(f"{{{LINE}}}", {"SourceFacts": SourceFacts}).items()
    assert facts.module == "alexnet_dist.data.sources.npy"
    monkeypatch.setitem(SOURCES, name, SourceFacts("npy_source", facts.needs_root, facts.has_folders))
    save_npy_folders(tmp_path)
    return module


def settings_of(root: Path) -> DataConfig:
    return DataConfig(source="npy", root=str(root), val="val", cache_dir=str(root / "cache"))


def test_sets_have_the_pictures_of_the_files(npy: ModuleType, tmp_path: Path) -> None:
    splits = build_splits(settings_of(tmp_path), 0, False)
    assert splits.counts() == {"train": 12, "val": 12, "test": 0}
    assert (splits.train.classes, splits.train.labels.tolist()) == (("rose", "tulip"), [0] * 6 + [1] * 6)
    assert (splits.train.load_pixels(7) == np.load(tmp_path / "train" / "tulip" / "1.npy")).all()
    (tmp_path / "train").rename(tmp_path / "moved")
    with pytest.raises(DataError, match="no such folder"):
        build_splits(settings_of(tmp_path), 0, False)


@pytest.mark.parametrize("engine", ["torchvision", "cache", "dali"])
def test_engines_give_its_batches(npy: ModuleType, tmp_path: Path, engine: str) -> None:
    if find_obstacle(engine):
        pytest.skip(str(find_obstacle(engine)))
    index = build_splits(settings_of(tmp_path), 0, False).train
    reference = make_loader(index, RECIPE)
    loader = make_loader(index, RECIPE, engine=engine, cache_dir=tmp_path / "cache", workers=int(engine == "dali"))
    if engine == "cache":
        build_store(find_layout(loader), workers=0, on_bad_file="fail", progress=False)
    for ours, theirs in zip(loader.batches(0, 3), reference.batches(0, 3), strict=True):
        assert ours.mask.all()
        assert torch.equal(ours.labels, theirs.labels)
        torch.testing.assert_close(ours.images, theirs.images, rtol=0, atol=1e-5)
