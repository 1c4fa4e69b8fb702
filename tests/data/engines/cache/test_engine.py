from __future__ import annotations

import dataclasses
import gc
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from helpers import loaders
from helpers.array_files import write_cifar10, write_fashion_mnist
from helpers.dist_helper import run_processes
from helpers.images import JPEG, encode, make_picture, save_jpeg
from helpers.tiny import tiny_config
from PIL import Image

from alexnet_dist.assembly import caches as caching
from alexnet_dist.assembly.caches import build_caches
from alexnet_dist.base.errors import DataError, InterruptedRunError, UsageError
from alexnet_dist.base.signals import StopRequest
from alexnet_dist.cli.evaluate import evaluate_model
from alexnet_dist.cli.train import train
from alexnet_dist.data.crop_ops.color_jitter_pixels import jitter_batch
from alexnet_dist.data.crop_ops.operations import OPERATIONS
from alexnet_dist.data.engines.cache import device as cache_device
from alexnet_dist.data.engines.cache import engine as cache_engine
from alexnet_dist.data.engines.cache import store as cache_store
from alexnet_dist.data.engines.cache.build import build_store
from alexnet_dist.data.engines.cache.device import (
    choose_maker,
    is_final,
    make_from_bands,
    make_from_lines,
    make_from_resident,
    upload,
)
from alexnet_dist.data.engines.cache.engine import find_layout, run_ahead
from alexnet_dist.data.engines.cache.store import open_store
from alexnet_dist.data.engines.choose import ENGINES
from alexnet_dist.data.engines.loader import Batch, Loader, Normalization
from alexnet_dist.data.index import SampleIndex
from alexnet_dist.data.plan import Augmentation
from alexnet_dist.data.sources.arrays import array_index
from alexnet_dist.data.sources.folders import scan_folder
from alexnet_dist.data.sources.synthetic import synthetic_index
from alexnet_dist.parallel.runtime import start_runtime
from alexnet_dist.settings.schema import DataConfig
from alexnet_dist.tracking.trackers import read_rows

SHAPES = [(60, 40), (40, 60), (50, 50), (41, 90), (44, 44), (70, 45)]
EVERYTHING: dict[str, Any] = {
    "crop": "random",
    "horizontal_flip": 0.5,
    "vertical_flip": 0.5,
    "lighting": "source2012",
    "random_erasing": 0.5,
}
JITTER = (0.4, 0.4, 0.4, 0.1)
# Name: the resize, the crop's side, whether the images are small ones of one size, what else the recipe has.
RECIPES: dict[str, tuple[Any, int, bool, dict[str, Any]]] = {
    "shorter side": (32, 24, False, EVERYTHING),
    "square": ((36, 34), 24, False, EVERYTHING),
    "own size": (None, 30, False, EVERYTHING),
    "no margin": (32, 32, False, {"horizontal_flip": 0.5}),
    "centre": (33, 24, False, {}),
    "jitter": (32, 24, False, {**EVERYTHING, "color_jitter": JITTER}),
    "ten views": (33, 24, False, {"views": 10}),
    "small": (41, 32, True, EVERYTHING),
    "small, jitter": ((40, 44), 32, True, {**EVERYTHING, "color_jitter": JITTER}),
    "small, ten views": (41, 32, True, {"views": 10}),
    "large": (200, 180, True, EVERYTHING),
}
LINES = ["shorter side", "square", "own size", "no margin", "centre"]  # one crop each of pictures that are kept resized
BYTES = Normalization((0, 0, 0), (1, 1, 1))  # the network's input is the crop


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_store, "CHUNK_IMAGES", 5)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> SampleIndex:
    """Two classes, twelve images of several shapes."""
    folder = tmp_path_factory.mktemp("images")
    for number, (width, height) in enumerate(SHAPES):
        for name in ("cat", "dog"):
            save_jpeg(folder / "train" / name / f"{number}.jpg", width, height)
    return scan_folder(folder / "train", classes=None, on_bad_file="fail", cache_dir=folder / "cache")


@pytest.fixture(scope="module")
def small_index() -> SampleIndex:
    return synthetic_index(11, 3, (30, 28), seed=5)


def make_loader(index: SampleIndex, folder: Path, recipe: Augmentation, **changes: Any) -> Loader:
    settings = {"engine": "cache", "cache_dir": folder, "global_batch_size": 6, **changes}
    return loaders.make_loader(index, recipe, **settings)


def cached(loader: Loader, on_bad_file: Any = "fail") -> Loader:
    build_store(find_layout(loader), workers=0, on_bad_file=on_bad_file, progress=False)
    return loader


