"""`make_loader` and `make_index`: batches for a loop of one's own, with the guarantees that a training has."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from helpers.archives import read_files, write_shards
from helpers.images import make_picture, save_jpeg
from helpers.tiny import make_runtime
from PIL import Image
from torch import Tensor

from alexnet_dist import BatchLoader, make_index, make_loader
from alexnet_dist.assembly.loaders import build_feed, build_plan, settle_batch_sizes
from alexnet_dist.assembly.network import build_spec
from alexnet_dist.assembly.public_loader import LoaderOptions
from alexnet_dist.assembly.sets import build_splits
from alexnet_dist.base.errors import DataError, MachineError, UsageError
from alexnet_dist.data.index import BadFilesError, SampleIndex
from alexnet_dist.data.plan import Augmentation
from alexnet_dist.settings.reader import build_config
from alexnet_dist.settings.schema import AugmentConfig, DataConfig

pytestmark = pytest.mark.heavy

Batches = list[tuple[Tensor, Tensor, Tensor]]
OPTIONS: dict[str, Any] = {"engine": "torchvision", "resize": 72, "workers": 0, "device": "cpu"}
JITTER = (0.4, 0.4, 0.4, 0.0)
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ and val/ of 11 and 3 JPEGs in three classes, and a list of the first."""
    root = tmp_path_factory.mktemp("data")
    lines = []
    for number in range(14):
        part, name = ("train", "val")[number > 10], "abc"[number % 3]
        path = root / part / name / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_jpeg(path, 80 + 9 * number, 140 - 3 * number)
        lines += [f"{path.relative_to(root)} {number % 3}\n"] if part == "train" else []
    (root / "list.txt").write_text("".join(lines))
    return root


def make(data: Path | SampleIndex, **changes: Any) -> BatchLoader:
    root_or_index = data if isinstance(data, SampleIndex) else data / "train"
    return make_loader(**{"root_or_index": root_or_index, "batch_size": 4, "crop_size": 64, **OPTIONS, **changes})


def test_blocks_take_archives_one_after_another(data: Path, tmp_path: Path) -> None:
    write_shards(tmp_path, read_files(data / "train"), num_shards=4)
    index = make_index(tmp_path / "train-{0000..0003}.tar", source="tar", cache_dir=tmp_path / "cache")
    assert index.containers is not None
    settings = DataConfig(order="blocks", order_window=1)
    plan = build_plan(settings, index, Augmentation(64, 72), global_batch_size=1, seed=0, shuffle=True)
    ids = [int(plan.at(step).ids[0]) for step in range(len(index))]
    assert sorted(ids) == list(range(len(index)))
    assert np.count_nonzero(np.diff(index.containers.numbers[ids])) == 3
    batches = list(make(index, order="blocks", order_window=1))
    assert not are_equal(batches, list(make(index)))
    with pytest.raises(UsageError, match=r"data.order is blocks .*its images lie in no archives"):
        make(data, order="blocks")


def are_equal(ours: Batches, theirs: Batches) -> bool:
    pairs = list(zip(ours, theirs, strict=True))
    return all(torch.equal(one, other) for batch, twin in pairs for one, other in zip(batch, twin, strict=True))


def test_an_epoch_holds_each_image_once(data: Path) -> None:
    loader = make(data)
    batches = list(loader)
    assert (len(loader), len(batches), loader.classes) == (3, 3, ("a", "b", "c"))
    assert [tuple(images.shape) for images, _, _ in batches] == [(4, 3, 64, 64)] * 3
    masks = torch.cat([mask for _, _, mask in batches])
    assert masks.tolist() == [1.0] * 11 + [0.0]
    labels = torch.cat([labels for _, labels, _ in batches])
    assert sorted(labels[masks.bool()].tolist()) == sorted(loader.index.labels.tolist())


def test_epochs_follow_each_other_and_can_be_chosen(data: Path) -> None:
    loader = make(data)
    first, second = list(loader), list(loader)
    assert not are_equal(first, second)
    loader.set_epoch(0)
    assert are_equal(list(loader), first)
    assert are_equal(list(loader), second)
    next(iter(loader))  # an epoch that is broken off is not over
    assert loader.epoch == 2
    assert not are_equal(list(make(data, seed=1)), first)


@pytest.mark.parametrize(("start", "stop"), [(0, 7), (2, 7), (3, 5), (4, None), (3, None), (7, 7)])
def test_a_loop_that_was_broken_off_goes_on_at_its_step(data: Path, start: int, stop: int | None) -> None:
    whole = list(make(data).batches(0, 9))
    assert are_equal(list(make(data).batches(start, stop)), whole[start : 6 if stop is None else stop])


