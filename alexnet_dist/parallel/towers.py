"""The two towers of 2012: each process of a pair holds half of the channels and of the fully connected units.

A tower is the network for one device, cut. A layer in groups, and a normalization in groups, stays within its tower; a
layer in one group reads both, so its input is gathered first (conv3, fc6, fc7). fc8 adds up what both contribute.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from alexnet_dist.base.errors import UsageError
from alexnet_dist.models import LAYER_NAMES, AlexNet, AlexNetSpec, LocalResponseNorm, named_layers
from alexnet_dist.models.weights_names import name_tensors
from alexnet_dist.parallel.collectives import COLUMNS, Wire, gather, sum_parts
from alexnet_dist.parallel.mesh import Mesh
from alexnet_dist.parallel.partition import Partition, cut_layer

NUM_TOWERS = 2
FIRST, LAST = LAYER_NAMES[0], LAYER_NAMES[-1]


class SummedLinear(nn.Linear):
    """fc8 of a tower: it reads this tower's half of the inputs, and the outputs of both are added up.

    Input: (B, in_features / 2). Output: (B, out_features), the same in both towers.

    Args:
        layer: fc8 with this tower's columns of the weight and the whole bias.
        wire: to the other tower.
    """

    def __init__(self, layer: nn.Linear, wire: Wire) -> None:
        super().__init__(layer.weight.shape[1], layer.weight.shape[0], device="meta")
        self.weight, self.bias, self.wire = layer.weight, layer.bias, wire

    def forward(self, values: Tensor) -> Tensor:
        partial = F.linear(values, self.weight)  # (B, out_features)
        logits: Tensor = sum_parts(partial, self.wire) + self.bias  # (B, out_features)
        return logits


def check_towers(spec: AlexNetSpec) -> None:
    """Refuse a network that is not two towers.

    Raises:
        UsageError: a layer that can be neither kept within a tower nor shared by both.
    """
    sizes = dict(zip(LAYER_NAMES, (*spec.conv_channels, spec.fc_width, spec.fc_width), strict=False))
    groups = dict(zip(LAYER_NAMES, (*spec.conv_groups, spec.fc_groups, spec.fc_groups), strict=False))
    problems = [f"the {size} outputs of {layer} are odd in number" for layer, size in sizes.items() if size % 2]
    problems += [f"{layer} has {count} groups" for layer, count in groups.items() if count > 1 and count % 2]
    problems += [f"{FIRST} has {groups[FIRST]} groups"] if groups[FIRST] > 1 else []
    problems += [f"lrn_groups is {spec.lrn_groups}"] if spec.lrn and spec.lrn_groups % 2 else []
    if problems:
        remedy = "leave model.* as the variant has it, or use --parallel.strategy ddp"
        raise UsageError("parallel.strategy towers needs a network of two towers", why=problems[0], remedy=remedy)


@torch.no_grad()
def cut_into_towers(model: AlexNet, mesh: Mesh, exchange: torch.dtype | None = None) -> Partition:
    """Cut the network in place: what remains is this process's tower, under the same names.

    Args:
        model: the whole network, initialized, on the CPU.
        mesh: this process among the others.
        exchange: what crosses between towers travels as; None = as it is computed.
    """
    assert mesh.part_group is not None
    wire = Wire(mesh.part_group, exchange)
    dims: dict[str, int] = {}
    for name, layer in named_layers(model).items():
        cuts = {"weight": 1} if name == LAST else {"weight": 0, "bias": 0}
        names = name_tensors(model, layer, cuts)
        dims |= {names[kind]: dim for kind, dim in cuts.items()}
        cut_layer(layer, mesh, cuts)
        if name not in (FIRST, LAST):
            _join_input(layer, wire)
    for norm in (module for module in model.modules() if isinstance(module, LocalResponseNorm)):
        norm.groups //= NUM_TOWERS
    model.classifier[-1] = SummedLinear(model.classifier[-1], wire)  # type: ignore[arg-type]
    return Partition(mesh, dims, wire)


def _join_input(layer: nn.Module, wire: Wire) -> None:
    """Halve a layer's groups; a layer in one group gets the maps or units of both towers."""
    groups: Any = getattr(layer, "groups", 1)
    if groups > 1:
        layer.groups = groups // NUM_TOWERS
        return
    layer.register_forward_pre_hook(lambda _, inputs: (gather(inputs[0], wire, COLUMNS),))
