"""Where a run stands, and how it gets back there from a checkpoint."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from alexnet_dist.base.errors import CheckpointError
from alexnet_dist.inference.checkpoints import OTHERWISE
from alexnet_dist.inference.weights import load_weights
from alexnet_dist.parallel.partition import Partition
from alexnet_dist.training.checkpoint import Checkpoint
from alexnet_dist.training.evaluate import Evaluation
from alexnet_dist.training.metrics import Totals
from alexnet_dist.training.optim import load_optimizer_tensors
from alexnet_dist.training.schedule import PlateauState
from alexnet_dist.training.state_fields import read_fields


@dataclass
class TrainState:
    """Where a run stands: everything a checkpoint holds besides tensors.

    Args:
        step: updates made.
        samples_seen: real images that went into them.
        evaluated_step: step of the last evaluation, -1 before the first.
        best_top1, best_top5, best_loss, best_epoch, best_step: of the best evaluation: the highest top-1, and of
            equals the lowest loss; None before one. No best_step: its weights are lost, and the next one is the best.
        stalled: evaluations since the best one.
        final_top1: of the last evaluation.
        plateau: what the plateau schedule remembers.
        window: sums since the last log point.
        epoch_totals: sums since the epoch began.
        train_seconds: time spent training, without evaluation and saving.
    """

    step: int = 0
    samples_seen: int = 0
    evaluated_step: int = -1
    best_top1: float | None = None
    best_top5: float | None = None
    best_loss: float | None = None
    best_epoch: int | None = None
    best_step: int | None = None
    stalled: int = 0
    final_top1: float | None = None
    plateau: PlateauState = field(default_factory=PlateauState)
    window: Totals = field(default_factory=Totals)
    epoch_totals: Totals = field(default_factory=Totals)
    train_seconds: float = 0.0

    def is_best(self, result: Evaluation) -> bool:
        """Whether an evaluation beats the best so far. A small set is soon all right: then the loss still tells."""
        if self.best_top1 is None or self.best_step is None:
            return True
        if result.top1 == self.best_top1 and self.best_loss is not None:
            return result.loss < self.best_loss
        return result.top1 > self.best_top1

    @classmethod
    def from_json(cls, values: Any) -> TrainState:
        """What `asdict` gave; fields that an older checkpoint lacks keep their defaults.

        A best evaluation whose loss was not finite is none: older versions took note of such.

        Raises:
            ValueError: a field is unknown, missing or of another type; the text says which.
        """
        best_loss = values.get("best_loss") if isinstance(values, dict) else None
        if isinstance(best_loss, float) and not math.isfinite(best_loss):
            values = {key: value for key, value in values.items() if not key.startswith("best_")}
        required = ("step", "samples_seen", "evaluated_step", "plateau", "window", "epoch_totals")
        return read_fields(cls, values, "train", required)


def restore(
    checkpoint: Checkpoint,
    model: nn.Module,
    partition: Partition,
    optimizer: Optimizer,
    scaler: torch.amp.GradScaler | None,
) -> TrainState:
    """Give a network and its optimizer what a checkpoint holds; where the run stood then.

    Args:
        checkpoint: of this run, or of the one that it begins with.
        model: this process's part of the network, on its device.
        partition: how its tensors follow from those of the whole network.
        optimizer: over its parameters.
        scaler: the loss scaler of fp16; None under another precision.

    Raises:
        CheckpointError: something in it is not what a checkpoint of this run holds.
    """
    load_weights(model, partition.cut(checkpoint.weights), checkpoint.where)
    try:
        _check_precision(checkpoint, next(model.parameters()).dtype)
        state = TrainState.from_json(checkpoint.state.get("train"))
        if checkpoint.state.get("step", state.step) != state.step:
            raise ValueError(f"it is of two steps, {checkpoint.state['step']} and {state.step}")
        load_optimizer_tensors(optimizer, model, partition.cut(checkpoint.optimizer), has_stepped=state.step > 0)
        if scaler is not None and checkpoint.state.get("scaler"):
            scaler.load_state_dict(checkpoint.state["scaler"])
    except (ValueError, KeyError, TypeError, IndexError, RuntimeError) as error:  # the scaler's are of any kind
        why = f"{error}" if isinstance(error, ValueError) else repr(error)
        raise CheckpointError(
            "cannot use this checkpoint", where=checkpoint.where, why=why, remedy=OTHERWISE
        ) from error
    return state


def _check_precision(checkpoint: Checkpoint, wanted: torch.dtype) -> None:
    for name, tensor in [*checkpoint.weights.items(), *checkpoint.optimizer.items()]:
        if tensor.dtype != wanted and tensor.dim():  # Adam's count of its updates is float32 everywhere
            found, needed = (str(dtype).removeprefix("torch.") for dtype in (tensor.dtype, wanted))
            raise ValueError(f"{name} is {found}, not {needed}")
