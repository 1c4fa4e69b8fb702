"""Update rules of our own: RMSprop and LARS.

torch.optim.RMSprop has no fused version, and torch has no LARS. Torch's plain optimizers go through memory once for
every operation, which is slow for AlexNet's 61 million parameters on a CPU, and they cannot leave an update out without
asking the device. These work through slices that stay in a CPU's caches, and read the same two attributes as torch's
fused optimizers: `found_inf` (a device scalar, 1 = leave this update out; see Runtime.update) and `grad_scale` (fp16's
GradScaler sets both).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from alexnet_dist.training.eager_optimizers import EagerOptimizer

# Elements that one thread handles per slice on a CPU: a handful of scratch tensors of this size fit its L2 cache.
ELEMENTS_PER_THREAD = 1 << 17
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}

LayerNorms = Callable[[Sequence[Tensor]], Sequence[tuple[Tensor, Tensor]]]


class RMSprop(EagerOptimizer):
    """torch.optim.RMSprop's rule: v = alpha v + (1 - alpha) g^2; b = momentum b + g / (sqrt(v) + eps); w -= lr b.

    g is the gradient plus weight_decay times w. A group with rate 0 is left as it is.

    Args:
        groups: parameter groups; `weight_decay` is the group's.
        lr: learning rate.
        momentum: of b; 0 keeps no b.
        alpha: how slowly v forgets.
        eps: keeps the division from exploding.
    """

    _step_supports_amp_scaling = True  # GradScaler.step then hands its verdict over instead of asking the device

    def __init__(
        self, groups: list[dict[str, Any]], *, lr: float, momentum: float, alpha: float = 0.99, eps: float = 1e-8
    ) -> None:
        settings = {"lr": lr, "momentum": momentum, "weight_decay": 0.0, "alpha": alpha, "eps": eps}
        super().__init__(groups, settings)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Make one update; see the module on how it is left out."""
        made = _begin_update(self)
        for group in self.param_groups:
            kinds = ("square_avg", "momentum_buffer") if group["momentum"] else ("square_avg",)
            for parameter in _learning(group):
                state = [_state_of(self, parameter, kind) for kind in kinds]
                for weight, gradient, square, *momentum in _slices(parameter, _gradient(parameter), *state):
                    change = torch.add(gradient, weight, alpha=group["weight_decay"])
                    mean = (square * group["alpha"]).addcmul_(change, change, value=1 - group["alpha"])
                    change.div_(mean.sqrt().add_(group["eps"]))
                    for buffer in momentum:
                        change.add_(buffer, alpha=group["momentum"])
                    _replace(weight, _go_down(weight, change, group["lr"]), made)
                    for buffer in momentum:
                        _replace(buffer, change, made)
                    _replace(square, mean, made)


