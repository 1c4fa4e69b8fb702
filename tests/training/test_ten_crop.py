"""Ten crops of an image count once, with their probabilities averaged, and are what torchvision would cut."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.dist_helper import run_processes
from helpers.tiny import make_runtime, tiny_config
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as transforms

from alexnet_dist.assembly.evaluation import plan_evaluation
from alexnet_dist.base.errors import DataError, DivergedError
from alexnet_dist.cli.main import run
from alexnet_dist.data.engines import torchvision as torchvision_engine
from alexnet_dist.data.engines.choose import ENGINES
from alexnet_dist.data.engines.loader import Loader, Normalization
from alexnet_dist.data.index import SampleIndex
from alexnet_dist.data.plan import Augmentation, Plan
from alexnet_dist.data.sources.folders import scan_folder
from alexnet_dist.data.sources.synthetic import synthetic_index
from alexnet_dist.parallel.runtime import Runtime, start_runtime
from alexnet_dist.settings.reader import dump_config
from alexnet_dist.settings.schema import DataConfig
from alexnet_dist.training.evaluate import Evaluation, evaluate
from alexnet_dist.training.gate import BatchGate
from alexnet_dist.training.metrics import average_views

SIDE, NUM_CLASSES = 20, 7
SHAPES = [(40, 24), (24, 40), (33, 33), (31, 58), (97, 64), (26, 25), (50, 50), (24, 24), (61, 29)]
RESIZES: list[Any] = [24, 25, 27, None, (30, 41)]
MEAN, STD = (120.0,) * 3, (60.0,) * 3
TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine colored pictures of several shapes in seven classes, and an empty cache."""
    dice, root = np.random.default_rng(0), tmp_path_factory.mktemp("pictures")
    for number, size in enumerate(SHAPES):
        path = root / "val" / f"class{number % NUM_CLASSES}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(dice.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize(size).save(path)
    return root


def scan(folder: Path) -> SampleIndex:
    return scan_folder(folder / "val", classes=None, on_bad_file="fail", cache_dir=folder / "cache")


def make_loader(index: SampleIndex, runtime: Runtime, resize: Any = 24, views: int = 10, images: int = 4) -> Loader:
    recipe = Augmentation(SIDE, resize, views=views)  # type: ignore[arg-type]
    return Loader(
        plan=Plan(index.sizes, recipe, images * runtime.dp_size, seed=0, shuffle=False),
        index=index,
        normalization=Normalization(MEAN, STD),
        channels=3,
        max_pixels=10**6,
        shard_id=runtime.dp_rank,
        num_shards=runtime.dp_size,
        device=torch.device("cpu"),
        channels_last=True,
        workers=0,
        engine=ENGINES["torchvision"],
    )


