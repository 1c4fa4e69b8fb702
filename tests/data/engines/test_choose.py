"""Which engine a run takes, why, and that looking for it leaves no trace."""

from __future__ import annotations

import dataclasses
import json
import logging
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from helpers import loaders
from helpers.dist_helper import reset_accelerate
from helpers.images import save_jpeg
from helpers.tiny import tiny_config

from alexnet_dist.base.errors import MachineError
from alexnet_dist.cli.train import train
from alexnet_dist.data.draws import Blocks
from alexnet_dist.data.engines import choose as engines
from alexnet_dist.data.engines.cache.build import build_store
from alexnet_dist.data.engines.cache.store import lay_out
from alexnet_dist.data.engines.choose import ENGINES, choose_engine, choose_evaluation_engine, compare_engines
from alexnet_dist.data.engines.dali import engine as dali_engine
from alexnet_dist.data.engines.loader import Batch, Loader
from alexnet_dist.data.engines.workers import worker_context
from alexnet_dist.data.index import SampleIndex
from alexnet_dist.data.plan import Augmentation, Plan
from alexnet_dist.data.sources.folders import scan_folder
from alexnet_dist.data.sources.synthetic import synthetic_index

SIDE, NUM_IMAGES = 16, 80
RECIPE = Augmentation(crop_size=SIDE, resize=20, crop="random")
CROPS = dataclasses.replace(RECIPE, crop="random_resized")


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> SampleIndex:
    folder = tmp_path_factory.mktemp("images")
    for number in range(NUM_IMAGES):
        save_jpeg(folder / "train" / f"class-{number % 2}" / f"{number}.jpg", 30, 24)
    return scan_folder(folder / "train", classes=None, on_bad_file="fail", cache_dir=folder / "cache")


def make_loader(index: SampleIndex, cache_dir: Path = Path("nowhere"), **changes: Any) -> Loader:
    settings = {"recipe": RECIPE, "cache_dir": cache_dir, "global_batch_size": 8, "seed": 3, **changes}
    return loaders.make_loader(index, **settings)


