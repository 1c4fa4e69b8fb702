"""The figure of `estimate` on failing machines: goodput over the checkpoint interval, and over how many there are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from alexnet_dist.figures.canvas import check_matplotlib, new_figure, save_figure

INCHES = (11.0, 4.6)
MINUTE = 60.0  # seconds
FINE = 0.05  # of goodput: an axis that is shorter has tenths of a percent
MOST_LINES = 6  # that are still told apart


class FleetCurve(NamedTuple):
    """What a fleet makes of its time."""

    machines: int
    intervals: Sequence[float]  # seconds of training between two checkpoints
    shares: Sequence[float]  # goodput with each
    best: float  # seconds of the best interval
    mean: float  # goodput with it
    low: float  # the twentieth part of the months is worse
    high: float  # the twentieth part of the months is better


def draw_goodput(curves: Sequence[FleetCurve], title: str, path: Path) -> None:
    """A PNG: goodput over the minutes between checkpoints for some fleets, and at best over the number of machines.

    Args:
        curves: by number of machines, in order.
        title: above the figure.
        path: of the file.

    Raises:
        MachineError: matplotlib is not installed, or the file cannot be written.
    """
    check_matplotlib()
    figure = new_figure(*INCHES, title)
    over_interval, over_machines = figure.subplots(1, 2)
    for curve in _pick(curves):
        minutes = [seconds / MINUTE for seconds in curve.intervals]
        (line,) = over_interval.plot(minutes, curve.shares, label=_count(curve.machines))
        over_interval.plot(curve.best / MINUTE, curve.mean, marker="o", markersize=5, color=line.get_color())
    over_interval.set_xscale("log")
    over_interval.xaxis.set_major_formatter("{x:,g}")
    over_interval.set_xlabel("minutes of training between checkpoints (dot: the best)")
    over_interval.legend(fontsize="small")
    counts = [curve.machines for curve in curves]
    over_machines.plot(counts, [curve.mean for curve in curves], marker="o", markersize=3.5, label="mean")
    low, high = [curve.low for curve in curves], [curve.high for curve in curves]
    over_machines.fill_between(counts, low, high, alpha=0.2, linewidth=0, label="nine of ten months")
    over_machines.set_xscale("log", base=2)
    over_machines.set_xticks(counts, [f"{count:,}" for count in counts])
    over_machines.set_xlabel("machines, with their best interval")
    over_machines.legend(fontsize="small")
    for axes in (over_interval, over_machines):
        axes.set_ylabel("goodput")
        low_end, high_end = axes.get_ylim()
        axes.yaxis.set_major_formatter("{x:.1%}" if high_end - low_end < FINE else "{x:.0%}")
        axes.grid(alpha=0.3)
    save_figure(figure, path)


def _count(machines: int) -> str:
    return f"{machines:,} machine{'s' if machines > 1 else ''}"


def _pick(curves: Sequence[FleetCurve]) -> Sequence[FleetCurve]:
    """Some from the first to the last, as many as are told apart."""
    if len(curves) <= MOST_LINES:
        return curves
    return [curves[round(place * (len(curves) - 1) / (MOST_LINES - 1))] for place in range(MOST_LINES)]
