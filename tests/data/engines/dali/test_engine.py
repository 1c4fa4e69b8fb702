"""The DALI engine on the CPU against the reference engine: the same batches, the same verdicts, nothing left behind."""

from __future__ import annotations

import functools
import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from helpers.dali_pictures import (
    CUT,
    RESIZED,
    SIDE,
    SIZES,
    check_equal,
    make_both,
    make_index,
    make_loader,
    make_zoo,
    scan,
)
from helpers.images import JPEG, encode, make_picture
from PIL import Image

from alexnet_dist.base.errors import MachineError, MemoryExhaustedError
from alexnet_dist.data.decode import UnreadableImageError
from alexnet_dist.data.engines.dali import engine as dali_engine
from alexnet_dist.data.engines.dali import feed as dali_source
from alexnet_dist.data.engines.dali.engine import find_dali
from alexnet_dist.data.engines.loader import Batch, Normalization
from alexnet_dist.data.files.names import Names
from alexnet_dist.data.index import SampleIndex
from alexnet_dist.data.plan import Augmentation, Plan, StepPlan
from alexnet_dist.data.sources.folders import scan_folder
from alexnet_dist.data.sources.synthetic import synthetic_index

if find_dali():
    pytest.skip("DALI is not installed", allow_module_level=True)
os.environ.update(dali_engine.SETTINGS)

from alexnet_dist.data.engines.dali import pipeline as dali_pipeline

ROUNDING = 1e-4  # of the network's input, where it is normalized


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> SampleIndex:
    return make_index(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> SampleIndex:
    return make_zoo(tmp_path_factory.mktemp("zoo"))


def is_equal(one: Batch, other: Batch) -> bool:
    """Bit by bit."""
    return all(torch.equal(a, b) for a, b in zip(one[:4], other[:4], strict=True)) and one[4:] == other[4:]


# -- the same batches as the reference --------------------------------------------------------------------------------


@pytest.fixture(params=["as on a CPU", "as on a GPU"])
def _both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dali_engine, "lets_dali_scale", lambda _: request.param == "as on a GPU")


@pytest.mark.usefixtures("_both_ways")
@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("channels_last", [True, False])
def test_crops_without_a_resize_equal_the_reference_to_the_bit(
    index: SampleIndex, channels: int, channels_last: bool
) -> None:
    check_equal(*make_both(make_loader(index, CUT, channels=channels, channels_last=channels_last), 0, 4))


@pytest.mark.usefixtures("_both_ways")
@pytest.mark.parametrize("channels", [3, 1])
def test_lighting_and_normalization_equal_the_reference(index: SampleIndex, channels: int) -> None:
    scale = Normalization((120.0, 110.0, 100.0)[:channels], (58.0, 57.0, 56.0)[:channels])
    loader = make_loader(index, replace(CUT, lighting="source2012"), channels=channels, normalization=scale)
    check_equal(*make_both(loader, 0, 4), largest=ROUNDING, mean=ROUNDING)


@pytest.mark.parametrize("shard", [0, 3])
def test_shards_that_do_not_divide_a_batch_equal_the_reference(index: SampleIndex, shard: int) -> None:
    loader = make_loader(index, CUT, num_shards=4, shard_id=shard)
    ours, theirs = make_both(loader, 0, 2)
    check_equal(ours, theirs)
    assert len(ours[0].ids) * 4 > loader.plan.global_batch_size
    assert (int(ours[0].ids[-1]) == -1) == (shard == 3)


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("name", RESIZED)
def test_resized_pictures_equal_the_reference_to_the_bit(index: SampleIndex, name: str, channels: int) -> None:
    check_equal(*make_both(make_loader(index, RESIZED[name], channels=channels), 0, 3))


def test_jitter_equals_the_reference(index: SampleIndex) -> None:
    loader = make_loader(index, replace(CUT, color_jitter=(0.4, 0.4, 0.4, 0.1), lighting="source2012"))
    check_equal(*make_both(loader, 0, 3), largest=ROUNDING, mean=ROUNDING)


def swap_flip(rows: StepPlan) -> StepPlan:
    flips = rows.flips.copy()
    flips[0, 0] = ~flips[0, 0]
    return rows._replace(flips=flips)


def shift_corner(rows: StepPlan) -> StepPlan:
    corners, margins = rows.corners.copy(), rows.resized - SIDE
    row = int(np.flatnonzero(margins[:, 0])[0])
    corners[row, 0] += 1 if corners[row, 0] < margins[row, 0] else -1
    return rows._replace(corners=corners)


