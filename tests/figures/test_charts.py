"""Charts of a page: what Vega-Lite is told."""

from __future__ import annotations

import math

import pytest

from alexnet_dist.figures.charts import MOST_POINTS, Axes, Curve, describe_chart, thin


def test_neighbors_are_averaged_where_there_are_too_many() -> None:
    points = [(float(n), float(n % 2)) for n in range(1001)]
    kept = thin(points, 100)
    assert len(kept) <= 100
    assert kept[-1][0] == 1000.0
    assert all(0.4 <= y <= 0.6 for _, y in kept[:-1])
    assert thin(points[:100], 100) == points[:100]


def test_of_one_run_colors_tell_the_values_apart_and_of_several_the_runs() -> None:
    axes = Axes("Loss", "nats", "epoch")
    one = [Curve("a", what, [(1, 2.0), (2, 1.0)]) for what in ("validation", "train")]
    two = [*one, Curve("b", "validation", [(1, 3.0)])]
    alone, beside = describe_chart(axes, one)["encoding"], describe_chart(axes, two)["encoding"]
    assert (alone["color"]["field"], alone["color"]["scale"]["domain"]) == ("what", ["validation", "train"])
    assert "strokeDash" not in alone
    assert (beside["color"]["field"], beside["color"]["scale"]["domain"]) == ("run", ["a", "b"])
    assert beside["strokeDash"]["scale"]["domain"] == ["validation", "train"]
    assert describe_chart(axes, one[:1])["encoding"]["color"]["legend"] is None


def test_few_points_have_dots_and_what_lies_behind_comes_first() -> None:
    behind = Curve("a", "log points", [(float(n), 1.0) for n in range(3)], is_light=True)
    long = Curve("a", "long", [(float(n), 1.0) for n in range(99)])
    few = Curve("a", "few", [(1, 2.0), (2, 1.0)], ring=(2, 1.0))
    spec = describe_chart(Axes("Loss", "nats", "epoch"), [few, long, behind])
    values = spec["data"]["values"]
    assert {value["what"] for value in values if value.get("dot")} == {"few"}
    assert [(value["x"], value["y"]) for value in values if value.get("ring")] == [(2.0, 1.0)]
    assert [value["what"] for value in values[:4]] == ["log points"] * 3 + ["few"]
    colors, (behind_them, lines, *_) = spec["encoding"]["color"]["scale"], spec["layer"]
    assert colors["domain"] == ["few", "long", "log points"]  # in the legend
    assert colors["range"][2] not in colors["range"][:2]
    assert behind_them["mark"]["strokeWidth"] < lines["mark"]["strokeWidth"]
    assert {value["what"] for value in values if value.get("light")} == {"log points"}


@pytest.mark.parametrize("num_runs", [1, 30])
def test_a_chart_has_few_values_however_long_the_runs_were(num_runs: int) -> None:
    points = [(float(n), math.sin(n)) for n in range(50_000)]
    curves = [Curve(f"run {n}", "train", points) for n in range(num_runs)]
    assert len(describe_chart(Axes("Loss", "nats", "epoch"), curves)["data"]["values"]) <= MOST_POINTS


def test_names_are_made_printable() -> None:
    values = describe_chart(Axes("Loss", "nats", "epoch"), [Curve("\x1b[2J", "train", [(1, 1.0)])])["data"]["values"]
    assert values == [{"run": "\\x1b[2J", "what": "train", "x": 1.0, "y": 1.0, "dot": 1}]
