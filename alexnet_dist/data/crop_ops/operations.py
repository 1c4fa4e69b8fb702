"""The operations on crops: how the plan draws each of them, and how an engine carries it out.

Adding one is a file in this folder and a line in OPERATIONS; docs/engines.md goes through it. No torch at the head of
these files: the plan imports them, and what reads a plan's sizes alone does not load torch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from alexnet_dist.data.crop_ops import color_jitter, random_erasing
from alexnet_dist.data.draws import ERASE, JITTER, FloatArray, IntArray, draw_uniforms

if TYPE_CHECKING:
    from torch import Tensor

    from alexnet_dist.data.plan import Augmentation

Drawn: TypeAlias = dict[str, FloatArray]
"""By an operation's name its numbers for each row, (B, ...). An operation that is off is not there."""
Rows: TypeAlias = slice | npt.NDArray[Any]
"""Which rows of an array: a part, a mask, or positions."""


class Operation(NamedTuple):
    """What may happen to a crop.

    `change` gets n rows, whose images are all there, on a device or in host memory. On `bytes` it gets (n, S, S, C)
    uint8, cut and flipped, which may lie in a file: it returns others. On the `input` it gets (n, C, S, S), normalized,
    of any type and layout: it returns them, and may write to them.
    """

    acts_on: Literal["bytes", "input"]
    purpose: int  # of its random numbers; see draws.py
    draw: Callable[[Any, Callable[[int], FloatArray], int], FloatArray]  # (setting, uniforms, side) to (B, ...)
    change: Callable[[Tensor, FloatArray], Tensor]  # (n rows, their numbers) to n rows


# By the setting's name, in the order in which they are carried out.
OPERATIONS: dict[str, Operation] = {
    "color_jitter": Operation("bytes", JITTER, color_jitter.draw_jitter, color_jitter.jitter_crops),
    "random_erasing": Operation("input", ERASE, random_erasing.draw_rectangles, random_erasing.erase_rectangles),
}


def draw_operations(recipe: Augmentation, seed: int, epoch: int, ids: IntArray) -> Drawn:
    """The numbers of all operations of a recipe that are on; B rows."""
    return {
        name: operation.draw(
            getattr(recipe, name), partial(draw_uniforms, seed, operation.purpose, epoch, ids), recipe.crop_size
        )
        for name, operation in OPERATIONS.items()
        if _is_on(getattr(recipe, name))
    }


def take_drawn(drawn: Drawn, rows: Rows) -> Drawn:
    """The numbers of some rows."""
    return {name: values[rows] for name, values in drawn.items()}


def changes_bytes(recipe: Augmentation) -> bool:
    """Whether an operation needs crops as bytes; else an engine may normalize them as it cuts them."""
    return any(op.acts_on == "bytes" and _is_on(getattr(recipe, name)) for name, op in OPERATIONS.items())


def change_crop(crop: Tensor, drawn: Drawn, row: int) -> Tensor:
    """The operations on the bytes of one crop (S, S, C) in host memory, which is not written to."""
    return _carry_out("bytes", crop[None], take_drawn(drawn, slice(row, row + 1)))[0]


def change_rows(acts_on: Literal["bytes", "input"], rows: Tensor, drawn: Drawn, mask: npt.NDArray[np.bool_]) -> Tensor:
    """The operations on bytes or on the network's input, for the rows of B that have an image.

    Args:
        acts_on: which operations.
        rows: (B, ...) as `Operation` says; they may be written to.
        drawn: the plan's numbers.
        mask: (B,) which rows have an image.
    """
    if not mask.any() or not any(OPERATIONS[name].acts_on == acts_on for name in drawn):
        return rows
    if mask.all():
        return _carry_out(acts_on, rows, drawn)
    import torch

    places = torch.from_numpy(np.flatnonzero(mask)).to(rows.device, non_blocking=True)
    rows[places] = _carry_out(acts_on, rows[places], take_drawn(drawn, mask))
    return rows


def _carry_out(acts_on: Literal["bytes", "input"], rows: Tensor, drawn: Drawn) -> Tensor:
    for name, values in drawn.items():
        if OPERATIONS[name].acts_on == acts_on:
            rows = OPERATIONS[name].change(rows, values)
    return rows


def _is_on(setting: Any) -> bool:
    return any(setting) if isinstance(setting, tuple) else bool(setting)
