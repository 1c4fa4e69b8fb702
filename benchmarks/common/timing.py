"""Arms timed side by side: A B A B ..., ratios round by round.

A machine's speed drifts (clock, heat, neighbors). Two arms that are measured one right after the other in each round
meet the same drift, so ratios are taken within a round and only then summed up: median, least and largest.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # startup.py measures its import; it should not do it itself
    import torch

Window = Callable[[], float]
"""Runs one window of an arm and gives its figure, such as seconds per call."""


@dataclass(frozen=True)
class Protocol:
    """How long to measure.

    Args:
        rounds: windows of each arm.
        window_seconds: least length of a window.
        min_calls: least calls in a window.
    """

    rounds: int
    window_seconds: float
    min_calls: int = 1


@dataclass(frozen=True)
class Spread:
    """Several measurements of one thing."""

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Median, least and largest of the values."""
        return cls(statistics.median(values), min(values), max(values))


def interleave(windows: Mapping[str, Window], rounds: int) -> dict[str, list[float]]:
    """Run each arm's window once per round, in order; each arm's figures, one per round."""
    figures: dict[str, list[float]] = {name: [] for name in windows}
    for _ in range(rounds):
        for name, window in windows.items():
            figures[name].append(window())
    return figures


def time_calls(
    calls: Mapping[str, Callable[[], object]], protocol: Protocol, device: torch.device
) -> dict[str, list[float]]:
    """Warm every arm up, then measure them interleaved; seconds per call, one figure per round.

    Args:
        calls: what each arm does, again and again.
        protocol: how long to measure.
        device: where it happens; a GPU is timed with CUDA events.
    """
    return interleave({name: _warm_up(call, protocol, device) for name, call in calls.items()}, protocol.rounds)


def _warm_up(call: Callable[[], object], protocol: Protocol, device: torch.device) -> Window:
    measure_seconds(call, 1, device)  # allocations, kernel choice
    return settle_window(lambda num_calls: measure_seconds(call, num_calls, device) / num_calls, protocol)


def settle_window(measure: Callable[[int], float], protocol: Protocol, multiple: int = 1) -> Window:
    """Measure once to find how many calls make a window of the wanted length.

    Args:
        measure: seconds per call of so many calls.
        protocol: how long to measure.
        multiple: of which the number of calls must be one.
    """
    least = _round_up(protocol.min_calls, multiple)
    num_calls = max(least, _round_up(protocol.window_seconds / measure(least), multiple))
    return lambda: measure(num_calls)


def _round_up(value: float, multiple: int) -> int:
    return math.ceil(value / multiple) * multiple


def measure_seconds(call: Callable[[], object], num_calls: int, device: torch.device) -> float:
    """Seconds that a number of calls takes, until the device has done the last one."""
    if device.type == "cuda":
        return _measure_with_events(call, num_calls, device)
    began = time.perf_counter()
    for _ in range(num_calls):
        call()
    return time.perf_counter() - began


def _measure_with_events(call: Callable[[], object], num_calls: int, device: torch.device) -> float:
    import torch

    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda.synchronize(device)
    first.record()
    for _ in range(num_calls):
        call()
    last.record()
    torch.cuda.synchronize(device)
    return float(first.elapsed_time(last)) / 1000


def divide(numerator: Sequence[float], denominator: Sequence[float]) -> Spread:
    """The ratio of two arms, round by round."""
    return Spread.of([a / b for a, b in zip(numerator, denominator, strict=True)])
