"""The optimizers over a network's layers: each layer's rate and decay, and layers that do not learn."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from alexnet_dist.models import named_layers
from alexnet_dist.training.eager_optimizers import SGD, Adam
from alexnet_dist.training.flat_update import FlatSGD
from alexnet_dist.training.update_rules import LARS, LayerNorms, RMSprop, own_norms

STEP = "step"  # Adam's count of its updates, a scalar for each parameter

# Torch wants a rate when an optimizer is made. `set_lr` gives each group the schedule's before the first update; this
# one would change nothing.
UNSET_LR = 0.0

# Fused: one pass over parameters, gradients and state. On a CPU the plain ones take 20 times as long for AlexNet's
# 61 million parameters, and they cannot leave an update out without asking the device (Runtime.update).
OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "sgd": lambda groups, momentum, **_: _build_sgd(groups, momentum),
    "flat_sgd": lambda groups, momentum, early, **_: FlatSGD(groups, lr=UNSET_LR, momentum=momentum, early=early),
    "adam": lambda groups, momentum, **_: Adam(groups, UNSET_LR, betas=(momentum, 0.999), fused=True),
    "rmsprop": lambda groups, momentum, **_: RMSprop(groups, lr=UNSET_LR, momentum=momentum),
    "lars": lambda groups, momentum, early, **of_lars: LARS(groups, lr=UNSET_LR, momentum=momentum, **of_lars),
}


def build_optimizer(
    model: nn.Module,
    *,
    name: str,
    momentum: float,
    trust_coefficient: float = 0.001,
    layer_norms: LayerNorms = own_norms,
    **grouping: Any,
) -> Optimizer:
    """An optimizer over the layers that learn; see `OptimizerConfig` for the values' meaning.

    It has no rate: call `set_lr` before each update.

    Args:
        model: the network; layers that never learn get `requires_grad` False, so build it before replicating.
        name: a key of OPTIMIZERS.
        momentum: of the rule; Adam's first beta.
        trust_coefficient: of LARS.
        layer_norms: gives LARS the norms of whole layers.
        grouping: keyword arguments of `group_parameters`.
    """
    groups = group_parameters(model, **grouping)
    connected = (layer for layer in named_layers(model).values() if isinstance(layer, nn.Linear))  # the last layers
    early = {parameter for layer in connected for parameter in layer.parameters()}
    return OPTIMIZERS[name](groups, momentum, trust_coefficient=trust_coefficient, layer_norms=layer_norms, early=early)


def place_rates(optimizer: Optimizer, device: torch.device) -> None:
    """Let the rates lie on the device, in float32: a captured update reads them there, see training/graph.py.

    A flat update has a place of its own for them, see `FlatSGD.send_terms`.
    """
    if isinstance(optimizer, FlatSGD):
        return
    for group in optimizer.param_groups:
        group["lr"] = torch.full((), UNSET_LR, device=device)
        if "capturable" in group:
            group["capturable"] = True


def _build_sgd(groups: list[dict[str, Any]], momentum: float) -> Optimizer:
    """Torch's fused SGD, with its momentum at zero.

    By itself it takes memory that nobody has written, and counts on the first update to write it. If that one is left
    out, as fp16's mostly is while its loss scale is being found, the next adds to whatever was there.
    """
    optimizer = SGD(groups, UNSET_LR, momentum=momentum, fused=True)
    if momentum:
        for parameter in (p for group in groups for p in group["params"]):
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def group_parameters(
    model: nn.Module,
    *,
    weight_decay: float,
    bias_lr_factor: float,
    bias_weight_decay: float | None,
    bias_lr_constant: bool = False,
    lr_factors: Mapping[str, float] | None = None,
    freeze: Collection[str] = (),
    freeze_from_epoch: int = 0,
) -> list[dict[str, Any]]:
    """Weights and biases in as few groups as their settings allow: the fused optimizers are called once for each.

    Each group keeps what `set_lr` needs: `lr_factor` multiplies the rate, `lr_constant` takes the one that the schedule
    leaves alone, `freeze_epoch` ends the learning (None = never).
    """
    bias_decay = weight_decay if bias_weight_decay is None else bias_weight_decay
    groups: dict[tuple[float | None, ...], dict[str, Any]] = {}
    for name, layer in named_layers(model).items():
        if name in freeze and freeze_from_epoch == 0:
            layer.requires_grad_(False)
            continue
        factor = (lr_factors or {}).get(name, 1.0)
        freeze_epoch = freeze_from_epoch if name in freeze else None
        for kind, decay, kind_factor, is_constant in (
            ("weight", weight_decay, 1.0, False),
            ("bias", bias_decay, bias_lr_factor, bias_lr_constant),
        ):
            settings: dict[str, Any] = {"weight_decay": decay, "lr_factor": factor * kind_factor}
            settings |= {"lr_constant": is_constant, "freeze_epoch": freeze_epoch}
            group = groups.setdefault(tuple(settings.values()), {"params": [], **settings})
            group["params"].append(layer.get_parameter(kind))
    return list(groups.values())


def set_lr(optimizer: Optimizer, lr: float, *, constant_lr: float | None = None, epoch: int = 0) -> None:
    """Give every group its learning rate for the next update.

    Args:
        optimizer: from `build_optimizer`.
        lr: what the schedule says.
        constant_lr: what it would say if it were constant; None = lr.
        epoch: finished passes over the training set; layers frozen by then get the rate 0, and it is a number.
    """
    for group in optimizer.param_groups:
        rate = constant_lr if group["lr_constant"] and constant_lr is not None else lr
        is_frozen = group["freeze_epoch"] is not None and epoch >= group["freeze_epoch"]
        if isinstance(group["lr"], torch.Tensor) and not is_frozen:
            group["lr"].fill_(rate * group["lr_factor"])
        else:
            group["lr"] = 0.0 if is_frozen else rate * group["lr_factor"]


def send_rates(optimizer: Optimizer) -> list[float]:
    """See to it that the rates of the next update are on the device; those that stay numbers on the host."""
    if isinstance(optimizer, FlatSGD):
        optimizer.send_terms()
        return []
    return [group["lr"] for group in optimizer.param_groups if not isinstance(group["lr"], torch.Tensor)]


def optimizer_tensors(optimizer: Optimizer, model: nn.Module) -> dict[str, torch.Tensor]:
    """The optimizer's state as {"momentum_buffer/features.0.weight": tensor}, independent of its groups."""
    names: dict[torch.Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{kind}/{names[parameter]}": value
        for parameter, state in optimizer.state.items()
        for kind, value in state.items()
        if isinstance(value, torch.Tensor)
    }


