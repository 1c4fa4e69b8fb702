"""`predict --explain`: for each picture a PNG that shows where the evidence for its class lies."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from alexnet_dist.base.durable import disk_errors_named
from alexnet_dist.base.errors import UsageError
from alexnet_dist.base.places import find_place
from alexnet_dist.base.text import escape_text, shorten
from alexnet_dist.data.class_words import describe_class
from alexnet_dist.figures.canvas import check_matplotlib, is_own_figure
from alexnet_dist.runs.ownership import owns

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from alexnet_dist.inference.model_folder import ModelCard
    from alexnet_dist.inference.predict import PictureBatch, Prediction
    from alexnet_dist.models import AlexNet

LONGEST_CLASS, LONGEST_FILE = 48, 60  # characters of a title


class Drawing(NamedTuple):
    """Where explanations are drawn, and whether those that are there may be replaced."""

    folder: Path
    overwrite: bool


class Explanation(NamedTuple):
    """A picture as the network sees it, and where in it the evidence for its class lies."""

    picture: npt.NDArray[np.uint8]  # (S, S, C)
    evidence: npt.NDArray[np.float32]  # (S, S) from 0 to 1


def check_explained(word: str, given: Sequence[str]) -> Path:
    """The folder that --explain names, where explanations may lie.

    Args:
        word: of the command line.
        given: the words that name pictures.

    Raises:
        UsageError: it is empty, no folder, one that a run keeps itself, or lies among the pictures.
        MachineError: there is no matplotlib.
    """
    check_matplotlib()
    folder, remedy = Path(word), "give another --explain"
    if not word.strip():
        raise UsageError("--explain is empty", where="command line", remedy="give a folder for the explanations")
    if os.path.lexists(folder) and not folder.is_dir():
        raise UsageError("--explain is a file", where=word, remedy="give the name of a folder")
    if owns(folder / "explanation.png"):
        raise UsageError("--explain cannot be this folder", where=word, why="a run keeps it itself", remedy=remedy)
    around = next((name for name in given if os.path.isdir(name) and _is_below(folder, name)), None)
    if around is not None:
        why = f"the explanations would be pictures of {around}"
        raise UsageError("--explain lies among the pictures", where=word, why=why, remedy=remedy)
    return folder


def _is_below(folder: Path, other: str) -> bool:
    return find_place(folder).is_relative_to(find_place(other))


def place_explanations(drawing: Drawing, paths: Sequence[str]) -> dict[str, Path]:
    """The PNG of each picture: its path below the folder that all pictures share, with .png behind it.

    Args:
        drawing: where they are drawn.
        paths: of the pictures; ARCHIVE!MEMBER of one in an archive.

    Raises:
        UsageError: one is there and may not be replaced, or something else has its name.
    """
    places = [os.path.abspath(path) for path in paths]
    shared = os.path.commonpath([os.path.dirname(place) for place in places]) if places else ""
    figures = {
        path: drawing.folder / f"{os.path.relpath(place, shared)}.png"
        for path, place in zip(paths, places, strict=True)
    }
    for figure in figures.values():
        if os.path.lexists(figure) and not (drawing.overwrite and is_own_figure(figure)):
            remedy = "give another --explain" + ("" if drawing.overwrite else ", or --overwrite")
            why = "it is no figure of this program's" if drawing.overwrite else ""
            raise UsageError("an explanation would replace a file", where=str(figure), why=why, remedy=remedy)
    return figures


def explain_batch(
    network: AlexNet, card: ModelCard, batch: PictureBatch, predictions: Sequence[Prediction]
) -> dict[int, Explanation]:
    """What speaks for the class of each picture of a batch that has one, by position.

    Args:
        network: in evaluation mode.
        card: its classes and preprocessing.
        batch: the pictures.
        predictions: (B,) what the network says of them.
    """
    from alexnet_dist.data.engines.finish import show_images
    from alexnet_dist.inference.explain import explain_classes

    named = [position for position, row in enumerate(predictions) if row.error is None]
    if not named:
        return {}
    images = batch.images[named]
    evidence = explain_classes(network, images).cpu().numpy()  # (B, S, S)
    return dict(zip(named, map(Explanation, show_images(images, card.normalization), evidence), strict=True))


def write_explanation(path: Path, prediction: Prediction, explanation: Explanation) -> None:
    """Draw the PNG of a picture; the folders that it lies in are made.

    Raises:
        MachineError: it cannot be written.
    """
    from alexnet_dist.figures.overlay import draw_explanation

    with disk_errors_named(path, "explain"):
        path.parent.mkdir(parents=True, exist_ok=True)
    said = shorten(escape_text(describe_class(prediction.label or "")), LONGEST_CLASS)
    name = shorten(escape_text(os.path.basename(prediction.path)), LONGEST_FILE)
    draw_explanation(path, explanation.picture, explanation.evidence, f"{said}: {prediction.confidence:.1%}\n{name}")
