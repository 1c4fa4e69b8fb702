"""What a network costs, step by step: shapes, parameters and arithmetic, without a weight in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from alexnet_dist.models.alexnet import AlexNet, AlexNetSpec, build_on_meta, named_layers
from alexnet_dist.models.grouped_linear import GroupedLinear
from alexnet_dist.models.normalization import LocalResponseNorm, MapResponseNorm

StepKind = Literal["padding", "convolution", "normalization", "pooling", "fully_connected"]


@dataclass(frozen=True)
class LayerSummary:
    """One step of the network, for one image.

    Args:
        name: conv1 .. fc8 for the layers with weights; lrn1, pool1, ... for what follows them.
        kind: what the step is.
        detail: its settings in words, then the ReLU and the dropout that follow it, in their order.
        output_shape: (C, H, W) or (N,).
        parameters: number of weights and biases.
        multiply_adds: products that are added up in convolutions and fully connected layers.
        flops: floating-point operations as PyTorch counts them: two for each multiply-add, none for anything else.
    """

    name: str
    kind: StepKind
    detail: str
    output_shape: tuple[int, ...]
    parameters: int
    multiply_adds: int
    flops: int


def summarize(spec: AlexNetSpec) -> tuple[LayerSummary, ...]:
    """Lists the steps of the network in the order in which an image goes through them.

    ReLU and dropout change no shape: they stand in the detail of the step before them. The network is built on the meta
    device, so nothing is allocated or computed.

    Raises:
        ValueError: a layer is so large that its size overflows.
    """
    model = build_on_meta(spec).eval()
    image = torch.empty(1, spec.in_channels, spec.image_size, spec.image_size, device="meta")
    layer_names = {layer: name for name, layer in named_layers(model).items()}
    rows: list[LayerSummary] = []
    number = ""
    for module, shape, flops in _run_through(model, image):
        kind, stem, detail = _read(module)
        if kind is None:
            rows[-1] = replace(rows[-1], detail=f"{rows[-1].detail}, {detail}")
            continue
        name = layer_names.get(module, stem + number)
        number = name[-1] if module in layer_names else number
        parameters = sum(parameter.numel() for parameter in module.parameters())
        rows.append(LayerSummary(name, kind, detail, shape, parameters, flops // 2, flops))
    return tuple(rows)


def _run_through(model: AlexNet, image: Tensor) -> Iterator[tuple[nn.Module, tuple[int, ...], int]]:
    """Yields the modules without parts in the order of their calls, each with its output's shape and its FLOPs."""
    shapes: dict[str, tuple[int, ...]] = {}

    def keeper(path: str) -> Callable[..., None]:
        def keep(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            shapes[path] = tuple(output.shape[1:])

        return keep

    modules = dict(model.named_modules())
    for path, module in modules.items():
        if not isinstance(module, nn.Identity) and not list(module.children()):
            module.register_forward_hook(keeper(path))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(image)
    counts = counter.get_flop_counts()  # {"AlexNet.features.0": {operator: FLOPs}}
    for path, shape in shapes.items():
        yield modules[path], shape, sum(counts.get(f"{type(model).__name__}.{path}", {}).values())


def _read(module: nn.Module) -> tuple[StepKind | None, str, str]:
    """Returns kind (None: it belongs to the step before it), stem of the name and settings in words."""
    match module:
        case nn.Conv2d():
            return "convolution", "conv", _describe_convolution(module)
        case GroupedLinear():
            return "fully_connected", "fc", f"{module.in_features:,} in{_describe_groups(module.groups)}"
        case nn.Linear():
            return "fully_connected", "fc", f"{module.in_features:,} in"
        case nn.MaxPool2d():
            return "pooling", "pool", f"max of {module.kernel_size}x{module.kernel_size}, stride {module.stride}"
        case nn.AdaptiveAvgPool2d():
            return "pooling", "avgpool", f"means, to {module.output_size}x{module.output_size}"
        case LocalResponseNorm():
            return "normalization", "lrn", f"over {module.size} channels{_describe_groups(module.groups)}"
        case MapResponseNorm():
            return "normalization", "map_norm", f"over {module.size}x{module.size} pixels"
        case nn.ZeroPad2d():
            return "padding", "pad", f"{module.padding[1]} zeros right and below"
        case nn.Dropout():
            return None, "", f"dropout {module.p:g}"
    return None, "", type(module).__name__  # ReLU


def _describe_convolution(conv: nn.Conv2d) -> str:
    stride, padding = conv.stride[0], int(conv.padding[0])
    words = f"{conv.kernel_size[0]}x{conv.kernel_size[0]}"
    words += f", stride {stride}" if stride > 1 else ""
    words += f", pad {padding}" if padding else ""
    return words + _describe_groups(conv.groups)


def _describe_groups(groups: int) -> str:
    return f", {groups} groups" if groups > 1 else ""
