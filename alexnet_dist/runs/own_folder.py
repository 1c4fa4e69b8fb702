"""A folder for a run whose name nobody chose: runs/NAME, or runs/NAME-2 where NAME is a run with other settings."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Callable
from pathlib import Path

from alexnet_dist.base.durable import read_object
from alexnet_dist.base.errors import CheckpointError, UsageError
from alexnet_dist.base.nested import flatten
from alexnet_dist.base.run_record import CHECKPOINTS, SUMMARY
from alexnet_dist.inference.checkpoints import list_checkpoints
from alexnet_dist.runs.folder import is_held, read_settings, start_logging
from alexnet_dist.runs.resume import is_over, list_refused
from alexnet_dist.settings.reader import build_config
from alexnet_dist.settings.schema import Config

logger = logging.getLogger("alexnet_dist")


def find_own_folder(config: Config, explain: Callable[[Config], str]) -> tuple[Config, str]:
    """The settings with a folder that no other run has, and a line about it where it is not the first one.

    Args:
        config: the settings; output_dir must be set.
        explain: says what keeps a run with such settings out of its folder, "" where nothing does.
    """
    first = Path(str(config.output_dir))
    why = explain(config)
    if not why:
        return config, ""
    names = (str(first.with_name(f"{first.name}-{number}")) for number in itertools.count(2))
    moved = (dataclasses.replace(config, output_dir=name) for name in names)
    found = next(other for other in moved if not explain(other))
    return found, f"{first} is a run with other settings ({why}): this one goes to {found.output_dir}"


def settle_folder(config: Config, note: str) -> str | None:
    """Say what `find_own_folder` found; the folder. For the main process, which decides for all."""
    if note:
        start_logging(None)
        logger.warning(note)
    return config.output_dir


def explain_taken(run: Config, is_whole: bool = False) -> str:
    """Which settings the run in a folder has otherwise; "" where there is none, or where this one goes on with it.

    A rate may change within a run. It may not where the run in the folder has ended, or is going on elsewhere: the rate
    is then that of another trial.

    Args:
        run: the settings; output_dir must be set.
        is_whole: see `compare_settings`.
    """
    folder = Path(str(run.output_dir))
    is_going_on, summary = is_held(folder), read_object(folder / SUMMARY)
    has_ended = summary.get("status") == "finished"  # it may have kept no checkpoint
    if not (is_going_on or has_ended or list_checkpoints(folder / CHECKPOINTS)):
        return ""
    try:
        before = build_config(*read_settings(folder))
    except (CheckpointError, UsageError):  # said when the folder is opened
        return ""
    is_settled = is_whole or is_going_on or is_over(summary, run.train)
    return list_refused(flatten(before), flatten(run), is_settled)
