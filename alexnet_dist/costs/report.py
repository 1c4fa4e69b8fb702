"""What `estimate` and `doctor` show of the cost model: predictions as a table, as JSON, and in words."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from alexnet_dist.base.text import align

if TYPE_CHECKING:
    from alexnet_dist.costs.goodput import Fleet, Goodput
    from alexnet_dist.costs.model import Compute, Links, Prediction
    from alexnet_dist.costs.network_size import NetworkSize
    from alexnet_dist.costs.published import PublishedFleet, PublishedRun
    from alexnet_dist.costs.transfers import ByteSize
    from alexnet_dist.figures.estimate import Point
    from alexnet_dist.figures.goodput import FleetCurve

COLUMNS = ("processes", "strategy", "step (ms)", "images/s", "efficiency", "MB sent", "GiB held")
PUBLISHED_COLUMNS = ("run", "published", "nothing hidden", "all hidden", "held")
GOODPUT_COLUMNS = ("processes", "machines", "failure", "save", "updates", "goodput", "images/s")
FLEET_COLUMNS = ("run", "stops every", "published", "model", "explained by")


def predict_all(
    network: NetworkSize,
    counts: Sequence[int],
    images: int,
    compute: Compute,
    links: Links,
    activation_bytes: ByteSize,
    exchange_bytes: ByteSize,
    gradient_bytes: ByteSize = 4,
) -> tuple[list[Prediction], list[str]]:
    """Every strategy at every process count, and why some are left out.

    Args:
        network: which.
        counts: processes.
        images: per process and step.
        compute: speed of one process alone.
        links: what joins them.
        activation_bytes: of an activation in memory.
        exchange_bytes: of an activation on its way.
        gradient_bytes: of a gradient on its way under towers and hybrid; ddp is shown with both sizes.
    """
    from alexnet_dist.costs.model import choose_shards, predict
    from alexnet_dist.costs.transfers import Strategy, refuse

    strategies = (
        Strategy("ddp"),
        Strategy("ddp", gradient_bytes=2),
        Strategy("towers", gradient_bytes, exchange_bytes),
        Strategy("hybrid", gradient_bytes, exchange_bytes),
    )
    predictions: list[Prediction] = []
    refused: dict[tuple[str, str], list[int]] = {}
    for count in counts:
        for strategy in strategies if count > 1 else strategies[:1]:
            chosen = choose_shards(network, strategy, count, images, compute, links)
            why = refuse(network, chosen, count)
            if why is not None:
                refused.setdefault((strategy.name, why), []).append(count)
                continue
            predictions.append(predict(network, chosen, count, images, compute, links, activation_bytes))
    notes = [f"{name} left out at {', '.join(map(str, at))}: {why}" for (name, why), at in refused.items()]
    return predictions, notes


def format_table(predictions: Sequence[Prediction], one_process: float) -> str:
    """Aligned columns.

    Args:
        predictions: to show.
        one_process: images per second of one process alone.
    """
    cells: list[tuple[str, ...]] = [COLUMNS]
    for one in predictions:
        fast, slow = _milliseconds(one.fastest_seconds), _milliseconds(one.slowest_seconds)
        cells.append(
            (
                f"{one.processes}",
                str(one.strategy),
                fast if fast == slow else f"{fast}-{slow}",
                f"{one.images_per_second:,.0f}",
                f"{one.images_per_second / one.processes / one_process:.0%}",
                f"{one.bytes_sent / 1e6:,.1f}",
                f"{one.memory_bytes / 2**30:.2f}",
            )
        )
    return align(cells)


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:,.1f}" if seconds < 1 else f"{1e3 * seconds:,.0f}"


def advise(predictions: Sequence[Prediction]) -> list[str]:
    """A sentence for each process count: which strategy, and why."""
    from alexnet_dist.costs.model import recommend

    lines = []
    for count, group in itertools.groupby(predictions, key=lambda one: one.processes):
        best, reason = recommend(list(group))
        lines.append(f"{count} process{'es' if count > 1 else ''}: {best.strategy} ({reason})")
    return lines


def to_json(predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
    """The predictions as JSON knows them; seconds and bytes."""
    return [
        {
            **asdict(one),
            "strategy": str(one.strategy),
            "step_seconds": one.step_seconds,
            "images_per_second": one.images_per_second,
        }
        for one in predictions
    ]


def to_lines(predictions: Sequence[Prediction]) -> dict[str, list[Point]]:
    """The predictions of several processes by strategy, as the figure has them: hybrid's groups are one line."""
    from alexnet_dist.figures.estimate import Point

    lines: dict[str, list[Point]] = {}
    for one in predictions:
        slowest, fastest = one.images / one.slowest_seconds, one.images / one.fastest_seconds
        if one.processes > 1:
            point = Point(one.processes, one.images_per_second, slowest, fastest, one.bytes_sent / 1e6)
            lines.setdefault(str(replace(one.strategy, shards=None)), []).append(point)
    return lines


