from __future__ import annotations

import functools
import itertools
import logging
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from helpers import loaders
from helpers.images import JPEG, encode, make_picture, save_jpeg
from PIL import Image

from alexnet_dist.base.errors import MachineError
from alexnet_dist.data.engines import patience
from alexnet_dist.data.engines import torchvision as torchvision_engine
from alexnet_dist.data.engines.cache.build import build_store
from alexnet_dist.data.engines.cache.engine import find_layout
from alexnet_dist.data.engines.choose import find_obstacle
from alexnet_dist.data.engines.finish import scale_on_device, scale_pixels
from alexnet_dist.data.engines.loader import (
    MAX_WORKERS,
    Batch,
    Loader,
    Normalization,
    choose_workers,
    make_normalization,
)
from alexnet_dist.data.engines.torchvision import PixelBatches, iterate_pixel_batches, share_slots
from alexnet_dist.data.index import SampleIndex
from alexnet_dist.data.plan import IMAGENET_MEAN, IMAGENET_STD, LUMA, Augmentation
from alexnet_dist.data.sources.folders import scan_folder
from alexnet_dist.data.sources.synthetic import synthetic_index

SIDE = 20
KEPT_SECONDS = 0.2  # a worker makes several batches in it
RECIPE = Augmentation(
    crop_size=SIDE,
    resize=24,
    crop="random",
    horizontal_flip=0.5,
    vertical_flip=0.5,
    lighting="source2012",
    color_jitter=(0.4, 0.4, 0.4, 0.1),
    random_erasing=0.5,
)
PLAIN = replace(RECIPE, color_jitter=None)  # else each worker imports torchvision: two seconds


def make_index(folder: Path) -> SampleIndex:
    """Two classes, ten images of several shapes."""
    for number, (width, height) in enumerate([(40, 24), (24, 40), (33, 33), (25, 60), (24, 24)]):
        for name in ("cat", "dog"):
            save_jpeg(folder / "train" / name / f"{number}.jpg", width, height)
    return scan(folder)


def scan(folder: Path) -> SampleIndex:
    return scan_folder(folder / "train", classes=None, on_bad_file="fail", cache_dir=folder / "cache")


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> SampleIndex:
    return make_index(tmp_path_factory.mktemp("images"))


def make_loader(index: SampleIndex, recipe: Augmentation = RECIPE, **changes: Any) -> Loader:
    return loaders.make_loader(index, recipe, **changes)


def is_equal(one: Batch, other: Batch) -> bool:
    """Bit by bit."""
    tensors = zip(one[:4], other[:4], strict=True)
    return all(torch.equal(a, b) for a, b in tensors) and one[4:] == other[4:]


# -- the same batches, however they are made --------------------------------------------------------------------------


@pytest.mark.heavy
@pytest.mark.parametrize(("workers", "recipe"), [(1, RECIPE), (2, PLAIN)])
def test_batches_do_not_depend_on_the_workers(index: SampleIndex, workers: int, recipe: Augmentation) -> None:
    expected = list(make_loader(index, recipe).batches(0, 5))
    made = list(make_loader(index, recipe, workers=workers).batches(0, 5))
    assert len(made) == 5
    assert all(map(is_equal, made, expected))


@pytest.mark.heavy
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_after_a_start_in_the_middle_are_the_same(index: SampleIndex, workers: int) -> None:
    expected = list(make_loader(index, PLAIN).batches(0, 7))
    assert all(map(is_equal, make_loader(index, PLAIN, workers=workers).batches(4, 7), expected[4:]))
    assert not is_equal(next(make_loader(index, PLAIN).batches(4, 7)), expected[3])


@pytest.mark.parametrize("change", [{"seed": 2}, {"recipe": RECIPE.for_evaluation()}])
def test_that_comparison_notices_another_plan(index: SampleIndex, change: dict[str, Any]) -> None:
    assert not is_equal(next(make_loader(index, **change).batches(0, 1)), next(make_loader(index).batches(0, 1)))


@pytest.mark.parametrize("num_shards", [2, 3, 4])
def test_shards_concatenate_to_the_batch_of_one_process(index: SampleIndex, num_shards: int) -> None:
    for_one = list(make_loader(index).batches(0, 3))  # the third is short
    shards = [list(make_loader(index, shard_id=n, num_shards=num_shards).batches(0, 3)) for n in range(num_shards)]
    joined = [
        Batch(
            *(torch.cat(parts) for parts in zip(*(p[:4] for p in step), strict=True)),
            sum(p.num_images for p in step),
            [],
        )
        for step in zip(*shards, strict=True)
    ]
    assert all((batch.mask[4:] == 0).all() and batch.images.isfinite().all() for batch in joined)  # 3 do not divide 4
    assert all(map(is_equal, [Batch(*(part[:4] for part in batch[:4]), *batch[4:]) for batch in joined], for_one))
    assert [batch.num_images for batch in joined] == [4, 4, 2]