def load_optimizer_tensors(
    optimizer: Optimizer, model: nn.Module, tensors: dict[str, torch.Tensor], has_stepped: bool = True
) -> None:
    """Put back what `optimizer_tensors` gave, in each parameter's memory layout.

    Args:
        optimizer: from `build_optimizer`.
        model: the network.
        tensors: by "kind/name".
        has_stepped: whether an update was made: before the first one, some rules have no state yet.

    Raises:
        ValueError: a tensor is missing, unknown or of another shape; the text says which.
    """
    names: dict[torch.Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    learning = {names[p]: p for group in optimizer.param_groups for p in group["params"]}
    wanted = {f"{kind}/{name}": parameter for name, parameter in learning.items() for kind in state_kinds(optimizer)}
    missing = [key for key in wanted if key not in tensors]
    unknown = [key for key in tensors if key not in wanted]
    if unknown or (missing and (tensors or has_stepped)):
        what = (missing or unknown)[0].replace("/", " of ")
        raise ValueError(f"{what} in the optimizer is {'missing' if missing else 'unknown'}")
    for key, value in tensors.items():
        kind, parameter = key.partition("/")[0], wanted[key]
        shape = torch.Size() if kind == STEP else parameter.shape
        if value.shape != shape:
            what = key.replace("/", " of ")
            raise ValueError(f"{what} in the optimizer is {tuple(value.shape)} there and {tuple(shape)} here")
        state = optimizer.state[parameter]
        if kind == STEP:
            state[kind] = value.to(parameter.device)
            continue
        if kind not in state:
            state[kind] = torch.empty_like(parameter, memory_format=torch.preserve_format, requires_grad=False)
        state[kind].copy_(value)


def state_kinds(optimizer: Optimizer) -> tuple[str, ...]:
    """The tensors that a rule keeps for each parameter, once it has made an update."""
    has_momentum = bool(optimizer.defaults.get("momentum"))
    momentum = ("momentum_buffer",) if has_momentum else ()
    if isinstance(optimizer, Adam):
        return (STEP, "exp_avg", "exp_avg_sq")
    if isinstance(optimizer, LARS):
        return ("momentum_buffer",)
    return ("square_avg", *momentum) if isinstance(optimizer, RMSprop) else momentum
