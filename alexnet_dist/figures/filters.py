"""conv1.png: the filters of the first layer, each tower's apart."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt

from alexnet_dist.figures.canvas import TEXT_SIZE, measure_title, new_figure, save_figure

Floats = npt.NDArray[np.floating]

INCHES = 4 / 100  # side of a weight
BACKGROUND = 1.0
GAP = 0.2  # inches between towers and around them
TOWER_INCHES = 0.22  # of a tower's name
LEAST_WIDTH = 4.0
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
    high, wide = (side * INCHES for side in towers[0].shape[:2])
    width = max(num_towers * (wide + GAP) + GAP, LEAST_WIDTH)
    header = measure_title(title, width) + (TOWER_INCHES if num_towers > 1 else 0.0)
    height = header + high + GAP / 2
    figure = new_figure(width, height, title, is_laid_out=False)
    left = (width - num_towers * (wide + GAP) + GAP) / 2
    for number, tower in enumerate(towers):
        x = left + number * (wide + GAP)
        axes = figure.add_axes((x / width, GAP / 2 / height, wide / width, high / height))
        axes.imshow(tower.squeeze(), cmap="gray", vmin=0, vmax=1, interpolation="nearest", aspect="auto")
        if num_towers > 1:
            axes.set_title(f"tower {number + 1}: {len(weights) // num_towers} filters", fontsize=TEXT_SIZE, pad=4)
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
