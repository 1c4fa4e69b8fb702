"""`runs --clean`: what is removed, and above all what is not."""

from __future__ import annotations

from pathlib import Path

import pytest
from filelock import FileLock
from helpers.past_runs import add_checkpoint, make_run
from helpers.tiny import tiny_config

from alexnet_dist.base.errors import UsageError
from alexnet_dist.base.run_record import read_marker
from alexnet_dist.runs.cleaning import find_leftovers, remove_leftovers
from alexnet_dist.runs.past_runs import find_runs


def list_files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_checkpoints_of_finished_runs_go_and_nothing_else(tmp_path: Path) -> None:
    for name, status in (("done", "finished"), ("stopped", "interrupted"), ("dead", None)):
        for step in (4, 8):
            add_checkpoint(make_run(tmp_path / name, status=status), step)
    add_checkpoint(tmp_path / "done", 2, run_id="f" * 16)
    (tmp_path / "done" / "checkpoints" / "step-00000008" / "mine.txt").write_text("a user's")
    before = list_files(tmp_path)
    leftovers = find_leftovers(find_runs(tmp_path))
    assert [(each.run.name, len(each.paths)) for each in leftovers] == [("done", 2)]
    assert list_files(tmp_path) == before
    freed = remove_leftovers(leftovers)
    removed = before - list_files(tmp_path)
    names = ("weights.safetensors", "optimizer.safetensors", "state.json", "manifest.json")
    assert removed == {f"done/checkpoints/step-{step:08d}/{name}" for step in (4, 8) for name in names}
    assert freed > 4000
    assert read_marker(tmp_path / "done")["cleaned"] is True


@pytest.mark.parametrize("obstacle", ["running", "no model", "another program's", "a link"])
def test_what_is_not_surely_done_and_ours_stays(tmp_path: Path, obstacle: str) -> None:
    folder = make_run(tmp_path / "a")
    checkpoint = add_checkpoint(folder, 8)
    lock = FileLock(folder / ".lock")
    if obstacle == "running":
        lock.acquire()
    elif obstacle == "no model":
        (folder / "model" / "model.safetensors").unlink()
    elif obstacle == "another program's":
        for name in (".alexnet_dist", "run.json", "config.yaml"):
            (folder / name).unlink()
    else:
        (folder / "checkpoints").rename(tmp_path / "elsewhere")
        (folder / "checkpoints").symlink_to(tmp_path / "elsewhere")
    try:
        assert find_leftovers(find_runs(tmp_path / "a")) == []
    finally:
        lock.release()
    assert checkpoint.exists()


def test_a_run_that_was_started_meanwhile_keeps_its_checkpoints(tmp_path: Path) -> None:
    checkpoint = add_checkpoint(make_run(tmp_path / "a"), 8)
    leftovers = find_leftovers(find_runs(tmp_path))
    with FileLock(tmp_path / "a" / ".lock"):
        assert remove_leftovers(leftovers) == 0
    add_checkpoint(tmp_path / "a", 12)
    assert remove_leftovers(leftovers) == 0
    assert checkpoint.exists()


@pytest.mark.heavy
def test_a_cleaned_run_is_finished_and_never_begins_anew(tmp_path: Path) -> None:
    from alexnet_dist.runs.session import train

    config = tiny_config(tmp_path / "a", train__epochs=1)
    summary = train(config)
    remove_leftovers(find_leftovers(find_runs(tmp_path)))
    weights = (tmp_path / "a" / "model" / "model.safetensors").read_bytes()
    assert train(config) == summary
    with pytest.raises(UsageError, match="runs --clean removed its checkpoints"):
        train(tiny_config(tmp_path / "a", train__epochs=2))
    assert (tmp_path / "a" / "model" / "model.safetensors").read_bytes() == weights