@pytest.fixture
def warnings_of(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Any:
    """What users would read; an earlier test may have silenced the package."""
    monkeypatch.setattr(logging.getLogger("alexnet_dist"), "propagate", True)
    return lambda: [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def pretend(monkeypatch: pytest.MonkeyPatch, obstacle: str | None = None, **speeds: float) -> None:
    """DALI is there, or not, and engines would be as fast as this."""
    monkeypatch.setattr(dali_engine, "find_dali", lambda: obstacle)
    monkeypatch.setattr(engines, "compare_engines", lambda loader, names: speeds)
    monkeypatch.setattr(engines, "FEW_IMAGES", NUM_IMAGES)


# -- the choice -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dali", "torchvision", "cache"])
def test_a_named_engine_is_taken(index: SampleIndex, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    pretend(monkeypatch)
    assert choose_engine(name, make_loader(index)) == (name, "set by data.engine")


def test_a_named_engine_that_cannot_run_ends_with_the_remedy(
    index: SampleIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, "DALI is not installed")
    with pytest.raises(MachineError, match=r"DALI is not installed; pip install 'alexnet_dist\[dali\]'") as caught:
        choose_engine("dali", make_loader(index))
    assert caught.value.exit_code == 5


@pytest.mark.parametrize(
    ("speeds", "expected"),
    [
        ({"torchvision": 310, "dali": 434}, ("dali", "1.4 times torchvision's 310 images/s in a short measurement")),
        ({"torchvision": 100, "dali": 104}, ("torchvision", "100 images/s in a short measurement, dali 104")),
        ({"torchvision": 100, "dali": 0}, ("torchvision", "100 images/s in a short measurement, dali 0")),
        ({}, ("torchvision", "files are read too slowly to compare engines")),
    ],
)
def test_auto_takes_the_faster_engine(
    index: SampleIndex, monkeypatch: pytest.MonkeyPatch, speeds: dict[str, float], expected: tuple[str, str]
) -> None:
    pretend(monkeypatch, **speeds)
    assert choose_engine("auto", make_loader(index)) == expected


@pytest.mark.parametrize(
    ("obstacle", "few", "expected"),
    [("DALI is not installed", 1, "DALI is not installed"), (None, NUM_IMAGES + 1, f"few images: {NUM_IMAGES}")],
)
def test_auto_takes_the_reference_without_measuring(
    index: SampleIndex, monkeypatch: pytest.MonkeyPatch, obstacle: str | None, few: int, expected: str
) -> None:
    pretend(monkeypatch, obstacle, torchvision=1, dali=9)
    monkeypatch.setattr(engines, "FEW_IMAGES", few)
    assert choose_engine("auto", make_loader(index)) == ("torchvision", expected)


def test_auto_takes_the_reference_for_pictures_without_files(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, torchvision=1, dali=9)
    made_up = synthetic_index(2000, 3, (30, 24), seed=0)
    assert choose_engine("auto", make_loader(made_up)) == ("torchvision", "the pictures lie in no files")


def test_auto_takes_a_cache_that_was_built_for_the_recipe(
    index: SampleIndex, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pretend(monkeypatch, torchvision=1, dali=9)
    loader = make_loader(index, cache_dir=tmp_path)
    assert choose_engine("auto", loader)[0] == "dali"
    layout = lay_out(tmp_path, index, RECIPE.resize, 3, 10**6)
    build_store(layout, workers=0, on_bad_file="fail", progress=False)
    assert choose_engine("auto", loader) == ("cache", "built for this recipe")
    for other in (CROPS, dataclasses.replace(RECIPE, resize=22)):
        assert choose_engine("auto", make_loader(index, cache_dir=tmp_path, recipe=other))[0] == "dali"
    assert choose_engine("auto", make_loader(index.subset(range(40)), cache_dir=tmp_path))[0] != "cache"


@pytest.mark.parametrize(
    ("requested", "is_given", "obstacle", "expected"),
    [
        ("auto", False, None, "torchvision"),
        ("dali", False, None, "dali"),
        ("dali", True, None, "dali"),
        ("dali", False, "DALI is not installed", "torchvision"),
        ("cache", True, "DALI is not installed", "cache"),
    ],
)
def test_evaluation_takes_the_reference_unless_an_engine_is_named(
    monkeypatch: pytest.MonkeyPatch, requested: str, is_given: bool, obstacle: str | None, expected: str
) -> None:
    pretend(monkeypatch, obstacle)
    assert choose_evaluation_engine(requested, is_given) == expected


def test_evaluation_refuses_a_given_engine_that_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "DALI is not installed")
    with pytest.raises(MachineError):
        choose_evaluation_engine("dali", is_given=True)


# -- the measurement --------------------------------------------------------------------------------------------------


def measure(monkeypatch: pytest.MonkeyPatch, loader: Loader, engine: Any) -> dict[str, float]:
    """Compare the reference with an engine that is made up."""
    monkeypatch.setitem(ENGINES, "dali", engine)
    monkeypatch.setattr(engines, "SECONDS", 0.1)
    return compare_engines(loader, ["torchvision", "dali"])


def repeat_first_batch(loader: Loader, start: int, stop: int) -> Iterator[Batch]:
    """As fast as an engine can be."""
    batch = next(ENGINES["torchvision"](loader, start, stop))
    for _ in range(start, stop):
        yield batch


def sleep_before_each(loader: Loader, start: int, stop: int) -> Iterator[Batch]:
    for batch in ENGINES["torchvision"](loader, start, stop):
        time.sleep(0.05)
        yield batch


@pytest.mark.parametrize(("engine", "is_faster"), [(repeat_first_batch, True), (sleep_before_each, False)])
def test_the_faster_engine_measures_faster(
    index: SampleIndex, monkeypatch: pytest.MonkeyPatch, engine: Any, is_faster: bool
) -> None:
    speeds = measure(monkeypatch, make_loader(index), engine)
    assert (speeds["dali"] > engines.MARGIN * speeds["torchvision"]) == is_faster
    assert min(speeds.values()) > 0


def test_engines_are_compared_on_the_same_few_files_of_the_plan(
    index: SampleIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Loader] = []

    def watch(loader: Loader, start: int, stop: int) -> Iterator[Batch]:
        seen.append(loader)
        return original(loader, start, stop)

    original = ENGINES["torchvision"]
    monkeypatch.setattr(engines, "MEASURED_BATCHES", 2)
    monkeypatch.setitem(ENGINES, "torchvision", watch)
    loader = make_loader(index, num_shards=2, shard_id=1)
    measure(monkeypatch, loader, watch)
    first = Plan(index.sizes, RECIPE, 2 * engines.MEASURED_BATCH, seed=3, shuffle=True).at(0).ids
    assert [loader.index.paths for loader in seen] == [tuple(index.paths[number] for number in first)] * 2
    assert [(loader.shard_id, loader.num_shards) for loader in seen] == [(0, 1)] * 2
    assert [loader.plan.augmentation for loader in seen] == [RECIPE] * 2


def test_engines_are_compared_where_images_are_read_in_blocks(
    index: SampleIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = make_loader(index)
    monkeypatch.setattr(engines, "MEASURED_BATCHES", 1)  # fewer files than there are
    blocks = Blocks(np.arange(len(index)) % 3, window=2)
    loader = dataclasses.replace(loader, plan=dataclasses.replace(loader.plan, blocks=blocks))
    assert min(measure(monkeypatch, loader, ENGINES["torchvision"]).values()) > 0


def test_files_that_are_read_slowly_are_not_measured(index: SampleIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "_read_files", lambda index: engines.MEASURED_BATCH - 1)
    assert measure(monkeypatch, make_loader(index), repeat_first_batch) == {}


@pytest.mark.parametrize("error", [MachineError("no driver"), RuntimeError("no driver"), OSError("no driver")])
def test_an_engine_that_fails_is_out_with_one_line(
    index: SampleIndex, monkeypatch: pytest.MonkeyPatch, warnings_of: Any, error: Exception
) -> None:
    def fail(loader: Loader, start: int, stop: int) -> Iterator[Batch]:
        raise error

    assert measure(monkeypatch, make_loader(index), fail)["dali"] == 0
    (warning,) = warnings_of()
    assert warning == "engine dali failed: no driver"


@pytest.mark.heavy
def test_measuring_leaves_no_process_no_thread_and_no_changed_generator(
    index: SampleIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    context: Any = worker_context()
    helper = context.Process()  # the server of workers stays, and is no business of the measurement
    helper.start()
    helper.join()
    before = describe_process()
    speeds = measure(monkeypatch, make_loader(index, workers=1), sleep_before_each)
    assert min(speeds.values()) > 0
    for thread in threading.enumerate():
        if thread.name == "QueueFeederThread":  # DataLoader tells it to end, and does not wait for that
            thread.join(timeout=10)
    assert describe_process() == before
    torch.rand(1)
    assert describe_process() != before


def describe_process() -> tuple[object, ...]:
    """Children and their children, threads, and generators of random numbers."""
    children = {child.pid for child in psutil.Process().children(recursive=True)}
    generators = (torch.get_rng_state().tolist(), random.getstate(), repr(np.random.get_state()))
    return children, threading.active_count(), *generators


# -- a run ------------------------------------------------------------------------------------------------------------


@pytest.mark.heavy
def test_run_json_has_the_engine_and_the_reason_and_a_resume_keeps_it(tmp_path: Path) -> None:
    reasons = []
    for steps in (1, 2):
        train(tiny_config(tmp_path / "run", train__epochs=None, train__max_steps=steps))
        facts = json.loads((tmp_path / "run" / "run.json").read_text())
        assert facts["engine"] == "torchvision"
        reasons.append(facts["engine_reason"])
        reset_accelerate()
    assert reasons == ["the pictures lie in no files", "chosen when the run began"]


@pytest.mark.heavy
def test_a_run_goes_on_where_its_engine_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "DALI is not installed")
    train(tiny_config(tmp_path / "run", train__epochs=None, train__max_steps=1))
    path = tmp_path / "run" / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "engine": "dali"}))
    reset_accelerate()
    summary = train(tiny_config(tmp_path / "run", train__epochs=None, train__max_steps=2))
    assert (summary["engine"], summary["step"]) == ("torchvision", 2)
    assert "DALI is not installed" in json.loads(path.read_text())["engine_reason"]
    assert "DALI is not installed" in (tmp_path / "run" / "run.log").read_text()


def test_a_named_engine_that_is_missing_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, "DALI is not installed")
    with pytest.raises(MachineError, match="engine dali cannot run"):
        train(tiny_config(tmp_path / "run", data__engine="dali"))
    assert not (tmp_path / "run").exists()