def test_batches_are_those_of_a_run_with_the_same_settings(data: Path, tmp_path: Path) -> None:
    own = {"data.source": "folder", "data.root": str(data), "data.val_fraction": 0.0, "data.cache_dir": str(tmp_path)}
    given = {"augment.resize": 72, "augment.color_jitter": list(JITTER), "train.global_batch_size": 4, "seed": 5}
    config = build_config({**own, **given, "data.workers": 0, "model.image_size": 64, "train.epochs": 1})
    splits, sizes = build_splits(config.data, 5, progress=False), settle_batch_sizes(4, None, 1, 11)
    feed = build_feed(config, make_runtime(), splits.named(), build_spec(config.model, 3), sizes)
    wanted = [(batch.images, batch.labels, batch.mask) for batch in feed.load("train", "torchvision").batches(0, 5)]
    assert are_equal(list(make(data, color_jitter=JITTER, seed=5).batches(0, 5)), wanted)


@pytest.mark.parametrize("engine", ["torchvision", "dali", "cache"])
def test_ranks_share_the_batches_of_one_process(data: Path, engine: str) -> None:
    alone = list(make(data, engine=engine, color_jitter=JITTER))
    shared = {"engine": engine, "color_jitter": JITTER, "world_size": 2}
    ranks = [list(make(data, rank=rank, **shared)) for rank in range(2)]
    joined = [tuple(map(torch.cat, zip(*parts, strict=True))) for parts in zip(*ranks, strict=True)]
    assert are_equal(joined, alone)  # type: ignore[arg-type]
    assert not are_equal(ranks[0], ranks[1])


def test_engines_give_equal_batches(data: Path) -> None:
    plain = {"mean": [0.0], "std": [1.0], "pixel_range": 255, "vertical_flip": 0.5}
    reference, *others = (list(make(data, **plain, engine=engine)) for engine in ("torchvision", "dali", "cache"))
    for batches in others:
        for (images, labels, mask), (other_images, other_labels, other_mask) in zip(reference, batches, strict=True):
            assert torch.equal(labels, other_labels)
            assert torch.equal(mask, other_mask)
            assert (images - other_images).abs().max() <= 2  # gray levels
    assert others[1][0][0].abs().max() > 100


def test_a_list_and_its_folder_have_the_same_batches(data: Path) -> None:
    index = make_index(data / "list.txt", source="manifest")
    assert make_index(data, "list.txt", source="manifest").fingerprint() == index.fingerprint()
    for listed in (index, data / "list.txt"):
        assert are_equal(list(make(data)), list(make(data, root_or_index=listed)))