def test_no_steps_give_no_batches(index: SampleIndex) -> None:
    assert list(make_loader(index, workers=2).batches(5, 5)) == []


def make_source(index: SampleIndex) -> PixelBatches:
    return PixelBatches(make_loader(index, PLAIN).plan, index, channels=3, max_pixels=10**6, shard_id=0, num_shards=1)


def is_kept(source: PixelBatches, workers: int) -> bool:
    """Whether the pixels of a batch stay as they are until the next is asked for, however long that takes."""
    for step, made in enumerate(itertools.islice(iterate_pixel_batches(source, 0, 8, workers), 2)):
        deadline = time.monotonic() + KEPT_SECONDS
        expected = source[step].pixels
        while time.monotonic() < deadline:
            if not torch.equal(made.pixels, expected):
                return False
            time.sleep(0.01)
    return True


@pytest.mark.heavy
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_pixels_stay_until_the_next_batch_is_asked_for(index: SampleIndex, workers: int) -> None:
    assert is_kept(make_source(index), workers)


@pytest.mark.heavy
def test_that_check_notices_one_slot_too_few(index: SampleIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision_engine, "share_slots", lambda slots, size: share_slots(slots - 1, size))
    assert not is_kept(make_source(index), workers=1)


@pytest.mark.heavy
def test_slots_hold_nothing_of_the_batch_before(index: SampleIndex) -> None:
    """The third batch of a pass is short, and many batches go through each slot."""
    source, steps = make_source(index), 12
    made = [batch.pixels.clone() for batch in iterate_pixel_batches(source, 0, steps, workers=1)]
    assert all(torch.equal(pixels, source[step].pixels) for step, pixels in enumerate(made))
    assert all(not pixels[2:].any() for pixels in made[2::3])


