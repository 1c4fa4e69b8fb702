"""What a start writes into the run folder beside rows and checkpoints: its record, its model card, its summary."""

from __future__ import annotations

import dataclasses
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alexnet_dist.assembly.graph import GraphChoice
from alexnet_dist.assembly.loaders import build_augmentation
from alexnet_dist.base.durable import read_digest, write_file
from alexnet_dist.base.machine import describe_machine, find_git_commit, list_versions
from alexnet_dist.base.run_record import CHECKPOINTS, METRICS, is_step_name
from alexnet_dist.inference.checkpoints import is_inside
from alexnet_dist.inference.model_folder import WEIGHTS, ModelCard, describe_source, read_card
from alexnet_dist.inference.model_page import README, SetResult, drop_page, format_page
from alexnet_dist.runs.folder import add_facts, store_settings, update_run_json, write_summary
from alexnet_dist.runs.held_out import write_held_out
from alexnet_dist.runs.image_list import iterate_images, keep_image_list
from alexnet_dist.runs.start import Network, Start
from alexnet_dist.tracking.trackers import Row, find_most_memory, find_rows_until, read_rows
from alexnet_dist.training.checkpoint import ABANDONED, Checkpoint, prune_checkpoints, set_aside_newer
from alexnet_dist.training.loop import Trainer

logger = logging.getLogger("alexnet_dist")

MODEL = "model"
# Of run.json, what may leave the machine: no path, and no name of a machine or a user.
TOLD = ("versions", "machine", "git_commit", "processes", "strategy", "device", "precision", "engine", "batch")
TOLD_OF_DATA = ("fingerprint", "num_train", "num_val", "num_test", "num_classes")


@dataclass(frozen=True)
class Recording:
    """What the run folder holds when a start begins to write.

    Args:
        metrics_bytes: size of metrics.jsonl at the restored step; the rest is cut off.
        wandb_id: the same at each start of the run.
        test_row: on the test set, of a run that had ended before.
        verdicts: which checkpoints are intact, as far as that is known.
        told: what trackers may tell of the run beside its settings.
    """

    metrics_bytes: int
    wandb_id: str
    test_row: Row | None = None
    verdicts: dict[Path, bool] = field(default_factory=dict)
    told: dict[str, Any] = field(default_factory=dict)


def begin_recording(start: Start, network: Network, step: int, loaded: Checkpoint | None) -> Recording:
    """Cut off what lies after the checkpoint and record this start. For the main process.

    Args:
        start: of the run.
        network: what is trained.
        step: at which it begins.
        loaded: the checkpoint that it begins with, if any.

    Raises:
        MachineError: the run folder cannot be written.
    """
    rows = read_rows(start.folder / METRICS) if start.resumption.was_finished else []
    test_row = next((row for row in rows if row["event"] == "test"), None)  # before it is cut off
    verdicts: dict[Path, bool] = {}
    metrics_bytes = _settle_line(start, step, loaded, verdicts) if loaded and start.resumption.goes_on else 0
    record = _record_start(start, network, step)
    return Recording(metrics_bytes, record["wandb_id"], test_row, verdicts, _pick_told(start, network, record))


def _settle_line(start: Start, step: int, loaded: Checkpoint, verdicts: dict[Path, bool]) -> int:
    """Set aside what the run leaves behind by going back; how many bytes of metrics.jsonl stay."""
    path, metrics, folder = Path(loaded.where), start.folder / METRICS, start.folder / CHECKPOINTS
    if start.resumption.is_named:
        aside = set_aside_newer(folder, step, metrics, start.folder / MODEL)
        if aside is not None:
            logger.warning("checkpoints after step %d are left behind: they lie in %s from now on", step, aside)
        if path.parent.name.startswith(ABANDONED) and (path.parent / METRICS).is_file():
            write_file(metrics, (path.parent / METRICS).read_bytes())
    metrics_bytes, note = find_rows_until(metrics, loaded.state.get("metrics_bytes", -1), step)
    if note is not None:
        logger.warning(note)
    verdicts[path] = True
    if is_inside(path, folder) and is_step_name(path):
        prune_checkpoints(folder, path, start.config.checkpoint.keep, verdicts)
    return metrics_bytes


