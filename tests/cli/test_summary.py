"""`summary`: what it prints is what the network is, and it makes no weight to know it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from alexnet_dist.assembly.loaders import build_normalization
from alexnet_dist.cli.main import run
from alexnet_dist.data.plan import Augmentation
from alexnet_dist.inference.model_folder import ModelCard, save_model_folder
from alexnet_dist.models import LAYER_NAMES, VARIANTS, AlexNet, make_spec, spec_from_dict, spec_to_dict
from alexnet_dist.models.summary import LayerSummary, summarize
from alexnet_dist.settings.schema import AugmentConfig

pytestmark = pytest.mark.heavy

GRAY = ["--model.variant", "ungrouped", "--model.in_channels", "1", "--model.image_size", "227"]

# The published table of the one-column network for gray 227 pictures of 10 classes.
UNGROUPED = {
    "conv1": ((96, 55, 55), 11_712),
    "conv2": ((256, 27, 27), 614_656),
    "conv3": ((384, 13, 13), 885_120),
    "conv4": ((384, 13, 13), 1_327_488),
    "conv5": ((256, 13, 13), 884_992),
    "fc6": ((4096,), 37_752_832),
    "fc7": ((4096,), 16_781_312),
    "fc8": ((10,), 40_970),
}


class RealTensorError(Exception):
    """Something was allocated."""


class RefuseRealTensors(TorchDispatchMode):
    """Fails at the first tensor that is not on the meta device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.device.type != "meta":
                raise RealTensorError(str(func))
        return result


def with_weights(layers: tuple[LayerSummary, ...]) -> dict[str, LayerSummary]:
    return {layer.name: layer for layer in layers if layer.parameters}


def total(layers: Any, field: str) -> int:
    return sum(getattr(layer, field) for layer in layers)


