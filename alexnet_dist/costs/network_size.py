"""What of a network costs time, bytes and memory in a distributed step, counted from its spec."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from alexnet_dist.base.errors import UsageError
from alexnet_dist.models.alexnet import LAYER_NAMES, AlexNetSpec
from alexnet_dist.models.summary import LayerSummary, summarize
from alexnet_dist.parallel.towers import check_towers

FULLY_CONNECTED = ("fc6", "fc7", "fc8")


@dataclass(frozen=True)
class NetworkSize:
    """What of a network costs something, for one image where that matters.

    Args:
        parameters: weights and biases by layer, conv1 .. fc8.
        inputs: numbers that each layer reads, by layer.
        kept: numbers that the backward pass needs again.
        pooled: outputs of max pooling, which keeps the place of each.
        conv_backward_share: part of a step's arithmetic that is the convolutions' backward pass, behind which the
            gradients of the fully connected layers can travel.
        groups: of channels or units by layer, conv1 .. fc8. A layer in one group reads both towers.
        has_towers: whether every layer and normalization can be cut into two towers.
        fc_width: outputs of fc6 and of fc7.
        num_classes: outputs of fc8.
    """

    parameters: dict[str, int]
    inputs: dict[str, int]
    kept: int
    pooled: int
    conv_backward_share: float
    groups: dict[str, int]
    has_towers: bool
    fc_width: int
    num_classes: int

    @property
    def num_parameters(self) -> int:
        """All weights and biases."""
        return sum(self.parameters.values())

    @property
    def num_convolution(self) -> int:
        """Weights and biases of conv1 .. conv5."""
        return sum(count for name, count in self.parameters.items() if name not in FULLY_CONNECTED)


def measure_network(spec: AlexNetSpec) -> NetworkSize:
    """Counts parameters and activations of a network; nothing is allocated.

    Raises:
        ValueError: a layer is so large that its size overflows.
    """
    rows = summarize(spec)
    inputs = {row.name: math.prod(before.output_shape) for before, row in itertools.pairwise(rows)}
    image = spec.in_channels * spec.image_size**2
    return NetworkSize(
        parameters={row.name: row.parameters for row in rows if row.parameters},
        inputs={"conv1": image, **inputs},
        kept=image + sum(math.prod(row.output_shape) for row in rows),
        pooled=sum(math.prod(row.output_shape) for row in rows if row.name.startswith("pool")),
        conv_backward_share=_conv_backward_share(rows),
        groups=dict(zip(LAYER_NAMES, (*spec.conv_groups, spec.fc_groups, spec.fc_groups, 1), strict=True)),
        has_towers=_has_towers(spec),
        fc_width=spec.fc_width,
        num_classes=spec.num_classes,
    )


def _conv_backward_share(rows: Sequence[LayerSummary]) -> float:
    """Backward costs twice forward, but nobody needs the gradient of the images."""
    conv = sum(row.multiply_adds for row in rows if row.kind == "convolution")
    total = sum(row.multiply_adds for row in rows)
    conv1 = next(row.multiply_adds for row in rows if row.name == "conv1")
    return (2 * conv - conv1) / (3 * total - conv1)


def _has_towers(spec: AlexNetSpec) -> bool:
    """Towers that the network is made of: not any network that could be cut, but one that has groups to cut along."""
    try:
        check_towers(spec)
    except UsageError:
        return False
    return any(count > 1 for count in spec.conv_groups)
