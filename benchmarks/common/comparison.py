"""The training loss of several runs in one panel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alexnet_dist.figures.canvas import BLUE, GRAY, GREEN, ORANGE, TEXT_SIZE, new_figure, save_figure

INCHES = (8.0, 4.6)
COLORS = (BLUE, ORANGE, GREEN)


def draw_comparison(path: Path, runs: Mapping[str, Sequence[Mapping[str, Any]]], level: float, meaning: str) -> None:
    """Draw the loss over updates, a line for each run.

    Args:
        path: the PNG.
        runs: rows of metrics.jsonl by the name of the run; at most three.
        level: a loss to compare with, in nats.
        meaning: what it stands for.

    Raises:
        MachineError: the file cannot be written.
    """
    figure = new_figure(*INCHES, "training loss")
    axes = figure.subplots()
    for (name, rows), color in zip(runs.items(), COLORS, strict=False):
        logged = [row for row in rows if row["event"] == "train"]
        axes.plot([row["step"] for row in logged], [row["loss"] for row in logged], color=color, label=name)
    axes.axhline(level, color=GRAY, linestyle=":", label=meaning)
    axes.set_xlabel("update", fontsize=TEXT_SIZE)
    axes.set_ylabel("cross-entropy (nats)", fontsize=TEXT_SIZE)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=TEXT_SIZE)
    save_figure(figure, path)