def show(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert run("summary", words) == 0
    return capsys.readouterr().out


def show_json(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(show(capsys, *words, "--format", "json"))
    return values


# The numbers ----------------------------------------------------------------------------------------------------------


def test_one_column_agrees_with_the_published_table_line_by_line() -> None:
    layers = summarize(make_spec("ungrouped", in_channels=1, image_size=227, num_classes=10))
    assert {name: (row.output_shape, row.parameters) for name, row in with_weights(layers).items()} == UNGROUPED
    assert total(layers, "parameters") == 58_299_082


@pytest.mark.parametrize("variant", ["paper", "source2012"])
def test_two_towers_cost_what_they_are_known_to(variant: str) -> None:
    layers = summarize(VARIANTS[variant])
    convolutions = [layer for layer in layers if layer.kind == "convolution"]
    assert total(layers, "parameters") == 60_965_224
    assert total(layers, "multiply_adds") == 724_406_816
    assert total(layers, "flops") == 2 * total(layers, "multiply_adds")
    assert total(convolutions, "multiply_adds") / total(layers, "multiply_adds") == pytest.approx(0.919, abs=5e-4)
    assert total(convolutions, "parameters") / total(layers, "parameters") == pytest.approx(0.038, abs=5e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_multiply_adds_are_weights_times_the_places_where_they_are_used(variant: str) -> None:
    for row in with_weights(summarize(VARIANTS[variant])).values():
        places = row.output_shape[1] * row.output_shape[2] if len(row.output_shape) == 3 else 1
        assert row.multiply_adds == (row.parameters - row.output_shape[0]) * places


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_is_counted_once(variant: str) -> None:
    spec = make_spec(variant, image_size=96, fc_width=32, num_classes=7)
    layers = summarize(spec)
    assert tuple(with_weights(layers)) == LAYER_NAMES
    assert total(layers, "parameters") == sum(parameter.numel() for parameter in AlexNet(spec).parameters())
    assert layers[-1].output_shape == (7,)


@pytest.mark.parametrize(
    ("variant", "names"),
    [
        ("paper", "conv1 lrn1 pool1 conv2 lrn2 pool2 conv3 conv4 conv5 pool5 fc6 fc7 fc8"),
        ("source2012", "pad conv1 lrn1 pool1 conv2 lrn2 map_norm2 pool2 conv3 conv4 conv5 pool5 fc6 fc7 fc8"),
        ("ungrouped", "conv1 pool1 conv2 pool2 conv3 conv4 conv5 pool5 fc6 fc7 fc8"),
        ("torchvision", "conv1 pool1 conv2 pool2 conv3 conv4 conv5 pool5 avgpool5 fc6 fc7 fc8"),
    ],
)
def test_steps_come_in_the_order_of_the_network(variant: str, names: str) -> None:
    assert [layer.name for layer in summarize(VARIANTS[variant])] == names.split()


@pytest.mark.parametrize(
    ("variant", "name", "detail"),
    [
        ("paper", "conv1", "11x11, stride 4, pad 2, ReLU"),
        ("paper", "pool1", "max of 3x3, stride 2"),
        ("paper", "fc6", "9,216 in, ReLU, dropout 0.5"),
        ("source2012", "pad", "3 zeros right and below"),
        ("source2012", "conv1", "11x11, stride 4"),
        ("source2012", "lrn1", "over 5 channels, 2 groups"),
        ("source2012", "pool1", "max of 3x3, stride 2, ReLU"),
        ("source2012", "conv2", "5x5, pad 2, 2 groups, ReLU"),
        ("source2012", "map_norm2", "over 5x5 pixels"),
        ("torchvision", "avgpool5", "means, to 6x6, dropout 0.5"),
        ("torchvision", "fc7", "4,096 in, ReLU"),
    ],
)
def test_details_say_what_a_step_does(variant: str, name: str, detail: str) -> None:
    assert {layer.name: layer.detail for layer in summarize(VARIANTS[variant])}[name] == detail


def test_nothing_is_allocated() -> None:
    with RefuseRealTensors():
        summarize(VARIANTS["source2012"])
    with RefuseRealTensors(), pytest.raises(RealTensorError):
        AlexNet(make_spec("paper", image_size=64, fc_width=8))  # the negative control


def test_networks_beyond_any_memory_are_counted_too() -> None:
    assert total(summarize(make_spec("paper", fc_width=10**6)), "parameters") == 1_010_220_335_080


def test_networks_beyond_64_bits_are_refused() -> None:
    with pytest.raises(ValueError, match="more weights than PyTorch can count"):
        summarize(make_spec("paper", fc_width=10**10))


# The command ----------------------------------------------------------------------------------------------------------


def test_table_has_a_line_for_each_layer(capsys: pytest.CaptureFixture[str]) -> None:
    lines = show(capsys, *GRAY, "--model.num_classes", "10").splitlines()
    assert lines[:2] == ["variant: ungrouped", "classes: 10 (model.num_classes)"]
    for name, (shape, parameters) in UNGROUPED.items():
        (line,) = [line for line in lines if line.startswith(f"{name} ")]
        assert " x ".join(map(str, shape)) in line
        assert f" {parameters:,} " in line
    assert any(line.split() == ["total", "58,299,082", "2,121,848,512"] for line in lines)
    assert lines[-1] == "bytes of the parameters in fp32: 233,196,328"


def test_table_is_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    lines = show(capsys).splitlines()
    end = lines[3].index("parameters") + len("parameters")
    (fc6,) = [line for line in lines if line.startswith("fc6")]
    assert fc6[:end].endswith(" 37,752,832")
    assert lines[-4:-2] == [
        "convolutions: 3.8% of the parameters, 91.9% of the FLOPs",
        "fully connected: 96.2% of the parameters, 8.1% of the FLOPs",
    ]


@pytest.mark.parametrize("variant", VARIANTS)
def test_table_fits_a_terminal(variant: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert max(map(len, show(capsys, "--model.variant", variant).splitlines())) <= 80


def test_json_holds_the_spec_and_the_totals(capsys: pytest.CaptureFixture[str]) -> None:
    values = show_json(capsys, "--model.variant", "source2012", "--model.dropout", "0.25")
    spec = spec_from_dict(values["spec"])
    assert spec == make_spec("source2012", dropout=0.25)
    assert values["totals"]["bytes_fp32"] == 4 * 60_965_224
    assert [row["name"] for row in values["layers"]] == [row.name for row in summarize(spec)]
    assert values["shares"]["fully_connected"]["parameters"] == pytest.approx(0.962, abs=5e-4)


def make_class_folders(root: Path, *names: str) -> None:
    for name in names:
        (root / "train" / name).mkdir(parents=True)


@pytest.mark.parametrize(
    ("words", "num_classes", "reason"),
    [
        ("", 1000, "ImageNet's; set --model.num_classes"),
        ("--model.num_classes 7 --data.source cifar10", 7, "model.num_classes"),
        ("--data.source cifar10", 10, "source cifar10"),
        ("--data.source fashion_mnist", 10, "source fashion_mnist"),
        ("--data.source digits", 10, "source digits"),
        ("--data.source synthetic --data.synthetic_classes 4", 4, "data.synthetic_classes"),
        ("--data.source manifest", 1000, "manifests are not read"),
        ("--data.root pictures", 3, "the folders of pictures/train"),
        ("--data.root pictures --data.train nowhere", 1000, "pictures/nowhere has no class folders"),
        ("--config imagenet_subset", 1000, "data/imagenet_subset/train has no class folders"),
        ("--config imagenet_subset --data.root pictures", 3, "the folders of pictures/train"),
        ("--config digits", 10, "source digits"),
        ("--train.max_steps 5", 1000, "ImageNet's"),
        ("--train.epochs 5", 1000, "ImageNet's"),
    ],
)
def test_number_of_classes_has_a_reason(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: str,
    num_classes: int,
    reason: str,
) -> None:
    make_class_folders(tmp_path / "pictures", "apple", "pear", "plum", ".hidden")
    make_class_folders(tmp_path, "unrelated")  # a train/ that happens to lie here is none of the network's business
    monkeypatch.chdir(tmp_path)
    values = show_json(capsys, *words.split())
    assert values["spec"]["num_classes"] == num_classes == values["layers"][-1]["output_shape"][0]
    assert reason in values["num_classes_from"]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder whose weights are damaged: summary needs only the card."""
    folder = tmp_path_factory.mktemp("run")
    spec = make_spec("ungrouped", in_channels=1, image_size=96, num_classes=3, fc_width=8)
    augmentation = Augmentation(crop_size=96)
    scale = build_normalization(AugmentConfig(), channels=1)
    save_model_folder(folder / "model", {}, ModelCard("ungrouped", spec, ("a", "b", "c"), augmentation, scale, {}))
    (folder / "model" / "model.safetensors").write_bytes(b"damaged")
    return folder


@pytest.mark.parametrize("part", [".", "model"])
def test_network_of_a_run_is_read_from_its_card(
    capsys: pytest.CaptureFixture[str], run_folder: Path, part: str
) -> None:
    values = show_json(capsys, "--weights", str(run_folder / part))
    expected = make_spec("ungrouped", in_channels=1, image_size=96, num_classes=3, fc_width=8)
    assert values["spec"] == spec_to_dict(expected)
    assert values["variant"] == "ungrouped"
    assert values["num_classes_from"] == str(run_folder / "model")


@pytest.mark.parametrize(
    ("words", "code", "reasons"),
    [
        ("--model.variant alexnet3", 2, ["model.variant", "'paper', 'source2012', 'ungrouped', 'torchvision'"]),
        ("--model.image_size 40", 2, ["image_size 40 leaves no map", "the smallest is 64"]),
        ("--model.variant source2012 --model.image_size 63", 2, ["the smallest is 64"]),
        ("--model.conv_groups [2,1,1,1,1]", 2, ["conv1 cannot split 3 -> 96 channels into 2 groups"]),
        ("--model.relu_after_pool [true,false]", 2, ["model.relu_after_pool has the wrong length", "give 3"]),
        ("--model.relu_after_pool [1,2,3]", 2, ["wrong value for model.relu_after_pool"]),
        ("--model.conv1_end_padding -1", 2, ["model.conv1_end_padding is out of range"]),
        ("--model.fc_width 10000000000", 2, ["more weights than PyTorch can count"]),
        ("--model.num_classes 0", 2, ["model.num_classes is out of range"]),
        ("--model.widht 3", 2, ["unknown option --model.widht"]),
        ("--config nowhere", 2, ["no configuration 'nowhere'"]),
        ("--format xml", 2, ["'table', 'json'"]),
        ("extra", 2, ["extra"]),
        ("--train.epochs 1 --train.max_steps 1", 2, ["exactly one of"]),
        ("--weights nowhere", 4, ["no model ("]),
        ("--weights nowhere --config digits", 2, ["--config has no effect"]),
        ("--weights nowhere --model.dropout 0.1", 2, ["--model.dropout has no effect"]),
    ],
)
def test_wrong_input_is_one_line(capsys: pytest.CaptureFixture[str], words: str, code: int, reasons: list[str]) -> None:
    assert run("summary", words.split()) == code
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("error: ")
    assert output.err.count("\n") == 1
    for reason in reasons:
        assert reason in output.err


@pytest.mark.heavy
def test_script_needs_neither_accelerate_nor_torchvision() -> None:
    launch = Path(__file__).resolve().parents[2] / "launch" / "summary.py"
    script = (
        "import runpy, sys\n"
        f"sys.argv = ['summary.py', '--config', 'imagenet_subset']\n"
        "try:\n"
        f"    runpy.run_path({str(launch)!r}, run_name='__main__')\n"
        "except SystemExit as ended:\n"
        "    print(ended.code, [name for name in ('accelerate', 'torchvision', 'sklearn') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert "60,965,224" in done.stdout
    assert done.stdout.splitlines()[-1] == "0 []"