@pytest.mark.parametrize("defect", [swap_flip, shift_corner])
@pytest.mark.parametrize("recipe", [CUT, RESIZED["shorter side"]])
def test_that_comparison_notices_a_defect_of_one_row(
    index: SampleIndex, recipe: Augmentation, defect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = make_loader(index, recipe)
    (theirs,) = make_both(loader, 0, 1)[1]
    wrong = defect(loader.plan.at(0))
    monkeypatch.setattr(Plan, "at", lambda *_: wrong)
    ours = next(loader.batches(0, 1))
    with pytest.raises(AssertionError):
        check_equal([ours], [theirs])


# -- odd kinds --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize(
    "recipe",
    [
        Augmentation(SIDE, resize=(24, 40), crop="random"),
        Augmentation(12, None, "random_resized", horizontal_flip=0.5),
    ],
)
def test_odd_kinds_get_the_verdict_and_the_pixels_of_the_reference(
    zoo: SampleIndex, recipe: Augmentation, channels: int, capfd: pytest.CaptureFixture[str]
) -> None:
    assert 5 < zoo.is_plain.sum() < len(zoo) - 5
    loader = make_loader(zoo, recipe, channels=channels, global_batch_size=16)
    ours, theirs = make_both(loader, 0, loader.plan.steps_per_epoch)
    check_equal(ours, theirs)
    assert sum(len(batch.bad_files) for batch in ours) >= 8
    # libpng and libjpeg themselves tell of a damaged stream before DALI hears of it.
    theirs_to_say = ("libpng", "Corrupt JPEG data")
    assert [line for line in capfd.readouterr().err.splitlines() if not line.startswith(theirs_to_say)] == []


@pytest.mark.parametrize("channels", [3, 1])
def test_pixels_that_lie_in_no_files_are_the_references_to_the_bit(channels: int) -> None:
    index = synthetic_index(10, 4, (31, 27), seed=0)
    check_equal(*make_both(make_loader(index, RESIZED["shorter side"], channels=channels), 0, 4))


