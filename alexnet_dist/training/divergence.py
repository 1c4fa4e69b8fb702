"""After a loss that is not finite: which checkpoints a run can go on from with a lower rate, and which are beyond it.

A checkpoint may be intact and of no use: an update was finite, and what it made of the weights is not. Whatever the
rate, the next loss is then the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from alexnet_dist.inference.checkpoints import WEIGHTS, list_checkpoints, step_of
from alexnet_dist.inference.weights_file import read_tensors

FACTOR = 10.0  # a loss so much above the first one, or a guess's, is that of weights which have been blown up


def find_good_checkpoint(
    folder: Path, rows: Sequence[Mapping[str, Any]], guess_loss: float, weights: Mapping[str, Tensor]
) -> Path | None:
    """The newest checkpoint whose weights gave losses that one can go on from; None if there is none.

    Args:
        folder: the run's checkpoints/.
        rows: of metrics.jsonl.
        guess_loss: of a network that holds all classes for equally likely.
        weights: those that gave no finite loss.
    """
    found = ((row.get("step"), row.get("loss")) for row in rows if row.get("event") == "train")
    losses = {step: loss for step, loss in found if isinstance(step, int) and isinstance(loss, int | float)}
    limit = FACTOR * max(guess_loss, next(iter(losses.values()), 0.0))
    for path in list_checkpoints(folder):
        later = next((loss for step, loss in losses.items() if step > step_of(path)), None)
        is_good = later <= limit if later is not None else _holds_others(path, weights)
        if is_good:
            return path
    return None


def _holds_others(path: Path, weights: Mapping[str, Tensor]) -> bool:
    """Whether a checkpoint holds other weights than these; one that cannot be read holds none."""
    try:
        saved = read_tensors(path / WEIGHTS)
    except (OSError, ValueError, SafetensorError):
        return False
    return saved.keys() != weights.keys() or any(not torch.equal(saved[name], weights[name].cpu()) for name in saved)