def test_another_set_takes_the_classes_of_training(data: Path, tmp_path: Path) -> None:
    train = make(data)
    (tmp_path / "val" / "b").mkdir(parents=True)
    save_jpeg(tmp_path / "val" / "b" / "0.jpg", 90, 90)
    val = make(data, root_or_index=tmp_path / "val", training=False, classes=train.classes, batch_size=2)
    ((images, labels, mask),) = val
    assert (labels.tolist(), mask.tolist()) == ([1, 0], [1.0, 0.0])
    assert are_equal(list(val), [(images, labels, mask)])  # every epoch of it is the same
    with pytest.raises(DataError, match="b"):
        make(data, root_or_index=tmp_path / "val", classes=["a"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels_last", [True, False])
def test_images_come_as_they_are_asked_for(data: Path, dtype: torch.dtype, channels_last: bool) -> None:
    images, labels, mask = next(iter(make(data, dtype=dtype, channels_last=channels_last, in_channels=1)))
    assert (images.dtype, images.shape[1], labels.dtype, mask.dtype) == (dtype, 1, torch.int64, torch.float32)
    images = next(iter(make(data, dtype=dtype, channels_last=channels_last)))[0]
    assert images.is_contiguous(memory_format=torch.channels_last) is channels_last


def test_options_are_the_recipe_of_a_run(data: Path) -> None:
    assert vars(AugmentConfig()).keys() <= LoaderOptions.__annotations__.keys()
    plain = {"crop": "centre", "horizontal_flip": 0.0, "std": [0.5]}
    means = [float(next(iter(make(data, **plain, mean=[mean])))[0].mean()) for mean in (0.0, 0.5)]
    assert means[0] - means[1] == pytest.approx(1, abs=1e-4)
    jittered = make(data, **plain, mean=[0.0], color_jitter=(0.9, 0, 0, 0))
    assert float(next(iter(jittered))[0].mean()) != pytest.approx(means[0], abs=1e-3)


def break_file(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.fixture
def damaged(tmp_path: Path) -> tuple[BatchLoader, BatchLoader]:
    """A loader that fails and one that skips, over pictures of which one is cut after it was listed."""
    for number in range(4):
        (tmp_path / "train" / "a").mkdir(parents=True, exist_ok=True)
        Image.fromarray(make_picture(90, 90)).save(tmp_path / "train" / "a" / f"{number}.png")
    loaders = [make(tmp_path, on_bad_file=word) for word in ("fail", "skip")]
    break_file(tmp_path / "train" / "a" / "2.png")
    return loaders[0], loaders[1]


def test_bad_files_end_the_loop_or_are_left_out(
    damaged: tuple[BatchLoader, BatchLoader], caplog: pytest.LogCaptureFixture
) -> None:
    failing, skipping = damaged
    with pytest.raises(BadFilesError, match=r"an image cannot be decoded \(.*2\.png\).*on_bad_file: skip"):
        list(failing)
    for _ in range(2):
        ((_, _, mask),) = skipping
        assert mask.sum() == 3
    assert [Path(bad.path).name for bad in skipping.bad_files] == ["2.png"]
    assert caplog.text.count("2.png is left out") == 1


def list_workers() -> set[int]:
    servers = [child for child in psutil.Process().children() if "forkserver" in " ".join(child.cmdline())]
    return {child.pid for server in servers for child in server.children()}


@pytest.mark.heavy
@pytest.mark.parametrize("ending", ["end", "break", "error"])
def test_workers_end_with_the_loop(data: Path, ending: str) -> None:
    before, during, loader = list_workers(), set(), make(data, workers=2)
    with contextlib.suppress(InterruptedError):
        for _ in loader.batches(0, 30):
            during |= list_workers() - before
            if ending == "break":
                break
            if ending == "error":
                raise InterruptedError
    assert len(during) == 2
    _, alive = psutil.wait_procs([psutil.Process(pid) for pid in list_workers() - before], timeout=5)
    assert alive == []


@pytest.mark.heavy
@pytest.mark.slow
def test_a_plain_script_may_have_workers(data: Path) -> None:
    """Without `if __name__ == "__main__"`: the file must not be run again in each worker."""
    script = data / "script.py"
    script.write_text(
        "from alexnet_dist import make_loader\n"
        f"loader = make_loader({str(data / 'train')!r}, 4, 64, engine='torchvision', workers=2, device='cpu')\n"
        "print(sum(int(mask.sum()) for _, _, mask in loader), flush=True)\n"
    )
    done = subprocess.run(
        [sys.executable, script],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert (done.stdout, done.returncode) == ("11\n", 0), done.stderr


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"root_or_index": "nowhere/train"}, DataError, "no such folder .*nowhere/train"),
        ({"engine": "fast"}, UsageError, r"wrong value for data.engine \(make_loader\(\)\): expected one of"),
        ({"rank": 2, "world_size": 2}, ValueError, "rank must lie in 0 .. world_size - 1, got rank 2 and world_size 2"),
        ({"rank": -1}, ValueError, "got rank -1"),
        ({"batch_size": 5, "world_size": 2}, UsageError, "train.global_batch_size 5 cannot be shared by 2 processes"),
        ({"batch_size": 12}, DataError, "train.global_batch_size 12 is larger than the training set: 11 images"),
        ({"batch_size": 0}, UsageError, "train.global_batch_size is out of range"),
        ({"crop_size": 0}, UsageError, r"model.image_size is out of range \(make_loader\(\)\)"),
        ({"crop_size": 73}, DataError, "no image fits the recipe"),
        ({"resize": "big"}, UsageError, r"wrong value for augment.resize \(make_loader\(\)\)"),
        ({"color_jitter": (1.0,)}, UsageError, "augment.color_jitter has the wrong length"),
        ({"horizontal_flip": 2.0}, UsageError, "augment.horizontal_flip is out of range"),
        ({"num_workers": 2}, TypeError, "unexpected keyword argument 'num_workers' .did you mean 'workers'"),
        ({"dtype": torch.int8}, ValueError, "dtype must be one of torch.float32, torch.bfloat16, torch.float16"),
        ({"device": "gpu"}, ValueError, "no device 'gpu'"),
        ({"engine": "cache", "crop": "random_resized"}, UsageError, "cache"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_be_meant_is_refused(data: Path, changes: dict[str, Any], kind: Any, words: str) -> None:
    with pytest.raises(kind, match=words):
        make(data, **changes)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(data: Path) -> None:
    with pytest.raises(MachineError, match="no CUDA device"):
        make(data, device="cuda:1")


def test_negative_steps_and_unknown_options_are_refused(data: Path) -> None:
    with pytest.raises(ValueError, match="steps count from 0, got -1"):
        make(data).batches(-1)
    with pytest.raises(TypeError, match=r"make_index.. got an unexpected keyword argument 'suffix'"):
        make_index(data, "train", suffix=".jpg")  # type: ignore[call-arg]


@pytest.mark.parametrize("split", ["train", "val"])
def test_other_sources_are_listed_too(split: Any) -> None:
    index = make_index(
        None, split=split, source="synthetic", synthetic_images=16, synthetic_classes=2, synthetic_size=80
    )
    assert np.bincount(index.labels).tolist() == ([8, 8] if split == "train" else [1, 1])
    loader = make_loader(index, 2, 64, "auto", training=False, device="cpu", workers=0)
    ((images, _, _),) = loader.batches(0, 1)
    assert images.shape == (2, 3, 64, 64)
    assert (loader.engine, loader.engine_reason) == ("torchvision", "evaluations take the reference")
    with pytest.raises(ValueError, match="the index has other classes"):
        make_loader(index, 2, 64, training=False, device="cpu", classes=["x", "y"])