@pytest.mark.parametrize("recipe", [RESIZED["ten views"], replace(CUT, color_jitter=(0.4, 0.0, 0.0, 0.0))])
@pytest.mark.parametrize("batch", [1, 5])
def test_steps_without_a_file_for_dali_are_not_made_far_ahead(
    index: SampleIndex, batch: int, recipe: Augmentation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DALI may have the first and the last of 16 images."""
    plain = index.is_plain & np.isin(np.arange(len(index)), [0, 15])
    loader = make_loader(replace(index, is_plain=plain), recipe, global_batch_size=batch, shuffle=False)
    steps = 2 * loader.plan.steps_per_epoch
    check_equal(*make_both(loader, 0, steps))
    prepared: list[int] = []
    prepare = dali_source.Feeder.prepare
    monkeypatch.setattr(dali_source.Feeder, "prepare", lambda self, step: prepared.append(step) or prepare(self, step))
    nothing = replace(loader, index=replace(index, is_plain=np.zeros_like(plain)))
    for some in (loader, nothing):
        prepared.clear()
        next(some.batches(0, 1000))
        assert max(prepared) <= some.prefetch + dali_engine.MOST_WITHOUT + 2


# -- however they are made --------------------------------------------------------------------------------------------

MIXED = replace(RESIZED["random resized"], lighting="source2012")


@pytest.fixture(scope="module")
def expected(index: SampleIndex) -> list[Batch]:
    """Three passes of one process."""
    return list(make_loader(index, MIXED).batches(0, 9))


@pytest.mark.parametrize(("workers", "prefetch"), [(0, 1), (1, 3), (3, 1), (3, 3)])
def test_batches_do_not_depend_on_threads_and_prefetch(
    index: SampleIndex, expected: list[Batch], workers: int, prefetch: int
) -> None:
    made = list(make_loader(index, MIXED, workers=workers, prefetch=prefetch).batches(0, 9))
    assert len(made) == 9
    assert all(map(is_equal, made, expected))


@pytest.mark.parametrize("start", [1, 2, 5, 8])
def test_batches_after_a_start_in_the_middle_are_the_same(
    index: SampleIndex, expected: list[Batch], start: int
) -> None:
    made = list(make_loader(index, MIXED).batches(start, 9))
    assert len(made) == 9 - start
    assert all(map(is_equal, made, expected[start:]))
    assert not is_equal(made[0], expected[start - 1])


@pytest.mark.parametrize("num_shards", [2, 3])
def test_shards_concatenate_to_the_batch_of_one_process(
    index: SampleIndex, expected: list[Batch], num_shards: int
) -> None:
    loaders = [make_loader(index, MIXED, shard_id=shard, num_shards=num_shards) for shard in range(num_shards)]
    for parts, whole in zip(zip(*(loader.batches(0, 9) for loader in loaders), strict=True), expected, strict=True):
        tensors = [torch.cat(values) for values in zip(*(part[:4] for part in parts), strict=True)]
        joined = Batch(*tensors, sum(part.num_images for part in parts), [])  # type: ignore[arg-type]
        assert is_equal(joined, whole)


def test_no_steps_give_no_batches(index: SampleIndex) -> None:
    assert list(make_loader(index, CUT).batches(5, 5)) == []


@pytest.mark.parametrize("views", [1, 10])
@pytest.mark.parametrize(
    ("num_images", "batch", "num_shards"), [(1, 4, 4), (5, 4, 2), (9, 8, 4), (7, 7, 1), (16, 3, 3)]
)
def test_every_image_is_evaluated_once(
    index: SampleIndex, num_images: int, batch: int, num_shards: int, views: Any
) -> None:
    some = index.subset(range(num_images))
    recipe = Augmentation(SIDE, resize=24, views=views)
    ids, counted = [], 0
    for shard in range(num_shards):
        options = {"global_batch_size": batch, "shuffle": False, "shard_id": shard, "num_shards": num_shards}
        loader = make_loader(some, recipe, **options)
        for made in loader.batches(0, loader.plan.steps_per_epoch):
            ids += made.ids[made.mask > 0].tolist()[::views]
            counted += made.num_images
    assert sorted(ids) == list(range(num_images))
    assert counted == num_images


def test_filling_is_what_the_reference_makes_of_it(index: SampleIndex) -> None:
    scale = Normalization((120.0, 110.0, 100.0), (58.0, 57.0, 56.0))
    loader = make_loader(index.subset(range(7)), replace(CUT, lighting="source2012"), normalization=scale)
    (ours,), (theirs,) = make_both(loader, 1, 2)
    assert ours.mask.tolist() == [1, 0, 0, 0, 0, 0]
    assert torch.equal(ours.images[1:], theirs.images[1:])


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("step", [0, 2])
def test_layout_and_types(index: SampleIndex, channels_last: bool, step: int) -> None:
    batch = next(make_loader(index, CUT, channels_last=channels_last).batches(step, step + 1))
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert batch.images.shape == (6, 3, SIDE, SIDE)
    assert batch.images.is_contiguous(memory_format=layout)
    assert (batch.images.dtype, batch.labels.dtype, batch.mask.dtype) == (torch.float32, torch.int64, torch.float32)


# -- files that break after the scan ----------------------------------------------------------------------------------


def cut_off(data: bytes) -> bytes:
    return data[: len(data) * 6 // 10]


def fill_with_zeros(data: bytes) -> bytes:
    """As a download that never ended: the length is right."""
    return cut_off(data).ljust(len(data), b"\0")


def overwrite_head(data: bytes) -> bytes:
    """Length and ending are right: only a decoder notices."""
    return b"junk" * 5 + data[20:]


def replace_picture(_: bytes) -> bytes:
    return encode(Image.fromarray(make_picture(60, 60)), **JPEG)


def replace_equal_picture(_: bytes) -> bytes:
    return encode(Image.fromarray(make_picture(*SIZES[1])), **JPEG)


DAMAGES = {
    "cut off": (cut_off, 1),
    "zeros": (fill_with_zeros, 1),
    "empty": (lambda _: b"", 1),
    "HTML": (lambda _: b"<html>", 1),
    "another size": (replace_picture, 1),
    "another picture": (replace_equal_picture, 1),
    "junk of the same length": (overwrite_head, 2),
    "vanished": (None, 1),
}


def damage(path: Path, change: Any) -> None:
    if change is None:
        path.unlink()
    else:
        path.write_bytes(change(path.read_bytes()))


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Weak references to the pipelines that are built."""
    pipelines: list[Any] = []
    build = dali_pipeline.build_pipeline

    def note(*args: Any) -> Any:
        pipeline = build(*args)
        pipelines.append(weakref.ref(pipeline))
        return pipeline

    monkeypatch.setattr(dali_pipeline, "build_pipeline", note)
    return pipelines


@pytest.mark.parametrize("name", DAMAGES)
def test_a_file_that_breaks_is_masked_and_listed(tmp_path: Path, name: str, built: list[Any]) -> None:
    index = make_index(tmp_path, SIZES[:5])
    change, num_pipelines = DAMAGES[name]
    damage(tmp_path / "train" / "cat" / "1.jpg", change)
    loader = make_loader(index, CUT, global_batch_size=4)
    check_equal(*make_both(loader, 0, 6))  # two passes
    assert len(built) == num_pipelines


def test_breaks_by_name(tmp_path: Path) -> None:
    index = make_index(tmp_path, SIZES[:5])
    path = tmp_path / "train" / "cat" / "1.jpg"
    path.write_bytes(cut_off(path.read_bytes()))
    batch = next(make_loader(index, CUT, shuffle=False).batches(0, 1))
    assert batch.mask.tolist() == [1, 0, 1, 1, 1, 1]
    assert batch.num_images == 5
    assert [bad.path for bad in batch.bad_files] == [str(path)]
    assert "truncated" in batch.bad_files[0].reason.lower()


def test_a_region_above_the_cut_is_not_taken_from_a_file_that_was_cut_before_the_scan(tmp_path: Path) -> None:
    make_index(tmp_path, SIZES[:5])
    path = tmp_path / "train" / "cat" / "3.jpg"  # 25 x 60
    path.write_bytes(cut_off(path.read_bytes()))
    loader = make_loader(scan(tmp_path), Augmentation(8, resize=None, crop="random"), global_batch_size=5)
    ours, theirs = make_both(loader, 0, 20)
    assert min(loader.plan.at(step).corners[:, 1].min() for step in range(20)) == 0
    check_equal(ours, theirs)
    assert sum(len(batch.bad_files) for batch in ours) == 10


def test_a_jpeg_that_was_cut_before_its_end_mark_is_left_out_and_gray_by_nature_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_index(tmp_path, SIZES[:5])
    path = tmp_path / "train" / "cat" / "3.jpg"
    path.write_bytes(path.read_bytes()[:-150] + b"\xff\xd9")
    gray = np.full((40, 30, 3), 128, np.uint8)
    for name, options in (("cat/gray.jpg", {"format": "JPEG"}), ("dog/gray.png", {"format": "PNG"})):
        (tmp_path / "train" / name).write_bytes(encode(Image.fromarray(gray), **options))
    index = scan(tmp_path)
    assert index.is_plain.all()
    judged: list[int] = []
    judge = dali_source.Feeder._judge
    monkeypatch.setattr(dali_source.Feeder, "_judge", lambda self, number: judged.append(number) or judge(self, number))
    for recipe in (CUT, RESIZED["ten views"]):
        judged.clear()
        ours, theirs = make_both(make_loader(index, recipe, global_batch_size=4), 0, 9)  # three passes
        check_equal(ours, theirs)
        assert [bad.path for batch in ours for bad in batch.bad_files] == [str(path)] * 3
        assert sorted(index.paths[number] for number in judged) == ["cat/3.jpg", "cat/gray.jpg", "dog/gray.png"]


@pytest.mark.parametrize("name", ["both sides", "random resized"])
def test_a_cut_jpeg_is_left_out_of_steps_that_were_under_way(tmp_path: Path, name: str) -> None:
    """Of the regions that this seed draws the first ends in the gray, and the second does not."""
    make_index(tmp_path, SIZES[:2])
    path = tmp_path / "train" / "cat" / "0.jpg"
    path.write_bytes(path.read_bytes()[:-150] + b"\xff\xd9")
    loader = make_loader(scan(tmp_path), RESIZED[name], global_batch_size=4, seed=3, prefetch=3, workers=3)
    ours, theirs = make_both(loader, 0, 12)  # the file is in every step
    check_equal(ours, theirs)
    assert [bad.path for batch in ours for bad in batch.bad_files] == [str(path)] * 12


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("prefetch", "broken"), [(1, (0,)), (1, (3, 4)), (2, (2,)), (2, (0, 1, 2)), (5, (7,)), (5, (0, 1, 2))]
)
def test_no_step_is_lost_or_made_twice(
    tmp_path: Path, prefetch: int, broken: tuple[int, ...], built: list[Any]
) -> None:
    index = make_index(tmp_path, SIZES[:4])
    for sample_id in broken:
        damage(index.root / index.paths[sample_id], overwrite_head)
    loader = make_loader(index, CUT, global_batch_size=1, shuffle=False, prefetch=prefetch, workers=2)
    ours, theirs = make_both(loader, 0, 8)
    check_equal(ours, theirs)
    assert [batch.ids.tolist() for batch in ours] == [[step] for step in range(8)]
    assert len(built) == 1 + len({*broken} - {7})  # behind the last step there is nothing left for one
    gc.collect()
    assert [pipeline() for pipeline in built] == [None] * len(built)


