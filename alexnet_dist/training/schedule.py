"""The learning rate as a function of the update; only plateau remembers anything."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class PlateauState:
    """What plateau remembers: saved with every checkpoint.

    Args:
        drops: times the rate was multiplied with gamma.
        best: the best value so far.
        stalled: evaluations since then, or since the last drop.
    """

    drops: int = 0
    best: float | None = None
    stalled: int = 0

    def observe(self, value: float, patience: int) -> None:
        """Take note of one evaluation; larger is better."""
        if self.best is None or value > self.best:
            self.best, self.stalled = value, 0
            return
        self.stalled += 1
        if self.stalled >= patience:
            self.drops, self.stalled = self.drops + 1, 0


@dataclass(frozen=True)
class Schedule:
    """The learning rate of each update; see `ScheduleConfig` for the fields' meaning.

    Args:
        base_lr: the rate after the warm-up.
        steps_per_epoch: updates in an epoch.
        total_steps: updates of the run.
    """

    name: str
    base_lr: float
    warmup_steps: int
    gamma: float
    step_epochs: int
    patience: int
    halve_every_steps: int
    power: float
    steps_per_epoch: int
    total_steps: int

    def lr(self, step: int, plateau: PlateauState) -> float:
        """The rate of update `step`, counted from 0."""
        rate = self.constant_lr(step)
        return rate if step < self.warmup_steps else rate * FACTORS[self.name](self, step, plateau)

    def constant_lr(self, step: int) -> float:
        """The rate of update `step` if the schedule were constant: with the warm-up and nothing else."""
        return self.base_lr * (step + 1) / self.warmup_steps if step < self.warmup_steps else self.base_lr

    def progress(self, step: int) -> float:
        """The part of the updates after the warm-up that were made before update `step`, at most 1."""
        span = max(1, self.total_steps - self.warmup_steps)
        return min(1.0, (step - self.warmup_steps) / span)


def list_unreached(schedule: Schedule) -> list[str]:
    """What the schedule says and the run is too short for, a line each."""
    total, epochs = schedule.total_steps, -(-schedule.total_steps // schedule.steps_per_epoch)
    lines = []
    if schedule.warmup_steps >= total:
        last = schedule.constant_lr(total - 1)
        lines.append(
            f"warmup_steps {schedule.warmup_steps:,} takes all {total:,} updates of the run: the rate ends at "
            f"{last:.3g}, and optimizer.lr is {schedule.base_lr:g}"
        )
    never = {
        "step": (schedule.step_epochs * schedule.steps_per_epoch >= total, f"step_epochs {schedule.step_epochs:,}"),
        "halve_every": (schedule.halve_every_steps >= total, f"halve_every_steps {schedule.halve_every_steps:,}"),
        "plateau": (schedule.patience >= epochs, f"patience {schedule.patience:,}"),
    }
    is_long, words = never.get(schedule.name, (False, ""))
    if is_long:
        lines.append(f"{words} never drops the rate: the run has {total:,} updates in {epochs:,} epochs")
    return lines


FACTORS: dict[str, Callable[[Schedule, int, PlateauState], float]] = {
    "constant": lambda schedule, step, plateau: 1.0,
    "step": lambda schedule, step, plateau: (
        schedule.gamma ** (step // schedule.steps_per_epoch // schedule.step_epochs)
    ),
    "plateau": lambda schedule, step, plateau: schedule.gamma**plateau.drops,
    "halve_every": lambda schedule, step, plateau: 0.5 ** (step // schedule.halve_every_steps),
    "cosine": lambda schedule, step, plateau: 0.5 * (1 + math.cos(math.pi * schedule.progress(step))),
    "poly": lambda schedule, step, plateau: (1 - schedule.progress(step)) ** schedule.power,
}
