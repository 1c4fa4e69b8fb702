"""Which parts of a picture speak for a class (LayerCAM), and to which parts the first filters answer.

Source: Jiang, Zhang, Hou, Cheng, Wei, "LayerCAM: Exploring Hierarchical Class Activation Maps for Localization", IEEE
Transactions on Image Processing 30 (2021). Each value of a layer's maps is weighted by its own gradient, where that is
positive. The sum over the channels is the evidence at that place.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from alexnet_dist.base.errors import UsageError
from alexnet_dist.inference.features import CONVOLUTIONS
from alexnet_dist.models import AlexNet, split_behind


def explain_classes(model: AlexNet, images: Tensor, labels: Tensor | None = None, layer: str = "conv5") -> Tensor:
    """Where the evidence for a class lies in each image: ReLU(gradient) * activation, summed over the channels.

    The maps of a layer are those behind its ReLU. A value of a map lies at the center of the pixels that it depends on;
    between these centers the evidence is interpolated. Dropout is off, and no gradient of the model is touched.

    Args:
        model: on any device, in any floating-point type. What the maps give is added up in float32 at least.
        images: (B, in_channels, S, S), as `preprocess` gives them; on the model's device and in its type.
        labels: (B,) of the classes that are explained, in any integer type; None = the likeliest of each image.
        layer: conv1 to conv5.

    Returns:
        (B, S, S), from 0 to 1, where 1 is the strongest evidence in an image. All of an image is 0 where nothing of the
        layer speaks for the class, and NaN where the network's output is not finite.

    Raises:
        UsageError: another layer.
        ValueError: a label that is no output of the network.
    """
    if layer not in CONVOLUTIONS:
        remedy = f"give one of {', '.join(CONVOLUTIONS)}"
        raise UsageError(f"no maps of layer {layer!r}", why="only convolutions have maps", remedy=remedy)
    if labels is not None and not ((labels >= 0) & (labels < model.spec.num_classes)).all():
        raise ValueError(f"labels must be from 0 to {model.spec.num_classes - 1}")
    was_training = model.training
    try:
        with torch.inference_mode(False):
            maps, slopes = _differentiate(model.eval(), images, labels, layer)
    finally:
        model.train(was_training)
    wide = torch.promote_types(maps.dtype, torch.float32)
    evidence = (slopes.to(wide).relu() * maps.to(wide).relu()).sum(dim=1)  # (B, h, w)
    return _spread(split_behind(model, layer)[0], evidence, images.shape[-1])


class FilterAnswers(NamedTuple):
    """The filters of conv1 that answer most strongly to an image, the strongest first.

    Args:
        filters: (K,) their numbers, from 0.
        strengths: (K,) their largest values behind the ReLU.
        places: (K, S, S) where in the image they answer, from 0 to 1, where 1 is a filter's own largest value.
    """

    filters: Tensor
    strengths: Tensor
    places: Tensor


@torch.no_grad()
def find_filter_answers(model: AlexNet, image: Tensor, count: int) -> FilterAnswers:
    """What the filters of conv1 answer to in one image.

    Args:
        model: on any device, in any floating-point type.
        image: (in_channels, S, S), as `preprocess` gives it; on the model's device and in its type.
        count: filters at most.
    """
    first, _ = split_behind(model, "conv1")
    maps = first(image[None])[0].relu().float()  # (N, h, w)
    strengths, filters = maps.amax(dim=(1, 2)).topk(min(count, len(maps)))
    return FilterAnswers(filters, strengths, _spread(first, maps[filters], image.shape[-1]))


def _spread(modules: nn.Sequential, maps: Tensor, side: int) -> Tensor:
    """Maps (B, h, w) over the pixels that they lie at, each from 0 to 1: (B, side, side)."""
    high, across = (_interpolation(modules, length, side) for length in maps.shape[1:])
    spread = high.to(maps) @ maps @ across.to(maps).T
    strongest = spread.amax(dim=(1, 2), keepdim=True)  # (B, 1, 1)
    return spread / torch.where(strongest == 0, 1, strongest)


def _differentiate(model: AlexNet, images: Tensor, labels: Tensor | None, layer: str) -> tuple[Tensor, Tensor]:
    """What a convolution gives, before its ReLU, and the logit's gradient by it: both (B, K, h, w).

    Behind the ReLU the gradient is the same wherever the map is above 0. Elsewhere the product is 0.
    """
    first, rest = split_behind(model, layer)
    with torch.no_grad():
        maps = first(images)  # (B, K, h, w)
    with torch.enable_grad():
        maps.requires_grad_()
        logits = rest(maps.clone())  # (B, classes); ReLU works in place
        chosen = logits.topk(1, dim=1).indices if labels is None else labels.to(logits.device, torch.int64)[:, None]
        (slopes,) = torch.autograd.grad(logits.gather(1, chosen).sum(), maps)
    return maps.detach(), slopes


def _interpolation(modules: nn.Sequential, count: int, side: int) -> Tensor:
    """(side, count) what each value along a map gives to each pixel; float64.

    The value i lies at the pixel start + i * step. Beyond the first and the last one, pixels take theirs.
    """
    start, step = 0.0, 1
    for module in modules:
        if isinstance(module, nn.Conv2d | nn.MaxPool2d):
            kernel, stride, padding = map(_first, (module.kernel_size, module.stride, module.padding))
            start += step * ((kernel - 1) / 2 - padding)
            step *= stride
    places = ((torch.arange(side, dtype=torch.float64) - start) / step).clamp(0, count - 1)
    return (1 - (places[:, None] - torch.arange(count)).abs()).relu()  # (side, count)


def _first(value: int | str | tuple[int, ...]) -> int:
    """Of a window, whose two sides are equal here."""
    return int(value[0] if isinstance(value, tuple) else value)
