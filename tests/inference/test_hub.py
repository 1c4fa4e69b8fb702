"""`AlexNet.from_pretrained` and `save_pretrained`: the same logits, the folder of the contract, evaluation's pixels."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import io
import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from helpers.images import GoodImage, good_images, make_picture
from helpers.refusals import refused
from helpers.tiny import make_runtime, tiny_config
from huggingface_hub import PyTorchModelHubMixin, snapshot_download
from PIL import Image

from alexnet_dist import AlexNet
from alexnet_dist.assembly.loaders import build_loader
from alexnet_dist.base.errors import CheckpointError, DataError, MachineError, UsageError
from alexnet_dist.cli.evaluate import evaluate_model
from alexnet_dist.cli.predict import predict_files
from alexnet_dist.cli.train import train
from alexnet_dist.data.decode import UnreadableImageError, convert_picture
from alexnet_dist.data.engines.loader import Normalization
from alexnet_dist.data.plan import Augmentation, Plan
from alexnet_dist.data.sources.folders import scan_folder
from alexnet_dist.inference import hub
from alexnet_dist.inference.model_folder import ModelCard, read_card, read_model_weights
from alexnet_dist.models import build_model, make_spec
from alexnet_dist.settings.schema import DataConfig


def make_card(channels: int = 3, resize: Any = 72) -> ModelCard:
    spec = make_spec(
        "paper",
        num_classes=3,
        image_size=64,
        conv_channels=[8, 16, 16, 16, 16],
        fc_width=16,
        init="torch",
        in_channels=channels,
    )
    normalization = Normalization((120.0, 110.0, 100.0)[:channels], (60.0, 61.0, 62.0)[:channels])
    return ModelCard("paper", spec, ("cat", "dog", "größe"), Augmentation(64, resize=resize), normalization, {})


def make_model(channels: int = 3, resize: Any = 72) -> AlexNet:
    model = AlexNet(make_card(channels, resize))
    model.load_state_dict(build_model(model.spec, seed=1).state_dict())
    return model.eval()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished tiny run."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(tiny_config(folder, train__epochs=1, device="cpu", precision="fp32"))
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Class folders of pictures of several sizes and modes."""
    for number, (width, height) in enumerate([(80, 90), (131, 77), (64, 200)]):
        (tmp_path / "pictures" / "cat").mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(make_picture(width, height))
        picture.convert("RGB" if number else "L").save(tmp_path / "pictures" / "cat" / f"{number}.jpg")
    return tmp_path / "pictures"


@pytest.mark.heavy
@pytest.mark.parametrize("part", [".", "model"])
def test_a_runs_folder_gives_the_network_of_its_weights(run: Path, part: str) -> None:
    model = AlexNet.from_pretrained(run / part)
    assert not model.training
    assert model.classes == read_card(run / "model").classes
    weights = read_model_weights(run / "model")
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


@pytest.mark.heavy
def test_what_is_saved_is_accepted_everywhere(run: Path, pictures: Path, tmp_path: Path) -> None:
    AlexNet.from_pretrained(run).save_pretrained(tmp_path / "saved")
    files = sorted(path.name for path in (tmp_path / "saved").iterdir())
    assert files == ["README.md", "config.json", "manifest.json", "model.safetensors"]
    for name in ("config.json", "manifest.json", "model.safetensors"):
        assert (tmp_path / "saved" / name).read_bytes() == (run / "model" / name).read_bytes()
    picture = str(pictures / "cat" / "1.jpg")
    (row,), (same,) = (list(predict_files(path, [picture], 3, "cpu")) for path in (run, tmp_path / "saved"))
    assert row == same
    results = [evaluate_model(path, "val", {"data.workers": 0}, 8) for path in (run, tmp_path / "saved")]
    assert results[0] | {"model": ""} == results[1] | {"model": ""}


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "manifest.json"])
def test_files_of_something_else_are_not_replaced(run: Path, tmp_path: Path, name: str) -> None:
    model, folder = AlexNet.from_pretrained(run), tmp_path / "project"
    folder.mkdir()
    (folder / name).write_text("{}")
    refused(lambda: model.save_pretrained(folder), UsageError)
    assert {path.name: path.read_text() for path in folder.iterdir()} == {name: "{}"}
    before = (run / "model" / name).read_bytes()
    assert "the model/ of a run" in refused(lambda: model.save_pretrained(run / "model"), UsageError)
    assert (run / "model" / name).read_bytes() == before
    for _ in range(2):
        model.save_pretrained(tmp_path / "saved")  # one of ours is replaced


@pytest.mark.heavy
def test_prediction_is_preprocessing_network_and_softmax(run: Path, pictures: Path) -> None:
    model = AlexNet.from_pretrained(run)
    paths = [str(path) for path in sorted((pictures / "cat").iterdir())]
    with torch.no_grad():
        found = model(model.preprocess(paths)).softmax(1).max(1).values
    wanted = [row.confidence for row in predict_files(run, paths, 1, "cpu")]
    assert found.tolist() == pytest.approx(wanted, rel=1e-6)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("tool", [torch.jit.script, torch.fx.symbolic_trace, copy.deepcopy])