def as_reference(loader: Loader) -> Loader:
    return dataclasses.replace(loader, engine=ENGINES["torchvision"], workers=0)


def is_equal(made: Batch, expected: Batch, tolerance: float = 1e-5) -> bool:
    """Images within the tolerance, on the network's input scale, everything else exactly."""
    return (
        bool((made.images - expected.images).abs().max() <= tolerance)
        and all(torch.equal(one, other) for one, other in zip(made[1:4], expected[1:4], strict=True))
        and made[4:] == expected[4:]
    )


def pick(name: str, index: SampleIndex, small_index: SampleIndex) -> tuple[SampleIndex, Augmentation]:
    resize, side, is_small, more = RECIPES[name]
    return (small_index if is_small else index), Augmentation(side, resize, **more)


# -- the same batches as the reference --------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("name", RECIPES)
def test_batches_are_the_references(
    index: SampleIndex, small_index: SampleIndex, tmp_path: Path, name: str, channels: int
) -> None:
    index, recipe = pick(name, index, small_index)
    loader = cached(make_loader(index, tmp_path, recipe, channels=channels))
    expected = list(as_reference(loader).batches(0, 4))
    made = list(loader.batches(0, 4))
    assert len(made) == 4
    assert all(map(is_equal, made, expected))


@pytest.mark.parametrize("name", RECIPES)
def test_crops_are_the_references_bit_by_bit(
    index: SampleIndex, small_index: SampleIndex, tmp_path: Path, name: str
) -> None:
    index, recipe = pick(name, index, small_index)
    recipe = dataclasses.replace(recipe, lighting=None)
    loader = cached(make_loader(index, tmp_path, recipe, normalization=BYTES))
    for made, expected in zip(loader.batches(0, 4), as_reference(loader).batches(0, 4), strict=True):
        assert torch.equal(made.images, expected.images)


@pytest.mark.parametrize("where", ["pixel", "plan"])
def test_that_comparison_notices_a_defect(
    index: SampleIndex, tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_store.Store, "_check", lambda *_: None)  # which notices a changed pixel, too
    recipe = Augmentation(40, resize=40)
    loader = cached(make_loader(index, tmp_path, recipe, normalization=BYTES, shuffle=False))
    expected = next(as_reference(loader).batches(0, 1))
    assert is_equal(next(loader.batches(0, 1)), expected, 0)
    if where == "plan":
        loader = dataclasses.replace(loader, plan=dataclasses.replace(loader.plan, shuffle=True))
    else:
        path = find_layout(loader).chunk_path(0)
        data = path.read_bytes()
        path.write_bytes(data[:61] + bytes([data[61] ^ 1]) + data[62:])
    assert not is_equal(next(dataclasses.replace(loader).batches(0, 1)), expected, 0.5)


@pytest.mark.parametrize("channels_last", [True, False])
def test_layout_and_types(index: SampleIndex, tmp_path: Path, channels_last: bool) -> None:
    loader = cached(make_loader(index, tmp_path, Augmentation(24, 32, **EVERYTHING), channels_last=channels_last))
    made, expected = next(loader.batches(1, 2)), next(as_reference(loader).batches(1, 2))
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert made.images.is_contiguous(memory_format=layout)
    assert [tensor.dtype for tensor in made[:4]] == [torch.float32, torch.int64, torch.float32, torch.int64]
    assert is_equal(made, expected)


@pytest.mark.parametrize("num_shards", [1, 2, 3])
@pytest.mark.parametrize("views", [1, 10])
def test_shards_are_the_references(index: SampleIndex, tmp_path: Path, num_shards: int, views: Any) -> None:
    loader = cached(make_loader(index, tmp_path, Augmentation(24, 33, views=views), shuffle=False))
    for shard in range(num_shards):
        part = dataclasses.replace(loader, shard_id=shard, num_shards=num_shards)
        assert all(map(is_equal, part.batches(0, 3), as_reference(part).batches(0, 3)))


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_after_a_start_in_the_middle_are_the_same(index: SampleIndex, tmp_path: Path, workers: int) -> None:
    loader = cached(make_loader(index, tmp_path, Augmentation(24, 32, **EVERYTHING), workers=workers))
    expected = list(dataclasses.replace(loader, workers=0).batches(0, 7))
    made = list(loader.batches(3, 7))
    assert len(made) == 4
    assert all(map(partial(is_equal, tolerance=0), made, expected[3:]))
    assert not is_equal(made[0], expected[2])


