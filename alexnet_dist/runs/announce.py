"""What a training run tells its user: what will be trained, on what, from where, and how it ended."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import Any

import torch

from alexnet_dist.base.errors import AlexNetDistError
from alexnet_dist.base.progress import COMMAND
from alexnet_dist.base.started import name_command
from alexnet_dist.base.text import join_names, quote_word
from alexnet_dist.data.index import SampleIndex
from alexnet_dist.data.sources.given_archives import is_archive
from alexnet_dist.models.signal import LEAST_SIGNAL
from alexnet_dist.runs.folder import read_reported, relative_path
from alexnet_dist.runs.past_runs import measure_size
from alexnet_dist.runs.start import Network, Start
from alexnet_dist.training.graph import WARM_UP
from alexnet_dist.training.loop import Trainer
from alexnet_dist.training.schedule import list_unreached

logger = logging.getLogger("alexnet_dist")

SEEN_FIRST = ("report.html", "plots/curves.png")
MOST_CLASSES = 10  # in the start's lines


def announce(start: Start, network: Network, trainer: Trainer) -> None:
    """Say in a few lines what will be trained, on what, and from where."""
    runtime, data = start.runtime, start.data
    parameters = trainer.partition.count_parameters(trainer.model)
    layout = "channels last" if start.config.channels_last else "contiguous"
    threads = torch.get_num_threads()
    num_bad = data["num_bad_files"]
    passed = f", {num_bad:,} bad file{'s' * (num_bad != 1)} left out" if num_bad else ""
    counts = f"{data['num_train']:,} train, {data['num_val']:,} val, {data['num_test']:,} test images{passed}"
    lines = [
        f"model     {start.config.model.variant}, {parameters:,} parameters, {start.spec.num_classes} classes",
        f"data      {start.config.data.source}: {counts}",
        f"classes   {join_names(start.splits.train.classes, most=MOST_CLASSES)}",
        f"loader    {start.engine.name} ({start.engine.reason}), workers per process: {trainer.loader.workers}"
        + _count_odd_images(start),
        f"batch     {_describe_batch(start)}",
        f"steps     {start.steps_per_epoch:,} an epoch, {start.total_steps:,} in all",
        f"device    {runtime.world_size} x {runtime.device.type} ({runtime.mesh}), {layout}, "
        f"{threads} thread{'s' if threads > 1 else ''}",
        f"precision {runtime.precision} ({runtime.precision_reason})",
        *([f"kernels   {start.kernels} ({start.kernels.reason})"] if start.kernels.are_special else []),
        *_describe_graph(start),
        f"run       {start.folder}, {start.resumption.describe(trainer.state.step)}",
    ]
    if network.signal is not None and network.signal["fc8"] < LEAST_SIGNAL:
        strength = f"{network.signal['fc8']:.1g} (healthy: above {LEAST_SIGNAL:g}"
        lines.insert(1, f"signal    {strength}; how strongly images influence the untrained network's output)")
    if start.resumption.processes_before not in (None, runtime.world_size):
        before = start.resumption.processes_before
        lines.append(f"processes {runtime.world_size} instead of {before}; each update has as many images as before")
    if start.changes:
        lines.append(f"images    {start.changes}; from step {trainer.state.step} on, {_describe_plan(start)}")
    if start.resumption.changed:
        changes = ", ".join(f"{key} {before} -> {now}" for key, (before, now) in start.resumption.changed.items())
        lines.append(f"changed   {changes}; from step {trainer.state.step} on")
    for line in lines:
        logger.info(line)
    if start.config.train.cuda_graph is True and not start.graph.wanted:
        logger.warning("graph     none, although train.cuda_graph is true: %s", start.graph.reason)
    for line in [*list_unreached(trainer.schedule), *_list_late_settings(start)]:
        logger.warning("schedule  %s", line)
    if trainer.is_over and start.resumption.was_finished:
        remedy = "raise train.epochs to go on, or use"
        if trainer.stopped_early:
            remedy = "it stopped early; raise train.early_stop to go on, or use"
        logger.info("this run is finished; %s --new", remedy)


def _describe_graph(start: Start) -> list[str]:
    """What becomes of an update as a CUDA graph, where there is something to say."""
    if start.graph.wanted:
        return [
            f"graph     each update from number {WARM_UP + 2} of this start on, where it has the bits of an eager one"
        ]
    is_worth_it = start.runtime.device.type == "cuda" and start.config.train.cuda_graph == "auto"
    return [f"graph     none: {start.graph.reason}"] if is_worth_it else []


def _describe_batch(start: Start) -> str:
    """The arithmetic of a batch."""
    sizes, holder = start.sizes, "pair" if start.config.parallel.strategy == "towers" else "process"
    holders = holder if sizes.replicas == 1 else {"pair": "pairs", "process": "processes"}[holder]
    steps = "accumulation step" if sizes.accumulation == 1 else "accumulation steps"
    most = "" if sizes.is_even else "up to "
    shares = f"{most}{sizes.micro} per {holder} x {sizes.replicas} {holders} x {sizes.accumulation} {steps}"
    return f"{sizes.global_} ({shares})"


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


def say_result(summary: dict[str, Any]) -> None:
    """Print how well a run ended."""
    if summary["best_top1"] is not None:
        logger.info("best validation top-1: %.2f %%, epoch %s", 100 * summary["best_top1"], summary["best_epoch"])
    if summary["test_top1"] is not None:
        logger.info("test top-1: %.2f %%", 100 * summary["test_top1"])


def say_goodbye(start: Start, summary: dict[str, Any]) -> None:
    """Print the result, where it lies, and what to try next: commands that can be pasted."""
    say_result(summary)
    logger.info("run folder: %s, %s MB", start.folder, f"{measure_size(start.folder) / 1e6:,.0f}")
    drawn = [str(start.folder / name) for name in SEEN_FIRST if (start.folder / name).is_file()]
    if drawn:
        logger.info("look at: %s", ", ".join(drawn))
    with contextlib.suppress(OSError, AlexNetDistError):  # the run has ended well, whatever is gone meanwhile
        for number, line in enumerate(list_next(start)):
            logger.info("%s %s", "next:" if number == 0 else "     ", line, extra=COMMAND)


def list_next(start: Start) -> list[str]:
    """Three commands for the run, in the form in which it was started."""
    folder, splits = quote_word(start.folder), start.splits
    index = splits.val or splits.train
    places = index.containers
    is_read = index.has_files and (places is None or is_archive(places.names[0]))  # by predict, which unpacks parquet
    picture = _find_good_picture(start, index) if is_read else None
    words = [f"predict {folder} {quote_word(picture)}"] if picture is not None else []
    words += [f"evaluate {folder}"] if splits.val is not None else []
    words += [f"export --model {folder} --out {quote_word(f'{start.folder.name}.onnx')}", f"summary --weights {folder}"]
    return [f"{name_command(verb)} {rest}" for verb, _, rest in (line.partition(" ") for line in words[:3])]


def _find_good_picture(start: Start, index: SampleIndex) -> Path | None:
    """The first picture of a set that the run could read."""
    bad, root = read_reported(start.folder), start.root
    pictures = (index.root / path for path in index.paths)
    return next((path for path in pictures if relative_path(path, root) not in bad), None)