def make_network() -> nn.Module:
    """Sure of itself, so that averages of logits and of probabilities differ."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 6, 5, stride=5), nn.ReLU(), nn.Flatten(), nn.Linear(96, NUM_CLASSES))
    with torch.no_grad():
        network[3].weight *= 6
    return network.eval()


def evaluate_here(index: SampleIndex, runtime: Runtime, **changes: Any) -> Evaluation:
    gate = BatchGate(runtime, skip_bad_files=False)
    return evaluate(runtime, make_network(), make_loader(index, runtime, **changes), gate.admit)


# -- the crops --------------------------------------------------------------------------------------------------------


def cut_reference(path: Path, resize: Any, in_square: bool = True) -> Tensor:
    """(10, 3, SIDE, SIDE) uint8 by torchvision: resize, central square, ten crops."""
    picture = transforms.pil_to_tensor(Image.open(path).convert("RGB"))
    if resize is not None:
        picture = transforms.resize(picture, [resize] if isinstance(resize, int) else list(resize), antialias=True)
    if in_square:
        picture = transforms.center_crop(picture, [min(picture.shape[1:])])
    return torch.stack(transforms.ten_crop(picture, [SIDE]))


def list_pictures(index: SampleIndex) -> list[Path]:
    return [index.root / path for path in index.paths]


@pytest.mark.parametrize("resize", RESIZES)
def test_crops_equal_torchvisions_bit_for_bit(folder: Path, resize: Any) -> None:
    index = scan(folder)
    loader = replace(make_loader(index, make_runtime(), resize), normalization=Normalization((0,) * 3, (1,) * 3))
    batches = list(loader.batches(0, loader.plan.steps_per_epoch))
    ours = torch.cat([batch.images for batch in batches])[: 10 * len(index)]
    theirs = torch.cat([cut_reference(path, resize) for path in list_pictures(index)])
    assert torch.equal(ours, theirs.float())
    assert [batch.num_images for batch in batches] == [4, 4, 1]
    assert torch.cat([batch.ids for batch in batches]).tolist() == np.repeat([*range(9), -1, -1, -1], 10).tolist()


def test_crops_of_the_whole_picture_are_noticed(folder: Path) -> None:
    index = scan(folder)
    loader = replace(make_loader(index, make_runtime(), images=9), normalization=Normalization((0,) * 3, (1,) * 3))
    theirs = torch.cat([cut_reference(path, 24, in_square=False) for path in list_pictures(index)])
    assert not torch.equal(next(loader.batches(0, 1)).images, theirs.float())


@pytest.mark.parametrize("num_shards", [2, 3, 4])
def test_shards_keep_the_views_of_an_image_together(num_shards: int) -> None:
    whole = Plan(np.full((20, 2), 30), Augmentation(SIDE, 24, views=10), 12, seed=0, shuffle=False).at(1)
    shards = [whole.shard(number, num_shards) for number in range(num_shards)]
    blocks = np.concatenate([shard.ids.reshape(-1, 10) for shard in shards])
    assert (blocks == blocks[:, :1]).all()
    assert blocks[:, 0].tolist() == [12, 13, 14, 15, 16, 17, 18, 19, -1, -1, -1, -1]
    joined = map(np.concatenate, zip(*(shard[:-1] for shard in shards), strict=True))  # nothing is drawn
    assert all(map(np.array_equal, joined, whole[:-1]))


def test_a_picture_is_decoded_and_resized_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for owner, name in ((SampleIndex, "load_pixels"), (torchvision_engine, "resize_pixels")):
        monkeypatch.setattr(owner, name, count_calls(getattr(owner, name), name, calls))
    index = scan(folder)
    list(make_loader(index, make_runtime()).batches(0, 3))
    assert sorted(calls) == ["load_pixels"] * 9 + ["resize_pixels"] * 9


def count_calls(function: Any, name: str, calls: list[str]) -> Any:
    def counted(*args: Any) -> Any:
        calls.append(name)
        return function(*args)

    return counted


@pytest.mark.parametrize(
    ("batch_size", "ten_crop", "images"), [(128, True, 13), (10, True, 1), (1, True, 1), (5, False, 5)]
)
def test_views_share_the_batch_size(batch_size: int, ten_crop: bool, images: int) -> None:
    index = synthetic_index(40, 2, (30, 30), 0)
    plan = plan_evaluation(DataConfig(), Augmentation(SIDE, 24), index, batch_size, 2, ten_crop)
    assert plan.global_batch_size == 2 * images
    assert len(plan.at(0).ids) == 2 * images * (10 if ten_crop else 1)


@pytest.mark.parametrize("sizes", [[(64, 64), (19, 64)], [(64, 19), (64, 64)]])
def test_an_image_smaller_than_the_crops_is_refused(sizes: list[tuple[int, int]]) -> None:
    with pytest.raises(DataError, match=r"does not fit .*smaller than the crop of \d+: .*after augment.resize"):
        Plan(np.array(sizes), Augmentation(SIDE, None, views=10), 4, seed=0, shuffle=False)


# -- their average ----------------------------------------------------------------------------------------------------


def evaluate_reference(
    paths: Sequence[Path], labels: Sequence[int], average: str = "probabilities"
) -> tuple[float, ...]:
    """Number of images, loss, top-1 and top-5 from torchvision's ten crops, in float64 after the network."""
    losses, ranks = [], []
    for path, label in zip(paths, labels, strict=True):
        views = (cut_reference(path, 24).float() - MEAN[0]) / STD[0]
        with torch.no_grad():
            logits = make_network()(views).double()
        scores = logits.softmax(1).mean(0) if average == "probabilities" else logits.mean(0).softmax(0)
        losses.append(-float(scores[label].log()))
        ranks.append(int((scores > scores[label]).sum()))
    return len(paths), float(np.mean(losses)), float(np.mean(np.array(ranks) < 1)), float(np.mean(np.array(ranks) < 5))


def test_average_equals_an_independent_computation(folder: Path) -> None:
    index = scan(folder)
    found = evaluate_here(index, make_runtime())
    expected = evaluate_reference(list_pictures(index), index.labels.tolist())
    assert (found.num_examples, found.loss, found.top1, found.top5) == pytest.approx(expected, rel=TOLERANCE)
    of_logits = evaluate_reference(list_pictures(index), index.labels.tolist(), average="logits")
    assert abs(found.loss - of_logits[1]) > 0.1
    assert abs(found.loss - evaluate_here(index, make_runtime(), views=1).loss) > 0.1