@pytest.mark.parametrize("source", ["fashion_mnist", "cifar10"])
def test_sets_of_arrays_are_cached_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: Any) -> None:
    write = write_fashion_mnist if source == "fashion_mnist" else write_cifar10
    write(tmp_path / "files", monkeypatch)
    index = array_index(source, "train", root=tmp_path / "files", cache_dir=tmp_path / "cache", download=False)
    channels = 1 if source == "fashion_mnist" else 3
    loader = cached(make_loader(index, tmp_path, Augmentation(63, 64, crop="random"), channels=channels))
    assert find_layout(loader).sizes.max() <= 32
    assert all(map(is_equal, loader.batches(0, 3), as_reference(loader).batches(0, 3)))


# -- what runs on a GPU, on a CPU -------------------------------------------------------------------------------------


def make_all(loader: Loader, make: Callable[..., list[torch.Tensor]]) -> Iterator[list[torch.Tensor]]:
    """Images, labels and weights of each step."""
    for step in range(4):
        rows = loader.plan.at(step)
        yield make(loader, rows, rows.ids >= 0)


TRAVEL = [(name, make_from_bands) for name in RECIPES if "jitter" not in name]
TRAVEL += [(name, make_from_lines) for name in LINES]


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize(("name", "make"), TRAVEL, ids=[f"{name}-{make.__name__}" for name, make in TRAVEL])
def test_bytes_that_travel_give_the_references_batches(
    index: SampleIndex, small_index: SampleIndex, tmp_path: Path, name: str, make: Callable[..., Any], channels: int
) -> None:
    index, recipe = pick(name, index, small_index)
    loader = cached(make_loader(index, tmp_path, recipe, channels=channels))
    store = open_store(find_layout(loader))
    assert make is make_from_bands or is_final(store, loader)
    made = make_all(loader, partial(make, store, ThreadPoolExecutor(2)))
    for (images, *targets), expected in zip(made, as_reference(loader).batches(0, 4), strict=True):
        torch.testing.assert_close(images, expected.images, rtol=1e-6, atol=1e-6)  # a product, not a division
        assert all(map(torch.equal, targets, expected[1:3]))


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("name", ["square", "small", "small, ten views", "large", "shorter side", "ten views"])
def test_a_set_that_lies_on_the_device_gives_the_references_batches(
    index: SampleIndex, small_index: SampleIndex, tmp_path: Path, name: str, channels: int
) -> None:
    index, recipe = pick(name, index, small_index)
    loader = cached(make_loader(index, tmp_path, recipe, channels=channels))
    store = open_store(find_layout(loader))
    made = make_all(loader, partial(make_from_resident, upload(store, loader)))
    for (images, *targets), expected in zip(made, as_reference(loader).batches(0, 4), strict=True):
        torch.testing.assert_close(images, expected.images, rtol=1e-6, atol=1e-6)  # a product, not a division
        assert all(map(torch.equal, targets, expected[1:3]))


def test_chunks_are_checked_at_once_and_each_by_one_thread(
    index: SampleIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = cached(make_loader(index, tmp_path, Augmentation(24, (33, 33))))
    layout, check = find_layout(loader), cache_store.Store._check
    assert layout.num_chunks > 2
    monkeypatch.setattr(cache_device, "available_cores", lambda: 2)
    firsts = [layout.chunk_ids(number).start for number in (0, 1)]
    together, threads = threading.Barrier(2), [set[int]() for _ in range(layout.num_chunks)]

    def watch(store: Any, sample_id: int) -> None:
        if sample_id in firsts:
            together.wait(10)
        threads[store.chunk_of[sample_id]].add(threading.get_ident())
        check(store, sample_id)

    monkeypatch.setattr(cache_store.Store, "_check", watch)
    store = open_store(layout)
    upload(store, loader)
    assert store.is_checked.all()
    assert [len(some) for some in threads] == [1] * layout.num_chunks


def test_a_flipped_bit_does_not_reach_the_device(index: SampleIndex, tmp_path: Path) -> None:
    loader = cached(make_loader(index, tmp_path, Augmentation(24, (33, 33))))
    path = find_layout(loader).chunk_path(1)
    data = bytearray(path.read_bytes())
    data[99] ^= 4
    path.write_bytes(data)
    for use in (
        lambda store: upload(store, loader),
        lambda store: list(make_all(loader, partial(make_from_lines, store, ThreadPoolExecutor(2)))),
    ):
        with pytest.raises(DataError, match=f"{path.name}.*are not those that were written"):
            use(open_store(find_layout(loader)))


@pytest.mark.parametrize(
    ("name", "free", "compiles", "expected"),
    [
        ("square", 10**9, True, make_from_resident),
        ("square", 0, True, make_from_lines),
        ("square", 0, False, make_from_bands),
        ("small", 0, True, make_from_bands),
        ("ten views", 0, True, make_from_bands),
    ],
)
def test_what_travels_follows_from_memory_and_recipe(
    index: SampleIndex,
    small_index: SampleIndex,
    tmp_path: Path,
    name: str,
    free: int,
    compiles: bool,
    expected: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    index, recipe = pick(name, index, small_index)
    loader = cached(make_loader(index, tmp_path, recipe))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, free))
    if not compiles:
        monkeypatch.setattr(cache_device, "load_copier", lambda: None)
    chosen: Any = choose_maker(open_store(find_layout(loader)), loader)
    assert chosen.func is expected


