"""What a network says of each image of a set, as numbers on the host: for tables and figures, not for training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor


class Predictions(NamedTuple):
    """One row for each image."""

    ids: npt.NDArray[np.int64]  # (N,) positions in the set
    labels: npt.NDArray[np.int64]  # (N,)
    predicted: npt.NDArray[np.int64]  # (N,) the likeliest class
    confidence: npt.NDArray[np.float64]  # (N,) softmax probability of the likeliest class
    truth: npt.NDArray[np.float64]  # (N,) softmax probability of the label


class Spectator(Protocol):
    """Somebody who wants to see what the network says of each image of a validation."""

    def begin(self) -> bool:
        """Whether to watch the validation that begins; the same in each process, which all call this."""

    def observe(self, rows: Predictions) -> None:
        """Take the rows of a batch of this process."""

    def show(self, step: int) -> None:
        """The validation of a number of updates has ended; all processes call this."""


def rate_images(ids: Tensor, scores: Tensor, labels: Tensor, mask: Tensor) -> Predictions:
    """The rows of a batch; filling and bad files have none.

    Args:
        ids: (B,) on the host.
        scores: (B, classes) logits.
        labels: (B,).
        mask: (B,) 1 = a real image.
    """
    predicted = scores.topk(1, dim=1).indices  # (B, 1), as top-1 is counted
    probabilities = scores.double().softmax(dim=1)  # (B, classes)
    said, true = (probabilities.gather(1, picked)[:, 0] for picked in (predicted, labels[:, None]))
    real = mask.bool().cpu()
    columns = (ids, labels, predicted[:, 0], said, true)
    return Predictions._make(column.cpu()[real].numpy() for column in columns)


def join_predictions(parts: Sequence[Predictions]) -> Predictions:
    """One set out of its batches, or of the shares of several processes, in the order of the set."""
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    order = columns[0].argsort(kind="stable")
    return Predictions._make(column[order] for column in columns)


def find_worst(predictions: Predictions, count: int) -> npt.NDArray[np.int64]:
    """Rows of the worst predictions, the worst first: those that are wrong, the less likely their label the worse.

    Right ones follow, the least sure first, where there are too few wrong ones. A class has at most a third of the
    places while others are wrong, too.
    """
    is_right = predictions.predicted == predictions.labels
    order = np.lexsort((predictions.truth, is_right))
    seen: Counter[tuple[int, bool]] = Counter()
    is_one_too_many = np.zeros(len(order), np.bool_)
    for row in order.tolist():
        group = int(predictions.labels[row]), bool(is_right[row])
        is_one_too_many[row] = seen[group] >= count // 3
        seen[group] += 1
    chosen = np.lexsort((predictions.truth, is_one_too_many, is_right))[:count]
    return chosen[np.lexsort((predictions.truth[chosen], is_right[chosen]))]
