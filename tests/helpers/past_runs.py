"""Run folders as a run leaves them, written in a moment: by the package's own writers, without training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alexnet_dist.base.durable import write_folder
from alexnet_dist.runs.folder import open_folder, store_settings, update_run_json, write_summary
from alexnet_dist.tracking.trackers import MetricsFile
from helpers.tiny import tiny_config

RUN_ID = "0123456789abcdef"


def make_run(
    folder: Path,
    top1: Sequence[float] = (0.5, 0.75),
    status: str | None = "finished",
    test: float | None = None,
    settings: Mapping[str, Any] = {},
    steps_per_epoch: int = 4,
) -> Path:
    """A run folder with an epoch for each validation top-1.

    Args:
        folder: where.
        top1: of the validation set, after each epoch.
        status: of summary.json; None = killed before there was one.
        test: top-1 of the test set.
        settings: overrides of `tiny_config`, with __ for the dot.
        steps_per_epoch: updates, each a log point.
    """
    config = tiny_config(folder, **{"train__epochs": len(top1), **settings})
    open_folder(folder, new=False, kind="run").release()
    facts = {"run_id": RUN_ID, "versions": {"torch": "2"}, "machine": {"cpu": "a CPU"}, "engine": "torchvision"}
    data = {"fingerprint": f"{config.seed:064d}", "num_train": 40, "num_val": 8}
    update_run_json(folder, {**facts, "data": data}, {"step": 0, "processes": 1})
    store_settings(folder, config)
    metrics = MetricsFile(folder / "metrics.jsonl", 0)
    for row in list_rows(top1, steps_per_epoch):
        metrics.log(row)
    if test is not None:
        metrics.log({"event": "test", "split": "test", "step": len(top1) * steps_per_epoch, "loss": 1.0, "top1": test})
    metrics.close()
    if status is not None:
        best = max(range(len(top1)), key=lambda epoch: (top1[epoch], -epoch))
        ended = {"status": status, "step": len(top1) * steps_per_epoch, "epoch": len(top1), "train_seconds": 10.0}
        write_summary(folder, {**ended, "best_top1": top1[best], "best_epoch": best + 1, "test_top1": test})
    return folder


def list_rows(top1: Sequence[float], steps_per_epoch: int) -> list[dict[str, Any]]:
    """The rows that a run of so many epochs logs."""
    rows: list[dict[str, Any]] = []
    for epoch, value in enumerate(top1, start=1):
        for step in range((epoch - 1) * steps_per_epoch + 1, epoch * steps_per_epoch + 1):
            point = {"event": "train", "step": step, "epoch": step // steps_per_epoch, "samples_seen": 12 * step}
            speed = {"images_per_second": 100.0 + step, "data_wait_seconds": 0.01, "data_wait_fraction": 0.25}
            rows.append({**point, "loss": 4.0 / (step + 1), "top1": value / 2, "lr": 0.01, **speed})
        ended = {"step": epoch * steps_per_epoch, "epoch": epoch}
        judged = {"loss": 2.0 - value, "top1": value, "top5": 1.0, "num_examples": 8}
        rows.append({"event": "eval", "split": "val", **ended, **judged})
        means = {"train_loss": 1.0, "train_top1": value / 2, "val_loss": 2.0 - value, "val_top1": value}
        rows.append({"event": "epoch", **ended, **means, "seconds": 5.0})
    return rows


def add_checkpoint(folder: Path, step: int, run_id: str = RUN_ID) -> Path:
    """A checkpoint's folder with a few bytes of everything, and a model folder beside it."""
    state = f'{{"step": {step}, "run_id": "{run_id}"}}'.encode()
    path = folder / "checkpoints" / f"step-{step:08d}"
    path.parent.mkdir(exist_ok=True)
    write_folder(path, {"weights.safetensors": b"w" * 1000, "optimizer.safetensors": b"o" * 1000, "state.json": state})
    (folder / "model").mkdir(exist_ok=True)
    (folder / "model" / "model.safetensors").write_bytes(b"m" * 100)
    return path