def test_a_file_that_breaks_between_the_look_and_the_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = make_index(tmp_path, SIZES[:5])
    for number, (change, _) in zip((0, 1, 4), list(DAMAGES.values())[:3], strict=True):
        damage(tmp_path / "train" / "cat" / f"{number}.jpg", change)
    damage(tmp_path / "train" / "dog" / "3.png", None)
    monkeypatch.setattr(dali_source, "is_whole", lambda *_: True)
    check_equal(*make_both(make_loader(index, CUT, global_batch_size=4), 0, 6))


def test_what_dali_alone_cannot_read_enters_as_pixels(tmp_path: Path, built: list[Any]) -> None:
    make_index(tmp_path, SIZES[:5])
    path = tmp_path / "train" / "dog" / "2.png"
    data = bytearray(path.read_bytes())
    data[-14] ^= 1  # in the checksum of the pixels, which Pillow does not compare
    path.write_bytes(data)
    index = scan(tmp_path)
    assert index.is_plain.all()
    ours, theirs = make_both(make_loader(index, CUT, global_batch_size=4), 0, 6)
    check_equal(ours, theirs)
    assert [batch.bad_files for batch in ours] == [[]] * 6
    assert len(built) == 2


def test_the_other_rows_do_not_feel_a_broken_file(tmp_path: Path) -> None:
    loader = make_loader(make_index(tmp_path, SIZES[:5]), RESIZED["shorter side"], shuffle=False)
    expected = next(loader.batches(0, 1))
    damage(tmp_path / "train" / "cat" / "1.jpg", overwrite_head)
    batch = next(loader.batches(0, 1))
    others = [0, 2, 3, 4, 5]
    assert torch.equal(batch.images[others], expected.images[others])
    assert torch.equal(batch.labels[others], expected.labels[others])