def format_published(runs: Sequence[PublishedRun]) -> str:
    """Published efficiencies beside the model's band; why the others are not held; where they come from."""
    from alexnet_dist.costs.published import TOLERANCE, predict_band

    cells: list[tuple[str, ...]] = [PUBLISHED_COLUMNS]
    for run in runs:
        band = (f"{share:.1%}" for share in predict_band(run))
        cells.append((run.name, f"{run.efficiency:.1%}", *band, "yes" if run.is_held else "no"))
    lines = [align(cells, "<>>><"), f"held: within {100 * TOLERANCE:.0f} points of the band"]
    lines += [f"not held: {run.name}: {run.remark}" for run in runs if not run.is_held]
    return "\n".join([*lines, *_name_sources(runs)]) + "\n"


class FleetGoodput(NamedTuple):
    """What a fleet makes of a strategy."""

    prediction: Prediction
    fleet: Fleet
    goodput: Goodput

    @property
    def images_per_second(self) -> float:
        """That count, averaged over months."""
        return self.goodput.mean * self.prediction.images_per_second


def predict_goodput(predictions: Sequence[Prediction], one_machine: Fleet, per_machine: int) -> list[FleetGoodput]:
    """For each process count, what is left of the speed of its best strategy where machines fail.

    Args:
        predictions: as `predict_all` gives them.
        one_machine: the fleet; its number of machines is not looked at.
        per_machine: processes of a machine.

    Raises:
        UsageError: the machines fail so often that nothing can be trained.
    """
    from alexnet_dist.costs.goodput import find_best_interval
    from alexnet_dist.costs.model import recommend

    made = []
    for count, group in itertools.groupby(predictions, key=lambda one: one.processes):
        best, _ = recommend(list(group))
        fleet = replace(one_machine, machines=-(-count // per_machine))
        made.append(FleetGoodput(best, fleet, find_best_interval(fleet, best.step_seconds)))
    return made


def format_goodput(rows: Sequence[FleetGoodput]) -> str:
    """Aligned columns."""
    cells: list[tuple[str, ...]] = [GOODPUT_COLUMNS]
    for row in rows:
        cells.append(
            (
                f"{row.prediction.processes}",
                f"{row.fleet.machines}",
                describe_seconds(row.fleet.failure_seconds),
                describe_seconds(row.goodput.interval),
                f"{row.goodput.interval / row.prediction.step_seconds:,.0f}",
                f"{row.goodput.mean:.1%} ({100 * row.goodput.low:.1f}-{100 * row.goodput.high:.1f})",
                f"{row.images_per_second:,.0f}",
            )
        )
    note = "failure, save: time from one to the next; in brackets: nine of ten months\n"
    return align(cells, ">") + note


def describe_seconds(seconds: float) -> str:
    """In the largest unit of which there are at least two."""
    for unit, name in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:,.1f} {name}"
    return f"{seconds:,.0f} s"


def goodput_to_json(rows: Sequence[FleetGoodput]) -> list[dict[str, Any]]:
    """As JSON knows it; seconds."""
    return [
        {
            "processes": row.prediction.processes,
            "strategy": str(row.prediction.strategy),
            **asdict(row.fleet),
            "failure_seconds": row.fleet.failure_seconds,
            "checkpoint_every_seconds": row.goodput.interval,
            "goodput": row.goodput.mean,
            "goodput_low": row.goodput.low,
            "goodput_high": row.goodput.high,
            "images_per_second": row.images_per_second,
        }
        for row in rows
    ]


def goodput_curves(rows: Sequence[FleetGoodput]) -> list[FleetCurve]:
    """As the figure has them: goodput over the checkpoint interval, a curve for each number of machines."""
    from alexnet_dist.figures.goodput import FleetCurve

    curves = {}
    for row in rows:
        best, machines = row.goodput, row.fleet.machines
        curves[machines] = FleetCurve(machines, best.tried, best.means, best.interval, best.mean, best.low, best.high)
    return list(curves.values())


def format_fleets(runs: Sequence[PublishedFleet]) -> str:
    """Published goodput beside the model's."""
    from alexnet_dist.costs.published import explain_fleet

    cells: list[tuple[str, ...]] = [FLEET_COLUMNS]
    for run in runs:
        expected, restart = explain_fleet(run)
        stops = describe_seconds(run.fleet.failure_seconds)
        restarts = f"restarts of {describe_seconds(restart)}"
        cells.append((run.name, stops, f"{run.goodput:.0%}", f"{expected:.1%}", restarts))
    remarks = [f"{run.name}: {run.remark}" for run in runs if run.remark]
    return "\n".join([align(cells, "<"), *remarks, *_name_sources(runs)]) + "\n"


def _name_sources(runs: Sequence[PublishedRun | PublishedFleet]) -> list[str]:
    """Where figures were published, a line for each place."""
    groups = itertools.groupby(runs, key=lambda run: run.source)
    return [f"source of {', '.join(run.name for run in group)}: {source}" for source, group in groups]