def test_tools_take_the_network_with_its_card(tool: Any) -> None:
    """As they take the plain one; see tests/models/test_graphs.py."""
    model, images = make_model(), torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(tool(model)(images), model(images), rtol=1e-5, atol=1e-6)


def test_a_folder_keeps_what_else_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    (tmp_path / "notes.txt").write_text("mine")
    make_model().save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("resize", [72, (70, 90), None])
def test_preprocessing_is_evaluations_bit_for_bit(pictures: Path, tmp_path: Path, channels: int, resize: Any) -> None:
    model = make_model(channels, resize)
    index = scan_folder(pictures, classes=None, on_bad_file="fail", cache_dir=tmp_path / "cache")
    plan = Plan(index.sizes, model.card.evaluation, len(index), seed=0, shuffle=False)
    loader = build_loader(make_runtime(), DataConfig(workers=0), index, plan, model.card.normalization, False)
    wanted = next(loader.batches(0, 1)).images  # (3, C, 64, 64)
    paths = [pictures / path for path in index.paths]
    assert torch.equal(model.preprocess(paths), wanted)
    assert torch.equal(model.preprocess(Image.open(path) for path in paths), wanted)
    assert torch.equal(torch.cat([model.preprocess(path.read_bytes()) for path in paths]), wanted)


@pytest.mark.parametrize("good", good_images(), ids=lambda good: good.name)
@pytest.mark.parametrize("is_loaded", [False, True])
def test_a_picture_of_pillows_means_what_its_file_means(good: GoodImage, is_loaded: bool) -> None:
    image = Image.open(io.BytesIO(good.data))
    if is_loaded and image.format != "TIFF":  # which loading turns upright, and forgets the tag
        image.load()
    found = convert_picture(image).astype(int)
    assert found.shape == good.rgb.shape
    assert np.abs(found - good.rgb).max() <= good.tolerance


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_and_open_files_mean_what_their_picture_means(tmp_path: Path, channels: int) -> None:
    dice = np.random.default_rng(0)
    array = dice.integers(0, 256, (80, 90, 3), dtype=np.uint8)
    Image.fromarray(array).save(tmp_path / "a.png")
    model = make_model(channels)
    wanted = model.preprocess(tmp_path / "a.png")
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    for one in (array, array[::1, :, ::-1][:, :, ::-1], tensor, tensor.contiguous(), (tmp_path / "a.png").open("rb")):
        assert torch.equal(model.preprocess(one), wanted)
        assert torch.equal(model.preprocess([array, tensor]), torch.cat([wanted, wanted]))
    for several in (np.stack([array, array]), torch.stack([tensor, tensor])):
        assert torch.equal(model.preprocess(several), torch.cat([wanted, wanted]))
    gray = array[:, :, 0]
    assert torch.equal(model.preprocess(gray), model.preprocess(Image.fromarray(gray)))
    assert torch.equal(model.preprocess(gray[:, :, None]), model.preprocess(torch.from_numpy(gray)[None]))


@pytest.mark.parametrize(
    ("picture", "parts"),
    [
        (None, ["got NoneType", 'opened with "rb"']),
        (3, ["got int"]),
        ({"path": "a.jpg"}, ["got dict"]),
        ([None], ["got NoneType"]),
        (np.zeros((80, 80, 3)), ["uint8 (H, W, C)", "float64 (80, 80, 3)"]),
        (np.zeros((3, 80, 80), np.uint8), ["uint8 (3, 80, 80)"]),
        (torch.zeros(3, 80, 80), ["uint8 (C, H, W)", "got Tensor float32 (3, 80, 80)"]),
        (torch.zeros(3, 80, 80, dtype=torch.bfloat16), ["got Tensor bfloat16"]),
        (torch.zeros(80, 80, 3, dtype=torch.uint8), ["uint8 (80, 80, 3)"]),
        (np.zeros(80, np.uint8), ["uint8 (80,)"]),
        (np.zeros((0, 0), np.uint8), ["not empty", "uint8 (0, 0)"]),
        (torch.zeros(3, 80, 0, dtype=torch.uint8), ["not empty", "uint8 (3, 80, 0)"]),
        (io.StringIO("text"), ['opened with "rb"', "str"]),
    ],
)
def test_what_is_no_picture_is_named(picture: Any, parts: list[str]) -> None:
    with pytest.raises(TypeError) as error:
        make_model().preprocess(picture)
    assert all(part in str(error.value) for part in parts), error.value


