"""The preflight: how much of the difference between images reaches each layer."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from helpers.loaders import make_loader
from helpers.tiny import tiny_config, tiny_spec

from alexnet_dist.cli.train import train
from alexnet_dist.data.engines.loader import make_normalization
from alexnet_dist.data.plan import Augmentation
from alexnet_dist.data.sources.synthetic import synthetic_index
from alexnet_dist.models import build_model, make_spec
from alexnet_dist.models.alexnet import LAYER_NAMES
from alexnet_dist.models.signal import LEAST_SIGNAL, measure_signal
from alexnet_dist.runs.preflight import check_signal

MEAN, STD = 120.0, 58.0


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    """(4, 3, 224, 224) from 0 to 255: soft shapes, as most of a photograph's power is in them."""
    coarse = torch.rand(4, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    return 255 * torch.nn.functional.interpolate(coarse, 224, mode="bilinear")


# The 2012 program's numbers, and those of the common port, are known from elsewhere: 0.13 and 0.0003 at the logits.
@pytest.mark.heavy
@pytest.mark.parametrize(
    ("init", "std", "least", "most"),
    [
        ("source2012", 1.0, 0.03, 0.4),
        ("paper_text", 1.0, 0.003, 0.04),
        ("source2012", STD, 0.001, 0.02),
        ("paper_text", STD, 0.0, LEAST_SIGNAL),
        ("kaiming", STD, 0.1, 1.0),
    ],
)
def test_what_reaches_the_logits(pixels: torch.Tensor, init: str, std: float, least: float, most: float) -> None:
    model = build_model(make_spec("paper", init=init, num_classes=10), seed=0)
    signal = measure_signal(model, (pixels - MEAN) / std)
    assert tuple(signal) == LAYER_NAMES
    assert least < signal["fc8"] < most
    assert signal["conv1"] > 0.3


def test_equal_images_differ_in_no_layer(pixels: torch.Tensor) -> None:
    model = build_model(tiny_spec(), seed=0)
    images = pixels[:1, :, :64, :64].repeat(3, 1, 1, 1)
    assert all(value < 1e-6 for value in measure_signal(model, images).values())


@pytest.mark.parametrize("training", [True, False])
def test_the_network_is_left_as_it_was(pixels: torch.Tensor, training: bool) -> None:
    model = build_model(tiny_spec(), seed=0).train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, again = (measure_signal(model, pixels[..., :64, :64]) for _ in range(2))
    assert first == again  # dropout is off
    assert model.training is training
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(("init", "warns"), [("paper_text", True), ("kaiming", False)])
def test_a_network_that_hardly_learns_is_named_before_the_first_update(
    init: str, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    index = synthetic_index(8, 2, (72, 72), seed=0)
    recipe = Augmentation(crop_size=64, resize=None, crop="random")
    loader = make_loader(index, recipe, normalization=make_normalization(3, 1, None, None))
    spec = tiny_spec(init=init, conv_channels=(96, 256, 384, 384, 256), fc_width=256)
    with caplog.at_level(logging.WARNING, "alexnet_dist"):
        signal = check_signal(build_model(spec, seed=0), loader)
    assert signal is not None
    assert (signal["fc8"] < LEAST_SIGNAL) is warns
    assert ("pixel_range" in caplog.text) is warns


@pytest.mark.heavy
def test_a_run_keeps_what_was_measured(tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "run", train__epochs=None, train__max_steps=2)
    train(config)
    first = json.loads((tmp_path / "run" / "run.json").read_text())["signal"]
    assert tuple(first) == LAYER_NAMES
    train(tiny_config(tmp_path / "run", train__epochs=None, train__max_steps=4))
    assert json.loads((tmp_path / "run" / "run.json").read_text())["signal"] == first  # of the beginning, not of now
