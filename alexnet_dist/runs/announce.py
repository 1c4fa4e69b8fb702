"""What a training run tells its user: what will be trained, on what, from where, and how it ended."""

from __future__ import annotations

import logging
from typing import Any

import torch

from alexnet_dist.base.text import join_names, quote_word
from alexnet_dist.runs.start import Network, Start
from alexnet_dist.training.loop import Trainer
from alexnet_dist.training.schedule import list_unreached

logger = logging.getLogger("alexnet_dist")

MOST_CLASSES = 10  # in the start's lines


def announce(start: Start, network: Network, trainer: Trainer) -> None:
    """Say in a few lines what will be trained, on what, and from where."""
    runtime, data, sizes = start.runtime, start.data, start.sizes
    parameters = trainer.partition.count_parameters(trainer.model)
    layout = "channels last" if start.config.channels_last else "contiguous"
    passed = f", {data['num_bad_files']} bad files left out" if data["num_bad_files"] else ""
    counts = f"{data['num_train']:,} train, {data['num_val']:,} val, {data['num_test']:,} test images{passed}"
    lines = [
        f"model     {start.config.model.variant}, {parameters:,} parameters, {start.spec.num_classes} classes",
        f"data      {start.config.data.source}: {counts}",
        f"classes   {join_names(start.splits.train.classes, most=MOST_CLASSES)}",
        f"engine    {start.engine.name} ({start.engine.reason}), workers per process: {trainer.loader.workers}"
        + _count_odd_images(start),
        f"batch     {sizes}; {start.steps_per_epoch} steps an epoch, {start.total_steps} in all",
        f"device    {runtime.world_size} x {runtime.device.type} ({runtime.mesh}), {layout}, "
        f"{torch.get_num_threads()} threads",
        f"precision {runtime.precision} ({runtime.precision_reason})",
        f"run       {start.folder}, {start.resumption.describe(trainer.state.step)}",
    ]
    if network.signal is not None:
        last = f"{network.signal['fc8']:.2g}"
        lines.insert(1, f"signal    images differ by {last} of the size of their logits")
    if start.changes:
        lines.append(f"images    {start.changes}; from step {trainer.state.step} on, {_describe_plan(start)}")
    if start.resumption.changed:
        changes = ", ".join(f"{key} {before} -> {now}" for key, (before, now) in start.resumption.changed.items())
        lines.append(f"changed   {changes}; from step {trainer.state.step} on")
    for line in lines:
        logger.info(line)
    for line in [*list_unreached(trainer.schedule), *_list_late_settings(start)]:
        logger.warning("schedule  %s", line)
    if trainer.is_over and start.resumption.was_finished:
        remedy = "raise train.epochs to go on, or use"
        if trainer.stopped_early:
            remedy = "it stopped early; raise train.early_stop to go on, or use"
        logger.info("this run is finished; %s --new", remedy)


def _describe_plan(start: Start) -> str:
    """What other images mean for the updates that follow, and for their evaluation."""
    before, now = start.resumption.images, start.data
    counts = {key: (before.get(key), now[key]) for key in ("num_train", "num_val", "num_test")}
    told = [f"{key[4:]} has {new} images instead of {old}" for key, (old, new) in counts.items() if old != new]
    if counts["num_train"][0] == counts["num_train"][1]:
        return ", ".join(["the order of the training images stays", *told])
    return ", ".join([*told, f"the order is drawn anew, {start.steps_per_epoch} steps an epoch"])


def _count_odd_images(start: Start) -> str:
    """How many files DALI gets as pixels: those of a kind, or a form, that decoders do not read alike."""
    sets = start.splits.named().values()
    number = sum(int((~index.is_plain).sum()) for index in sets if index.has_files)
    if start.engine.name != "dali" or not number:
        return ""
    return f"; {number:,} images of unusual form are decoded by the reference"


def _list_late_settings(start: Start) -> list[str]:
    """Settings that count epochs and come after the run's last one, a line each."""
    config = start.config
    epochs = -(-start.total_steps // start.steps_per_epoch)
    late = {
        "optimizer.freeze_from_epoch": (config.optimizer.freeze_from_epoch, "no layer is frozen"),
        "train.early_stop": (config.train.early_stop or 0, "the run never ends early"),
    }
    return [
        f"{key} {value:,} comes after the run's {epochs:,} epochs: {what}"
        for key, (value, what) in late.items()
        if value >= epochs
    ]


def say_goodbye(start: Start, summary: dict[str, Any]) -> None:
    """Print the result, the run folder and what to try next."""
    for name, key in (("best validation", "best_top1"), ("test", "test_top1")):
        if summary[key] is not None:
            logger.info("%s top-1: %.2f %%", name, 100 * summary[key])
    logger.info("run folder: %s", start.folder)
    index = start.splits.val or start.splits.train
    if index.has_files:  # predict reads image files
        words = map(quote_word, (start.folder, index.root / index.paths[0]))
        logger.info("next: python launch/predict.py --model %s %s", *words)