def test_a_picture_without_pixels_is_refused() -> None:
    with pytest.raises(UnreadableImageError, match=r"^no pixels \(0x9\)"):
        make_model().preprocess(Image.new("RGB", (0, 9)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_preprocessing_follows_the_network(dtype: torch.dtype) -> None:
    model, picture = make_model().to(dtype).eval(), Image.new("RGB", (80, 90), "red")
    images = model.preprocess(picture)
    assert images.dtype == dtype
    assert torch.equal(images, make_model().preprocess(picture).to(dtype))
    assert model(images).dtype == dtype


@pytest.mark.parametrize(
    ("keyword", "part"),
    [
        ("revison", "did you mean 'revision'?"),
        ("forced_download", "did you mean 'force_download'?"),
        ("num_classes", "the folder says how many classes it has"),
        ("torch_dtype", "use .to(dtype)"),
        ("device_map", "use .to(device)"),
        ("trust_remote_code", "it takes revision, cache_dir"),
    ],
)
def test_keywords_are_not_swallowed(tmp_path: Path, keyword: str, part: str) -> None:
    model = make_model()
    model.save_pretrained(tmp_path / "saved")
    for call in (AlexNet.from_pretrained, model.save_pretrained):
        with pytest.raises(
            TypeError, match=f"{call.__name__}.. got an unexpected keyword argument '{keyword}'"
        ) as error:
            call(tmp_path / "saved", **{keyword: 7})
        assert call == model.save_pretrained or part in str(error.value)
    AlexNet.from_pretrained(tmp_path / "saved", revision="main", local_files_only=True)


def test_the_keywords_are_huggingface_hubs() -> None:
    saving = {*inspect.signature(PyTorchModelHubMixin.push_to_hub).parameters}
    saving |= {*inspect.signature(PyTorchModelHubMixin.save_pretrained).parameters}
    assert {*hub.DOWNLOADING} <= {*inspect.signature(snapshot_download).parameters}
    assert {*hub.SAVING} == saving - {"self", "save_directory", "push_to_hub_kwargs"} | {"without_results"}


def test_pictures_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no picture")
    with pytest.raises(UnreadableImageError, match="not an image"):
        make_model().preprocess(tmp_path / "text.jpg")
    with pytest.raises(UnreadableImageError, match="8-bit"):
        make_model().preprocess(Image.new("F", (80, 80)))
    with pytest.raises(DataError, match="smaller than the crop"):
        make_model(resize=None).preprocess(Image.new("RGB", (40, 80)))


def test_a_refusal_says_which_picture(tmp_path: Path) -> None:
    good, missing = Image.new("RGB", (80, 80)), tmp_path / "missing.jpg"
    with pytest.raises(UnreadableImageError) as refused:
        make_model().preprocess([good, missing, good])
    assert refused.value.__notes__ == [f"pictures[1]: {missing}"]
    with pytest.raises(DataError) as refused_size:
        make_model(resize=None).preprocess([good, good, Image.new("RGB", (40, 80))])
    assert refused_size.value.__notes__ == ["pictures[2]"]


@pytest.mark.parametrize("name", ["nothing", "somebody/nothing", "three/parts/long"])
def test_a_model_that_is_nowhere(tmp_path: Path, name: str) -> None:
    with pytest.raises((CheckpointError, MachineError), match=f"no model \\({name}\\): no such folder.*; give a run"):
        AlexNet.from_pretrained(name, local_files_only=True, cache_dir=tmp_path)


def test_a_damaged_folder_is_refused(tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path)
    data = bytearray((tmp_path / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"sha256 of model\.safetensors differs"):
        AlexNet.from_pretrained(tmp_path)


def test_a_model_of_the_hub(tmp_path: Path) -> None:
    """From the hub's cache, laid out as huggingface_hub does it."""
    commit = "0123456789" * 4
    repository = tmp_path / "models--somebody--net"
    make_model().save_pretrained(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    model = AlexNet.from_pretrained("somebody/net", local_files_only=True, cache_dir=tmp_path)
    assert model.card == make_card()
    assert torch.equal(model.classifier[6].weight, make_model().classifier[6].weight)


def test_what_is_pushed_opens_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def create(self: Any, repo_id: str, **_: Any) -> Any:
        return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id}")

    def upload(self: Any, *, folder_path: Path, **_: Any) -> str:
        shutil.copytree(folder_path, tmp_path / "pushed")
        return "done"

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload)
    assert make_model().push_to_hub("somebody/net", without_results=True) == "done"
    assert AlexNet.from_pretrained(tmp_path / "pushed").card == make_card()
    assert "library_name: alexnet_dist" in (tmp_path / "pushed" / "README.md").read_text()
    assert json.loads((tmp_path / "pushed" / "config.json").read_text())["classes"][2] == "größe"


def test_a_card_of_an_older_version_is_saved_without_places(tmp_path: Path) -> None:
    settings = {"seed": 3, "data": {"root": "/home/canary", "max_pixels": 9}, "tracking": {"entity": "canary"}}
    source = {"step": 7, "settings": settings, "pretrained": {"weights": "/home/canary/net.pt", "sha256": "0"}}
    model = AlexNet(dataclasses.replace(make_card(), source=source))
    model.save_pretrained(tmp_path)
    assert b"canary" not in b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert model.card.source == source
    saved = AlexNet.from_pretrained(tmp_path).card
    assert saved.source == {
        "step": 7,
        "settings": {"seed": 3, "data": {"max_pixels": 9}},
        "pretrained": {"weights": "net.pt", "sha256": "0"},
    }


def test_evaluation_of_weights_without_a_run_asks_for_the_data(tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path)
    line = refused(lambda: evaluate_model(tmp_path, "val", {"data.workers": 0}, 8), Exception)  # type: ignore[arg-type]
    assert "data.root is missing" in line
