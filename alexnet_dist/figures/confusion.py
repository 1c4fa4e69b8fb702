"""confusion.png and the table of classes: what a network takes for what."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from alexnet_dist.base.text import cut_end
from alexnet_dist.figures.canvas import PLAIN, SMALL_SIZE, TEXT_SIZE, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Counts = npt.NDArray[np.int64]

CLASS_COLUMNS = (
    *("class", "count", "top1", "precision", "most_confused_with", "confused_count"),
    *("recall", "f1-score", "support"),  # as scikit-learn's classification_report calls them
    *("words", "confused_words"),
)
FEW_CLASSES, NAMED_CLASSES = 20, 50  # up to so many, cells have their counts, and classes their names
LONGEST_NAME = 24  # characters of a class beside the matrix
DARK = 0.55  # cells above this share have white text


def count_confusion(labels: Counts, predicted: Counts, num_classes: int) -> Counts:
    """(num_classes, num_classes) images of each class (row) that were taken for each class (column)."""
    from sklearn.metrics import confusion_matrix

    return np.asarray(confusion_matrix(labels, predicted, labels=np.arange(num_classes)), dtype=np.int64)


def tabulate_classes(counts: Counts, names: Sequence[str], words: Sequence[str]) -> list[tuple[str, ...]]:
    """The rows of classes.csv, see `CLASS_COLUMNS`; a cell is empty where there is nothing to divide or to name.

    Args:
        counts: (K, K) of `count_confusion`.
        names: (K,) of the classes.
        words: (K,) that say what the names mean; empty where there are none.
    """
    rows: list[tuple[str, ...]] = []
    for label, name in enumerate(names):
        right, count, said = (
            int(value) for value in (counts[label, label], counts[label].sum(), counts[:, label].sum())
        )
        wrong = counts[label].copy()
        wrong[label] = 0
        most = int(wrong.argmax())
        confused, confused_words = ((names[most], str(wrong[most])), words[most]) if wrong[most] else (("", ""), "")
        recall, precision, f1 = _divide(right, count), _divide(right, said), _divide(2 * right, count + said)
        rows.append(
            (name, str(count), recall, precision, *confused, recall, f1, str(count), words[label], confused_words)
        )
    return rows


def _divide(part: int, whole: int) -> str:
    return f"{part / whole:.4f}" if whole else ""


def draw_confusion(path: Path, counts: Counts, names: Sequence[str], title: str) -> None:
    """Draw the matrix, each row as shares of its class.

    Up to 20 classes have counts in their cells, up to 50 have their names; more are numbered.

    Args:
        path: the PNG.
        counts: (K, K) of `count_confusion`.
        names: (K,) of the classes.
        title: of the figure.

    Raises:
        MachineError: the file cannot be written.
    """
    from matplotlib.colors import PowerNorm

    num_classes = len(names)
    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)  # (K, K) percent
    side = min(max(0.62 * num_classes, 3.4), 8.0)
    figure = new_figure(side + 2.6, side + 1.6, title)
    axes = figure.subplots()
    # Without counts, a class that is mistaken for another now and then would be too pale to see.
    norm = PowerNorm(1.0 if num_classes <= FEW_CLASSES else 0.5, vmin=0, vmax=100)
    image = axes.imshow(shares, cmap="Blues", norm=norm)
    bar = figure.colorbar(image, ax=axes, shrink=0.8)
    scale = "" if norm.gamma == 1 else "; the colors follow its square root"
    bar.set_label(f"share of the true class (%){scale}", fontsize=TEXT_SIZE)
    numbered = "" if num_classes <= NAMED_CLASSES else " (row of classes.csv, from 0)"
    axes.set_xlabel(f"predicted class{numbered}", fontsize=TEXT_SIZE)
    axes.set_ylabel(f"true class{numbered}", fontsize=TEXT_SIZE)
    if num_classes <= NAMED_CLASSES:
        _name_classes(axes, names)
    if num_classes <= FEW_CLASSES:
        _write_counts(axes, counts, shares)
    save_figure(figure, path)


def _name_classes(axes: Axes, names: Sequence[str]) -> None:
    size = TEXT_SIZE if len(names) <= FEW_CLASSES else SMALL_SIZE - 1
    texts = [cut_end(name, LONGEST_NAME) for name in names]
    is_slanted = max(map(len, texts), default=0) > 3
    ticks = range(len(names))
    style: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if is_slanted else {}
    axes.set_xticks(ticks, texts, fontsize=size, **style, **PLAIN)
    axes.set_yticks(ticks, texts, fontsize=size, **PLAIN)


def _write_counts(axes: Axes, counts: Counts, shares: npt.NDArray[np.float64]) -> None:
    size = TEXT_SIZE if counts.max(initial=0) < 1000 else SMALL_SIZE - 1
    for true, predicted in np.argwhere(counts):
        color = "white" if shares[true, predicted] > 100 * DARK else "black"
        text = f"{counts[true, predicted]:,}"
        axes.text(predicted, true, text, ha="center", va="center", color=color, fontsize=size)
