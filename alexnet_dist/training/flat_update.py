"""SGD over one flat buffer on a GPU, which also writes the 16-bit weights of the next forward pass.

Autocast copies each float32 weight into 16 bits in every forward pass, and each gradient back. Here the update writes
these copies, the shadows, as soon as it has the new weights. `Shadowed` computes a network with them, and the update
takes their gradients as they are. The bits are those of autocast, which rounds the same weights in the same way.

To everyone else the parameters stay what they were: float32, with their names, shapes and memory layouts. Only the
memory that they lie in is one buffer.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from alexnet_dist.training.eager_optimizers import EagerOptimizer


class FlatSGD(EagerOptimizer):
    """torch.optim.SGD's rule, by a kernel for a GPU: v = momentum v + g + weight_decay w; w -= lr v.

    It reads the attributes of torch's fused optimizers: `found_inf` (a device scalar, 1 = leave this update out; see
    Runtime.update) and `grad_scale` (fp16's GradScaler sets both).

    Args:
        groups: parameter groups; `weight_decay` is the group's. The parameters, of one type and on one device, move
            into one buffer.
        lr: learning rate.
        momentum: of v; 0 keeps no v.
    """

    _step_supports_amp_scaling = True  # GradScaler.step then hands its verdict over instead of asking the device

    def __init__(self, groups: list[dict[str, Any]], *, lr: float, momentum: float) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": 0.0})
        from alexnet_dist.training.flat_update_kernel import BLOCK, update  # Triton is not everywhere

        self._parameters: list[Tensor] = [p for group in self.param_groups for p in group["params"]]
        *firsts, blocks = accumulate((-(-p.numel() // BLOCK) for p in self._parameters), initial=0)
        self._update, self._firsts, self._starts = update, tuple(firsts), [first * BLOCK for first in firsts]
        device = self._parameters[0].device
        self._weights = torch.zeros(blocks * BLOCK, dtype=self._parameters[0].dtype, device=device)  # (N,)
        self._velocities = torch.zeros_like(self._weights) if momentum else None  # (N,)
        self._shadows: Tensor | None = None  # (N,)
        self._leaves = self._parameters  # that have the gradients
        self._terms = torch.zeros(len(self._parameters), 3, dtype=torch.float64, device=device)
        self._sent: list[tuple[float, float, float]] = []  # what they hold
        for parameter, place in zip(self._parameters, self._list_views(self._weights), strict=True):
            parameter.data = place.copy_(parameter.detach())
        if self._velocities is not None:
            for parameter, place in zip(self._parameters, self._list_views(self._velocities), strict=True):
                self.state[parameter]["momentum_buffer"] = place

    def make_shadows(self, dtype: torch.dtype) -> dict[Tensor, Tensor]:
        """A copy of each parameter in another type, which every update renews from now on. It gets the gradients."""
        self._shadows = self._weights.to(dtype)  # (N,)
        self._leaves = [view.requires_grad_() for view in self._list_views(self._shadows)]
        return dict(zip(self._parameters, self._leaves, strict=True))

    @property
    def shadows(self) -> Tensor | None:
        """The copies, (N,); None where there are none."""
        return self._shadows

    def send_terms(self) -> None:
        """Give the device the rates of the next update, where they are others than those of the last one.

        The update itself reads them there: recorded once, it can be made again with other rates.
        """
        terms = [
            (float(group["lr"]), float(group["weight_decay"]), float(group["momentum"]))
            for group in self.param_groups
            for _ in group["params"]
        ]
        if terms != self._sent:
            on_gpu = self._terms.is_cuda
            self._terms.copy_(torch.tensor(terms, dtype=torch.float64, pin_memory=on_gpu), non_blocking=on_gpu)
            self._sent = terms

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Make one update; every parameter has a gradient."""
        self.send_terms()
        self._update(
            self._weights,
            self._velocities,
            self._shadows,
            [_lay_out(leaf) for leaf in self._leaves],
            self._terms,
            self._firsts,
            blocked=getattr(self, "found_inf", None),
            scale=getattr(self, "grad_scale", None),
        )

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients, wherever they are."""
        super().zero_grad(set_to_none)
        for leaf in self._leaves:
            leaf.grad = None

    def _list_views(self, buffer: Tensor) -> list[Tensor]:
        """The part of each parameter, in its shape and layout."""
        return [
            buffer.as_strided(parameter.shape, torch.empty_like(parameter, device="meta").stride(), start)
            for parameter, start in zip(self._parameters, self._starts, strict=True)
        ]


def _lay_out(leaf: Tensor) -> Tensor:
    """A gradient in the memory layout of its weights, which autograd gives it unless someone has put it there."""
    assert leaf.grad is not None
    return leaf.grad if leaf.grad.stride() == leaf.stride() else torch.empty_like(leaf).copy_(leaf.grad)


class Shadowed(nn.Module):
    """A network that is computed with other weights than its own; see `FlatSGD.make_shadows`.

    Args:
        model: the network. To its owner its parameters are what they were.
        shadows: of each parameter, the tensor to compute with.
    """

    def __init__(self, model: nn.Module, shadows: Mapping[Tensor, Tensor]) -> None:
        super().__init__()
        self.model = model
        self._places = [
            (module._parameters, name, parameter, shadows[parameter])
            for module in model.modules()
            for name, parameter in module._parameters.items()
            if parameter is not None and parameter in shadows
        ]

    def forward(self, images: Tensor) -> Tensor:
        try:
            for parameters, name, _, shadow in self._places:
                parameters[name] = shadow  # type: ignore[assignment]
            logits: Tensor = self.model(images)
        finally:
            for parameters, name, parameter, _ in self._places:
                parameters[name] = parameter
        return logits
