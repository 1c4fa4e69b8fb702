"""Ranges of numbers: the largest values that can be meant, fields that carry their range, and its test."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import field
from typing import Any

# The largest values that can be meant. What lies beyond them is a slip of the hand, and would end as a process without
# memory, as a counter of 64 bits that overflows, or as a wait of weeks.
MAX_EPOCHS = 1_000_000_000
MAX_STEPS = 1_000_000_000_000  # times a batch, they still fit into 64 bits
MAX_BATCH = 1_000_000  # images
MAX_CLASSES = 1_000_000  # 45 times ImageNet's 21,841
MAX_SIDE = 8_192  # pixels; with its square of 67 million, the largest picture that is decoded by default
MAX_PIXELS = 1_000_000_000  # of a picture: 3 GB once decoded
MAX_CHANNELS = 65_536
MAX_WIDTH = 100_000_000_000  # outputs of a layer, which summary counts; what is built has a limit of its own
MAX_PADDING = 1_024  # pixels, as for windows and their steps
MAX_WINDOW = 255  # channels that LRN adds up one by one
MAX_RATE = 1e30  # of learning; times two of its factors, float32 can still hold it
MAX_RATE_FACTOR = 1e4
MAX_FACTOR = 1e6  # of other scales; their squares and the pixels' together stay below float32's largest number
MAX_IMAGES = 4_000_000  # made on the fly; their list takes 100 bytes an image
MAX_PROCESSES = 65_536
MAX_WORKERS = 512  # processes of some 200 MB
MAX_PREFETCH = 1_000  # batches of 40 to 150 MB
MAX_KEPT = 1_000_000  # checkpoints
MAX_FOLDS = 10_000  # trainings


def bounded(
    default: Any,
    *,
    minimum: float = -math.inf,
    above: float = -math.inf,
    maximum: float = math.inf,
    below: float = math.inf,
) -> Any:
    """A dataclass field whose value, or each element of a list, must lie in a range and be finite."""
    bounds = {"minimum": minimum, "above": above, "maximum": maximum, "below": below}
    metadata = {key: value for key, value in bounds.items() if math.isfinite(value)}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


_BOUNDS: dict[str, tuple[str, Callable[[float, float], bool]]] = {
    "minimum": ("of at least", operator.ge),
    "above": ("above", operator.gt),
    "maximum": ("of at most", operator.le),
    "below": ("below", operator.lt),
}


def is_within(number: float, bounds: Mapping[str, float]) -> bool:
    """Whether a number is finite and lies within the bounds of a field; see `bounded`."""
    is_finite = isinstance(number, int) or math.isfinite(number)  # isfinite cannot take an int of 400 digits
    return is_finite and all(_BOUNDS[name][1](number, bound) for name, bound in bounds.items())


def describe_bounds(bounds: Mapping[str, float]) -> str:
    """The bounds of a field in words: `of at least 1 and of at most 8192`."""
    return " and ".join(
        f"{_BOUNDS[name][0]} {bound if isinstance(bound, int) else f'{bound:g}'}" for name, bound in bounds.items()
    )