@pytest.mark.heavy
def test_workers_are_born_deaf_to_signals_of_the_whole_group() -> None:
    """In a process of its own, whose resource tracker does not run yet."""
    program = """if 1:
        import os, signal
        from multiprocessing.forkserver import _forkserver
        from alexnet_dist.data.engines.workers import start_worker_server
        start_worker_server()
        status = open(f"/proc/{_forkserver._forkserver_pid}/status").read()
        blocked = int(status.partition("SigBlk:")[2].split()[0], 16)
        assert all(blocked >> (number - 1) & 1 for number in (signal.SIGINT, signal.SIGTERM)), hex(blocked)
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_lack_of_shared_memory_is_named(index: SampleIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(tensor: torch.Tensor) -> None:
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", refuse)
    with pytest.raises(MachineError, match=r"No space left on device.*lower --data.workers"):
        next(make_loader(index, workers=1).batches(0, 1))


@pytest.mark.heavy
def test_loading_draws_nothing_from_the_processs_own_generator(index: SampleIndex) -> None:
    before = torch.get_rng_state()
    list(make_loader(index, PLAIN, workers=1).batches(0, 2))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("channels_last", [True, False])
def test_normalization_is_the_formula_bit_by_bit(channels: int, channels_last: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (3, 5, 5, channels), dtype=torch.uint8, generator=generator)
    shifts = 20 * torch.randn(3, 3, generator=generator)
    made = make_normalization(channels, 1, None, None)
    mean, std = torch.tensor(made.mean), torch.tensor(made.std)  # (C,)
    own = shifts if channels == 3 else shifts @ torch.tensor(LUMA)[:, None]  # (3, C)
    expected = (pixels.permute(0, 3, 1, 2).float() + (own - mean)[:, :, None, None]) / std[:, None, None]
    assert torch.equal(scale_pixels(made, pixels, shifts, channels_last), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_normalization_in_one_kernel_is_the_formula(dtype: torch.dtype) -> None:
    """As on a GPU: a product where the host divides."""
    planes = torch.randint(256, (3, 3, 5, 5), dtype=torch.uint8, generator=torch.manual_seed(0))
    pixels = planes.permute(0, 2, 3, 1)  # as jitter leaves them
    made, shifts = make_normalization(3, 1, None, None), 20 * torch.randn(3, 3)
    images = scale_on_device(pixels, made.fold(shifts), dtype)
    assert images.dtype == dtype
    assert images.is_contiguous(memory_format=torch.channels_last)
    expected = scale_pixels(made, pixels, shifts, channels_last=True)
    torch.testing.assert_close(images.float(), expected, rtol=2**-8 if dtype == torch.bfloat16 else 1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("engine", ["torchvision", "cache", *["dali"] * (find_obstacle("dali") is None)])
def test_half_precision_is_what_autocast_makes_of_float32(
    index: SampleIndex, tmp_path: Path, engine: str, channels_last: bool, dtype: torch.dtype
) -> None:
    recipe = replace(RECIPE, crop="random", resize=SIDE + 3) if engine == "cache" else RECIPE
    loader = make_loader(index, recipe, engine=engine, cache_dir=tmp_path, channels_last=channels_last)
    if engine == "cache":
        build_store(find_layout(loader), workers=0, on_bad_file="skip", progress=False)
    made = replace(loader, dtype=dtype).batches(0, 3)
    for half, whole in zip(made, loader.batches(0, 3), strict=True):
        assert half.images.dtype == dtype
        assert half.images.stride() == whole.images.stride()
        assert torch.equal(half.images, whole.images.to(dtype))


# -- what a batch holds -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels_last", [True, False])
def test_layout_and_types(index: SampleIndex, channels_last: bool) -> None:
    batch = next(make_loader(index, channels_last=channels_last).batches(0, 1))
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert batch.images.shape == (4, 3, SIDE, SIDE)
    assert batch.images.is_contiguous(memory_format=layout)
    assert (batch.images.dtype, batch.labels.dtype, batch.mask.dtype) == (torch.float32, torch.int64, torch.float32)
    assert torch.equal(batch.labels, torch.from_numpy(index.labels)[batch.ids])


def test_layouts_hold_the_same_values(index: SampleIndex) -> None:
    one, other = (next(make_loader(index, channels_last=layout).batches(0, 1)).images for layout in (True, False))
    assert torch.equal(one, other)


def test_filling_has_no_image_no_label_and_no_weight(index: SampleIndex) -> None:
    batch = next(make_loader(index).batches(2, 3))
    assert batch.mask.tolist() == [1, 1, 0, 0]
    assert batch.ids[2:].tolist() == [-1, -1]
    assert batch.labels[2:].tolist() == [0, 0]
    shifts = make_loader(index).plan.at(2).shifts[2:]
    black, scale = torch.zeros(2, SIDE, SIDE, 3), make_loader(index).normalization
    empty = scale_pixels(scale, black, torch.from_numpy(shifts).float(), channels_last=True)
    assert torch.equal(batch.images[2:], empty)


@pytest.mark.parametrize("axis", [0, 1])
def test_flips_mirror_the_right_side(index: SampleIndex, axis: int) -> None:
    plain = Augmentation(crop_size=SIDE, resize=24)
    rates = {"horizontal_flip": float(axis == 0), "vertical_flip": float(axis == 1)}
    flipped = Augmentation(crop_size=SIDE, resize=24, **rates)  # type: ignore[arg-type]
    one, other = (next(make_loader(index, recipe=recipe).batches(0, 1)).images for recipe in (plain, flipped))
    assert torch.equal(one.flip(3 - axis), other)
    assert not torch.equal(one, other)


def test_lighting_adds_the_plans_shift(index: SampleIndex) -> None:
    scale = {"normalization": Normalization((0, 0, 0), (1, 1, 1)), "shuffle": False}
    plain = Augmentation(crop_size=SIDE, resize=24)
    lit = Augmentation(crop_size=SIDE, resize=24, lighting="source2012")
    one, other = (next(make_loader(index, recipe=recipe, **scale).batches(0, 1)).images for recipe in (plain, lit))
    shifts = torch.from_numpy(make_loader(index, recipe=lit, **scale).plan.at(0).shifts).float()
    torch.testing.assert_close(other - one, shifts[:, :, None, None].expand_as(one), atol=1e-4, rtol=0)
    assert shifts.abs().max() > 1


def test_gray_input_is_the_luma_of_the_colors(index: SampleIndex) -> None:
    scale, plain = {"shuffle": False}, Augmentation(crop_size=SIDE, resize=None)
    color = make_loader(index, recipe=plain, normalization=Normalization((0,) * 3, (1,) * 3), **scale)
    gray = make_loader(index, recipe=plain, normalization=Normalization((0,), (1,)), channels=1, **scale)
    rgb, luma = next(color.batches(0, 1)).images, next(gray.batches(0, 1)).images
    assert luma.shape == (4, 1, SIDE, SIDE)
    expected = (rgb * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    assert (luma - expected).abs().max() <= 1  # Pillow rounds


@pytest.mark.heavy
def test_synthetic_images_go_the_same_way() -> None:
    index = synthetic_index(8, 4, (24, 24), seed=0)
    one, other = (list(make_loader(index, PLAIN, workers=workers).batches(0, 2)) for workers in (0, 1))
    assert all(map(is_equal, one, other))
    assert one[0].images.std() > 0.1


# -- bad files --------------------------------------------------------------------------------------------------------


@pytest.fixture
def damaged(tmp_path: Path) -> tuple[SampleIndex, Path]:
    """Ten images; one is cut off after the scan, its header is whole."""
    index = make_index(tmp_path)
    path = tmp_path / "train" / "cat" / "3.jpg"
    path.write_bytes(encode(Image.fromarray(make_picture(25, 60)), **JPEG)[:600])
    return index, path


@pytest.mark.heavy
@pytest.mark.parametrize("workers", [0, 1])
def test_bad_file_has_no_weight_and_is_listed(damaged: tuple[SampleIndex, Path], workers: int) -> None:
    index, path = damaged
    scale = Normalization((0,) * 3, (1,) * 3)
    loader = make_loader(index, PLAIN, shuffle=False, workers=workers, normalization=scale)
    batch = next(loader.batches(0, 1))
    assert batch.mask.tolist() == [1, 1, 1, 0]
    assert batch.num_images == 3
    assert [bad.path for bad in batch.bad_files] == [str(path)]
    assert "truncated" in batch.bad_files[0].reason.lower()
    assert torch.equal(batch.images[3] - batch.images[3, :, :1, :1], torch.zeros(3, SIDE, SIDE))


def test_bad_file_leaves_the_other_rows_as_they_are(tmp_path: Path) -> None:
    good = make_loader(make_index(tmp_path), shuffle=False)
    expected = next(good.batches(0, 1))
    (tmp_path / "train" / "cat" / "1.jpg").write_bytes(b"")
    batch = next(good.batches(0, 1))
    assert torch.equal(batch.images[[0, 2, 3]], expected.images[[0, 2, 3]])
    assert torch.equal(batch.labels[[0, 2, 3]], expected.labels[[0, 2, 3]])
    assert batch.mask.tolist() == [1, 0, 1, 1]


def test_image_that_changed_since_the_scan_is_a_bad_file(tmp_path: Path) -> None:
    loader = make_loader(make_index(tmp_path), shuffle=False)
    save_jpeg(tmp_path / "train" / "cat" / "0.jpg", 60, 60)
    assert "changed since it was scanned" in next(loader.batches(0, 1)).bad_files[0].reason


# -- choices ----------------------------------------------------------------------------------------------------------

GRAY_MEAN, GRAY_STD = float(np.mean(IMAGENET_MEAN)), float(np.mean(IMAGENET_STD))


@pytest.mark.parametrize(
    ("channels", "pixel_range", "mean", "std", "expected_mean", "expected_std"),
    [
        (3, 1, None, None, np.multiply(IMAGENET_MEAN, 255), np.multiply(IMAGENET_STD, 255)),
        (3, 255, None, None, np.multiply(IMAGENET_MEAN, 255), [1, 1, 1]),
        (1, 1, None, None, [GRAY_MEAN * 255], [GRAY_STD * 255]),
        (1, 255, None, None, [GRAY_MEAN * 255], [1]),
        (3, 1, [0.5], [0.25], [127.5] * 3, [63.75] * 3),
        (3, 255, [1, 2, 3], [4], [1, 2, 3], [4, 4, 4]),
    ],
)
def test_normalization_defaults(
    channels: int, pixel_range: int, mean: Any, std: Any, expected_mean: Any, expected_std: Any
) -> None:
    made = make_normalization(channels, pixel_range, mean, std)
    np.testing.assert_allclose(made.mean, expected_mean, rtol=1e-12)
    np.testing.assert_allclose(made.std, expected_std, rtol=1e-12)


def test_workers_share_the_cores_of_a_gpu_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alexnet_dist.base.machine.available_cores", lambda: 16)
    chosen = functools.partial(choose_workers, None)
    assert [chosen(True, processes) for processes in (1, 4, 32)] == [min(16, MAX_WORKERS), 4, 1]
    assert [chosen(False, processes) for processes in (1, 4)] == [1, 1]
    assert list(itertools.starmap(choose_workers, [(0, True, 1), (7, False, 2)])) == [0, 7]


@pytest.mark.slow  # PyTorch looks after its workers every 5 s
def test_a_killed_worker_is_named(index: SampleIndex) -> None:
    batches = make_loader(index, PLAIN, workers=1).batches(0, 200)
    next(batches)
    me = psutil.Process()
    (worker,) = [child for child in me.children(recursive=True) if child.ppid() != me.pid]
    worker.kill()
    with pytest.raises(MachineError, match="a decoding process was killed"):
        for _ in batches:
            pass


@pytest.mark.slow
def test_a_stopped_worker_is_named_and_not_waited_for_for_ever(
    index: SampleIndex, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(patience, "LIMIT_SECONDS", 30)
    monkeypatch.setattr(logging.getLogger("alexnet_dist"), "handlers", [logging.NullHandler()])  # another rank's
    before = set(multiprocessing.active_children())
    made = iterate_pixel_batches(make_source(index), 0, 50, 1)
    next(made)
    (worker,) = set(multiprocessing.active_children()) - before
    os.kill(worker.pid, signal.SIGSTOP)
    monkeypatch.setattr(patience, "TURN_SECONDS", 0.05)
    what = rf"worker {worker.pid} is stopped(, reading (cat|dog)/\d.jpg)?"  # it may have been between two files
    line = rf"no pictures for 3[01] s: {what}; see to the process"
    with pytest.raises(MachineError, match=line) as error:
        list(made)
    assert error.value.is_local
    said = capsys.readouterr().err.splitlines()
    assert re.fullmatch(rf"waiting for pictures since 10 s \({what}\)", said[0])


def test_a_slow_use_of_pictures_is_no_wait_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "TURN_SECONDS", 0.01)
    ended: list[str] = []
    watch = patience.Patience(0, lambda: "x", lambda: bool(ended.append("x")) or len(ended) == 2)
    watch.limit = 3
    with watch.counting():
        time.sleep(0.2)
        assert (watch.reason, ended) == ("", [])
        with watch.waiting():
            time.sleep(0.2)
        assert (watch.reason, ended) == ("x", ["x", "x"])  # what could not be ended is tried again


@pytest.mark.heavy
def test_many_short_waits_are_no_long_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread looks at the watch while one waits, nearly always: of a run whose disk is slow, but alive."""
    monkeypatch.setattr(patience, "TURN_SECONDS", 0.01)
    watch = patience.Patience(0, lambda: "x", lambda: True)
    watch.limit = 20
    with watch.counting():
        for _ in range(150):  # 75 turns or more
            with watch.waiting():
                time.sleep(0.005)
        assert watch.reason == ""
        with watch.waiting():
            time.sleep(0.6)
        assert str(watch.explain()) == "no pictures for 20 s: x; see to the process or its disk, then start again"


