"""worst.png and inputs.png: pictures side by side, each with its caption."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from alexnet_dist.base.text import cut_end
from alexnet_dist.figures.canvas import BLUE, ORANGE, PLAIN, SMALL_SIZE, measure_title, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 6
INCHES, GAP = 1.6, 0.2  # side of a picture, and between two
LINE_INCHES = 0.15
LONGEST_LINE = 29  # characters
FRAME_POINTS = 2.5
MARKS = {"right": BLUE, "wrong": ORANGE}  # told apart with every kind of color vision, and by their words


def draw_contact_sheet(
    path: Path,
    pictures: npt.NDArray[np.uint8],
    captions: Sequence[Sequence[str]],
    title: str,
    marks: Sequence[str] | None = None,
) -> None:
    """Draw pictures in rows of six.

    Args:
        path: the PNG.
        pictures: (N, S, S, 3) or (N, S, S, 1); N is 1 or more.
        captions: (N,) lines below each; those too long are cut.
        title: of the figure.
        marks: (N,) of `MARKS`: the word below each, and the color of the frame around it.

    Raises:
        MachineError: the file cannot be written.
    """
    columns = min(COLUMNS, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    num_lines = max(len(caption) for caption in captions) + (marks is not None)
    cell_width, cell_height = INCHES + GAP, INCHES + GAP + num_lines * LINE_INCHES
    width = max(columns * cell_width + GAP, 5.0)
    header = measure_title(title, width)
    height = header + rows * cell_height
    left = (width - columns * cell_width + GAP) / 2
    figure = new_figure(width, height, title, is_laid_out=False)
    for number, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        row, column = divmod(number, columns)
        x, y = left + column * cell_width, height - header - row * cell_height - INCHES
        axes = figure.add_axes((x / width, y / height, INCHES / width, INCHES / height), xticks=[], yticks=[])
        axes.imshow(picture.squeeze(-1) if picture.shape[-1] == 1 else picture, cmap="gray", vmin=0, vmax=255)
        _write_caption(axes, caption, None if marks is None else marks[number])
    save_figure(figure, path)


def _write_caption(axes: Axes, caption: Sequence[str], mark: str | None) -> None:
    plain: dict[str, Any] = {}
    lines = [(line, plain) for line in caption]
    if mark is not None:
        lines.insert(0, (mark, {"color": MARKS[mark], "fontweight": "bold"}))
        axes.spines[:].set(color=MARKS[mark], linewidth=FRAME_POINTS)
    axes.spines[:].set_visible(mark is not None)
    for number, (line, style) in enumerate(lines):
        y = -0.04 - number * LINE_INCHES / INCHES
        place: dict[str, Any] = {"transform": axes.transAxes, "ha": "center", "va": "top", "fontsize": SMALL_SIZE}
        axes.text(0.5, y, cut_end(line, LONGEST_LINE), **place, **style, **PLAIN)
