"""The hybrid of 2014 ("one weird trick"): convolutions data parallel, fc6 and fc7 cut by outputs.

96 % of the parameters sit in the fully connected layers, 92 % of the arithmetic in the convolutions. So each process
runs the convolutions on its own images, then all of them, as a group, run fc6 and fc7 on all their images, each for a
part of the outputs: activations travel instead of gradients. fc8 is small and stays whole on every process.

Shapes: K processes in the group, b images of each, W outputs of fc6 and of fc7.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from alexnet_dist.base.errors import UsageError
from alexnet_dist.models import AlexNet, AlexNetSpec, named_layers
from alexnet_dist.models.weights_names import name_tensors
from alexnet_dist.parallel.collectives import COLUMNS, ROWS, Wire, begin_gather, begin_return, end, scale_gradient
from alexnet_dist.parallel.mesh import Mesh
from alexnet_dist.parallel.partition import Partition, cut_layer

CUT_LAYERS = ("fc6", "fc7")


class ShardedClassifier(nn.Sequential):
    """fc6, fc7 and fc8 of one process: a shard of the first two, with the same modules under the same numbers.

    Input: (b, F) features of this process's images. Output: (b, num_classes) logits of the same images.

    Args:
        classifier: the network's, with fc6 and fc7 cut.
        wire: to the other shards.
        num_batches: batches in which the images go through fc6 and fc7; one travels while another is computed.
    """

    def __init__(self, classifier: nn.Sequential, wire: Wire, num_batches: int) -> None:
        super().__init__(*classifier)
        self.wire, self.num_batches = wire, num_batches

    def forward(self, features: Tensor) -> Tensor:
        modules = list(self)
        fc6, fc7, fc8 = (place for place, module in enumerate(modules) if isinstance(module, nn.Linear))
        wire, num_shards = self.wire, self.wire.num_parts
        late = _late_gradients(modules[fc8])
        # A shard sees the images of K processes, so the average over all processes would count it K times.
        features = scale_gradient(_run(modules[:fc6], features), num_shards)
        batches = torch.split(features, -(-len(features) // self.num_batches))  # (b / num_batches, F) each
        gathered = [begin_gather(batch, wire, ROWS) for batch in batches]
        hidden6 = [begin_gather(_run(modules[fc6:fc7], end(batch)), wire, COLUMNS) for batch in gathered]
        hidden7 = [begin_return(_run(modules[fc7:fc8], end(batch)), wire) for batch in hidden6]
        mine = torch.cat([end(batch) for batch in hidden7])  # (b, W)
        mine = scale_gradient(mine, 1 / num_shards)
        return _run(modules[fc8 + 1 :], functional_call(modules[fc8], late, (mine,)))  # (b, num_classes)


def check_hybrid(spec: AlexNetSpec, num_parts: int) -> None:
    """Refuse shards that do not divide fc6 and fc7.

    Raises:
        UsageError: they do not; the line names the nearest numbers that do.
    """
    if spec.fc_groups > 1:
        raise UsageError(
            "parallel.strategy hybrid cuts fc6 and fc7 by outputs",
            why="here they are in groups",
            remedy="use parallel.exchange_at all or fc_only, and no model.fc_groups",
        )
    if spec.fc_width % num_parts == 0:
        return
    lower = max(count for count in range(1, num_parts) if spec.fc_width % count == 0)
    higher = next((count for count in range(num_parts, spec.fc_width + 1) if spec.fc_width % count == 0), lower)
    near = f"{lower} or {higher}" if higher > lower else str(lower)
    raise UsageError(
        f"the {spec.fc_width} outputs of fc6 and fc7 cannot be cut into {num_parts} shards",
        why="parallel.strategy hybrid spreads them over parallel.shard_size processes, or else over all",
        remedy=f"use {near} processes, or such a parallel.shard_size",
    )


@torch.no_grad()
def cut_into_shards(
    model: AlexNet, mesh: Mesh, exchange: torch.dtype | None = None, schedule: str = "at_once"
) -> Partition:
    """Cut fc6 and fc7 of the network in place, under the same names.

    Args:
        model: the whole network, initialized, on the CPU.
        mesh: this process among the others.
        exchange: activations travel as; None = as they are computed.
        schedule: at_once or batch_by_batch.
    """
    if mesh.part_group is None:
        return Partition(mesh)
    wire = Wire(mesh.part_group, exchange)
    dims: dict[str, int] = {}
    layers = named_layers(model)
    for layer in (layers[name] for name in CUT_LAYERS):
        names = name_tensors(model, layer, ("weight", "bias"))
        dims |= dict.fromkeys(names.values(), 0)
        cut_layer(layer, mesh, dict.fromkeys(names, 0))
    model.classifier = ShardedClassifier(model.classifier, wire, 1 if schedule == "at_once" else mesh.num_parts)
    return Partition(mesh, dims, wire)


def _late_gradients(layer: nn.Module) -> dict[str, Tensor]:
    """A layer's parameters, with gradients that come as late in a backward pass as this call comes in the forward pass.

    Autograd runs what is ready in the reverse order of the forward pass. Used as they are, fc8's parameters have their
    gradients first of all, and the activations of the backward pass would wait in the cable behind fc8's 16 MB.
    """
    return {name: parameter.view_as(parameter) for name, parameter in layer.named_parameters()}


def _run(modules: Iterable[nn.Module], values: Tensor) -> Tensor:
    for module in modules:
        values = module(values)
    return values