@pytest.mark.parametrize("kind", [RuntimeError, EOFError, ConnectionResetError])
def test_a_wait_that_was_ended_is_named_however_the_loader_meets_it(
    index: SampleIndex, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    monkeypatch.setattr(patience, "LIMIT_SECONDS", 2)
    monkeypatch.setattr(patience, "TURN_SECONDS", 0.01)
    monkeypatch.setattr(torchvision_engine, "DataLoader", lambda *_, **__: Hanging(kind))
    with pytest.raises(MachineError, match=r"no pictures for 2 s: worker 4194304 is gone") as error:
        list(iterate_pixel_batches(make_source(index), 0, 5, 1))
    assert error.value.is_local


class Hanging:
    """A DataLoader that waits for its worker until that is killed."""

    pid = 2**22

    def __init__(self, kind: type[Exception]) -> None:
        self.kind, self._workers, self.killed = kind, [self], threading.Event()

    def __iter__(self) -> Hanging:
        return self

    def __next__(self) -> None:
        assert self.killed.wait(20)
        raise self.kind("DataLoader worker (pid 1) is killed by signal: Killed.")

    def kill(self) -> None:
        self.killed.set()


def test_what_a_worker_reads_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    with (tmp_path / "a").open():
        assert patience.describe_process(os.getpid(), tmp_path).endswith("ing, reading a")
    assert patience.describe_process(2**22, tmp_path) == "worker 4194304 is gone"
