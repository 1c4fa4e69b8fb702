"""SGD over one flat buffer on a GPU, which also writes the 16-bit weights of the next forward pass.

Autocast copies each float32 weight into 16 bits in every forward pass, and each gradient back. Here the update writes
these copies, the shadows, as soon as it has the new weights. `Shadowed` computes a network with them, and the update
takes their gradients as they are. The bits are those of autocast, which rounds the same weights in the same way.

To everyone else the parameters stay what they were: float32, with their names, shapes and memory layouts. Only the
memory that they lie in is one buffer.

Some parameters can be updated early, beside the backward pass of the others. The fully connected layers have 96 % of
AlexNet's parameters, and their gradients are there after 9 % of the pass's arithmetic. `expect_backward` announces such
a pass. When the last of the early gradients is there, one launch updates their range of the buffer, in a stream beside
the network's. `step` launches the rest. Why that is safe:

- The backward pass has read the early weights by then. What reads a weight there also gives a part of its gradient: a
  linear layer's node computes the gradients of input and weight in one call, in groups or not, and under autocast. A
  gradient is complete after the last such node. The side stream waits for the network's stream at that point.
- The next forward pass reads the new weights. `step` returns after the network's stream was told to wait.
- Gradients are dropped after `step`, and so their memory is given to nobody while the side stream reads it. The memory
  of a gradient that had to be laid out anew is kept until then, too.
- The device knows before the backward pass whether the update is left out. A pass is not announced where that is known
  later: where processes add up their losses, with GradScaler, and with kernels.loss: reference. Nor is that of a micro
  batch, which gives a part of the gradient.
- A CUDA graph takes the side stream in, which begins and ends within an update. Eager updates go the same way.
- A value's arithmetic does not depend on the launch, so the bits are those of one launch.

After an error within such a backward pass, early weights may be new and the others old. The run ends there, and what it
saved is of the update before.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from alexnet_dist.training.eager_optimizers import EagerOptimizer


class SideStream:
    """Work beside the network's stream. On a CPU it is done at once.

    Args:
        device: where.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def start(self, work: Callable[[], None]) -> None:
        """Let work begin after what the current stream has been given so far."""
        if self._stream is None:
            work()
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            work()

    def end(self) -> None:
        """Let the current stream wait for it; the host does not."""
        if self._stream is not None:
            torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)


@dataclass(frozen=True)
class _Range:
    """Parameters that lie one behind the other.

    Args:
        places: among all parameters.
        values: of the buffers.
        firsts: the block of the range with which each parameter begins.
    """

    places: slice
    values: slice
    firsts: tuple[int, ...]


def _cut(edges: Sequence[int], block: int, begin: int, end: int) -> _Range:
    """Parameters number `begin` to `end`; each lies between two edges, which are counted in blocks."""
    firsts = tuple(edge - edges[begin] for edge in edges[begin:end])
    return _Range(slice(begin, end), slice(edges[begin] * block, edges[end] * block), firsts)