def fail_always(message: str, *_: Any) -> Any:
    raise RuntimeError(message)


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ("Critical error in pipeline:\nencountered:\n\nthe moon is full\n", MachineError),
        ("Critical error in pipeline:\nCUDA allocation failed: out of memory", MemoryExhaustedError),
    ],
)
def test_a_failure_that_is_no_files_fault_ends_with_one_line(
    index: SampleIndex, message: str, error: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dali_pipeline, "take_windows", functools.partial(fail_always, message))
    with pytest.raises(error, match=r"the moon is full|out of memory"):
        list(make_loader(index, CUT).batches(0, 3))


def test_an_error_while_pixels_are_read_is_passed_on(index: SampleIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(SampleIndex, "load_pixels", fail)
    with pytest.raises(MemoryError):
        next(make_loader(synthetic_index(4, 2, (24, 24), 0), CUT).batches(0, 1))


# -- memory and ends --------------------------------------------------------------------------------------------------


@pytest.mark.heavy
@pytest.mark.parametrize("prefetch", [1, 3])
def test_batches_that_are_kept_stay_as_they_are(index: SampleIndex, prefetch: int) -> None:
    batches = make_loader(index, CUT, prefetch=prefetch).batches(0, 9)
    kept = [(batch, batch.images.clone()) for batch in batches]
    del batches
    gc.collect()
    assert len(kept) == 9
    assert all(torch.equal(batch.images, copy) for batch, copy in kept)
    assert len({batch.images.data_ptr() for batch, _ in kept}) == 9


def name_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if "dali" in thread.name]


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_an_iterator_that_is_left_early_leaves_nothing_running(
    index: SampleIndex, taken: int, built: list[Any]
) -> None:
    list(make_loader(index, CUT).batches(0, 1))  # what DALI starts once and keeps
    before = psutil.Process().num_threads()
    batches = make_loader(index, CUT, workers=3, prefetch=3).batches(0, 10**6)
    for _ in range(taken):
        next(batches)
    assert bool(name_threads()) == bool(taken)
    batches.close()  # type: ignore[attr-defined]
    assert name_threads() == []
    while psutil.Process().num_threads() > before:  # until the test's time is up
        time.sleep(0.01)
    assert all(pipeline() is None for pipeline in built)


