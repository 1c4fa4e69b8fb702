"""The learning rate of each update, by table."""

from __future__ import annotations

import math
from typing import Any

import pytest

from alexnet_dist.training.schedule import FACTORS, PlateauState, Schedule, list_unreached

EPOCH, TOTAL, WARMUP = 10, 100, 5


def make_schedule(name: str, **changes: Any) -> Schedule:
    values: dict[str, Any] = {"warmup_steps": WARMUP, "gamma": 0.1, "step_epochs": 3, "patience": 2}
    values |= {"steps_per_epoch": EPOCH, "total_steps": TOTAL, "base_lr": 0.4, "halve_every_steps": 20, "power": 2.0}
    return Schedule(name=name, **(values | changes))


@pytest.mark.parametrize("name", FACTORS)
@pytest.mark.parametrize(("step", "expected"), [(0, 0.08), (1, 0.16), (3, 0.32), (4, 0.4)])
def test_warm_up_rises_linearly_to_the_base_rate(name: str, step: int, expected: float) -> None:
    assert make_schedule(name).lr(step, PlateauState()) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "step", "expected"),
    [
        ("constant", 5, 0.4),
        ("constant", 99, 0.4),
        ("step", 29, 0.4),
        ("step", 30, 0.04),
        ("step", 59, 0.04),
        ("step", 60, 0.004),
        ("step", 99, 0.0004),
        ("cosine", 5, 0.4),
        ("cosine", 50, 0.2 * (1 + math.cos(math.pi * 45 / 95))),
        ("cosine", 99, 0.2 * (1 + math.cos(math.pi * 94 / 95))),
        ("cosine", 100, 0.0),
        ("cosine", 250, 0.0),
        ("plateau", 99, 0.4),
        ("halve_every", 5, 0.4),
        ("halve_every", 19, 0.4),
        ("halve_every", 20, 0.2),  # counted over the run, warm-up and all
        ("halve_every", 39, 0.2),
        ("halve_every", 40, 0.1),
        ("halve_every", 99, 0.025),
        ("poly", 5, 0.4),
        ("poly", 43, 0.4 * (1 - 38 / 95) ** 2),
        ("poly", 99, 0.4 * (1 / 95) ** 2),
        ("poly", 100, 0.0),
        ("poly", 250, 0.0),
    ],
)
def test_rate_at_landmark_steps(name: str, step: int, expected: float) -> None:
    assert make_schedule(name).lr(step, PlateauState()) == pytest.approx(expected, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("name", FACTORS)
def test_without_warm_up_the_first_rate_is_the_base_rate(name: str) -> None:
    assert make_schedule(name, warmup_steps=0).lr(0, PlateauState()) == pytest.approx(0.4, rel=1e-12)


@pytest.mark.parametrize(("power", "expected"), [(0.5, 0.4 * 0.8**0.5), (1.0, 0.32), (2.0, 0.256), (3.0, 0.2048)])
def test_poly_raises_what_is_left_to_its_power(power: float, expected: float) -> None:
    schedule = make_schedule("poly", power=power, warmup_steps=0)
    assert schedule.lr(20, PlateauState()) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("halve_every_steps", [1, 256])
def test_halve_every_counts_updates_from_0(halve_every_steps: int) -> None:
    schedule = make_schedule("halve_every", halve_every_steps=halve_every_steps, warmup_steps=0)
    rates = [schedule.lr(step, PlateauState()) for step in (0, halve_every_steps - 1, halve_every_steps)]
    assert rates == pytest.approx([0.4, 0.4, 0.2], rel=1e-12)


@pytest.mark.parametrize("name", FACTORS)
@pytest.mark.parametrize(("step", "expected"), [(0, 0.08), (4, 0.4), (5, 0.4), (60, 0.4), (250, 0.4)])
def test_the_constant_rate_has_the_warm_up_and_nothing_else(name: str, step: int, expected: float) -> None:
    assert make_schedule(name).constant_lr(step) == pytest.approx(expected, rel=1e-12)


def test_plateau_multiplies_once_a_drop() -> None:
    assert make_schedule("plateau").lr(50, PlateauState(drops=2)) == pytest.approx(0.004, rel=1e-12)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.1], PlateauState(0, 0.1, 0)),
        ([0.1, 0.2, 0.3], PlateauState(0, 0.3, 0)),
        ([0.3, 0.2], PlateauState(0, 0.3, 1)),
        ([0.3, 0.3, 0.3], PlateauState(1, 0.3, 0)),  # as good is not better
        ([0.3, 0.2, 0.4, 0.1], PlateauState(0, 0.4, 1)),  # a better one starts the count anew
        ([0.3, 0.2, 0.2, 0.2, 0.2], PlateauState(2, 0.3, 0)),  # and so does a drop
        ([0.0, 0.0, 0.0], PlateauState(1, 0.0, 0)),
    ],
)
def test_plateau_drops_after_its_patience(values: list[float], expected: PlateauState) -> None:
    state = PlateauState()
    [state.observe(value, patience=2) for value in values]
    assert state == expected


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("constant", {"warmup_steps": 1000}, "the rate ends at 0.01, and optimizer.lr is 0.1"),
        ("step", {"step_epochs": 10}, "step_epochs 10 never drops the rate"),
        ("step", {"step_epochs": 9}, ""),
        ("halve_every", {"halve_every_steps": 100}, "halve_every_steps 100 never drops the rate"),
        ("halve_every", {"halve_every_steps": 99}, ""),
        ("plateau", {"patience": 10}, "patience 10 never drops the rate: the run has 100 updates in 10 epochs"),
        ("plateau", {"patience": 9}, ""),
        ("cosine", {"warmup_steps": 99, "step_epochs": 10, "halve_every_steps": 100, "patience": 10}, ""),
    ],
)
def test_what_a_run_is_too_short_for_is_said(name: str, changes: dict[str, int], words: str) -> None:
    values = {"warmup_steps": 0, "step_epochs": 1, "halve_every_steps": 1, "patience": 1}
    schedule = Schedule(
        name=name, base_lr=0.1, gamma=0.5, power=1.0, steps_per_epoch=10, total_steps=100, **{**values, **changes}
    )
    lines = list_unreached(schedule)
    assert len(lines) == bool(words)
    assert words in "".join(lines)
    if name in ("step", "halve_every"):  # the right value: the rate of the last update is the first one's or it is not
        assert (schedule.lr(99, PlateauState()) == schedule.lr(0, PlateauState())) == bool(words)
