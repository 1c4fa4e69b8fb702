"""conv1.png: the filters of the first layer, each tower's apart."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt

from alexnet_dist.figures.canvas import TEXT_SIZE, new_figure, save_figure

Floats = npt.NDArray[np.floating]

INCHES = 4 / 100  # side of a weight
BACKGROUND = 1.0
GAP = 0.06  # between towers, in widths of one
SHAPE = 1.5  # columns over rows of a grid, about


def draw_filters(path: Path, weights: Floats, num_towers: int, title: str) -> None:
    """Draw the filters in their order, row by row; each is scaled by its own largest weight, and 0 is middle gray.

    Args:
        path: the PNG.
        weights: (N, C, H, W) with C = 3 (red, green, blue) or 1.
        num_towers: parts of N that are shown apart.
        title: of the figure.

    Raises:
        MachineError: the file cannot be written.
    """
    columns = choose_columns(len(weights) // num_towers)
    towers = [arrange_filters(part, columns) for part in np.split(weights, num_towers)]
    height, width = towers[0].shape[:2]
    figure = new_figure(max(num_towers * (width * INCHES + 0.35), 4.0), height * INCHES + 1.0, title)
    cells = figure.subplots(1, num_towers, squeeze=False, gridspec_kw={"wspace": GAP})[0]
    for tower, axes in enumerate(cells):
        axes.imshow(towers[tower].squeeze(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        if num_towers > 1:
            axes.set_title(f"tower {tower + 1}: {len(weights) // num_towers} filters", fontsize=TEXT_SIZE)
        axes.set_axis_off()
    save_figure(figure, path)


def choose_columns(count: int) -> int:
    """Columns of a grid that is a little wider than high, with as few empty places as can be."""
    least, most = math.ceil(math.sqrt(count)), math.floor(2 * math.sqrt(count))
    return min(range(least, most + 1), key=lambda columns: (-count % columns, abs(columns - math.sqrt(SHAPE * count))))


def arrange_filters(weights: Floats, columns: int) -> Floats:
    """One picture of all filters, a white line between them: (N, C, H, W) to (rows * (H + 1) - 1, ..., C) in 0..1."""
    count, channels, high, wide = weights.shape
    rows = math.ceil(count / columns)
    largest = np.abs(weights).max(axis=(1, 2, 3), keepdims=True)
    shown = 0.5 + 0.5 * weights / np.where(largest > 0, largest, 1)  # (N, C, H, W)
    grid = np.full((rows * (high + 1), columns * (wide + 1), channels), BACKGROUND)
    for number, picture in enumerate(shown.transpose(0, 2, 3, 1)):
        top, left = number // columns * (high + 1), number % columns * (wide + 1)
        grid[top : top + high, left : left + wide] = picture
    return grid[:-1, :-1]
