"""What a run writes while it goes on, from its settings."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path

from alexnet_dist.base.deadlines import call_with_deadline
from alexnet_dist.base.errors import UsageError
from alexnet_dist.base.run_record import METRICS
from alexnet_dist.base.text import escape_values
from alexnet_dist.parallel.runtime import start_tensorboard, start_wandb
from alexnet_dist.settings.reader import dump_config
from alexnet_dist.settings.schema import Config, TrackingConfig
from alexnet_dist.tracking.csv import MetricsCsv
from alexnet_dist.tracking.tensorboard import TensorboardMirror, check_tensorboard_installed
from alexnet_dist.tracking.trackers import MetricsFile, Row, Tracker, Trackers
from alexnet_dist.tracking.wandb import WandbMirror
from alexnet_dist.tracking.wandb_account import choose_wandb_mode, list_overruled

logger = logging.getLogger("alexnet_dist")


def check_mirrors(tracking: TrackingConfig, folder: Path) -> None:
    """See to it that what `tracking` asks for can be made, before anything is trained.

    Raises:
        MachineError: TensorBoard is not installed, or cannot be imported.
        UsageError: the run folder's path is one that W&B and TensorBoard cannot write to.
    """
    if tracking.tensorboard:
        check_tensorboard_installed()
    asked_for = {"TensorBoard": tracking.tensorboard, "W&B": tracking.wandb in ("offline", "online")}
    names = " and ".join(name for name, is_asked_for in asked_for.items() if is_asked_for)
    try:
        str(folder.absolute() if names else "").encode()
    except UnicodeEncodeError:
        why = f"it is not UTF-8, and {names} cannot write there"
        remedy = "choose another --output_dir, or leave them out"
        raise UsageError("output_dir cannot be used", where=str(folder), why=why, remedy=remedy) from None


def open_trackers(config: Config, folder: Path, metrics_bytes: int, wandb_id: str) -> Trackers:
    """metrics.jsonl, metrics.csv and what `tracking` asks for.

    Args:
        config: the run's settings.
        folder: the run folder.
        metrics_bytes: size of metrics.jsonl at the restored step; the rest is cut off.
        wandb_id: the same at each start of the run.

    Raises:
        MachineError: metrics.jsonl cannot be written, or a package that was asked for is not installed.
    """
    starts: dict[str, Callable[[list[Row]], Tracker]] = {
        "metrics.csv": lambda rows: MetricsCsv(folder / "metrics.csv", rows)
    }
    if config.tracking.tensorboard:
        starts["TensorBoard"] = lambda rows: TensorboardMirror(
            start_tensorboard,
            folder=folder / "tensorboard",
            run_id=wandb_id,
            settings=dump_config(config),
            rows=rows,
        )
    tracking = escape_values(dataclasses.asdict(config.tracking))
    mode, reason = choose_wandb_mode(tracking["wandb"])
    if tracking["wandb"] != "disabled":
        logger.info("W&B: %s (%s)", mode, reason)
    overruled = list_overruled(tracking)
    if overruled:
        logger.info("W&B: without effect: %s", ", ".join(overruled))
    if mode != "disabled":
        starts["W&B"] = lambda rows: WandbMirror(
            start_wandb,
            call_with_deadline,
            folder=folder,
            mode=mode,
            run_id=wandb_id,
            settings=escape_values(dataclasses.asdict(config)),
            rows=rows,
            tracking=tracking,
        )
    return Trackers(MetricsFile(folder / METRICS, metrics_bytes), starts)
