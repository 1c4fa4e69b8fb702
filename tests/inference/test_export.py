"""`export`: files that other programs run, with the logits of PyTorch, and what is refused."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from helpers.cards import CARD
from helpers.images import make_picture
from helpers.tiny import tiny_config
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torchvision.models import alexnet

from alexnet_dist import AlexNet
from alexnet_dist.cli.main import run
from alexnet_dist.cli.train import train
from alexnet_dist.data.engines.finish import scale_pixels
from alexnet_dist.data.engines.loader import Normalization
from alexnet_dist.data.plan import Augmentation
from alexnet_dist.inference import export
from alexnet_dist.inference.model_folder import ModelCard, save_model_folder
from alexnet_dist.models import build_model, make_spec

TINY = {"conv_channels": [8, 16, 16, 16, 16], "fc_width": 16, "image_size": 64, "num_classes": 3, "init": "torch"}
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "paper": ("paper", TINY),
    "paper, gray": ("paper", {**TINY, "in_channels": 1}),
    "paper, towers apart": ("paper", {**TINY, "conv_groups": [1, 2, 2, 2, 2], "fc_groups": 2, "lrn_beta": 0.5}),
    "source2012": ("source2012", TINY),
    "ungrouped": ("ungrouped", {**TINY, "image_size": 67}),
    "torchvision": ("torchvision", TINY),
    "torchvision, averaged": ("torchvision", {**TINY, "image_size": 127}),
}


def make_model(folder: Path, variant: str, fields: dict[str, Any]) -> AlexNet:
    """A network with fresh weights in a model folder; the folder's own loader gives it back."""
    spec = make_spec(variant, **fields)
    channels = spec.in_channels
    card = ModelCard(
        variant=variant,
        spec=spec,
        classes=("cat", "größe", "red fox"),
        evaluation=Augmentation(crop_size=spec.image_size, resize=spec.image_size + 8),
        normalization=Normalization((120.0, 110.0, 100.0)[:channels], (60.0, 61.0, 62.0)[:channels]),
        source={},
    )
    save_model_folder(folder, build_model(spec, seed=2).state_dict(), card)
    return AlexNet.from_pretrained(folder)


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    """Five pictures of several sizes."""
    paths = [str(tmp_path / f"{number}.png") for number in range(5)]
    for number, path in enumerate(paths):
        Image.fromarray(make_picture(150 + 30 * number, 140)).save(path)
    return paths


def call(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, list[str]]:
    """Exit code, standard output, error lines."""
    code = run("export", [str(word) for word in words])
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return code, out, [line for line in err.splitlines() if line.startswith("error: ")]


def crop(image: str, side: int, channels: int) -> np.ndarray[Any, Any]:
    """What a reader of the file does by itself: (1, C, S, S) uint8, with torchvision's public functions alone."""
    from torchvision.transforms.v2 import functional as transforms

    picture = transforms.pil_to_tensor(Image.open(image).convert("RGB" if channels == 3 else "L"))
    picture = transforms.resize(picture, [side + 8], antialias=True)
    return np.asarray(transforms.center_crop(picture, [side, side]))[None]


OFTEN = ("paper, gray", "torchvision, averaged")