@pytest.mark.parametrize("name", ["jitter", "small, jitter"])
def test_jitter_on_the_device_follows_the_plan(
    index: SampleIndex, small_index: SampleIndex, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_batches = OPERATIONS["color_jitter"]._replace(change=jitter_batch)
    index, recipe = pick(name, index, small_index)
    recipe = dataclasses.replace(recipe, lighting=None)
    loader = cached(make_loader(index, tmp_path, recipe, normalization=BYTES))
    expected_batches = list(as_reference(loader).batches(0, 4))
    monkeypatch.setitem(OPERATIONS, "color_jitter", in_batches)
    made = make_all(loader, partial(make_from_bands, open_store(find_layout(loader)), ThreadPoolExecutor(2)))
    for (images, *_), expected in zip(made, expected_batches, strict=True):
        difference = (images - expected.images).abs()
        assert difference.max() <= 3  # four operations, and a level that is lost may be multiplied by the next
        assert difference.mean() < 0.05


# -- bad files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("views", [1, 10])
def test_bad_files_have_no_weight_and_are_listed(tmp_path: Path, views: Any) -> None:
    for number, (width, height) in enumerate(SHAPES):
        save_jpeg(tmp_path / "train" / "cat" / f"{number}.jpg", width, height)
    index = scan_folder(tmp_path / "train", classes=None, on_bad_file="skip", cache_dir=tmp_path)
    whole = encode(Image.fromarray(make_picture(*SHAPES[1])), **JPEG)
    (tmp_path / "train" / "cat" / "1.jpg").write_bytes(whole[:600])
    recipe = Augmentation(24, resize=32, lighting="common", views=views)
    loader = cached(make_loader(index, tmp_path, recipe, global_batch_size=4, shuffle=False), "skip")
    made, expected = (list(which.batches(0, 2)) for which in (loader, as_reference(loader)))
    assert all(map(is_equal, made, expected))
    assert [batch.num_images for batch in made] == [3, 2]
    assert [bad.path for bad in made[0].bad_files] == [str(tmp_path / "train" / "cat" / "1.jpg")]
    assert "truncated" in made[0].bad_files[0].reason.lower()


def test_images_that_are_not_cached_are_refused(index: SampleIndex, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="these images are not cached"):
        make_loader(index, tmp_path, Augmentation(24, 32)).batches(0, 1)


def test_random_resized_crops_are_refused(index: SampleIndex, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs the originals"):
        make_loader(index, tmp_path, Augmentation(24, 32, crop="random_resized")).batches(0, 1)


# -- the thread and the memory ----------------------------------------------------------------------------------------


def count_threads() -> int:
    return sum(thread.name.startswith("cache-engine") for thread in threading.enumerate())


def test_the_thread_ends_with_the_iterator(index: SampleIndex, tmp_path: Path) -> None:
    loader = cached(make_loader(index, tmp_path, Augmentation(24, 32), workers=1))
    batches = loader.batches(0, 100)
    next(batches)
    assert count_threads() == 1
    batches.close()  # type: ignore[attr-defined]
    assert count_threads() == 0
    assert len(list(loader.batches(0, 3))) == 3
    assert count_threads() == 0


@pytest.mark.parametrize("depth", [1, 3])
def test_the_thread_is_so_many_batches_ahead(depth: int) -> None:
    made: list[int] = []
    batches = run_ahead(lambda step: made.append(step) or step, range(10), depth)  # type: ignore[arg-type, return-value]
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert made == list(range(len(made)))
    assert 1 <= len(made) <= depth + 1


def test_an_error_in_the_thread_is_the_iterators(index: SampleIndex, tmp_path: Path) -> None:
    def fail(step: int) -> Batch:
        if step == 2:
            raise DataError("gone")
        return step  # type: ignore[return-value]

    batches = run_ahead(fail, range(5), 2)
    assert [next(batches), next(batches)] == [0, 1]
    with pytest.raises(DataError, match="gone"):
        next(batches)
    assert count_threads() == 0


def test_an_open_cache_goes_with_its_loader(index: SampleIndex, tmp_path: Path) -> None:
    loader = cached(make_loader(index, tmp_path, Augmentation(24, 32), workers=1))
    for _ in range(2):
        list(loader.batches(0, 2))
    store = weakref.ref(cache_engine._MAKERS[loader][0])
    del loader
    gc.collect()
    assert store() is None


@pytest.mark.parametrize("workers", [0, 1])
def test_memory_stays_flat_over_ten_epochs(tmp_path: Path, workers: int) -> None:
    index = synthetic_index(60, 3, (80, 80), seed=0)
    loader = cached(
        make_loader(index, tmp_path, Augmentation(64, 72, **EVERYTHING), global_batch_size=20, workers=workers)
    )
    memory = []
    for epoch in range(10):
        for _ in loader.batches(3 * epoch, 3 * epoch + 3):
            pass
        memory.append(psutil.Process().memory_info().rss)
    assert memory[-1] < 1.02 * memory[0]


# -- a run ------------------------------------------------------------------------------------------------------------


def read_losses(folder: Path) -> dict[str, list[float]]:
    rows = read_rows(folder / "metrics.jsonl")
    return {event: [row["loss"] for row in rows if row["event"] == event] for event in ("train", "eval")}


@pytest.mark.heavy
def test_a_run_trains_and_evaluates_as_with_the_reference(tmp_path: Path) -> None:
    for engine in ("torchvision", "cache"):
        config = tiny_config(
            tmp_path / engine, data__engine=engine, train__epochs=2, data__cache_dir=str(tmp_path / "cache")
        )
        assert train(config)["engine"] == engine
    reference, made = (read_losses(tmp_path / engine) for engine in ("torchvision", "cache"))
    assert len(reference["train"]) > 2
    assert made["train"] == pytest.approx(reference["train"], rel=1e-4)
    assert made["eval"] == pytest.approx(reference["eval"], rel=1e-4)
    assert len(list((tmp_path / "cache" / "images").iterdir())) == 2  # train and val
    results = [evaluate_model(tmp_path / "cache", "val", {"data.engine": e}, 4) for e in ("torchvision", "cache")]
    assert results[1]["loss"] == pytest.approx(results[0]["loss"], rel=1e-5)  # type: ignore[index]


@pytest.mark.heavy
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"data__engine": "cache", "train__epochs": 1, "data__cache_dir": str(tmp_path / "cache")}
    settings["model__dropout"] = 0.0
    run_processes(2, train, tiny_config(tmp_path / "two", device="cpu", **settings))
    train(tiny_config(tmp_path / "one", device="cpu", **settings))
    assert read_losses(tmp_path / "two")["train"] == pytest.approx(read_losses(tmp_path / "one")["train"], rel=1e-4)


def test_a_signal_stops_the_building_and_keeps_what_is_built(
    index: SampleIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caching, "TURN_SECONDS", 0.0)
    loader, stop, runtime = (
        make_loader(index, tmp_path, Augmentation(24, 32)),
        StopRequest(),
        start_runtime("cpu", "fp32"),
    )
    stop.received = signal.SIGTERM
    with pytest.raises(InterruptedRunError, match=r"^Stopped by SIGTERM\. Run the same") as caught:
        build_caches(runtime, DataConfig(workers=0), [loader], stop)
    assert caught.value.exit_code == 143
    layout = find_layout(loader)
    assert [layout.chunk_path(number).exists() for number in range(3)] == [True, False, False]
    stop.received = None
    build_caches(runtime, DataConfig(workers=0), [loader], stop)
    assert layout.is_whole


def test_a_run_names_the_bad_files_of_the_cache(tmp_path: Path) -> None:
    for number in range(24):
        save_jpeg(tmp_path / "images" / "train" / "ab"[number % 2] / f"{number}.jpg", 80, 70)
    bad = tmp_path / "images" / "train" / "a" / "4.jpg"
    bad.write_bytes(bad.read_bytes()[:900])
    config = tiny_config(
        tmp_path / "run",
        data__source="folder",
        data__root=str(tmp_path / "images"),
        data__engine="cache",
        data__cache_dir=str(tmp_path / "cache"),
        data__val_fraction=0,
        train__global_batch_size=4,
    )
    with pytest.raises(DataError, match=r"unreadable image \(.*train/a/4.jpg\): .*truncated"):
        train(config)
    assert (tmp_path / "run" / "bad_files.csv").read_text().splitlines()[1].startswith("train/a/4.jpg,")