class FlatSGD(EagerOptimizer):
    """torch.optim.SGD's rule, by a kernel for a GPU: v = momentum v + g + weight_decay w; w -= lr v.

    It reads the attributes of torch's fused optimizers: `found_inf` (a device scalar, 1 = leave this update out; see
    Runtime.update) and `grad_scale` (fp16's GradScaler sets both).

    Args:
        groups: parameter groups; `weight_decay` is the group's. The parameters, of one type and on one device, move
            into one buffer.
        lr: learning rate.
        momentum: of v; 0 keeps no v.
        early: parameters whose gradients come first in a backward pass; see `expect_backward`.
    """

    _step_supports_amp_scaling = True  # GradScaler.step then hands its verdict over instead of asking the device

    def __init__(
        self, groups: list[dict[str, Any]], *, lr: float, momentum: float, early: Collection[Tensor] = ()
    ) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": 0.0})
        from alexnet_dist.training.flat_update_kernel import BLOCK, update  # Triton is not everywhere

        parameters = [p for group in self.param_groups for p in group["params"]]
        self._parameters: list[Tensor] = sorted(parameters, key=lambda parameter: parameter in early)
        *firsts, blocks = accumulate((-(-p.numel() // BLOCK) for p in self._parameters), initial=0)
        self._update, self._starts = update, [first * BLOCK for first in firsts]
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
        num_all, num_late = len(parameters), sum(parameter not in early for parameter in parameters)
        self._all, self._late, self._early = (
            _cut([*firsts, blocks], BLOCK, *ends) for ends in ((0, num_all), (0, num_late), (num_late, num_all))
        )
        self._side, self._hooks = SideStream(device), list[RemovableHandle]()
        self._num_missing = 0  # early gradients that an announced backward pass has not given yet
        self._begun: list[Tensor] | None = None  # gradients that the side stream reads

    def make_shadows(self, dtype: torch.dtype) -> dict[Tensor, Tensor]:
        """A copy of each parameter in another type, which every update renews from now on. It gets the gradients."""
        self._shadows = self._weights.to(dtype)  # (N,)
        self._leaves = [view.requires_grad_() for view in self._list_views(self._shadows)]
        while self._hooks:
            self._hooks.pop().remove()
        return dict(zip(self._parameters, self._leaves, strict=True))

    @property
    def shadows(self) -> Tensor | None:
        """The copies, (N,); None where there are none."""
        return self._shadows

    def send_terms(self) -> None:
        """Give the device the rates of the next update, where they are others than those of the last one.

        The update itself reads them there: recorded once, it can be made again with other rates.
        """
        terms_of = {
            parameter: (float(group["lr"]), float(group["weight_decay"]), float(group["momentum"]))
            for group in self.param_groups
            for parameter in group["params"]
        }
        terms = [terms_of[parameter] for parameter in self._parameters]
        if terms != self._sent:
            on_gpu = self._terms.is_cuda
            self._terms.copy_(torch.tensor(terms, dtype=torch.float64, pin_memory=on_gpu), non_blocking=on_gpu)
            self._sent = terms

    def expect_backward(self, blocked: Tensor) -> None:
        """Announce a backward pass after which comes `step`: early parameters are updated beside it.

        Args:
            blocked: (), 1 = leave this update out. The device knows it before the backward pass, which gives every
                gradient whole.
        """
        if not self._early.firsts or not self._late.firsts:  # nothing that could be beside the other
            return
        if not self._hooks:
            for leaf in self._leaves[self._early.places]:
                handle = leaf.register_post_accumulate_grad_hook(self._note_gradient)  # type: ignore[no-untyped-call]
                self._hooks.append(handle)
        self.send_terms()
        self.found_inf = blocked
        self._num_missing, self._begun = len(self._hooks), None

    def _note_gradient(self, _: Tensor) -> None:
        """An early parameter has its gradient. With the last one the update of all of them begins."""
        self._num_missing -= 1
        if self._num_missing == 0:
            grads = self._begun = self._lay_out(self._early)
            self._side.start(lambda: self._launch(self._early, grads))

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Make one update, or what is left of one; every parameter has a gradient."""
        if self._begun is None:
            self.send_terms()
            self._launch(self._all, self._lay_out(self._all))
        else:
            self._launch(self._late, self._lay_out(self._late))
            self._side.end()
        self._num_missing, self._begun = 0, None

    def _launch(self, part: _Range, grads: list[Tensor]) -> None:
        self._update(
            self._weights[part.values],
            None if self._velocities is None else self._velocities[part.values],
            None if self._shadows is None else self._shadows[part.values],
            grads,
            self._terms[part.places],
            part.firsts,
            blocked=getattr(self, "found_inf", None),
            scale=getattr(self, "grad_scale", None),
        )

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients, wherever they are."""
        if self._begun is not None:  # a capture ended halfway
            self._side.end()
        self._num_missing, self._begun = 0, None
        super().zero_grad(set_to_none)
        for leaf in self._leaves:
            leaf.grad = None

    def _lay_out(self, part: _Range) -> list[Tensor]:
        """Gradients in the memory layout of their weights: autograd gives it, unless someone has put them there."""
        grads = []
        for leaf in self._leaves[part.places]:
            assert leaf.grad is not None
            is_laid_out = leaf.grad.stride() == leaf.stride()
            grads.append(leaf.grad if is_laid_out else torch.empty_like(leaf).copy_(leaf.grad))
        return grads

    def _list_views(self, buffer: Tensor) -> list[Tensor]:
        """The part of each parameter, in its shape and layout."""
        return [
            buffer.as_strided(parameter.shape, torch.empty_like(parameter, device="meta").stride(), start)
            for parameter, start in zip(self._parameters, self._starts, strict=True)
        ]


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