def own_norms(weights: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """The norms of each weight and of its gradient, in float32 or finer, where every tensor is a whole layer."""
    return [(_norm(weight), _norm(_gradient(weight))) for weight in weights]


def merged_norms(cut: Collection[Tensor], sum_over_parts: Callable[[Tensor], Tensor]) -> LayerNorms:
    """The norms of whole layers, where some tensors are parts of one.

    Args:
        cut: the parameters that are parts.
        sum_over_parts: sums a device tensor over the processes that hold the parts, in place.
    """

    def norms(weights: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        own = own_norms(weights)
        places = [place for place, weight in enumerate(weights) if weight in cut]
        if not places:
            return own
        # In float64: the square of a small float32 would be 0.
        squares = torch.stack([torch.stack(own[place]) for place in places]).double().square()  # (layers, 2)
        whole = sum_over_parts(squares).sqrt()
        for row, place in enumerate(places):
            own[place] = (whole[row, 0].to(own[place][0].dtype), whole[row, 1].to(own[place][1].dtype))
        return own

    return norms


class LARS(EagerOptimizer):
    """SGD with momentum, where each layer's weight has a rate of its own (You, Gitman, Ginsburg 2017, algorithm 1).

    ratio = trust_coefficient |w| / (|g| + weight_decay |w|), 1 where a norm is 0;
    b = momentum b + lr ratio (g + weight_decay w); w -= b. Biases have ratio 1. A group with rate 0 is left as it is,
    momentum and all.

    Args:
        groups: parameter groups; `weight_decay` is the group's.
        lr: learning rate.
        momentum: of b.
        trust_coefficient: a layer's step over the norm of its weight.
        layer_norms: gives the norms of the whole layers that the weights belong to, and of their gradients.
    """

    _step_supports_amp_scaling = True  # as above

    def __init__(
        self,
        groups: list[dict[str, Any]],
        *,
        lr: float,
        momentum: float,
        trust_coefficient: float,
        layer_norms: LayerNorms = own_norms,
    ) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": 0.0})
        self.trust_coefficient, self.layer_norms = trust_coefficient, layer_norms

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Make one update; see the module on how it is left out."""
        made = _begin_update(self)
        weights = [p for group in self.param_groups for p in _learning(group) if p.dim() > 1]
        norms = dict(zip(weights, self.layer_norms(weights), strict=True))
        for group in self.param_groups:
            for parameter in _learning(group):
                rate = self._rate(group, *norms[parameter]) if parameter in norms else group["lr"]
                velocity = _state_of(self, parameter, "momentum_buffer")
                for weight, gradient, buffer in _slices(parameter, _gradient(parameter), velocity):
                    change = torch.add(gradient, weight, alpha=group["weight_decay"]).mul_(rate)
                    change.add_(buffer, alpha=group["momentum"])
                    _replace(weight, weight - change, made)
                    _replace(buffer, change, made)

    def _rate(self, group: dict[str, Any], weight_norm: Tensor, gradient_norm: Tensor) -> Tensor:
        ratio = self.trust_coefficient * weight_norm / (gradient_norm + group["weight_decay"] * weight_norm)  # ()
        has_ratio = (weight_norm > 0) & (gradient_norm > 0)  # ()
        rate: Tensor = torch.where(has_ratio, ratio, torch.ones_like(ratio)) * group["lr"]  # ()
        return rate


def _begin_update(optimizer: Optimizer) -> Tensor:
    """Take fp16's scale out of the gradients; () int64 on the device, all bits 1 if this update is made, 0 if not."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    scale: Tensor | None = getattr(optimizer, "grad_scale", None)
    if scale is not None:
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.div_(scale)
    found_inf: Tensor | None = getattr(optimizer, "found_inf", None)
    if found_inf is None:
        found_inf = torch.zeros((), device=parameters[0].device)
    return -(found_inf == 0).long()


def _learning(group: dict[str, Any]) -> list[Tensor]:
    """The group's parameters that this update changes. A rate on the device is not looked at: it is never 0."""
    learns = isinstance(group["lr"], Tensor) or group["lr"] > 0
    return [parameter for parameter in group["params"] if parameter.grad is not None and learns]


def _go_down(weight: Tensor, change: Tensor, rate: float | Tensor) -> Tensor:
    """weight - rate * change, in one pass; a rate on the device is not read by the host."""
    if isinstance(rate, Tensor):
        return torch.addcmul(weight, change, rate, value=-1)
    return torch.sub(weight, change, alpha=rate)


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def _state_of(optimizer: Optimizer, parameter: Tensor, kind: str) -> Tensor:
    state: dict[str, Tensor] = optimizer.state[parameter]
    if kind not in state:
        state[kind] = torch.zeros_like(parameter)
    return state[kind]


def _norm(values: Tensor) -> Tensor:
    dtype = torch.promote_types(values.dtype, torch.float32)
    # Slices also for exactness: one float32 sum over the 38 million squares of fc6 is 0.5 % off.
    parts = torch.stack([torch.linalg.vector_norm(part, dtype=dtype) for (part,) in _slices(values)])  # (slices,)
    total: Tensor = torch.linalg.vector_norm(parts)  # ()
    return total


def _slices(*tensors: Tensor) -> Iterable[tuple[Tensor, ...]]:
    """Views of the same rows of tensors of one shape; on a GPU the whole tensors, as more rounds only cost launches."""
    rows = len(tensors[0])
    if tensors[0].device.type == "cpu":
        per_row = max(1, tensors[0].numel() // max(1, rows))
        rows = max(1, ELEMENTS_PER_THREAD * torch.get_num_threads() // per_row)
    return zip(*(torch.split(tensor, rows) for tensor in tensors), strict=True)


def _replace(old: Tensor, new: Tensor, made: Tensor) -> None:
    """Write the new values over the old ones if the update is made; `new` may hold anything and is used up.

    The bits that differ are flipped, all or none: arithmetic would not stop a NaN, and torch.where takes twice as long
    on a CPU.
    """
    bits = BITS[old.element_size()]
    old_bits = old.view(bits)
    old_bits.bitwise_xor_(new.view(bits).bitwise_xor_(old_bits).bitwise_and_(made))
