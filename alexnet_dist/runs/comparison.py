"""Several runs beside each other: which settings differ, and what seeds alone make of a result."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from alexnet_dist.base.durable import format_json
from alexnet_dist.runs.past_runs import PastRun

SEED, DATA, ABSENT = "seed", "images (fingerprint)", "-"
# What changes no update, or only where a run keeps things: runs that differ in these alone are of one configuration.
OF_NO_CONSEQUENCE = {
    *("output_dir", "device", "data.engine", "data.workers", "data.prefetch", "data.cache_dir"),
    *("data.download", "data.hw_decoder_load"),
}
SECTIONS_OF_NO_CONSEQUENCE = ("log.", "tracking.", "checkpoint.")
SPREAD = "sample standard deviation (n - 1)"


@dataclass(frozen=True)
class Seeds:
    """Runs that differ in their seed alone, in how well they did.

    Args:
        runs: their names.
        measure: which number: best, test or seconds.
        mean, std: over the runs; std is the sample standard deviation.
        least, most: the extremes.
    """

    runs: tuple[str, ...]
    measure: str
    mean: float
    std: float
    least: float
    most: float


def list_settings(run: PastRun) -> dict[str, Any]:
    """All settings of a run, and the fingerprint of its images."""
    data = run.facts.get("data")
    fingerprint = data.get("fingerprint") if isinstance(data, dict) else None
    return {**run.settings, **({DATA: fingerprint[:12]} if isinstance(fingerprint, str) else {})}


def find_differences(runs: Sequence[PastRun]) -> dict[str, list[str]]:
    """The settings in which runs differ: {dotted name: a text for each run}; the run folders always do."""
    all_settings = [list_settings(run) for run in runs]
    keys = dict.fromkeys(key for settings in all_settings for key in settings if key != "output_dir")
    texts = {key: [_show(settings, key) for settings in all_settings] for key in keys}
    return {key: values for key, values in texts.items() if len(set(values)) > 1}


def _show(settings: dict[str, Any], key: str) -> str:
    """A value as it is told apart and shown: JSON, where it is no text."""
    if key not in settings:
        return ABSENT
    value = settings[key]
    return value if isinstance(value, str) else format_json(value, key)


def group_seeds(runs: Sequence[PastRun]) -> list[list[PastRun]]:
    """The runs that differ in their seed alone, together; those without settings stay out."""
    groups: dict[str, list[PastRun]] = {}
    for run in runs:
        kept = {key: value for key, value in run.settings.items() if _matters(key)}  # a seed may choose the images
        if run.settings:
            groups.setdefault(format_json(kept, run.name, sort_keys=True), []).append(run)
    return [group for group in groups.values() if len({run.settings.get(SEED) for run in group}) > 1]


def _matters(key: str) -> bool:
    return key not in (SEED, *OF_NO_CONSEQUENCE) and not key.startswith(SECTIONS_OF_NO_CONSEQUENCE)


def summarize_seeds(group: Sequence[PastRun]) -> list[Seeds]:
    """Mean and spread of what runs of several seeds reached; a number that some of them lack is left out."""
    measures = {
        "best": [run.best_top1 for run in group],
        "test": [run.number("test_top1") for run in group],
        "seconds": [run.seconds for run in group],
    }
    names = tuple(run.name for run in group)
    found = []
    for measure, values in measures.items():
        known = [value for value in values if value is not None]
        if len(known) == len(values):
            extremes = min(known), max(known)
            found.append(Seeds(names, measure, statistics.fmean(known), statistics.stdev(known), *extremes))
    return found
