"""The trackers that mirror metrics.jsonl: a line each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alexnet_dist.base.errors import UsageError
from alexnet_dist.tracking.csv import CSV
from alexnet_dist.tracking.epochs import EPOCHS
from alexnet_dist.tracking.mlflow import MLFLOW
from alexnet_dist.tracking.ray import RAY
from alexnet_dist.tracking.tensorboard import TENSORBOARD
from alexnet_dist.tracking.trackers import Kind, Run, Start
from alexnet_dist.tracking.wandb import WANDB

KINDS: dict[str, Kind] = {  # by its name in messages
    "metrics.csv": CSV,
    "epochs.csv": EPOCHS,
    "TensorBoard": TENSORBOARD,
    "W&B": WANDB,
    "MLflow": MLFLOW,
    "Ray": RAY,
}
EVERYWHERE = frozenset(name for name, kind in KINDS.items() if kind.is_everywhere)


def check_mirrors(tracking: Mapping[str, Any], folder: Path) -> None:
    """See to it that what `tracking` asks for can be made, before anything is trained.

    Args:
        tracking: settings of `TrackingConfig`, by name.
        folder: the run folder.

    Raises:
        MachineError: a package is not installed, or cannot be imported.
        UsageError: the run folder's path is one that a mirror cannot write to.
    """
    asked_for = {name: kind for name, kind in KINDS.items() if kind.is_asked_for(tracking)}
    for kind in asked_for.values():
        kind.check()
    try:
        str(folder.absolute() if asked_for else "").encode()
    except UnicodeEncodeError:
        why = f"it is not UTF-8, and {' and '.join(asked_for)} cannot write there"
        remedy = "choose another --output_dir, or leave them out"
        raise UsageError("output_dir cannot be used", where=str(folder), why=why, remedy=remedy) from None


def prepare_mirrors(run: Run, is_main: bool = True, of_set: bool = False) -> dict[str, Start]:
    """What starts each mirror that the run wants in this process, by name.

    Args:
        run: the run.
        is_main: whether this process writes the run's files.
        of_set: whether it is no run, but what several came to together.

    Raises:
        MachineError: a package that was asked for is not installed.
    """
    kinds = {name: kind for name, kind in KINDS.items() if kind.is_for_sets or not of_set}
    starts = {name: kind.prepare(run) for name, kind in kinds.items() if is_main or kind.is_everywhere}
    return {name: start for name, start in starts.items() if start is not None}
