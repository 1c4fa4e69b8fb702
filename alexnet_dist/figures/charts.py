"""Charts of a page: curves in, Vega-Lite's description of a chart out. A browser draws it, with values at the pointer.

Colors are names of the page's own, which change with light and dark; Okabe and Ito's, which people with every kind of
color vision tell apart.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from alexnet_dist.base.text import escape_text, shorten

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"  # its name: nothing is fetched from there
HEIGHT = 260  # pixels
COLORS = [f"var(--series-{number})" for number in range(8)]
DASHES = ([1, 0], [6, 3], [2, 2], [8, 2, 2, 2])
LIGHT_COLOR, RING_COLOR = "var(--muted)", "var(--text)"
WIDTH, LIGHT_WIDTH = 1.8, 0.8  # pixels of a line
MOST_POINTS, FEWEST_POINTS = 3000, 60  # of a chart, and of a curve
FEW_POINTS = 30  # that each get a dot
LONGEST_NAME = 40
DIGITS = 5  # that a value in a page has


@dataclass(frozen=True)
class Curve:
    """A line of a chart.

    Args:
        run: whose.
        what: the values are ("validation").
        points: (place, value) in their order.
        is_light: it lies behind the others, thin and gray.
        ring: the point that stands out, if any.
    """

    run: str
    what: str
    points: Sequence[tuple[float, float]]
    is_light: bool = False
    ring: tuple[float, float] | None = None


@dataclass(frozen=True)
class Axes:
    """What a chart's axes say.

    Args:
        title: of the chart; a reader who does not see it is told this.
        unit: of the values.
        place: what the places are.
        is_share: values are from 0 to 1 and shown in percent.
        has_zero: the values begin at 0.
    """

    title: str
    unit: str
    place: str
    is_share: bool = False
    has_zero: bool = True


def describe_chart(axes: Axes, curves: Sequence[Curve]) -> dict[str, Any]:
    """What Vega-Lite draws: a line for each curve, values at the pointer, and a legend that picks one.

    Of one run, colors tell what the values are. Of several they tell the runs, and dashes what the values are.

    Args:
        axes: their words.
        curves: at least one.
    """
    runs = list(dict.fromkeys(_show(curve.run) for curve in curves))
    kinds = list(dict.fromkeys(curve.what for curve in curves))
    key, names = ("run", runs) if len(runs) > 1 else ("what", kinds)
    light = {curve.what for curve in curves if curve.is_light}
    room = max(FEWEST_POINTS, MOST_POINTS // len(curves))
    behind_first = sorted(curves, key=lambda curve: not curve.is_light)
    values = [value for curve in behind_first for value in _list_values(curve, room)]
    lines = [*([_BEHIND] if light else []), _BEFORE]
    pick = {"name": "picked", "select": {"type": "point", "fields": [key]}, "bind": "legend"}
    return {
        "$schema": SCHEMA,
        "description": f"{axes.title}: {', '.join(names)}. The values of the epochs stand in a table.",
        "width": "container",
        "height": HEIGHT,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "data": {"values": values},
        "encoding": _encode(axes, key, names, kinds if key == "run" else [], light),
        "layer": [
            {"params": [pick], **lines[0]},  # the first layer has the legend
            *lines[1:],
            *(mark for key, mark in _MARKS.items() if any(key in value for value in values)),
            _point_at(axes, runs, kinds),
        ],
        "config": _CONFIG,
    }


def _list_values(curve: Curve, room: int) -> list[dict[str, Any]]:
    """A curve as the chart has it. Few points get dots, and one alone must: no line leads to it."""
    points = thin(curve.points, room)
    is_dotted = len(points) == 1 or (len(points) <= FEW_POINTS and not curve.is_light)
    whose = {"run": _show(curve.run), "what": curve.what, **({"light": 1} if curve.is_light else {})}
    values = [{**whose, "x": _round(x), "y": _round(y), **({"dot": 1} if is_dotted else {})} for x, y in points]
    ringed = (
        [] if curve.ring is None else [{**whose, "x": _round(curve.ring[0]), "y": _round(curve.ring[1]), "ring": 1}]
    )
    return values + ringed


def _draw_line(width: float) -> dict[str, Any]:
    return {"type": "line", "strokeWidth": width}


def _encode(
    axes: Axes, key: str, names: Sequence[str], dashed: Sequence[str], light: Collection[str]
) -> dict[str, Any]:
    shades = [LIGHT_COLOR if name in light and not dashed else COLORS[n % len(COLORS)] for n, name in enumerate(names)]
    colors = {"domain": names, "range": shades}
    encoding: dict[str, Any] = {
        "x": {
            "field": "x",
            "type": "quantitative",
            "title": axes.place,
            "axis": {"tickCount": 8, "tickMinStep": 1, "grid": False},  # epochs and updates are whole
            "scale": {"zero": True, "nice": False},
        },
        "y": {
            "field": "y",
            "type": "quantitative",
            "title": axes.unit,
            "axis": {"format": ".1~%" if axes.is_share else ",.5~r"},
            "scale": {"zero": axes.has_zero},
        },
        "color": {"field": key, "type": "nominal", "title": None, "scale": colors},
        "opacity": {"condition": {"param": "picked", "value": 1}, "value": 0.12},
    }
    if len(names) == 1:  # the chart's title says what it is
        encoding["color"]["legend"] = None
    if len(dashed) > 1:
        scale = {"domain": dashed, "range": [DASHES[n % len(DASHES)] for n in range(len(dashed))]}
        encoding["strokeDash"] = {"field": "what", "type": "nominal", "legend": None, "scale": scale}
    return encoding


def _point_at(axes: Axes, runs: Sequence[str], kinds: Sequence[str]) -> dict[str, Any]:
    """The point next to the pointer, and what is said of it."""
    near = {"type": "point", "on": "pointerover", "nearest": True, "clear": "pointerout"}
    several = [field for field, names in (("run", runs), ("what", kinds)) if len(names) > 1]
    said = [
        *({"field": field, "type": "nominal"} for field in several),
        {"field": "x", "type": "quantitative", "title": axes.place, "format": ",.4~r"},
        {"field": "y", "type": "quantitative", "title": axes.unit, "format": ".2%" if axes.is_share else ",.4~r"},
    ]
    is_seen = {"condition": {"param": "near", "empty": False, "value": 1}, "value": 0}
    return {
        "params": [{"name": "near", "select": near}],
        "mark": {"type": "point", "filled": True, "size": 70, "tooltip": True},
        "encoding": {"opacity": is_seen, "tooltip": said},
    }


_BEHIND = {"transform": [{"filter": "datum.light"}], "mark": _draw_line(LIGHT_WIDTH)}
_BEFORE = {"transform": [{"filter": "!datum.light"}], "mark": _draw_line(WIDTH)}
_MARKS: dict[str, dict[str, Any]] = {
    "dot": {"transform": [{"filter": "datum.dot"}], "mark": {"type": "point", "filled": True, "size": 30}},
    "ring": {
        "transform": [{"filter": "datum.ring"}],
        "mark": {"type": "point", "filled": False, "size": 150, "strokeWidth": 1.5},
        "encoding": {"color": {"value": RING_COLOR}, "strokeDash": {"value": DASHES[0]}},
    },
}
_CONFIG: dict[str, Any] = {
    "background": "transparent",
    "font": "system-ui, sans-serif",
    "view": {"stroke": None},
    "axis": {"labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal", "gridColor": "var(--grid)"},
    "axisX": {"domainColor": "var(--line)", "tickColor": "var(--line)"},
    "axisY": {"domain": False, "ticks": False},
    "legend": {
        "orient": "top",
        "labelFontSize": 12,
        "symbolType": "stroke",
        "symbolSize": 200,
        "labelLimit": 260,
        "columns": 2,
    },
}


def thin(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """At most so many points: where there are more, neighbors are averaged."""
    if len(points) <= most:
        return list(points)
    size = math.ceil(len(points) / most)
    parts = (points[start : start + size] for start in range(0, len(points), size))
    return [(part[-1][0], math.fsum(y for _, y in part) / len(part)) for part in parts]


def _round(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def _show(name: str) -> str:
    return shorten(escape_text(name), LONGEST_NAME)
