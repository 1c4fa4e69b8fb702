"""The page of speeds is made from the reports, between its own words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import speed_page
from speed_page import ARMS, draw_rivals, fill_blocks, format_readme, format_rivals, format_targets, format_times

ENVIRONMENT = {
    "gpus": [],
    "cpu": "Some Processor",
    "cpu_features": ["avx512_bf16"],
    "cores": 2,
    "versions": {"torch": "2"},
    "git_commit": "0123456789",
    "time": "2026-11-30T12:00:00",
}
RATIO = {"median": 3.25, "min": 3.0, "max": 3.5, "what": ""}


def make_report(**more: Any) -> dict[str, Any]:
    """Two arms that ran and one that could not."""
    speeds = {"images_per_second": 50.0, "images_per_second_min": 40.0, "images_per_second_max": 60.0}
    rows = [
        {"arm": "imagenet_fp32", **speeds},
        {"arm": "ours_bf16", **speeds},
        {"arm": "dali_bf16", "missing": "no DALI"},
    ]
    return {"environment": ENVIRONMENT, "rows": rows, "ratios": {"ours_bf16/imagenet_fp32": RATIO}, **more}


def test_blocks_are_replaced_and_the_words_around_them_stay() -> None:
    text = "before\n<!-- begin: a -->\n\nold\n\n<!-- end: a -->\nafter\n"
    filled = fill_blocks(text, {"a": r"new \1"})
    assert filled == "before\n<!-- begin: a -->\n\nnew \\1\n\n<!-- end: a -->\nafter\n"
    assert fill_blocks(filled, {"a": r"new \1"}) == filled
    with pytest.raises(ValueError, match="0 places for b"):
        fill_blocks(text, {"b": ""})


def test_tables_have_speeds_ratios_and_what_is_missing() -> None:
    table = format_rivals(make_report())
    assert f"| {ARMS['imagenet_fp32']} | 50 (40 to 60) | 3.25 (3.00 to 3.50) |" in table
    assert f"| {ARMS['dali_bf16']} | not measured: no DALI |  |" in table
    assert "Some (avx512_bf16), 2026-11-30, 2 cores, torch 2, commit 0123456." in table
    assert "3.2 times" in format_readme(make_report()) or "3.3 times" in format_readme(make_report())
    assert (format_rivals(None), format_readme(None)) == ("Not measured.", "")


@pytest.mark.parametrize(("median", "state"), [(3.25, "reached"), (3.0, "reached"), (2.9, "missed")])
def test_targets_say_whether_they_were_reached(median: float, state: str) -> None:
    ratios = {"ours_bf16/imagenet_fp32": {**RATIO, "median": median}}
    rows = format_targets({"rivals": make_report(ratios=ratios)}).splitlines()
    (row,) = [row for row in rows if row.startswith("| bf16 over")]
    assert f"| {state} |" in row
    assert sum("| not measured |" in row for row in rows) == len(speed_page.TARGETS) - 1


def test_a_goal_that_was_not_reached_is_a_bound() -> None:
    row = {"task": "imagenette", "goal": 0.55, "seconds": 99.6, "top1": 0.5, "epochs": 7}
    rows = [{**row, "arm": "ours", "reached": True}, {**row, "arm": "imagenet_bf16", "reached": False}]
    table = format_times({"environment": ENVIRONMENT, "rows": rows}).splitlines()
    assert "| alexnet_dist | 100 |" in table[2]
    assert "| not within 100 | 50.0%, 7 |" in table[3]


@pytest.mark.heavy
def test_figure_is_drawn(tmp_path: Path) -> None:
    draw_rivals(tmp_path / "speed.png", make_report())
    assert (tmp_path / "speed.png").read_bytes()[1:4] == b"PNG"