@pytest.mark.heavy
@pytest.mark.parametrize(
    "name", [name if name in OFTEN else pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS]
)
def test_onnx_gives_the_logits_for_any_batch(
    tmp_path: Path, images: list[str], capsys: pytest.CaptureFixture[str], name: str
) -> None:
    model = make_model(tmp_path / "model", *NETWORKS[name])
    out = tmp_path / "net.onnx"
    code, printed, errors = call(capsys, "--model", tmp_path / "model", "--out", out, "--check", "--images", *images)
    assert (code, errors) == (0, [])
    assert "on 5 pictures" in printed
    onnx.checker.check_model(onnx.load(out), full_check=True)
    assert {opset.domain for opset in onnx.load(out).opset_import} == {""}  # standard operators alone
    assert_says_what_a_reader_needs(onnx.load(out), model)
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    side, channels = model.spec.image_size, model.spec.in_channels
    assert (entry.name, entry.type, entry.shape[1:]) == ("pixels", "tensor(uint8)", [channels, side, side])
    assert isinstance(entry.shape[0], str)
    pixels = np.concatenate([crop(image, side, channels) for image in images])
    logits, probabilities = session.run(["logits", "probabilities"], {"pixels": pixels})
    one_by_one = [session.run(["logits"], {"pixels": row[None]})[0] for row in pixels]
    with torch.no_grad():
        wanted = model(model.preprocess(images))
    assert wanted.std() > 0.01
    np.testing.assert_allclose(logits, wanted, rtol=0, atol=1e-4)
    np.testing.assert_allclose(np.concatenate(one_by_one), wanted, rtol=0, atol=1e-4)
    np.testing.assert_allclose(probabilities, wanted.softmax(1), rtol=0, atol=1e-5)


def assert_says_what_a_reader_needs(file: onnx.ModelProto, model: AlexNet) -> None:
    said = {item.key: item.value for item in file.metadata_props}
    assert said["variant"] == model.card.variant
    assert said["made_by"].startswith("alexnet_dist ")
    assert json.loads(said["classes"]) == ["cat", "größe", "red fox"]
    channels, side = model.spec.in_channels, model.spec.image_size
    assert json.loads(said["spec"])["in_channels"] == channels
    preprocessing = json.loads(said["preprocessing"])
    assert preprocessing.items() >= {"resize": side + 8, "centre_crop": side, "mean_and_std_inside": True}.items()
    assert preprocessing["channels"].startswith("gray" if channels == 1 else "R")


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["paper", pytest.param("source2012", marks=pytest.mark.slow), "torchvision"])
def test_torch_export_gives_the_logits(
    tmp_path: Path, images: list[str], capsys: pytest.CaptureFixture[str], name: str
) -> None:
    model = make_model(tmp_path / "model", *NETWORKS[name])
    words = ["--model", tmp_path / "model", "--format", "torch_export", "--out", tmp_path / "net.pt2"]
    assert call(capsys, *words, "--check", "--images", *images)[0] == 0
    said = dict.fromkeys(("classes", "preprocessing", "variant"), "")
    program = torch.export.load(tmp_path / "net.pt2", extra_files=said)
    pixels = torch.cat([torch.from_numpy(crop(image, 64, 3)) for image in images])
    with torch.no_grad():
        torch.testing.assert_close(program.module()(pixels)[0], model(model.preprocess(images)), rtol=0, atol=1e-4)
    assert json.loads(said["classes"]) == ["cat", "größe", "red fox"]
    assert said["variant"] == name