def evaluate_shard(folder: Path) -> tuple[float, ...]:
    runtime = start_runtime("cpu", "fp32")
    result = evaluate_here(scan(folder), runtime, images=2)
    return result.num_examples, result.loss, result.top1, result.top5


@pytest.mark.heavy
@pytest.mark.parametrize("processes", [1, 2])
def test_processes_do_not_change_the_average(folder: Path, processes: int) -> None:
    index = scan(folder)
    results = run_processes(processes, evaluate_shard, folder)
    expected = evaluate_reference(list_pictures(index), index.labels.tolist())
    assert len(set(results)) == 1
    assert results[0] == pytest.approx(expected, rel=TOLERANCE)


@pytest.mark.heavy
@pytest.mark.parametrize("processes", [1, 2])
def test_a_bad_file_leaves_the_average_as_one_image(folder: Path, tmp_path: Path, processes: int) -> None:
    shutil.copytree(folder / "val", tmp_path / "val")
    index = scan(tmp_path)
    bad = list_pictures(index)[3]
    bad.write_bytes(bad.read_bytes()[:90])  # the header is whole
    good = [k for k in range(len(index)) if k != 3]
    expected = evaluate_reference([list_pictures(index)[k] for k in good], index.labels[good].tolist())
    results = run_processes(processes, evaluate_shard_with_bad_file, tmp_path)
    assert [names for _, names in results] == [[str(bad)]] * processes
    assert results[0][0] == pytest.approx(expected, rel=TOLERANCE)
    batch = next(make_loader(index, make_runtime()).batches(0, 1))
    assert batch.mask.tolist() == [1.0] * 30 + [0.0] * 10
    assert (batch.num_images, [file.path for file in batch.bad_files]) == (3, [str(bad)])


def evaluate_shard_with_bad_file(folder: Path) -> tuple[tuple[float, ...], list[str]]:
    runtime, index = start_runtime("cpu", "fp32"), scan(folder)
    gate = BatchGate(runtime, skip_bad_files=True)
    result = evaluate(runtime, make_network(), make_loader(index, runtime, images=2), gate.admit)
    names = sorted(file.path for file in gate.gather_bad_files())
    return (result.num_examples, result.loss, result.top1, result.top5), names


class _RepeatingPlan(Plan):
    """Fills the batch up with the first image."""

    def at(self, step: int) -> Any:
        rows = super().at(step)
        return rows._replace(ids=np.maximum(rows.ids, 0))


@pytest.mark.parametrize("views", [1, 10])
def test_an_image_twice_in_a_batch_is_refused(folder: Path, views: int) -> None:
    index, runtime = scan(folder), make_runtime()
    loader = make_loader(index, runtime, views=views, images=11)
    plan = _RepeatingPlan(index.sizes, loader.plan.augmentation, 11, 0, False)
    with pytest.raises(AssertionError, match="exactly once"):
        evaluate(runtime, make_network(), replace(loader, plan=plan), BatchGate(runtime, skip_bad_files=False).admit)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_one_view_whose_logits_are_not_finite_ends_the_evaluation(folder: Path, value: float) -> None:
    index, runtime = scan(folder), make_runtime()
    network = make_network()

    def breaking(images: Tensor) -> Tensor:
        logits: Tensor = network(images)
        logits[17, 0] = value  # one of ten views of the second image
        return logits

    loader = make_loader(index, runtime, images=len(index))
    gate = BatchGate(runtime, skip_bad_files=False)
    with pytest.raises(DivergedError, match=f": 1 of {len(index)} images"):
        evaluate(runtime, _Function(breaking), loader, gate.admit)


class _Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, images: Tensor) -> Tensor:
        return self.function(images)


def test_a_set_of_which_no_image_can_be_read_has_no_result(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "val", tmp_path / "val")
    index, runtime = scan(tmp_path), make_runtime()
    for path in list_pictures(index):
        path.write_bytes(b"")
    loader, gate = make_loader(index, runtime), BatchGate(runtime, skip_bad_files=True)
    with pytest.raises(DataError, match="no image could be read"):
        evaluate(runtime, make_network(), loader, gate.admit)


def test_averaged_probabilities_sum_to_one_and_may_be_tiny() -> None:
    logits = torch.tensor([[0.0, -200.0], [-1.0, -203.0], [3.0, 1.0], [1.0, 3.0]])
    logs = average_views(logits, 2)
    assert logs.shape == (2, 2)
    assert logs.logsumexp(dim=1).tolist() == pytest.approx([0.0, 0.0], abs=TOLERANCE)
    assert logs[1].exp().tolist() == pytest.approx([0.5, 0.5], abs=TOLERANCE)
    expected = -200 + np.log((1 + np.exp(-2)) / 2)  # in float32 exp(-200) is 0, and its log would be infinite
    assert float(logs[0, 1]) == pytest.approx(expected, rel=TOLERANCE)


