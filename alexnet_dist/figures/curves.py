"""curves.png: loss and accuracy over a run, for training and validation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alexnet_dist.figures.canvas import BLUE, GRAY, ORANGE, TEXT_SIZE, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = Mapping[str, Any]

INCHES = (11.0, 4.6)
FEW_POINTS = 30  # that each get a mark
USUAL_PART = 0.9  # of the log points; those with a higher loss may jump out of the panel
ROOM_ABOVE = 1.15  # height of the loss panel over the largest loss that must be in it
DROP = 0.75  # a rate that falls below this part of what it was, after it stood still, has dropped


def draw_curves(path: Path, rows: Sequence[Row], title: str) -> None:
    """Draw loss and top-1 in two panels over epochs, or over updates where no epoch ended.

    Training's means over each epoch stand before its log points, drawn lightly; the best validation is ringed, drops of
    the learning rate are dotted.

    Args:
        path: the PNG.
        rows: of metrics.jsonl.
        title: of the figure.

    Raises:
        MachineError: the file cannot be written.
    """
    from matplotlib.ticker import MaxNLocator

    per_unit, unit = find_unit(rows)
    logged = [row for row in rows if row["event"] == "train"]
    epochs = [row for row in rows if row["event"] == "epoch"]
    evaluations = [row for row in rows if row["event"] == "eval"]
    figure = new_figure(*INCHES, title)
    loss, top1 = figure.subplots(1, 2)
    for axes, key, scale in ((loss, "loss", 1), (top1, "top1", 100)):
        _plot(axes, logged, key, scale, per_unit, color=BLUE, alpha=0.3, linewidth=1.0, label="train, log points")
        _plot(axes, epochs, f"train_{key}", scale, per_unit, color=BLUE, marker="o", label="train, mean of the epoch")
        _plot(axes, evaluations, key, scale, per_unit, color=ORANGE, marker="s", label="validation")
        for number, step in enumerate(find_drops(logged)):
            label = None if number else "learning rate drops"
            axes.axvline(step / per_unit, color=GRAY, linestyle=":", linewidth=1.0, label=label)
        axes.set_xlabel(unit, fontsize=TEXT_SIZE)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
    loss.set_ylabel("cross-entropy (nats)", fontsize=TEXT_SIZE)
    top1.set_ylabel("top-1 accuracy (%)", fontsize=TEXT_SIZE)
    _hold_loss(loss, [row["train_loss"] for row in epochs] + [row["loss"] for row in evaluations], logged)
    _mark_best(loss, top1, evaluations, per_unit)
    top1.set_ylim(0, 102)
    for axes in (loss, top1):
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=TEXT_SIZE - 1)
    save_figure(figure, path)


def find_unit(rows: Sequence[Row]) -> tuple[float, str]:
    """Updates in a unit of the horizontal axis, and its label."""
    ended = [row for row in rows if row["event"] == "epoch"]
    return (ended[-1]["step"] / ended[-1]["epoch"], "epoch") if ended else (1.0, "update")


def find_drops(logged: Sequence[Row]) -> list[int]:
    """Updates after which a learning rate that stood still was much lower; a rate that glides down has none."""
    triples = zip(logged, logged[1:], logged[2:], strict=False)
    return [two["step"] for one, two, three in triples if one["lr"] == two["lr"] and three["lr"] < DROP * two["lr"]]


def find_best(evaluations: Sequence[Row]) -> Row | None:
    """The evaluation with the highest top-1, of equals the one with the lowest loss: its weights are in model/."""
    return max(evaluations, key=lambda row: (row["top1"], -row["loss"]), default=None)


def _plot(axes: Axes, rows: Sequence[Row], key: str, scale: float, per_unit: float, **style: Any) -> None:
    if not rows:
        return
    if len(rows) > FEW_POINTS:
        style.pop("marker", None)
    elif len(rows) == 1:
        style.setdefault("marker", ".")
    axes.plot([row["step"] / per_unit for row in rows], [scale * row[key] for row in rows], markersize=4, **style)


def _hold_loss(axes: Axes, losses: Sequence[float], logged: Sequence[Row]) -> None:
    """Keep a few high log points at the start from flattening the curves."""
    usual = sorted(row["loss"] for row in logged)[: max(1, round(USUAL_PART * len(logged)))]
    top = ROOM_ABOVE * max([*losses, *usual], default=0.0)
    if 0 < top < axes.get_ylim()[1]:
        axes.set_ylim(top=top)
    axes.set_ylim(bottom=0)


def _mark_best(loss: Axes, top1: Axes, evaluations: Sequence[Row], per_unit: float) -> None:
    best = find_best(evaluations)
    if best is None:
        return
    at = best["step"] / per_unit
    ring: dict[str, Any] = {"marker": "o", "markersize": 12, "markerfacecolor": "none", "markeredgecolor": "black"}
    label = f"best: {best['top1']:.1%} after {'epoch' if per_unit > 1 else 'update'} {at:.4g}"
    loss.plot([at], [best["loss"]], linestyle="none", **ring)
    top1.plot([at], [100 * best["top1"]], linestyle="none", label=label, **ring)
