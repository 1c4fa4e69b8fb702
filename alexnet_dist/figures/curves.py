"""curves.png: loss, accuracy and learning rate over a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alexnet_dist.figures.canvas import BLUE, GRAY, GREEN, ORANGE, TEXT_SIZE, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = Mapping[str, Any]

INCHES, HEIGHTS = (11.0, 5.8), (4, 1)  # of the figure; of the panels of results and of the learning rate, in parts
FEW_POINTS = 30  # that each get a mark
FEW_EPOCHS = 3  # up to so many, the log points say more than the means
USUAL_PART = 0.9  # of the log points; those with a higher loss may jump out of the panel
ROOM_ABOVE = 1.15  # height of the loss panel over the largest loss that must be in it
DROP = 0.75  # a rate that falls below this part of what it was, after it stood still, has dropped


def draw_curves(path: Path, rows: Sequence[Row], title: str) -> None:
    """Draw loss, top-1 and learning rate over epochs, or over updates where no epoch ended.

    Training's means over each epoch stand before its log points, which are drawn lightly where there are many epochs.
    The best validation is ringed, drops of the learning rate are dotted. The test result is of the best weights, and
    stands where those were made.

    Args:
        path: the PNG.
        rows: of metrics.jsonl.
        title: of the figure.

    Raises:
        MachineError: the file cannot be written.
    """
    per_unit, unit = find_unit(rows)
    logged, epochs, evaluations, tests = (
        [row for row in rows if row["event"] == event] for event in ("train", "epoch", "eval", "test")
    )
    best = find_best(evaluations)
    figure = new_figure(*INCHES, title)
    panels = figure.subplot_mosaic([["loss", "top1"], ["rate", "rate"]], height_ratios=HEIGHTS)
    light: dict[str, Any] = {"alpha": 0.3} if len(epochs) > FEW_EPOCHS else {"marker": "."}
    for key, scale in (("loss", 1), ("top1", 100)):
        axes = panels[key]
        _plot(axes, logged, key, scale, per_unit, color=BLUE, linewidth=1.0, label="train, log points", **light)
        _plot(axes, epochs, f"train_{key}", scale, per_unit, color=BLUE, marker="o", label="train, mean of the epoch")
        _plot(axes, evaluations, key, scale, per_unit, color=ORANGE, marker="s", label="validation")
        made = [{**row, "step": (best or row)["step"]} for row in tests[-1:] if key in row]
        _plot(axes, made, key, scale, per_unit, color=GREEN, marker="D", linestyle="none", zorder=3, label="test")
    _plot(panels["rate"], logged, "lr", 1, per_unit, color=BLUE, label="learning rate")
    _shape_axes(panels, unit, [step / per_unit for step in find_drops(logged)])
    _hold_loss(panels["loss"], [row["train_loss"] for row in epochs] + [row["loss"] for row in evaluations], logged)
    _mark_best(panels["loss"], panels["top1"], best, per_unit)
    panels["top1"].set_ylim(0, 102)
    for key in ("loss", "top1"):
        if panels[key].get_legend_handles_labels()[0]:
            panels[key].legend(fontsize=TEXT_SIZE - 1)
    save_figure(figure, path)


def _shape_axes(panels: Mapping[str, Axes], unit: str, drops: Sequence[float]) -> None:
    from matplotlib.ticker import MaxNLocator

    labels = {"loss": "cross-entropy (nats)", "top1": "top-1 accuracy (%)", "rate": "learning rate"}
    for key, axes in panels.items():
        for number, at in enumerate(drops):
            label = None if number else "learning rate drops"
            axes.axvline(at, color=GRAY, linestyle=":", linewidth=1.0, label=label)
        axes.set_ylabel(labels[key], fontsize=TEXT_SIZE)
        axes.set_xlabel(unit, fontsize=TEXT_SIZE)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=3, steps=[1, 2, 5, 10]))
        axes.grid(alpha=0.25)
    if drops:
        panels["rate"].set_yscale("log")
        return
    panels["rate"].set_ylim(0, ROOM_ABOVE * panels["rate"].dataLim.y1 if panels["rate"].lines else None)
    panels["rate"].yaxis.set_major_locator(MaxNLocator(3))
    panels["rate"].yaxis.set_major_formatter("{x:.2g}")


def find_unit(rows: Sequence[Row]) -> tuple[float, str]:
    """Updates in a unit of the horizontal axis, and its label."""
    ended = [row for row in rows if row["event"] == "epoch"]
    return (ended[-1]["step"] / ended[-1]["epoch"], "epoch") if ended else (1.0, "update (no epoch has ended)")


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
    values = [scale * row[key] for row in rows]
    if len(rows) > FEW_POINTS:
        style.pop("marker", None)
    elif len(rows) == 1:  # no line leads to it
        style.setdefault("marker", ".")
        style["label"] += f": {values[0]:.1f}%" if scale == 100 else f": {values[0]:.4f}"
    axes.plot([row["step"] / per_unit for row in rows], values, **{"markersize": 4, **style})


def _hold_loss(axes: Axes, losses: Sequence[float], logged: Sequence[Row]) -> None:
    """Keep a few high log points at the start from flattening the curves, and flat ones from the edge."""
    usual = sorted(row["loss"] for row in logged)[: max(1, round(USUAL_PART * len(logged)))]
    top = max([*losses, *usual], default=0.0)
    axes.set_ylim(0, ROOM_ABOVE * top if top > 0 else None)


def _mark_best(loss: Axes, top1: Axes, best: Row | None, per_unit: float) -> None:
    if best is None:
        return
    at = best["step"] / per_unit
    ring: dict[str, Any] = {"marker": "o", "markersize": 12, "markerfacecolor": "none", "markeredgecolor": "black"}
    label = f"best: {best['top1']:.1%} after {'epoch' if per_unit > 1 else 'update'} {at:.4g}"
    loss.plot([at], [best["loss"]], linestyle="none", **ring)
    top1.plot([at], [100 * best["top1"]], linestyle="none", label=label, **ring)