@pytest.mark.heavy
def test_memory_stays_flat(index: SampleIndex) -> None:
    batches = make_loader(index, MIXED).batches(0, 500)
    process = psutil.Process()
    for _ in range(150):
        next(batches)
    before = process.memory_info().rss
    for _ in range(350):
        next(batches)
    assert process.memory_info().rss - before < 4 * 2**20


PROGRAM = """
import os, signal, sys
from pathlib import Path
import alexnet_dist.data.engines.choose
assert not any(module.startswith("nvidia.dali") for module in sys.modules)
from test_engine import CUT, make_loader, scan
received = []
signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
signal.signal(signal.SIGINT, lambda number, frame: received.append(number))
batches = make_loader(scan(Path(sys.argv[1])), CUT, workers=2).batches(0, 10**6)
assert next(batches).num_images == 6
for number in (signal.SIGTERM, signal.SIGINT):
    os.kill(os.getpid(), number)
    next(batches)
assert received == [signal.SIGTERM, signal.SIGINT]
raise ValueError("in the network")
"""


@pytest.mark.slow
def test_a_program_that_fails_in_the_middle_ends_at_once_and_signals_are_its_own(index: SampleIndex) -> None:
    here = Path(__file__).resolve()
    places = [str(here.parent), str(here.parents[3]), str(here.parents[4])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places)}
    command = [sys.executable, "-c", PROGRAM, str(index.root.parent)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines[0].startswith("Traceback")  # and nothing of DALI's before or after
    assert lines[-1] == "ValueError: in the network"


# -- where it cannot run ----------------------------------------------------------------------------------------------


def test_dali_that_is_missing_is_said_with_the_remedy(index: SampleIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dali_engine.importlib.util, "find_spec", lambda name: None)
    assert find_dali() == "DALI is not installed"
    with pytest.raises(MachineError, match=r"pip install 'alexnet_dist\[dali\]'.*cuda120") as caught:
        next(make_loader(index, CUT).batches(0, 1))
    assert caught.value.exit_code == 5


def test_a_package_nvidia_without_dali_is_no_dali(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> Any:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(dali_engine.importlib.util, "find_spec", fail)
    assert find_dali() == "DALI is not installed"


def test_dali_that_cannot_be_imported_is_said_in_one_line(index: SampleIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> Any:
        raise OSError("libdali.so: cannot open shared object file\nmore")

    monkeypatch.setattr(dali_engine.importlib, "import_module", fail)
    with pytest.raises(MachineError, match=r"libdali\.so: cannot open shared object file; pip install"):
        next(make_loader(index, CUT).batches(0, 1))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_gpu_that_cannot_be_used_is_said_in_one_line(index: SampleIndex) -> None:
    with pytest.raises(MachineError, match="cuda120"):
        next(make_loader(index, CUT, device=torch.device("cuda")).batches(0, 1))


# -- real pictures ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> SampleIndex:
    place = os.environ.get("ALEXNET_DIST_TEST_DATA")
    if not place:
        pytest.skip("ALEXNET_DIST_TEST_DATA is not set")
    cache = tmp_path_factory.mktemp("cache")
    index = scan_folder(Path(place) / "imagenet_sample", classes=None, on_bad_file="fail", cache_dir=cache)
    return index.subset(range(0, len(index), 4))


@pytest.mark.heavy
@pytest.mark.parametrize(
    "recipe",
    [
        Augmentation(120, None, "random", horizontal_flip=0.5, vertical_flip=0.5),
        Augmentation(224, None, "random_resized", horizontal_flip=0.5),
        Augmentation(224, 256, "random", horizontal_flip=0.5),
        Augmentation(64, 64),
    ],
)
def test_photographs_equal_the_reference_to_the_bit(photographs: SampleIndex, recipe: Augmentation) -> None:
    check_equal(*make_both(make_loader(photographs, recipe, global_batch_size=25), 0, 2))


def test_unreadable_is_unreadable_for_both(index: SampleIndex) -> None:
    """The check of `make_both` would pass if no image came through."""
    with pytest.raises(UnreadableImageError):
        replace(index, paths=Names.of(["nothing"] * len(index))).load_pixels(0)
