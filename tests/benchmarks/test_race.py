"""What is made of the words of programs that train: points, windows, goals, rows. No program is started."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from common.race import (
    OUTPUT,
    RUN,
    Point,
    Progress,
    Score,
    cut_window,
    lasts,
    measure_speed,
    name_reason,
    read_metrics,
    read_printed,
)
from common.report import Report, check_writable
from rivals import FP32, PUBLISHED, TARGETS, build_arms, fill_report, pick_arms
from time_to_accuracy import describe_progress

from alexnet_dist.base.errors import MachineError, UsageError

POINTS = [Point(64, 10.0), Point(128, 11.0), Point(192, 13.0), Point(256, 14.0)]
ENVIRONMENT = {"device": "cpu", "cpu_features": ["avx512_bf16"]}


def test_printed_progress_is_read_up_to_the_last_whole_line(tmp_path: Path) -> None:
    lines = [
        "a warning",
        json.dumps({"seen": 8, "time": 1.5}),
        json.dumps({"epoch": 1, "top1": 0.5}),
        '{"seen": 16, "t',
    ]
    (tmp_path / OUTPUT).write_text("\n".join(lines))
    assert read_printed(tmp_path) == ([Point(8, 1.5)], [(1, 0.5)])
    assert read_printed(tmp_path / "nothing") == ([], [])


def test_metrics_become_points_on_the_clock_of_training(tmp_path: Path) -> None:
    rows = [
        {"event": "train", "samples_seen": 32, "images_per_second": 16.0},
        {"event": "eval", "epoch": 1.0, "top1": 0.25},
        {"event": "train", "samples_seen": 64, "images_per_second": 64.0},
    ]
    (tmp_path / RUN).mkdir()
    (tmp_path / RUN / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_metrics(tmp_path) == ([Point(32, 2.0), Point(64, 2.5)], [(1.0, 0.25)])


def test_window_begins_after_what_was_made_ahead() -> None:
    window = cut_window(POINTS, skipped=64)
    assert window == POINTS[1:]
    assert measure_speed(window) == pytest.approx(128 / 3)
    assert lasts(window, 3.0, 128)
    assert not lasts(window, 3.1, 128)
    assert not lasts(window, 3.0, 129)
    assert not lasts(window[:1], 0.0, 0)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([(1, 0.2, 5.0), (2, 0.6, 9.0), (3, 0.9, 12.0)], {"reached": True, "seconds": 9.0, "epochs": 2, "top1": 0.9}),
        ([(1, 0.3, 5.0), (2, 0.2, 9.0)], {"reached": False, "seconds": 20.0, "epochs": 2, "top1": 0.3}),
        ([], {"reached": False, "seconds": 20.0, "epochs": 0, "top1": 0.0}),
    ],
)
def test_time_to_a_goal_is_that_of_the_first_evaluation_at_it(
    scores: list[tuple[float, float, float]], expected: dict[str, float]
) -> None:
    progress = Progress(scores=[Score(*score) for score in scores], seconds=20.0)
    assert describe_progress(progress, 0.55) == expected


def test_an_arm_that_cannot_run_says_so_in_its_row_and_has_no_ratio() -> None:
    report = Report(ENVIRONMENT)
    speeds = {"imagenet_fp32": [10.0, 20.0], "ours_fp32": [20.0, 60.0], "ours_bf16": []}
    starts = {name: [1.0] for name in speeds}
    fill_report(report, speeds, starts, {"imagenet_fp32": "", "ours_fp32": "", "ours_bf16": "no such thing"})
    rows = {row["arm"]: row for row in report.rows}
    assert rows["ours_bf16"] == {"arm": "ours_bf16", "missing": "no such thing"}
    assert rows["imagenet_fp32"]["images_per_second"] == 15.0
    assert set(report.ratios) == {"ours_fp32/imagenet_fp32"}
    ratio = report.ratios["ours_fp32/imagenet_fp32"]
    assert (ratio["median"], ratio["min"], ratio["max"]) == (2.5, 2.0, 3.0)
    assert "target 1.5" in ratio["what"]


def test_arms_are_those_that_the_ratios_name(tmp_path: Path) -> None:
    arms = build_arms(tmp_path, tmp_path / "cache", 64, on_gpu=False, tiny=False)
    assert {arm for ratio in TARGETS for arm in ratio.split("/")} == set(arms)
    assert {arms[f"{name}_published"].batch_size for name in PUBLISHED} == {32, 64, 128}
    assert set(FP32) <= set(arms["imagenet_fp32"].program.words)
    assert list(pick_arms(arms, ["ours_fp32"])) == ["ours_fp32"]
    with pytest.raises(UsageError, match="no arm strange"):
        pick_arms(arms, ["strange"])


def test_reason_of_a_program_is_its_last_line(tmp_path: Path) -> None:
    (tmp_path / "errors.txt").write_text("Traceback\n  here\nModuleNotFoundError: No module named 'nvidia'\n\n")
    assert name_reason(tmp_path) == "ModuleNotFoundError: No module named 'nvidia'"


def test_figures_that_could_not_be_written_are_not_measured(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "figures.json")
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "kept.json").write_text("{}")
    check_writable(tmp_path / "kept.json")
    assert (tmp_path / "kept.json").read_text() == "{}"
    for path in (tmp_path, tmp_path / "kept.json" / "figures.json"):
        with pytest.raises(MachineError, match="cannot write the figures"):
            check_writable(path)
