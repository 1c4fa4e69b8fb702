"""What DALI is given where it resizes, crops and normalizes itself, which is on a GPU; on a CPU it gives windows.

Its resize repeats the pixels at an edge, and the reference's leaves out what lies beyond it. So a window is surrounded
by zeros, and the outermost pixels of the result are multiplied: `find_margins` and `find_edge_gains`.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from alexnet_dist.data.crop_ops.operations import changes_bytes
from alexnet_dist.data.draws import FloatArray, IntArray
from alexnet_dist.data.engines.loader import Loader
from alexnet_dist.data.plan import StepPlan

Array: TypeAlias = npt.NDArray[np.generic]


class Scaling(NamedTuple):
    """Numbers for n windows of m rows, in pixels where nothing else is said.

    An array for each argument of DALI's operators. One table in their place takes a third of their time in Python, but
    three times that of DALI's threads, for each argument is cut out of it by an operator.
    """

    margins: Array  # (n, 1, 2) int32 y, x of the window among zeros
    padded: Array  # (n, 2) int32 height, width of the window with the zeros around it
    inner_start: Array  # (n, 2) float32 y, x of the window within its margins
    inner_end: Array  # (n, 2) float32 its other corner; with y above the start's the picture is flipped top to bottom
    resized: Array  # (n, 2) float32 height, width
    mean: Array  # (n, C) float32 subtracted from the pixels
    crops: tuple[Array, ...]  # x, y in parts of the margin (n,) float32, mirror (n,) int32, and so on for each view


def describe_scaling(rows: StepPlan, loader: Loader) -> Scaling:
    """Of m rows; operations on bytes, if there are any, come before the normalization."""
    recipe = loader.plan.augmentation
    views, means = recipe.views, find_means(loader, rows)
    resized = rows.resized[::views]
    upside_down = rows.flips[::views, 1:] & np.array([True, False])  # (n, 2) for y, x
    shape = rows.windows[::views, 3:1:-1]  # height, width from here on
    margins = find_margins(shape, resized[:, ::-1])
    return Scaling(
        margins=margins[:, None].astype(np.int32),
        padded=(shape + 2 * margins).astype(np.int32),
        inner_start=np.where(upside_down, margins + shape, margins).astype(np.float32),
        inner_end=np.where(upside_down, margins, margins + shape).astype(np.float32),
        resized=resized[:, ::-1].astype(np.float32),
        mean=np.zeros_like(means[::views]) if changes_bytes(recipe) else means[::views],
        crops=place_crops(rows, views, recipe.crop_size),
    )


def find_means(loader: Loader, rows: StepPlan) -> npt.NDArray[np.float32]:
    """(B, C) what is subtracted from the pixels of each row: the mean less the row's color shift."""
    means: npt.NDArray[np.float32] = -loader.normalization.find_offsets(
        torch.from_numpy(rows.shifts.astype(np.float32))
    ).numpy()
    return means


def place_crops(rows: StepPlan, views: int, side: int) -> tuple[Array, ...]:
    """x, y, mirror of each view, in pictures that are flipped top to bottom already.

    DALI wants x and y in parts of the margin, multiplies, and rounds: for any margin below 2**22 that gives the plan's
    corner again.
    """
    margins = rows.resized - side  # (n * views, 2)
    corners = np.where(rows.flips[:, 1:] & np.array([False, True]), margins - rows.corners, rows.corners)
    parts = (corners / np.maximum(margins, 1)).astype(np.float32)
    mirror = rows.flips[:, 0].astype(np.int32)
    columns = (parts[:, 0], parts[:, 1], mirror)
    return tuple(column[view::views] for view in range(views) for column in columns)


def list_edges(loader: Loader, rows: StepPlan) -> list[torch.Tensor]:
    """(4, m) factors and (4, m, C) terms for the outermost pixels of m rows; see `find_edge_gains`. Or none, if they
    change nothing.

    With images = pixels / std - offsets a gain g makes g * images + (g - 1) * offsets of them.
    """
    gains = find_edge_gains(rows, loader.plan.augmentation.crop_size)
    if (gains == 1).all():
        return []
    means = find_means(loader, rows)
    offsets = np.divide(means, loader.normalization.std, dtype=np.float32)
    if changes_bytes(loader.plan.augmentation):
        offsets = np.zeros_like(means)  # the images hold pixels still
    terms = (gains - 1).T[:, :, None] * offsets
    return [torch.from_numpy(array) for array in (np.ascontiguousarray(gains.T), terms)]


def find_margins(shape: IntArray, resized: IntArray) -> IntArray:
    """(n, 2) zeros to put around a window on each axis, so that DALI's filter finds nothing beyond its edges.

    Both filters are a triangle that reaches `scale` = shape / resized pixels to each side of an output pixel. Beyond
    the edge DALI repeats the last pixel, while the reference leaves those weights out and divides by the rest. With
    zeros there DALI leaves them out too, and `find_edge_gains` gives the division. Enlarging needs none of this: a
    repeated pixel gives the same as dividing.
    """
    return np.where(shape > resized, -(-shape // (2 * resized)) + 1, 0)


def find_edge_gains(rows: StepPlan, side: int) -> npt.NDArray[np.float32]:
    """(m, 4) what the first and last column and the first and last line of each crop are multiplied by.

    Only the outermost pixels of a resized window reach beyond its edges; a crop within them has gains of 1.
    """
    if not len(rows.ids):
        return np.ones((0, 4), np.float32)
    shape = rows.windows[:, 2:]
    gains = _divide_weights(shape / rows.resized)  # (m, 2) for x and y
    at_start, at_end = rows.corners == 0, rows.corners + side == rows.resized  # (m, 2)
    first = np.where(rows.flips, at_end, at_start)
    last = np.where(rows.flips, at_start, at_end)
    touches = np.stack([first[:, 0], last[:, 0], first[:, 1], last[:, 1]], axis=1)
    return np.where(touches, gains[:, [0, 0, 1, 1]], 1).astype(np.float32)


def _divide_weights(scale: FloatArray) -> FloatArray:
    """All weights of an outermost pixel over those within the picture; 1 where it is not made smaller."""
    scale = np.maximum(scale, 1)
    reach = int(np.ceil(scale.max()))
    source = np.arange(-reach, 2 * reach + 1) + 0.5  # centers of source pixels; the output pixel's is scale / 2
    weights = np.maximum(1 - np.abs(source / scale[..., None] - 0.5), 0)  # (m, 2, J)
    return np.asarray(weights.sum(axis=2) / weights[..., source > 0].sum(axis=2))
