"""How much of a long run's time becomes trained updates: machines that fail, checkpoints, restarts, stragglers.

A discrete simulation of months of training. Training is synchronous: a failed machine stops all of them, what was
trained since the last checkpoint is lost, and a step takes as long as its slowest machine. A machine fails after times
that are exponentially distributed, as memoryless as chance is.

Goodput is the share of the wall-clock time that an undisturbed run would have needed for the updates that were kept.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from alexnet_dist.base.errors import UsageError

FloatArray = npt.NDArray[np.float64]

HOUR, DAY = 3600.0, 86400.0  # seconds
MONTH = 30 * DAY
MONTHS, MOST_MONTHS = 64, 4096  # simulated at least, and at most
FAILURES = 2000  # over all months, where so many months give them
MOST_FAILURES = 200_000  # that are simulated; a fleet that fails more often trains nothing
STRAGGLER_STEPS = 2000
TRIED = 2.0 ** np.arange(-5, 5.01, 0.125)  # checkpoint intervals, in units of Young's


@dataclass(frozen=True)
class Fleet:
    """The machines of a job, and what a failure costs.

    Args:
        machines: that train.
        failure_hours: mean hours between two failures of one machine.
        checkpoint_seconds: for which training waits while a checkpoint is saved.
        restart_seconds: from a failure, or from the arrival of another machine, to the next update: noticing, starting
            the processes, reading the checkpoint.
        spares: machines in reserve that take the places of failed ones; None = there is always one.
        repair_hours: until a failed machine is a spare.
        jitter: standard deviation of the time in which a machine makes a step, as a share of it.
    """

    machines: int
    failure_hours: float
    checkpoint_seconds: float = 5.0
    restart_seconds: float = 120.0
    spares: int | None = None
    repair_hours: float = 24.0
    jitter: float = 0.0

    @property
    def failure_seconds(self) -> float:
        """Mean seconds between two failures of the job."""
        return self.failure_hours * HOUR / self.machines


class Timeline(NamedTuple):
    """When all machines were there: one row for each stretch between two failures, over all months."""

    months: npt.NDArray[np.int64]  # in which the stretch lies
    seconds: FloatArray  # of the stretch, its restart included
    is_last: npt.NDArray[np.bool_]  # whether the month ended it, and no failure
    num_months: int


class Goodput(NamedTuple):
    """What a fleet makes of its time."""

    interval: float  # seconds of training between two checkpoints
    mean: float  # over all months
    low: float  # the twentieth part of the months is worse
    high: float  # the twentieth part of the months is better
    tried: tuple[float, ...]  # intervals, in seconds
    means: tuple[float, ...]  # goodput with each of them


def simulate_months(fleet: Fleet, seed: int = 0) -> Timeline:
    """Months of failures, repairs and waits for a spare machine; the same for the same seed.

    Raises:
        UsageError: the machines fail so often that nothing can be trained.
    """
    expected = MONTH / fleet.failure_seconds  # failures in a month
    num_months = int(np.clip(FAILURES / expected, MONTHS, MOST_MONTHS))
    if num_months * expected > MOST_FAILURES:
        why = f"a failure every {fleet.failure_seconds:.3g} s stops every start"
        raise UsageError("the machines fail too often", why=why, remedy="raise --failure_hours")
    random = np.random.default_rng(seed)
    months = [_simulate_month(fleet, random) for _ in range(num_months)]
    counts = [len(stretches) for stretches in months]
    ends = np.cumsum(counts) - 1
    is_last = np.zeros(sum(counts), np.bool_)
    is_last[ends] = True
    return Timeline(np.repeat(np.arange(num_months), counts), np.concatenate(months), is_last, num_months)


def _simulate_month(fleet: Fleet, random: np.random.Generator) -> list[float]:
    """Seconds of each stretch in which all machines were there; the last one ends with the month."""
    now, stretches = 0.0, []
    spares, in_repair = fleet.spares, list[float]()  # when each repair ends
    while True:
        seconds = random.exponential(fleet.failure_seconds)
        stretches.append(min(seconds, MONTH - now))
        now += seconds
        if now >= MONTH:
            return stretches
        if spares is None:
            continue
        heapq.heappush(in_repair, now + fleet.repair_hours * HOUR)
        if spares:
            spares -= 1
        else:
            now = max(now, heapq.heappop(in_repair))
        while in_repair and in_repair[0] <= now:
            heapq.heappop(in_repair)
            spares += 1
        if now >= MONTH:
            return [*stretches, 0.0]


def measure_goodput(timeline: Timeline, fleet: Fleet, interval: float) -> FloatArray:
    """(months,) goodput with a checkpoint after each `interval` seconds of training.

    The end of a month loses nothing: a run that is ended saves.
    """
    trained = np.maximum(timeline.seconds - fleet.restart_seconds, 0)  # (stretches,) in seconds, saving included
    checkpoints, rest = np.divmod(trained, interval + fleet.checkpoint_seconds)
    kept = interval * checkpoints + np.where(timeline.is_last, np.minimum(rest, interval), 0)
    shares: FloatArray = np.bincount(timeline.months, kept, timeline.num_months) / MONTH
    return shares / find_slowdown(fleet)


@cache
def find_slowdown(fleet: Fleet) -> float:
    """Seconds of a step with stragglers over those of one without: the slowest of all machines, step by step."""
    if not fleet.jitter:
        return 1.0
    steps = np.random.default_rng(0).normal(1.0, fleet.jitter, (STRAGGLER_STEPS, fleet.machines))
    return float(steps.max(axis=1).mean())


def young_interval(fleet: Fleet) -> float:
    """The checkpoint interval in seconds that Young gave in 1974: sqrt(2 * cost of a checkpoint * time to a failure).

    He assumes that both a checkpoint and a restart are short beside the time to a failure.
    """
    return math.sqrt(2 * fleet.checkpoint_seconds * fleet.failure_seconds)


def find_best_interval(fleet: Fleet, step_seconds: float, seed: int = 0) -> Goodput:
    """The checkpoint interval with the highest goodput, of some around Young's that are no shorter than a step.

    Args:
        fleet: the machines.
        step_seconds: of an undisturbed step.
        seed: of the simulation.

    Raises:
        UsageError: the machines fail so often that nothing can be trained.
    """
    timeline = simulate_months(fleet, seed)
    intervals = np.unique(np.maximum(TRIED * young_interval(fleet), step_seconds))
    shares = np.array([measure_goodput(timeline, fleet, interval) for interval in intervals])  # (intervals, months)
    means = shares.mean(axis=1)
    best = int(means.argmax())
    low, high = np.percentile(shares[best], (5, 95)).tolist()
    return Goodput(
        float(intervals[best]), float(means[best]), low, high, tuple(intervals.tolist()), tuple(means.tolist())
    )


def find_restart(fleet: Fleet, goodput: float) -> float:
    """Seconds of a restart with which a fleet would have a goodput, checkpoints being saved as is best; 0 = with none.

    Args:
        fleet: the machines; its own `restart_seconds` is not looked at.
        goodput: above 0.
    """
    low, high = 0.0, fleet.failure_seconds
    while high - low > 0.005 * fleet.failure_seconds:
        middle = (low + high) / 2
        if find_best_interval(replace(fleet, restart_seconds=middle), 1.0).mean > goodput:
            low = middle
        else:
            high = middle
    return low
