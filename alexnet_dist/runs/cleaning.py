"""What finished runs no longer need: their checkpoints. The best weights, tables and figures stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from alexnet_dist.base.run_record import CHECKPOINTS, CLEANED
from alexnet_dist.inference.checkpoints import list_own_checkpoints, remove_checkpoint
from alexnet_dist.runs.ownership import LOCK, is_made_here, mark_folder
from alexnet_dist.runs.past_runs import PastRun, measure_size


@dataclass(frozen=True)
class Leftover:
    """What a finished run can do without.

    Args:
        run: whose.
        paths: its checkpoints, newest first.
        num_bytes: that they take.
    """

    run: PastRun
    paths: Sequence[Path]
    num_bytes: int


def find_leftovers(runs: Sequence[PastRun]) -> list[Leftover]:
    """The checkpoints of runs that have finished and whose best weights are in model/; nothing is touched."""
    found = []
    for run in runs:
        has_model = (run.folder / "model" / "model.safetensors").is_file()
        if run.state != "finished" or not has_model or not is_made_here(run.folder, "run"):
            continue
        paths = _list_own(run)
        if paths:
            found.append(Leftover(run, paths, sum(map(measure_size, paths))))
    return found


def _list_own(run: PastRun) -> list[Path]:
    run_id = run.facts.get("run_id")
    return list_own_checkpoints(run.folder / CHECKPOINTS, run_id if isinstance(run_id, str) else None)


def remove_leftovers(leftovers: Sequence[Leftover]) -> int:
    """Remove what `find_leftovers` found, under each run's lock; the bytes that are free now.

    A run that somebody started meanwhile, and one that trained on, is left alone.

    Raises:
        MachineError: a run folder cannot be written.
    """
    freed = 0
    for leftover in leftovers:
        lock = FileLock(leftover.run.folder / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        try:
            if _list_own(leftover.run) != list(leftover.paths):
                continue
            # First: a start that finds no checkpoint then knows why there is none.
            mark_folder(leftover.run.folder, "run", {CLEANED: True})
            for path in leftover.paths:
                remove_checkpoint(path)
            freed += leftover.num_bytes - sum(map(measure_size, leftover.paths))
        finally:
            lock.release()
    return freed
