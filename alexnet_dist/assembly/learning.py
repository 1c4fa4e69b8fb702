"""From optimizer.*, schedule.* and train.* to the rule that changes the weights, its rate, and what comes when."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import Optimizer

from alexnet_dist.parallel.runtime import Runtime
from alexnet_dist.settings.schema import CheckpointConfig, Config, OptimizerConfig, ScheduleConfig
from alexnet_dist.training.flat_update import FlatSGD, Shadowed
from alexnet_dist.training.loop import Cadence
from alexnet_dist.training.optim import build_optimizer
from alexnet_dist.training.saver import Saver
from alexnet_dist.training.schedule import Schedule
from alexnet_dist.training.update_rules import LayerNorms, own_norms


def build_rule(
    optimizer: OptimizerConfig, model: nn.Module, layer_norms: LayerNorms = own_norms, update: str = "reference"
) -> Optimizer:
    """The update rule over a network's layers. Its rate, `optimizer.lr`, is the schedule's business.

    Args:
        optimizer: the settings.
        model: this process's part of the network, on its device and not replicated yet.
        layer_norms: see `build_optimizer`.
        update: flat or reference, see `assembly/kernels.py`.
    """
    factors = optimizer.lr_factors
    return build_optimizer(
        model,
        name="flat_sgd" if update == "flat" else optimizer.name,
        momentum=optimizer.momentum,
        weight_decay=optimizer.weight_decay,
        bias_lr_factor=optimizer.bias_lr_factor,
        bias_weight_decay=optimizer.bias_weight_decay,
        bias_lr_constant=optimizer.bias_lr_constant,
        trust_coefficient=optimizer.trust_coefficient,
        lr_factors={
            "conv1": factors.conv1,
            "conv2": factors.conv2,
            "conv3": factors.conv3,
            "conv4": factors.conv4,
            "conv5": factors.conv5,
            "fc6": factors.fc6,
            "fc7": factors.fc7,
            "fc8": factors.fc8,
        },
        freeze=optimizer.freeze,
        freeze_from_epoch=optimizer.freeze_from_epoch,
        layer_norms=layer_norms,
    )


def use_shadows(
    forward: nn.Module, optimizer: Optimizer, *, compiled: bool, accumulates: bool, runtime: Runtime
) -> nn.Module:
    """The network that a step calls, computed with the bf16 weights of a flat update where those give autocast's bits.

    Gradients are then bf16. Several forwards, or several processes, add theirs up in float32, and a compiled network
    makes its copies on the way.

    Args:
        forward: what `replicate_network` gave; all weights are in it.
        optimizer: from `build_rule`.
        compiled: by torch.compile.
        accumulates: several forwards make an update.
        runtime: this process among the others.
    """
    has_plain_sums = runtime.world_size == 1 and not accumulates and not compiled
    if isinstance(optimizer, FlatSGD) and runtime.precision == "bf16" and has_plain_sums:
        return Shadowed(forward, optimizer.make_shadows(torch.bfloat16))
    return forward


def build_schedule(schedule: ScheduleConfig, lr: float, steps_per_epoch: int, total_steps: int) -> Schedule:
    """The learning rate of each update.

    Args:
        schedule: the settings.
        lr: optimizer.lr, the rate after the warm-up.
        steps_per_epoch: updates in an epoch.
        total_steps: updates of the run.
    """
    return Schedule(
        name=schedule.name,
        base_lr=lr,
        warmup_steps=schedule.warmup_steps,
        gamma=schedule.gamma,
        step_epochs=schedule.step_epochs,
        patience=schedule.patience,
        halve_every_steps=schedule.halve_every_steps,
        power=schedule.power,
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
    )


def build_cadence(config: Config, total_steps: int) -> Cadence:
    """When a run of so many updates logs, saves and ends."""
    return Cadence(
        total_steps=total_steps,
        log_steps=config.log.every_steps,
        save_steps=config.checkpoint.every_steps,
        keep=config.checkpoint.keep,
        early_stop=config.train.early_stop,
    )


def build_saver(checkpoint: CheckpointConfig, on_gpu: bool) -> Saver:
    """What writes checkpoints, for a network on a GPU or on a CPU."""
    return Saver(checkpoint.background if checkpoint.background is not None else on_gpu)
