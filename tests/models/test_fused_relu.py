"""ReLU with bias or dropout, against the layers one by one; the kernels run in Triton's interpreter.

The layers one by one are those of a GPU: PyTorch adds the bias to what cuDNN made, rounded in its type, as an operation
of its own, and drops in one operation. On a CPU, oneDNN adds the bias before it rounds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from helpers.interpreter import rounding_to_nearest
from helpers.tiny import tiny_spec
from torch import Tensor, nn
from torch.nn import functional as F

from alexnet_dist.models import AlexNet, build_model, fused_relu
from alexnet_dist.models.fused_relu import ReluConv2d, ReluLinear, fuse_relu
from alexnet_dist.models.vectors import take_in_relu

pytest.importorskip("triton")


@pytest.fixture(autouse=True)
def _as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """There dropout is one operation."""
    monkeypatch.setattr(fused_relu, "runs_kernels", lambda _: True)
    monkeypatch.setattr(nn.functional, "dropout", lambda values, p, training=True, _=False: drop(values, p, training))
    with rounding_to_nearest():
        yield


def drop(values: Tensor, p: float, training: bool) -> Tensor:
    return torch.native_dropout(values, p, training)[0]


def make_model(**overrides: object) -> AlexNet:
    model = build_model(tiny_spec(dropout=0.3, **overrides), seed=0).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    take_in_relu(model.features)
    return model  # type: ignore[no-any-return]


def forward_and_gradients(model: nn.Module, images: Tensor, is_mixed: bool) -> list[Tensor]:
    model.zero_grad()
    torch.manual_seed(5)
    with torch.autocast("cpu", torch.bfloat16, enabled=is_mixed):
        logits = model(images)
    (logits.float() * torch.arange(1.0, 1 + logits.numel()).view_as(logits)).sum().backward()
    return [logits.detach(), *(weight.grad.clone() for weight in model.parameters() if weight.grad is not None)]


class BiasApart(nn.Conv2d):
    """A convolution as a GPU computes it: two roundings."""

    def forward(self, maps: Tensor) -> Tensor:
        made = F.conv2d(maps, self.weight, None, self.stride, self.padding, self.dilation, self.groups)
        assert self.bias is not None
        return made + self.bias.to(made.dtype).view(-1, 1, 1)


@pytest.mark.heavy
@pytest.mark.parametrize("is_mixed", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("mode", ["training", "evaluation", "frozen", "before_fc"])
@pytest.mark.parametrize("channels_last", [True, False])
def test_layers_together_have_the_bits_of_layers_apart(channels_last: bool, mode: str, is_mixed: bool) -> None:
    model = make_model(dropout_position="before_fc" if mode == "before_fc" else "after_fc").train(mode != "evaluation")
    images = torch.randn(3, 3, 64, 64)
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    if mode == "frozen":
        for place in (8, 10):
            model.features[place].requires_grad_(False)
    convolutions = model.features[8], model.features[10]
    for layer in convolutions:
        layer.__class__ = BiasApart
    expected = forward_and_gradients(model, images, is_mixed)
    for layer in convolutions:
        layer.__class__ = nn.Conv2d
    fuse_relu(model.features, model.classifier)
    found = forward_and_gradients(model, images, is_mixed)
    assert len(found) == len(expected) == 17 - (4 if mode == "frozen" else 0)
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("dropout_position", ["after_fc", "before_fc"])
def test_layers_take_what_stands_behind_them(dropout_position: str) -> None:
    model = make_model(dropout_position=dropout_position)
    fuse_relu(model.features, model.classifier)
    assert [place for place, layer in enumerate(model.features) if isinstance(layer, ReluConv2d)] == [8, 10]
    found = [place for place, layer in enumerate(model.classifier) if isinstance(layer, ReluLinear)]
    assert found == ([0, 3] if dropout_position == "after_fc" else [1])  # the dropout behind fc6 is fc7's
    assert not any(isinstance(layer, nn.ReLU) for layer in model.features)


def test_layers_of_another_kind_stay() -> None:
    model = make_model(fc_groups=2)
    fuse_relu(model.features, model.classifier)
    assert not any(isinstance(layer, ReluLinear) for layer in model.classifier)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_channels_go_on_in_the_next_block(dtype: torch.dtype) -> None:
    """24 channels do not divide a block, and the last block is not full."""
    from alexnet_dist.models.fused_relu_kernel import add_bias_relu

    torch.manual_seed(0)
    maps, bias = torch.randn(3, 24, 7, 5).to(dtype), torch.randn(24).to(dtype)
    maps[0, :3, 0, 0] = torch.tensor([math.nan, math.inf, -math.inf])
    maps = maps.contiguous(memory_format=torch.channels_last)
    expected = torch.relu(maps + bias.view(-1, 1, 1))
    add_bias_relu(maps, bias)
    assert torch.equal(maps.nan_to_num(7.0), expected.nan_to_num(7.0))
    assert maps[0, 0, 0, 0].isnan()


def test_no_images_are_fine() -> None:
    model = make_model()
    fuse_relu(model.features, model.classifier)
    assert model(torch.zeros(0, 3, 64, 64).contiguous(memory_format=torch.channels_last)).shape == (0, 3)
