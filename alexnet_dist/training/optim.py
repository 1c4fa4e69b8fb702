"""The optimizers: SGD and Adam, with their own rate and decay for biases."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

# Fused: one pass over parameters, gradients and state. On a CPU the plain ones take 20 times as long for AlexNet's
# 61 million parameters, and only these can leave an update out without asking the device (Runtime.update).
OPTIMIZERS: dict[str, Callable[[list[dict[str, Any]], float, float], Optimizer]] = {
    "sgd": lambda groups, lr, momentum: torch.optim.SGD(groups, lr=lr, momentum=momentum, fused=True),
    "adam": lambda groups, lr, momentum: torch.optim.Adam(groups, lr=lr, betas=(momentum, 0.999), fused=True),
}


def build_optimizer(
    model: nn.Module,
    *,
    name: str,
    lr: float,
    momentum: float,
    weight_decay: float,
    bias_lr_factor: float,
    bias_weight_decay: float | None,
) -> Optimizer:
    """An optimizer over the network's weights and biases; see `OptimizerConfig` for the values' meaning.

    Each group keeps `lr_factor`, what the schedule's rate is multiplied with.
    """
    weights = [p for n, p in model.named_parameters() if not n.endswith("bias")]
    biases = [p for n, p in model.named_parameters() if n.endswith("bias")]
    bias_decay = weight_decay if bias_weight_decay is None else bias_weight_decay
    groups = [
        {"params": weights, "weight_decay": weight_decay, "lr_factor": 1.0},
        {"params": biases, "weight_decay": bias_decay, "lr_factor": bias_lr_factor},
    ]
    return OPTIMIZERS[name](groups, lr, momentum)


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Give every group its learning rate for the next update."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]


def optimizer_tensors(optimizer: Optimizer, model: nn.Module) -> dict[str, torch.Tensor]:
    """The optimizer's state as {"momentum_buffer/features.0.weight": tensor}, independent of its groups."""
    names: dict[torch.Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{kind}/{names[parameter]}": value
        for parameter, state in optimizer.state.items()
        for kind, value in state.items()
        if isinstance(value, torch.Tensor)
    }


def load_optimizer_tensors(optimizer: Optimizer, model: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    """Put back what `optimizer_tensors` gave, in each parameter's memory layout."""
    parameters = dict(model.named_parameters())
    for key, value in tensors.items():
        kind, _, name = key.partition("/")
        parameter = parameters[name]
        if value.dim() == 0:
            placed = value.to(parameter.device)
        else:
            placed = torch.empty_like(parameter, memory_format=torch.preserve_format, requires_grad=False).copy_(value)
        optimizer.state[parameter][kind] = placed
