"""A run for the trackers that stands for several which differ in their seed alone."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from alexnet_dist.assembly.trackers import check_mirrors, open_set_trackers
from alexnet_dist.base.durable import disk_errors_named
from alexnet_dist.base.errors import UsageError
from alexnet_dist.base.text import escape_text
from alexnet_dist.runs.comparison import SEED, group_seeds, summarize_seeds
from alexnet_dist.runs.folder import read_settings, start_logging
from alexnet_dist.runs.past_runs import PastRun
from alexnet_dist.settings.reader import build_config

MEASURES: Mapping[str, str] = {"best": "best_top1", "test": "test_top1", "seconds": "train_seconds"}  # in trackers


def track_seeds(runs: Sequence[PastRun], folder: Path) -> None:
    """Give the trackers of some runs a row for each seed, then mean, spread, least and most.

    Which trackers, and the group, are those of the first run.

    Args:
        runs: which differ in their seed alone.
        folder: takes what the trackers write; it is made where it is missing.

    Raises:
        UsageError: they differ in more, or have no tracker.
        MachineError: a package that was asked for is not installed, or the folder cannot be made.
    """
    groups = group_seeds(runs)
    if [len(group) for group in groups] != [len(runs)]:
        remedy = "name runs of one configuration; without --track, `compare` says in what they differ"
        raise UsageError("--track: these runs differ in more than their seed", where="command line", remedy=remedy)
    config = build_config(*read_settings(runs[0].folder))
    if not folder.is_dir():
        with disk_errors_named(folder):
            folder.mkdir(parents=True)
    check_mirrors(config.tracking, folder)
    start_logging(None)
    ids = sorted(str(run.facts.get("run_id")) for run in runs)
    set_id = hashlib.sha256("\n".join(ids).encode()).hexdigest()[:8]
    trackers = open_set_trackers(config, folder, set_id, config.tracking.group or escape_text(folder.resolve().name))
    if not trackers.names:
        remedy = "train them with --tracking.wandb, --tracking.tensorboard or --tracking.mlflow"
        raise UsageError("--track: these runs have no tracker", where=str(runs[0].folder), remedy=remedy)
    for number, run in enumerate(runs, start=1):
        values = {"best": run.best_top1, "test": run.number("test_top1"), "seconds": run.seconds}
        figures = {MEASURES[key]: value for key, value in values.items() if value is not None}
        trackers.log({"event": "seed", "step": number, "seed": run.settings.get(SEED), **figures})
    trackers.finish({"status": "finished", "seeds": len(runs), **_list_spreads(groups[0])})


def _list_spreads(group: Sequence[PastRun]) -> dict[str, float]:
    return {
        f"{MEASURES[found.measure]}_{word}": getattr(found, word)
        for found in summarize_seeds(group)
        for word in ("mean", "std", "least", "most")
    }
