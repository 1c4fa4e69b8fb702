"""Where the evidence for a class lies in a picture: pictures with their evidence laid over them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from alexnet_dist.figures.canvas import SMALL_SIZE, measure_title, new_figure, save_figure

INCHES, GAP = 2.8, 0.15  # side of a picture, and around it
BAR_INCHES, WORDS_INCHES = 0.12, 0.75  # the scale's width, and beside it its words
COLORS = "inferno"  # dark to bright, also in gray and for every kind of color vision
STRONGEST = 0.75  # part of the color where the evidence is 1
SHADE, LIFT = 0.55, 36  # of the picture where there is none: darker than it is, and never black


def blend_evidence(pictures: npt.NDArray[np.uint8], evidence: npt.NDArray[np.floating]) -> npt.NDArray[np.uint8]:
    """Pictures that are gray and dark, and bright in color where the evidence is strong.

    Args:
        pictures: (N, H, W, 3) or (N, H, W, 1).
        evidence: (N, H, W), from 0 to 1, as `explain_classes` gives it.

    Returns:
        (N, H, W, 3).
    """
    from matplotlib import colormaps

    gray = pictures.mean(axis=3, keepdims=True) * SHADE + LIFT  # (N, H, W, 1)
    colors = 255 * colormaps[COLORS](evidence)[..., :3]  # (N, H, W, 3)
    part = STRONGEST * evidence[..., None]  # (N, H, W, 1)
    blended: npt.NDArray[np.uint8] = np.rint((1 - part) * gray + part * colors).astype(np.uint8)
    return blended


def draw_explanation(
    path: Path, picture: npt.NDArray[np.uint8], evidence: npt.NDArray[np.floating], title: str
) -> None:
    """Draw a picture, and beside it the same one with its evidence.

    Args:
        path: the PNG.
        picture: (H, W, 3) or (H, W, 1).
        evidence: (H, W), from 0 to 1.
        title: of the figure: the class that the evidence is for.

    Raises:
        MachineError: the file cannot be written.
    """
    width = 2 * INCHES + 3 * GAP + BAR_INCHES + WORDS_INCHES
    header = measure_title(title, width)
    height = header + INCHES + GAP
    figure = new_figure(width, height, title, is_laid_out=False)
    panels = (picture, blend_evidence(picture[None], evidence[None])[0])
    for number, panel in enumerate(panels):
        left = GAP + number * (INCHES + GAP)
        axes = figure.add_axes((left / width, GAP / height, INCHES / width, INCHES / height))
        axes.imshow(panel.squeeze(-1) if panel.shape[-1] == 1 else panel, cmap="gray", vmin=0, vmax=255)
        axes.set_axis_off()
    left = 2 * (INCHES + GAP) + GAP
    bar = figure.add_axes((left / width, GAP / height, BAR_INCHES / width, INCHES / height), xticks=[])
    bar.imshow(draw_scale().swapaxes(0, 1)[::-1], aspect="auto", extent=(0, 1, 0, 1))
    bar.yaxis.tick_right()
    bar.set_yticks([0, 1], ["none", "strongest"], fontsize=SMALL_SIZE)
    save_figure(figure, path)


def draw_scale() -> npt.NDArray[np.uint8]:
    """(1, 256, 3) how middle gray looks from no evidence to the strongest."""
    gray, evidence = np.full((1, 1, 256, 1), 128, np.uint8), np.linspace(0, 1, 256)[None, None]
    scale: npt.NDArray[np.uint8] = blend_evidence(gray, evidence)[0]
    return scale
