"""What a run writes while it goes on, from its settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alexnet_dist.base.run_record import METRICS
from alexnet_dist.settings.reader import dump_config
from alexnet_dist.settings.schema import Config, TrackingConfig
from alexnet_dist.tracking import mirrors
from alexnet_dist.tracking.trackers import MetricsFile, Run, Start, Trackers


def check_mirrors(tracking: TrackingConfig, folder: Path) -> None:
    """`mirrors.check_mirrors`, from settings."""
    mirrors.check_mirrors(dataclasses.asdict(tracking), folder)


def open_trackers(
    config: Config,
    folder: Path,
    metrics_bytes: int,
    wandb_id: str,
    is_main: bool = True,
    facts: Mapping[str, Any] | None = None,
    others: Mapping[str, Start] | None = None,
) -> Trackers:
    """metrics.jsonl, its tables and what `tracking` asks for; in other processes than the main one what each has.

    Args:
        config: the run's settings.
        folder: the run folder.
        metrics_bytes: size of metrics.jsonl at the restored step; the rest is cut off.
        wandb_id: the same at each start of the run.
        is_main: whether this process writes the run's files.
        facts: what trackers may tell of the run beside its settings.
        others: what starts trackers that know more of a run, by name.

    Raises:
        MachineError: metrics.jsonl cannot be written, or a package that was asked for is not installed.
    """
    run = Run(folder, wandb_id, dataclasses.asdict(config), dump_config(config), facts or {})
    starts = {**mirrors.prepare_mirrors(run, is_main), **(others or {})}
    metrics = MetricsFile(folder / METRICS, metrics_bytes) if is_main else None
    return Trackers(metrics, starts, everywhere=mirrors.EVERYWHERE)


def open_set_trackers(config: Config, folder: Path, set_id: str, name: str) -> Trackers:
    """What `tracking` asks for, for a set of runs; there is no metrics.jsonl.

    Args:
        config: the settings that the runs share.
        folder: which holds the runs.
        set_id: the same at each start, eight letters and digits.
        name: of the set.

    Raises:
        MachineError: a package that was asked for is not installed.
    """
    tracking = dataclasses.replace(config.tracking, name=f"{name}-summary", job_type="summary", group=name)
    config = dataclasses.replace(config, tracking=tracking, output_dir=str(folder))
    run = Run(folder, set_id, dataclasses.asdict(config), dump_config(config))
    return Trackers(None, mirrors.prepare_mirrors(run, of_set=True))