def _record_start(start: Start, network: Network, step: int) -> dict[str, Any]:
    """What run.json holds from now on."""
    config, runtime, resumption = start.config, start.runtime, start.resumption
    entry: dict[str, Any] = {"step": step, "processes": runtime.world_size, "micro_batch_size": start.sizes.micro}
    if resumption.is_foreign:
        entry["begins_from"] = str(resumption.checkpoint)
    if start.changes:
        entry["images"] = {name: [path for _, path in keys] for name, keys in vars(start.changes).items()}
    if resumption.changed:
        entry["changed"] = {key: list(values) for key, values in resumption.changed.items()}
    facts = {
        "run_id": resumption.run_id,
        "versions": list_versions(),
        "machine": describe_machine(),
        "git_commit": find_git_commit(),
        "processes": runtime.world_size,
        "strategy": config.parallel.strategy,
        "device": runtime.device.type,
        "precision": runtime.precision,
        "precision_reason": runtime.precision_reason,
        "engine": start.engine.name,
        "engine_reason": start.engine.reason,
        "kernels": dataclasses.asdict(start.kernels),
        "cuda_graph": dataclasses.asdict(start.graph),
        "batch": str(start.sizes),
        "pretrained": network.pretrained,
        "data": {**start.data, "list": _keep_image_list(start)},
        **({"signal": network.signal} if network.signal else {}),
        "held_out": None,
    }
    if start.splits.is_held_out and start.splits.val is not None:
        facts["held_out"] = write_held_out(start.folder, start.splits.val, start.root)
    values = update_run_json(start.folder, facts, entry)
    store_settings(start.folder, config)  # after the record of what is new in them
    return values


def give_up_graph(start: Start, failure: str) -> None:
    """Say why updates stay eager, and keep it for later starts. For the main process.

    Args:
        start: of the run.
        failure: why no update could be captured, or which bits differ.
    """
    logger.warning("graph     all updates are eager: %s", failure)
    add_facts(start.folder, {"cuda_graph": dataclasses.asdict(GraphChoice(False, "it failed", failure))})
    store_settings(start.folder, start.config)  # with the copy of it


def _pick_told(start: Start, network: Network, record: dict[str, Any]) -> dict[str, Any]:
    told = {key: record[key] for key in TOLD}
    data = {key: value for key, value in record["data"].items() if key in TOLD_OF_DATA}
    return {**told, "parameters": network.partition.count_parameters(network.model), "data": data}


def _keep_image_list(start: Start) -> str | None:
    """See to it that the list of images is there and whole; its sha256."""
    digest = start.resumption.images.get("list") if start.has_same_images else None
    return keep_image_list(start.folder, digest, iterate_images(start.splits.named(), start.root))


def describe_model(start: Start, network: Network, note: dict[str, Any]) -> ModelCard:
    """config.json of a model folder; `note` says which weights they are."""
    settings = dataclasses.asdict(start.config)
    origin = describe_source(settings, network.pretrained, start.splits.fingerprint)
    return ModelCard(
        variant=start.config.model.variant,
        spec=start.spec,
        classes=start.splits.train.classes,
        evaluation=build_augmentation(start.config.augment, start.spec.image_size).for_evaluation(),
        normalization=start.feed.normalization,
        source={"run": start.folder.name, **note, **origin},
    )


def write_model_page(start: Start, test_row: Row) -> None:
    """Write model/README.md of a finished run, where it is not its user's. For the main process.

    Args:
        start: of the run.
        test_row: on the test set; empty where there is none.

    Raises:
        MachineError: it cannot be written.
    """
    folder = start.folder / MODEL
    drop_page(folder)
    if os.path.lexists(folder / README):
        return
    card, digest = read_card(folder), read_digest(folder, WEIGHTS)
    rows = [row for row in read_rows(start.folder / METRICS) if row["event"] == "eval" and row["split"] == "val"]
    val_row = next((row for row in reversed(rows) if row["step"] == card.source.get("step")), None)
    results = [
        SetResult(row["split"], row["top1"], row["top5"], row["loss"], row["num_examples"])
        for row in (val_row, test_row)
        if row
    ]
    if digest is not None:
        page = format_page(card, digest, results, start.splits.counts(), start.splits.is_held_out)
        write_file(folder / README, page.encode())


def summarize(start: Start, trainer: Trainer, status: str, test_row: Row) -> dict[str, Any]:
    """Write summary.json and close metrics.jsonl; what summary.json holds. The mirrors are left open.

    A finished run also gets the page of its model.

    Args:
        start: of the run.
        trainer: where it stands.
        status: finished, interrupted or failed.
        test_row: on the test set; empty where there is none.

    Raises:
        MachineError: the rows of a finished run, or the page, could not be written: it has not ended well.
    """
    state = trainer.state
    summary = {
        "status": status,
        "step": state.step,
        "epoch": trainer.epoch,
        "stopped_early": trainer.stopped_early,
        "best_top1": state.best_top1,
        "best_top5": state.best_top5,
        "best_epoch": state.best_epoch,
        "final_top1": state.final_top1,
        "test_top1": test_row.get("top1"),
        "test_top5": test_row.get("top5"),
        "images_per_second": state.samples_seen / state.train_seconds if state.train_seconds else None,
        "train_seconds": state.train_seconds,
        "world_size": start.runtime.world_size,
        "strategy": start.config.parallel.strategy,
        "precision": start.runtime.precision,
        "engine": start.engine.name,
        **find_most_memory(read_rows(start.folder / METRICS)),
    }
    if start.runtime.is_main:
        if status == "finished":
            trainer.trackers.sync()
            write_model_page(start, test_row)
        write_summary(start.folder, summary)
    trainer.trackers.close_metrics()
    return summary