@pytest.mark.parametrize(("given", "computed"), [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)])
def test_average_is_taken_in_float32_at_least(given: torch.dtype, computed: torch.dtype) -> None:
    assert average_views(torch.zeros(4, 3, dtype=given), 2).dtype == computed


# -- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny run on pictures of 72 x 72 pixels, with crops of 64."""
    folder = tmp_path_factory.mktemp("trained")
    settings = folder / "tiny.yaml"
    jitter = {"augment__color_jitter": [0.4, 0.4, 0.4, 0.1], "augment__lighting_epochs": 1}
    settings.write_text(dump_config(tiny_config(folder / "run", train__epochs=2, **jitter)))
    ((code, _, text),) = run_processes(1, call_here, "train", ["--config", str(settings)])
    assert code == 0, text
    return folder / "run"


def call_here(verb: str, words: list[str]) -> tuple[int, str, str]:
    with contextlib.redirect_stderr(io.StringIO()) as stderr, contextlib.redirect_stdout(io.StringIO()) as stdout:
        code = run(verb, words)
    return code, stdout.getvalue(), stderr.getvalue()


def call(*words: str, processes: int = 1) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of all processes together."""
    results = run_processes(processes, call_here, "evaluate", [*words, "--data.workers", "0"])
    assert len({code for code, _, _ in results}) == 1
    return results[0][0], "".join(out for _, out, _ in results), "".join(text for _, _, text in results)


@pytest.mark.heavy
@pytest.mark.parametrize("processes", [1, 2])
def test_evaluate_takes_ten_crops(trained: Path, processes: int, tmp_path: Path) -> None:
    card = (trained / "model" / "config.json").read_bytes()
    words = ["--model", str(trained), "--out", str(tmp_path / "result.json"), "--batch_size", "12"]
    code, out, text = call(*words, "--ten_crop", processes=processes)
    assert code == 0, text
    result = json.loads(out)
    assert result == json.loads((tmp_path / "result.json").read_text())
    assert (result["crops_per_image"], result["num_examples"], result["split"]) == (10, 5, "val")
    assert "margin" not in text
    assert (trained / "model" / "config.json").read_bytes() == card
    assert call(*words)[0] == 2  # the file is there
    single = json.loads(call(*words, "--overwrite")[1])
    assert single["crops_per_image"] == 1
    assert single["top1"] == json.loads((trained / "summary.json").read_text())["best_top1"]
    assert single["loss"] != result["loss"]
    larger = json.loads(call(*words, "--overwrite", "--ten_crop", "--batch_size", "50")[1])
    assert larger["loss"] == pytest.approx(result["loss"], rel=TOLERANCE)


@pytest.mark.heavy
def test_model_of_an_earlier_version_is_read(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "model", tmp_path / "model")
    (tmp_path / "model" / "manifest.json").unlink()  # it would not agree
    path = tmp_path / "model" / "config.json"
    values = json.loads(path.read_text())
    recipe = values["preprocessing"]["evaluation"]
    assert [recipe.pop(key) for key in ("lighting_epochs", "color_jitter", "views")] == [None, None, 1]
    path.write_text(json.dumps(values))
    before, after = (json.loads(call("--model", str(folder))[1]) for folder in (trained, tmp_path))
    assert after == before | {"model": str(tmp_path)}


@pytest.mark.heavy
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("crops", [["--ten_crop"], []])
def test_images_smaller_than_the_crop_are_one_line(trained: Path, crops: list[str], processes: int) -> None:
    words = ["--model", str(trained), "--data.synthetic_size", "60", *crops]
    code, _, text = call(*words, processes=processes)
    lines = [line for line in text.splitlines() if line.startswith("error: ")]
    assert code == 3
    assert len(lines) == 1
    assert "smaller than the crop of 64: 60 x 60 after augment.resize" in lines[0]
    assert "Traceback" not in text


@pytest.mark.heavy
@pytest.mark.parametrize("processes", [1, 2])
def test_crops_without_a_margin_are_said_to_be_equal(trained: Path, processes: int) -> None:
    words = ["--model", str(trained), "--data.synthetic_size", "64"]
    code, _, text = call(*words, "--ten_crop", processes=processes)
    assert code == 0
    lines = [line for line in text.splitlines() if "no margin" in line]
    assert len(lines) == 1
    assert "augment.resize null leaves no margin" in lines[0]
    assert "in 5 of 5 images" in lines[0]
    assert "margin" not in call(*words)[2]
