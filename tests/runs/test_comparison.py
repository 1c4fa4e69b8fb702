"""Which settings differ between runs, and what seeds alone make of a result."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from helpers.past_runs import make_run

from alexnet_dist.runs.comparison import find_differences, group_seeds, summarize_seeds
from alexnet_dist.runs.past_runs import find_runs


def test_the_settings_that_differ_are_named_with_each_value(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", settings={"optimizer__lr": 0.02, "train__epochs": 2})
    differences = find_differences(find_runs(tmp_path))
    assert differences == {"optimizer.lr": ["0.01", "0.02"]}


def test_a_run_without_settings_differs_in_all_of_them(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_run(tmp_path / name)
    for name in (".alexnet_dist", "config.yaml", "run.json"):
        (tmp_path / "b" / name).unlink()
    assert find_differences(find_runs(tmp_path))["optimizer.lr"] == ["0.01", "-"]


def test_runs_that_differ_in_their_seed_alone_are_summarized(tmp_path: Path) -> None:
    for seed, best in enumerate((0.5, 0.7, 0.9)):
        make_run(tmp_path / f"seed-{seed}", top1=(best,), settings={"seed": seed, "log__level": "debug"})
    make_run(tmp_path / "other", top1=(0.1,), settings={"optimizer__lr": 0.5})
    (group,) = group_seeds(find_runs(tmp_path))
    best, seconds = summarize_seeds(group)
    assert best.runs == ("seed-0", "seed-1", "seed-2")
    assert (best.mean, best.std, best.least, best.most) == pytest.approx((0.7, 0.2, 0.5, 0.9))
    assert (seconds.measure, seconds.mean, seconds.std) == ("seconds", 10.0, 0.0)
    assert math.isclose(best.std, math.sqrt((0.2**2 + 0.2**2) / 2))  # n - 1


def test_the_same_run_twice_is_no_spread(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_run(tmp_path / name)
    assert group_seeds(find_runs(tmp_path)) == []
