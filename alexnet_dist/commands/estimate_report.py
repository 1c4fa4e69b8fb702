"""What `estimate` and `doctor` show of the cost model: predictions as a table, as JSON, as a figure, and in words."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alexnet_dist.commands.summary import align
from alexnet_dist.errors import MachineError

if TYPE_CHECKING:
    from alexnet_dist.parallel.cost_model import ByteSize, Compute, Links, Prediction
    from alexnet_dist.parallel.network_size import NetworkSize
    from alexnet_dist.parallel.published import PublishedRun

COLUMNS = ("processes", "strategy", "step (ms)", "images/s", "per process", "MB sent", "GiB held")
PUBLISHED_COLUMNS = ("run", "source", "published", "nothing hidden", "all hidden", "")
FIGURE_INCHES, FIGURE_DPI = (11.0, 4.6), 110


def predict_all(
    network: NetworkSize,
    counts: Sequence[int],
    images: int,
    compute: Compute,
    links: Links,
    activation_bytes: ByteSize,
    exchange_bytes: ByteSize,
    gradient_bytes: ByteSize = 4,
) -> tuple[list[Prediction], list[str]]:
    """Every strategy at every process count, and why some are left out.

    Args:
        network: which.
        counts: processes.
        images: per process and step.
        compute: speed of one process alone.
        links: what joins them.
        activation_bytes: of an activation in memory.
        exchange_bytes: of an activation on its way.
        gradient_bytes: of a gradient on its way under towers and hybrid; ddp is shown with both sizes.
    """
    from alexnet_dist.parallel.cost_model import Strategy, choose_shards, predict, refuse

    strategies = (
        Strategy("ddp"),
        Strategy("ddp", gradient_bytes=2),
        Strategy("towers", gradient_bytes, exchange_bytes),
        Strategy("hybrid", gradient_bytes, exchange_bytes),
    )
    predictions: list[Prediction] = []
    refused: dict[tuple[str, str], list[int]] = {}
    for count in counts:
        for strategy in strategies if count > 1 else strategies[:1]:
            chosen = choose_shards(network, strategy, count, images, compute, links)
            why = refuse(network, chosen, count)
            if why is not None:
                refused.setdefault((strategy.name, why), []).append(count)
                continue
            predictions.append(predict(network, chosen, count, images, compute, links, activation_bytes))
    notes = [f"{name} left out at {', '.join(map(str, at))}: {why}" for (name, why), at in refused.items()]
    return predictions, notes


def write_table(predictions: Sequence[Prediction], one_process: float) -> str:
    """Aligned columns.

    Args:
        predictions: to show.
        one_process: images per second of one process alone.
    """
    cells: list[tuple[str, ...]] = [COLUMNS]
    for one in predictions:
        fast, slow = _milliseconds(one.fastest_seconds), _milliseconds(one.slowest_seconds)
        cells.append(
            (
                f"{one.processes}",
                str(one.strategy),
                fast if fast == slow else f"{fast} - {slow}",
                f"{one.images_per_second:,.0f}",
                f"{one.images_per_second / one.processes / one_process:.0%}",
                f"{one.bytes_sent / 1e6:,.1f}",
                f"{one.memory_bytes / 2**30:.2f}",
            )
        )
    return align(cells)


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:,.1f}" if seconds < 1 else f"{1e3 * seconds:,.0f}"


def advise(predictions: Sequence[Prediction]) -> list[str]:
    """A sentence for each process count: which strategy, and why."""
    from alexnet_dist.parallel.cost_model import recommend

    lines = []
    for count, group in itertools.groupby(predictions, key=lambda one: one.processes):
        best, reason = recommend(list(group))
        lines.append(f"{count} process{'es' if count > 1 else ''}: {best.strategy} ({reason})")
    return lines


def to_json(predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
    """The predictions as JSON knows them; seconds and bytes."""
    return [
        {
            **asdict(one),
            "strategy": str(one.strategy),
            "step_seconds": one.step_seconds,
            "images_per_second": one.images_per_second,
        }
        for one in predictions
    ]


def write_published(runs: Sequence[PublishedRun]) -> str:
    """Published efficiencies beside the model's band."""
    from alexnet_dist.parallel.published import TOLERANCE, predict_band

    cells: list[tuple[str, ...]] = [PUBLISHED_COLUMNS]
    for run in runs:
        slow, fast = predict_band(run)
        held = f"held within {100 * TOLERANCE:.0f} points" if run.is_held else f"not held: {run.remark}"
        cells.append((run.name, run.source, f"{run.efficiency:.1%}", f"{slow:.1%}", f"{fast:.1%}", held))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)
    return "".join(line.rstrip() + "\n" for line in lines)


def draw(predictions: Sequence[Prediction], one_process: float, title: str, path: Path) -> None:
    """A PNG: images per second with their bands, and bytes sent, over the number of processes.

    Raises:
        MachineError: matplotlib is not installed, or the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import LogLocator
    except ImportError:
        remedy = "pip install 'alexnet_dist[plots]'"
        raise MachineError("the figure needs matplotlib", why="it is not installed", remedy=remedy) from None
    figure = Figure(figsize=FIGURE_INCHES, dpi=FIGURE_DPI, layout="constrained")
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
    figure.suptitle(title, fontsize="medium")
    try:
        figure.savefig(path)
    except OSError as error:
        raise MachineError("the figure cannot be written", where=str(path), why=str(error.strerror)) from None


def _by_label(predictions: Sequence[Prediction]) -> dict[str, list[Prediction]]:
    """The predictions of each line of the figure: the groups that hybrid chooses are one line."""
    lines: dict[str, list[Prediction]] = {}
    for one in predictions:
        plain = replace(one.strategy, shards=None)
        lines.setdefault(str(plain), []).append(one)
    return lines
