"""What a run folder tells, whatever state it is in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock
from helpers.past_runs import make_run

from alexnet_dist.base.errors import UsageError
from alexnet_dist.base.nested import flatten
from alexnet_dist.runs.past_runs import _name_recipe, find_runs, measure_size, read_past_run
from alexnet_dist.settings.reader import load_config


def test_a_finished_run_tells_its_results(tmp_path: Path) -> None:
    run = read_past_run(make_run(tmp_path / "a", top1=(0.5, 0.75, 0.6), test=0.7))
    assert (run.state, run.best_top1, run.best_epoch, run.epoch, run.planned) == ("finished", 0.75, 2, 3, 3)
    assert (run.number("test_top1"), run.seconds, run.notes) == (0.7, 10.0, [])
    assert run.num_bytes == sum(path.stat().st_size for path in run.folder.rglob("*") if path.is_file())


def test_a_killed_run_tells_what_its_rows_do(tmp_path: Path) -> None:
    run = read_past_run(make_run(tmp_path / "a", status=None))
    assert (run.state, run.best_top1, run.best_epoch, run.epoch, run.seconds) == ("killed", 0.75, 2, 2, 10.0)


def test_a_summary_that_rows_have_overtaken_is_not_believed(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a", status="interrupted")
    assert read_past_run(folder).state == "interrupted"
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"event": "eval", "split": "val", "step": 12, "epoch": 3, "loss": 0.1, "top1": 0.9}\n')
    run = read_past_run(folder)
    assert (run.state, run.best_top1, run.best_epoch, run.epoch) == ("killed", 0.9, 3, 3)


def test_a_run_that_is_going_on_is_said_to_be(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a")
    with FileLock(folder / ".lock"):
        assert read_past_run(folder).state == "running"
    assert read_past_run(folder).state == "finished"


def cut_last_line(folder: Path) -> None:
    path = folder / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-20])


@pytest.mark.parametrize(
    ("damage", "note"),
    [
        (cut_last_line, "metrics.jsonl is missing, or ends in half a line"),
        (lambda folder: (folder / "metrics.jsonl").unlink(), "metrics.jsonl is missing, or ends in half a line"),
        (lambda folder: (folder / "summary.json").write_text('{"status": "fini'), "summary.json is damaged"),
        (lambda folder: (folder / ".alexnet_dist").write_text("{}"), ""),
        (
            lambda folder: [(folder / name).unlink() for name in (".alexnet_dist", "run.json", "config.yaml")],
            "config.yaml is missing or damaged; run.json is missing or damaged",
        ),
        (
            lambda folder: (folder / "run.json").write_text('{"starts": 7, "run_id": 5}'),
            "run.json is missing or damaged",
        ),
    ],
)
def test_a_damaged_folder_tells_what_it_can(tmp_path: Path, damage: Callable[[Path], object], note: str) -> None:
    damage(make_run(tmp_path / "runs" / "a"))
    (run,) = find_runs(tmp_path / "runs")
    assert "; ".join(run.notes) == note
    assert run.state in ("finished", "killed")
    assert run.best_top1 == 0.75 or not run.rows
    assert (run.recipe, run.epoch or 2, run.seconds or 10.0) == ("", 2, 10.0)


def test_values_that_no_run_writes_are_left_out(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a", status=None)
    lines = ['{"event": "eval", "step": "7", "top1": 1}', '{"event": "eval", "step": 9, "top1": NaN, "loss": [1]}']
    (folder / "metrics.jsonl").write_text("\n".join([*lines, "nonsense", ""]))
    run = read_past_run(folder)
    assert run.rows == [{"event": "eval", "step": 9}]
    assert (run.best_top1, run.notes) == (None, ["metrics.jsonl: 1 damaged lines are left out"])


def test_runs_are_found_at_any_depth_and_never_through_links(tmp_path: Path) -> None:
    for name in ("b", "a", "cv/fold-1", "cv/fold-2", "a/checkpoints/inner", ".hidden/c"):
        make_run(tmp_path / "runs" / name)
    (tmp_path / "runs" / "link").symlink_to(tmp_path / "runs" / "a")
    (tmp_path / "runs" / "pictures").mkdir()
    assert [run.name for run in find_runs(tmp_path / "runs")] == ["a", "b", "cv/fold-1", "cv/fold-2"]
    assert [run.name for run in find_runs(tmp_path / "runs" / "a")] == ["a"]


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_a_folder_without_runs_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=name):
        find_runs(tmp_path / name)


def test_a_file_with_two_names_counts_once(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"1" * 10)
    (tmp_path / "two").hardlink_to(tmp_path / "one")
    assert measure_size(tmp_path) == 10


@pytest.mark.parametrize(
    ("changes", "recipe"),
    [
        ({}, "fruits"),
        ({"train.epochs": 3, "data.root": "elsewhere", "seed": 5}, "fruits"),
        ({"optimizer.lr": 1.0}, "fruits*"),
    ],
)
def test_a_recipe_is_known_by_its_settings(changes: dict[str, object], recipe: str) -> None:
    assert _name_recipe(flatten(load_config("fruits", changes))) == recipe
    assert _name_recipe({}) == ""
