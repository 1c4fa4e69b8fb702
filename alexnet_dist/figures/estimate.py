"""The figure of `estimate`: speed and bytes sent over the number of processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from alexnet_dist.costs.model import Prediction
from alexnet_dist.figures.canvas import check_matplotlib, new_figure, save_figure

INCHES = (11.0, 4.6)


def draw_estimate(predictions: Sequence[Prediction], one_process: float, title: str, path: Path) -> None:
    """A PNG: images per second with their bands, and bytes sent, over the number of processes.

    Raises:
        MachineError: matplotlib is not installed, or the file cannot be written.
    """
    check_matplotlib()
    from matplotlib.ticker import LogLocator

    figure = new_figure(*INCHES, title)
    speed, sent = figure.subplots(1, 2)
    counts = sorted({one.processes for one in predictions})
    ideal = [count * one_process for count in counts]
    speed.plot(counts, ideal, color="0.6", linestyle=":", label="one process, times their number")
    several = [one for one in predictions if one.processes > 1]
    for name, group in _by_label(several).items():
        x = [one.processes for one in group]
        (line,) = speed.plot(x, [one.images_per_second for one in group], marker="o", markersize=3.5, label=name)
        slow, fast = (
            [one.images / getattr(one, end) for one in group] for end in ("slowest_seconds", "fastest_seconds")
        )
        speed.fill_between(x, slow, fast, color=line.get_color(), alpha=0.15, linewidth=0)
        sent.plot(x, [one.bytes_sent / 1e6 for one in group], marker="o", markersize=3.5, label=name)
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


def _by_label(predictions: Sequence[Prediction]) -> dict[str, list[Prediction]]:
    """The predictions of each line of the figure: the groups that hybrid chooses are one line."""
    lines: dict[str, list[Prediction]] = {}
    for one in predictions:
        plain = replace(one.strategy, shards=None)
        lines.setdefault(str(plain), []).append(one)
    return lines
