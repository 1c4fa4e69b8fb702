"""What a tracker may be shown beside the rows: pictures, and the images that the network judged worst."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture with a name such as `conv1/tower_1`.

    Args:
        name: where a tracker shows it.
        content: (H, W, 3) or (H, W, 1) bytes, or a PNG file.
        tells_of_images: whether images of the set, or names of files or classes, are in it.
    """

    name: str
    content: Pixels | Path
    tells_of_images: bool = True


@dataclass(frozen=True, eq=False)
class Judgment:
    """What the network said of an image.

    Args:
        pixels: the network's input, (S, S, C) bytes.
        path: of the file, relative to data.root.
        truth, prediction: names of classes.
        confidence: softmax probability of the prediction.
        true_confidence: softmax probability of the truth.
    """

    pixels: Pixels
    path: str
    truth: str
    prediction: str
    confidence: float
    true_confidence: float


@dataclass(frozen=True, eq=False)
class Pictures:
    """What there is to see of a step.

    Args:
        step: updates made.
        pictures: each with a name of its own.
        worst: the worst predictions, the worst first.
    """

    step: int
    pictures: Sequence[Picture]
    worst: Sequence[Judgment] = ()
