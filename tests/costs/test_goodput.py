"""Machines that fail: the simulation against the exact expectation, and what each price does to it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from alexnet_dist.base.errors import UsageError
from alexnet_dist.costs.goodput import (
    MONTH,
    Fleet,
    find_best_interval,
    find_restart,
    find_slowdown,
    measure_goodput,
    simulate_months,
    young_interval,
)
from alexnet_dist.costs.published import PUBLISHED_FLEETS, explain_fleet

FLEET = Fleet(512, failure_hours=5000.0, checkpoint_seconds=20.0, restart_seconds=300.0)  # a failure every 9.8 h


def expect(fleet: Fleet, interval: float) -> float:
    """The goodput of an endless run whose failures have no memory and whose spares never end."""
    mean = fleet.failure_seconds
    checkpoints = math.exp(-fleet.restart_seconds / mean) / (math.exp((interval + fleet.checkpoint_seconds) / mean) - 1)
    return interval * checkpoints / mean


@pytest.mark.parametrize("machines", [1, 64, 512, 2048])
@pytest.mark.parametrize("units", [0.25, 1.0, 4.0])
def test_the_simulation_meets_the_exact_expectation(machines: int, units: float) -> None:
    fleet = replace(FLEET, machines=machines)
    interval = units * young_interval(fleet)
    shares = measure_goodput(simulate_months(fleet), fleet, interval)
    lost, error = 1 - expect(fleet, interval), shares.std() / math.sqrt(len(shares))
    # A month loses less than an endless run: it begins at no restart's end, and its last updates are saved.
    ends = (interval + fleet.restart_seconds) / MONTH
    assert shares.mean() == pytest.approx(1 - lost, abs=4 * error + ends + 0.02 * lost)
    assert abs(shares.mean() - expect(replace(fleet, restart_seconds=4 * 300.0), interval)) > 4 * error or machines == 1


def test_the_best_interval_is_that_of_the_exact_expectation() -> None:
    intervals = np.geomspace(60, 36000, 500)
    best = intervals[np.argmax([expect(FLEET, interval) for interval in intervals])]
    found = find_best_interval(FLEET, step_seconds=0.1)
    assert found.interval == pytest.approx(best, rel=0.3)  # the optimum is flat
    assert expect(FLEET, found.interval) == pytest.approx(expect(FLEET, best), abs=0.002)
    assert found.low < found.mean < found.high
    assert find_best_interval(FLEET, step_seconds=7200.0).interval == 7200.0  # no shorter than a step


@pytest.mark.parametrize(
    ("dearer", "by"),
    [
        ({"machines": 2048}, 0.02),
        ({"failure_hours": 1000.0}, 0.02),
        ({"restart_seconds": 3600.0}, 0.02),
        ({"checkpoint_seconds": 200.0}, 0.02),
        ({"spares": 1, "repair_hours": 48.0}, 0.1),
        ({"jitter": 0.05}, 0.1),
    ],
)
def test_each_price_is_paid(dearer: dict[str, float], by: float) -> None:
    goodput = find_best_interval(FLEET, 0.1).mean
    assert find_best_interval(replace(FLEET, **dearer), 0.1).mean < goodput - by  # type: ignore[arg-type]


def test_many_spares_are_as_good_as_always_one() -> None:
    always, many = (find_best_interval(replace(FLEET, spares=spares), 0.1) for spares in (None, 40))
    assert many == always


def test_the_slowest_of_two_machines() -> None:
    assert find_slowdown(Fleet(2, 1.0, jitter=0.1)) == pytest.approx(1 + 0.1 / math.sqrt(math.pi), abs=0.005)
    assert find_slowdown(Fleet(2, 1.0)) == 1.0


def test_a_fleet_that_never_stands_is_refused() -> None:
    with pytest.raises(UsageError, match="fail too often"):
        simulate_months(Fleet(100_000, failure_hours=1.0))


@pytest.mark.heavy
def test_published_goodput_is_explained_by_a_restart() -> None:
    llama, megascale, opt = PUBLISHED_FLEETS
    for run in PUBLISHED_FLEETS:
        restart = find_restart(run.fleet, run.goodput)
        assert find_best_interval(replace(run.fleet, restart_seconds=restart), 1.0).mean == pytest.approx(
            run.goodput, abs=0.01
        )
    assert explain_fleet(llama)[0] == pytest.approx(0.90, abs=0.05)  # restarted by itself
    assert explain_fleet(opt)[1] > 3600 > explain_fleet(megascale)[1]  # by hand; by itself
