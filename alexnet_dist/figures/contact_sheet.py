"""worst.png and inputs.png: pictures side by side, each with its caption."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from alexnet_dist.figures.canvas import PLAIN, SMALL_SIZE, new_figure, save_figure, shorten

COLUMNS = 6
INCHES = 1.6  # side of a picture
LINE_INCHES = 0.16
LONGEST_LINE = 32  # characters


def draw_contact_sheet(
    path: Path, pictures: npt.NDArray[np.uint8], captions: Sequence[Sequence[str]], title: str
) -> None:
    """Draw pictures in rows of six.

    Args:
        path: the PNG.
        pictures: (N, S, S, 3) or (N, S, S, 1); N is 1 or more.
        captions: (N,) lines below each; those too long are cut.
        title: of the figure.

    Raises:
        MachineError: the file cannot be written.
    """
    columns = min(COLUMNS, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    lines = max(len(caption) for caption in captions)
    height = rows * (INCHES + lines * LINE_INCHES + 0.1) + 0.5
    figure = new_figure(max(columns * (INCHES + 0.1), 5.0), height, title)
    cells = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in cells:
        axes.set_axis_off()
    for axes, picture, caption in zip(cells, pictures, captions, strict=False):
        axes.imshow(picture.squeeze(-1) if picture.shape[-1] == 1 else picture, cmap="gray", vmin=0, vmax=255)
        text = "\n".join(shorten(line, LONGEST_LINE) for line in caption)
        axes.text(0.5, -0.03, text, transform=axes.transAxes, ha="center", va="top", fontsize=SMALL_SIZE, **PLAIN)
    save_figure(figure, path)