@pytest.mark.heavy
def test_plain_torchvision_loads_its_export_and_a_model_folder(
    tmp_path: Path, images: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_model(tmp_path / "model", "torchvision", {"num_classes": 3, "image_size": 127})
    words = ["--model", tmp_path / "model", "--format", "torchvision", "--out", tmp_path / "net.safetensors"]
    assert call(capsys, *words, "--check", "--images", *images)[0] == 0
    with torch.no_grad():
        wanted = model(model.preprocess(images))
    with torch.device("meta"):  # its first weights are of no use
        plain = alexnet(num_classes=3).eval()
    for path in (tmp_path / "net.safetensors", tmp_path / "model" / "model.safetensors"):
        plain.load_state_dict(load_file(path), strict=True, assign=True)
        with torch.no_grad():
            torch.testing.assert_close(plain(model.preprocess(images)), wanted, rtol=0, atol=1e-5)
    with safe_open(tmp_path / "net.safetensors", "pt") as file:
        assert json.loads(file.metadata()["preprocessing"])["mean_and_std_inside"] is False


@pytest.mark.parametrize(
    ("name", "part"), [("paper", "conv_channels"), ("torchvision, averaged", "conv_channels, fc_width differ")]
)
def test_another_network_is_not_torchvisions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, part: str
) -> None:
    make_model(tmp_path / "model", *NETWORKS[name])
    out = tmp_path / "net.safetensors"
    code, _, (line,) = call(capsys, "--model", tmp_path / "model", "--format", "torchvision", "--out", out)
    assert code == 4
    assert part in line
    assert not out.exists()


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("kind", "shift"),
    [
        ("torch_export", float("nan")),
        ("torch_export", 1e-3),
        pytest.param("onnx", float("nan"), marks=pytest.mark.slow),
    ],
)
def test_a_file_that_disagrees_is_not_written(
    tmp_path: Path,
    images: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    shift: float,
) -> None:
    """The planted defect: what is exported has another bias in its last layer than the network."""
    honest = export.FORMATS[kind]

    def pack(network: Any, card: ModelCard) -> bytes:
        other = make_model(tmp_path / "model", *NETWORKS["paper"])
        with torch.no_grad():
            other.classifier[6].bias[0] += shift
        return honest.pack(other, card)

    make_model(tmp_path / "model", *NETWORKS["paper"])
    monkeypatch.setitem(export.FORMATS, kind, honest._replace(pack=pack))
    words = ["--model", tmp_path / "model", "--format", kind, "--out", tmp_path / "net", "--check"]
    code, _, (line,) = call(capsys, *words, "--images", *images)
    assert code == 4
    assert "the exported network is another" in line
    assert not (tmp_path / "net").exists()


@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        (["--check"], 2, "--images PATH"),
        (["--images", "a.png"], 2, "--images has no effect"),
        (["--format", "tflite"], 2, "cannot read the command line"),
        (["--check", "--images", "nothing.png"], 3, "nothing.png"),
    ],
    ids=str,
)
def test_what_cannot_be_meant(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: Sequence[str], code: int, part: str
) -> None:
    make_model(tmp_path / "model", *NETWORKS["ungrouped"])
    found, _, (line,) = call(capsys, "--model", tmp_path / "model", "--out", tmp_path / "net.onnx", *words)
    assert found == code
    assert part in line
    assert not (tmp_path / "net.onnx").exists()


def test_without_the_extra_the_line_names_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name))
    make_model(tmp_path / "model", *NETWORKS["ungrouped"])
    code, _, (line,) = call(capsys, "--model", tmp_path / "model", "--out", tmp_path / "net.onnx")
    assert code == 5
    assert "onnxscript is not installed; pip install 'alexnet_dist[export]'" in line


@pytest.mark.heavy
def test_a_folder_that_is_missing_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_model(tmp_path / "model", *NETWORKS["ungrouped"])
    words = ["--model", tmp_path / "model", "--format", "torch_export", "--out", tmp_path / "nowhere" / "net.pt2"]
    code, _, (line,) = call(capsys, *words)
    assert code == 5
    assert "--out" in line


@pytest.mark.heavy
def test_a_run_is_checked_on_its_validation_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tiny_config(tmp_path / "run", train__epochs=1, device="cpu", precision="fp32", data__synthetic_images=160))
    capsys.readouterr()
    words = ["--model", tmp_path / "run", "--format", "torch_export", "--out", tmp_path / "run.pt2", "--check"]
    code, printed, errors = call(capsys, *words)
    assert (code, errors) == (0, [])
    assert "on 16 pictures" in printed


def test_input_scale_is_evaluations() -> None:
    """Bytes times scale plus bias is (byte - mean) / std, to the rounding of float32."""
    card = dataclasses.replace(CARD, spec=make_spec("paper", **TINY))
    deployed = export.DeployedNetwork(build_model(card.spec, 0).eval(), card.normalization)
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, -1, -1)
    wanted = scale_pixels(card.normalization, pixels.permute(0, 2, 3, 1), torch.zeros(1, 3), channels_last=False)
    torch.testing.assert_close(pixels.float() * deployed.scale + deployed.bias, wanted, rtol=1e-6, atol=1e-5)
