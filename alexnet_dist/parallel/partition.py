"""From the whole network's tensors to this process's part of them, and back. Checkpoints hold whole tensors only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn

from alexnet_dist.parallel.mesh import Mesh

if TYPE_CHECKING:
    from alexnet_dist.parallel.collectives import Wire


@dataclass(frozen=True, eq=False)
class Partition:
    """How the tensors of one process follow from those of the network on one device.

    Args:
        mesh: this process among the others.
        dims: along which dimension a tensor is cut, by the network's name of it; the others are whole.
        wire: what the parts of the network talk over; None where the network is whole.
    """

    mesh: Mesh
    dims: Mapping[str, int] = field(default_factory=dict)
    wire: Wire | None = None

    def cut(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """This process's part of whole tensors, by "name" or, for an optimizer's, by "kind/name"."""
        return {name: self._cut(name, tensor) for name, tensor in tensors.items()}

    def merge(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The whole tensors in the main process, nothing elsewhere. All processes call it, with the same names."""
        mesh = self.mesh
        if mesh.part_group is None:
            return dict(tensors) if mesh.rank == 0 else {}
        if mesh.rank >= mesh.num_parts:  # the main process's network has it all
            return {}
        merged = {name: self._merge(name, tensors[name]) for name in sorted(tensors)}
        return {name: merged[name] for name in tensors} if mesh.rank == 0 else {}

    def is_cut(self, name: str, tensor: Tensor) -> bool:
        """Whether this process holds a part of the tensor with this name."""
        return name.rpartition("/")[2] in self.dims and tensor.dim() > 0  # Adam counts its steps in a scalar

    def find_cut(self, model: nn.Module) -> set[Tensor]:
        """The parameters of the network, as it is here, that are parts."""
        return {parameter for name, parameter in model.named_parameters() if name in self.dims}

    def count_parameters(self, model: nn.Module) -> int:
        """Weights and biases of the whole network."""
        cut = self.find_cut(model)
        return sum(p.numel() * (self.mesh.num_parts if p in cut else 1) for p in model.parameters())

    def _cut(self, name: str, tensor: Tensor) -> Tensor:
        if not self.is_cut(name, tensor):
            return tensor
        return tensor.chunk(self.mesh.num_parts, self._dim(name))[self.mesh.part_rank]

    def _merge(self, name: str, tensor: Tensor) -> Tensor:
        if not self.is_cut(name, tensor):
            return tensor
        part = tensor.contiguous()
        parts = [torch.empty_like(part) for _ in range(self.mesh.num_parts)] if self.mesh.rank == 0 else None
        dist.gather(part, parts, dst=0, group=self.mesh.part_group)
        return torch.cat(parts, self._dim(name)) if parts is not None else tensor

    def _dim(self, name: str) -> int:
        return self.dims[name.rpartition("/")[2]]


def cut_layer(layer: nn.Module, mesh: Mesh, dims: Mapping[str, int]) -> None:
    """Replace weight or bias of a layer by this process's part of it.

    Args:
        layer: a convolution or a fully connected layer, with whole tensors.
        mesh: this process among the others.
        dims: {"weight" or "bias": dimension}.
    """
    for name, dim in dims.items():
        part = layer.get_parameter(name).detach().chunk(mesh.num_parts, dim)[mesh.part_rank]
        setattr(layer, name, nn.Parameter(part.clone()))
