"""Every initial weight of the network, drawn in one place.

Full tensors are drawn in the order conv1 .. fc8 on the CPU in float32, whatever the device and the number of towers: a
cut network takes slices of the same numbers. PyTorch's global random state is neither read nor changed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from alexnet_dist.models.alexnet import (
    LAYER_NAMES,
    AlexNet,
    AlexNetSpec,
    Initialization,
    build_on_meta,
    named_layers,
)

# Standard deviations and constant biases of the 2012 program (cuda-convnet, layers-145.cfg). The paper says 0.01 for
# all weights (`paper_text`); with it and inputs divided by their standard deviation, hardly any signal reaches fc8.
_WEIGHT_STD_2012 = {"conv3": 0.03, "conv4": 0.03, "conv5": 0.03}
_OTHER_STD_2012 = 0.01
_BIAS_ONE_2012 = ("conv2", "conv4", "conv5", "fc6", "fc7")


def build_model(spec: AlexNetSpec, seed: int) -> AlexNet:
    """Builds the network on the CPU in float32, initialized as `spec.init` says; equal seeds give equal bits.

    Args:
        spec: what the network is; see `make_spec`.
        seed: of its weights; PyTorch's own random state is neither read nor changed.

    Raises:
        ValueError: a layer is so large that its size overflows.
    """
    model = build_on_meta(spec)  # so that PyTorch's own initialization costs neither time nor random numbers
    layers = named_layers(model)
    for name, drawn in _draw_layers(model, seed):
        for kind, values in drawn.items():
            layers[name].register_parameter(kind, nn.Parameter(values))
    return model


@torch.no_grad()
def initialize(model: AlexNet, seed: int) -> None:
    """Overwrites all weights and biases of `model`, on whatever device and in whatever type they are."""
    layers = named_layers(model)
    for name, drawn in _draw_layers(model, seed):
        for kind, values in drawn.items():
            layers[name].get_parameter(kind).copy_(values)


def _draw_layers(model: AlexNet, seed: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Each layer's name, with its weight and bias as they are drawn."""
    draw_layer = _DRAW_LAYER[model.spec.init]
    generator = torch.Generator().manual_seed(seed)
    for name, layer in named_layers(model).items():
        weight, bias = draw_layer(name, layer.get_parameter("weight").shape, generator)
        yield name, {"weight": weight, "bias": bias}


def _draw_source2012(name: str, shape: torch.Size, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return _draw_with_std(name, _WEIGHT_STD_2012.get(name, _OTHER_STD_2012), shape, generator)


def _draw_paper_text(name: str, shape: torch.Size, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return _draw_with_std(name, _OTHER_STD_2012, shape, generator)


def _draw_with_std(name: str, std: float, shape: torch.Size, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    weight = torch.empty(shape, device="cpu", dtype=torch.float32)  # (out, in, ...)
    return weight.normal_(0, std, generator=generator), torch.full(shape[:1], float(name in _BIAS_ONE_2012))


def _draw_torch(name: str, shape: torch.Size, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    # What nn.Conv2d and nn.Linear do: kaiming_uniform_ with a=sqrt(5) comes to the bound of the biases.
    bound = 1 / math.sqrt(math.prod(shape[1:]))
    weight = torch.empty(shape, device="cpu", dtype=torch.float32)  # (out, in, ...)
    bias = torch.empty(shape[:1], device="cpu", dtype=torch.float32)  # (out,)
    return weight.uniform_(-bound, bound, generator=generator), bias.uniform_(-bound, bound, generator=generator)


def _draw_kaiming(name: str, shape: torch.Size, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    gain = 1 if name == LAYER_NAMES[-1] else 2  # ReLU halves the power of what the other layers give
    std = math.sqrt(gain / math.prod(shape[1:]))
    weight = torch.empty(shape, device="cpu", dtype=torch.float32)  # (out, in, ...)
    return weight.normal_(0, std, generator=generator), torch.zeros(shape[:1])


_DRAW_LAYER: dict[Initialization, Callable[[str, torch.Size, torch.Generator], tuple[Tensor, Tensor]]] = {
    "source2012": _draw_source2012,
    "paper_text": _draw_paper_text,
    "torch": _draw_torch,
    "kaiming": _draw_kaiming,
}
