"""The figure of `estimate`: speed and bytes sent over the number of processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from alexnet_dist.figures.canvas import check_matplotlib, new_figure, save_figure

INCHES = (11.0, 4.6)


class Point(NamedTuple):
    """What a strategy does at a number of processes."""

    processes: int
    images_per_second: float  # to expect
    slowest: float  # images per second with nothing hidden
    fastest: float  # images per second with all hidden that can be
    megabytes: float  # sent by one process in a step


def draw_estimate(
    lines: Mapping[str, Sequence[Point]], counts: Sequence[int], one_process: float, title: str, path: Path
) -> None:
    """A PNG: images per second with their bands, and bytes sent, over the number of processes.

    Args:
        lines: by the name of the strategy.
        counts: numbers of processes, in order.
        one_process: images per second of one process alone.
        title: above the figure.
        path: of the file.

    Raises:
        MachineError: matplotlib is not installed, or the file cannot be written.
    """
    check_matplotlib()
    from matplotlib.ticker import LogLocator

    figure = new_figure(*INCHES, title)
    speed, sent = figure.subplots(1, 2)
    ideal = [count * one_process for count in counts]
    speed.plot(counts, ideal, color="0.6", linestyle=":", label="one process, times their number")
    for name, points in lines.items():
        x = [point.processes for point in points]
        (line,) = speed.plot(x, [p.images_per_second for p in points], marker="o", markersize=3.5, label=name)
        slow, fast = [point.slowest for point in points], [point.fastest for point in points]
        speed.fill_between(x, slow, fast, color=line.get_color(), alpha=0.15, linewidth=0)
        sent.plot(x, [point.megabytes for point in points], marker="o", markersize=3.5, label=name)
    for axes, what in ((speed, "images per second"), (sent, "MB sent by a process in a step")):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.yaxis.set_minor_formatter("")
        axes.set_xticks(counts, [f"{count:,}" for count in counts])
        axes.set_xlabel("processes")
        axes.set_ylabel(what)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    save_figure(figure, path)
