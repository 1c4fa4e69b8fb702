"""What limits training on image files: the loader, the network, or both; and whether memory stays flat.

Protocol: three arms in one process, one window each per round, A B C A B C ...:

- loader: batches are read, decoded, augmented, normalized and put on the device, and nothing else happens.
- model: the trainer's step on one batch in memory.
- end_to_end: the trainer's step on the loader's batches, with the number of workers that training takes by itself.

A window of loader or end_to_end starts new workers, lets the first batches pass until the queues are as full as they
stay, and is timed from there, while more batches are still to be made; its batches are a multiple of the workers, which
tend to finish together. The limit is computed from the other two arms of
the same round. On a CPU loader and network share the cores, so it is 1/(1/loader + 1/model), and the loader alone gets
as many workers as there are cores, the model alone all threads. On a GPU it is min(loader, model), with equal workers.
A row is the median over the rounds; the ratio is of images per second, round by round. A full run has 5 rounds of
windows of at least 10 s and 10 batches.

Images come from --data.root (its train/ folder), or are made: noise with a photograph's spectrum, 500x375, 100 KB. They
are in the page cache. Augmentation is the default of a run (shorter side to 256, random crop, mirroring). --data.engine
says who makes the batches; the cache is built before. The network alone has batches of the type that the loader gives.

Memory: `launch/train.py` trains a toy network on small JPEG files for one epoch, in a process of its own. The resident
set sizes of it and its workers are summed every 20 ms, and averaged over the 50 steps after step 50 and over the last
50 of the epoch.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from common.engines import build_cache, count_ahead
from common.images import describe_images, find_images
from common.memory import sum_resident_mib
from common.photographs import write_photographs
from common.report import (
    Report,
    add_device_options,
    describe_environment,
    describe_speed,
    new_parser,
    pick_effort,
    run_benchmark,
)
from common.subject import SEED, TINY, TrainerStep, build_network, make_batch, pick_spec
from common.timing import Protocol, Spread, Window, divide, interleave, measure_seconds, settle_window
from common.verdict import judge

from alexnet_dist.assembly.loaders import build_augmentation, build_loader, build_normalization
from alexnet_dist.base.machine import available_cores
from alexnet_dist.data.engines.choose import ENGINES, find_obstacle
from alexnet_dist.data.engines.loader import Loader
from alexnet_dist.data.index import SampleIndex
from alexnet_dist.data.plan import Plan
from alexnet_dist.models import AlexNetSpec
from alexnet_dist.parallel.precision import computes_bf16
from alexnet_dist.parallel.runtime import Runtime, start_runtime
from alexnet_dist.runs.advice import Setup
from alexnet_dist.settings.schema import AugmentConfig, DataConfig

ROOT = Path(__file__).resolve().parents[1]
SETTLED_STEP = 50  # memory is compared with what it is from here on
POLL_SECONDS = 0.02
TARGET = "target 0.95"
TARGET_GROWTH = "target: below 2 %"


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    Args:
        protocol: of the speed's windows.
        batch_size: images in a batch.
        num_images: images made where no --data.root is given.
        epoch_steps: updates of the memory check.
        small_batch_size: images in a batch of the memory check.
    """

    protocol: Protocol
    batch_size: int
    num_images: int
    epoch_steps: int
    small_batch_size: int


def main() -> int:
    """Run the benchmark; the exit code."""
    parser = new_parser("end_to_end", "Speed of loader, network and both on image files; memory over an epoch.")
    add_device_options(parser)
    parser.add_argument("--batch_size", type=int, help="default: 64, or 8 with --quick; more suits a GPU")
    parser.add_argument("--variant", choices=("paper", "torchvision"), default="paper", help="default: paper")
    parser.add_argument(
        "--data.engine", dest="engine", choices=ENGINES, default="torchvision", help="default: torchvision"
    )
    return run_benchmark(parser, measure)


def measure(options: argparse.Namespace) -> Report:
    """Speed on image files, then memory."""
    effort = pick_effort(
        options,
        full=Effort(Protocol(5, 10.0, 10), batch_size=64, num_images=512, epoch_steps=400, small_batch_size=16),
        quick=Effort(Protocol(2, 1.0, 4), batch_size=8, num_images=64, epoch_steps=200, small_batch_size=4),
        tiny=Effort(Protocol(2, 0.0, 2), batch_size=2, num_images=8, epoch_steps=3 * SETTLED_STEP, small_batch_size=2),
    )
    runtime = start_runtime(options.device, options.precision)
    report = Report(describe_environment(options, runtime.device))
    with tempfile.TemporaryDirectory() as folder:
        obstacle = find_obstacle(options.engine)
        if obstacle:
            report.rows.append({"arm": "end_to_end", "engine": options.engine, "missing": obstacle})
        else:
            measure_speed(report, runtime, options, effort, Path(folder))
        measure_memory(report, options, effort, Path(folder) / "memory")
    return report


# -- speed ------------------------------------------------------------------------------------------------------------


def measure_speed(report: Report, runtime: Runtime, options: argparse.Namespace, effort: Effort, folder: Path) -> None:
    """The three arms, their limit and the verdict."""
    index = find_images(options.data_root, folder, effort.num_images)
    spec = pick_spec(options.variant, options.tiny)
    batch_size, on_gpu = options.batch_size or effort.batch_size, runtime.device.type == "cuda"
    # On a CPU the loader alone may use every core, as the model alone does: only then do their times add up.
    alone, default = (
        make_loader(
            runtime, index, spec, batch_size, DataConfig(workers=workers, cache_dir=str(folder)), options.engine
        )
        for workers in (None if on_gpu else available_cores(), None)
    )
    build_cache(default)
    windows = build_windows(runtime, spec, alone, default, effort.protocol)
    seconds = interleave(windows, effort.protocol.rounds)
    speeds = {arm: Spread.of([batch_size / value for value in values]) for arm, values in seconds.items()}
    for arm, workers in (("loader", alone.workers), ("model", 0), ("end_to_end", default.workers)):
        report.rows.append({"arm": arm, "engine": options.engine, "workers": workers, **describe_speed(speeds[arm])})
    add_limit(report, seconds, on_gpu, f"{options.variant}, {runtime.precision}, {options.engine}, batch {batch_size}")
    report.environment["images"] = describe_images(index, made=options.data_root is None)
    setup = Setup(
        on_gpu=on_gpu,
        engine=options.engine,
        workers=default.workers,
        cores=report.environment["cores"],
        precision=runtime.precision,
        computes_bf16=computes_bf16(on_gpu),
    )
    report.notes.append(judge(speeds["loader"].median, speeds["model"].median, setup))


def build_windows(
    runtime: Runtime, spec: AlexNetSpec, alone: Loader, default: Loader, protocol: Protocol
) -> dict[str, Window]:
    """The three arms, warmed up; each gives seconds per batch."""
    batch_size = alone.plan.global_batch_size
    train = TrainerStep(runtime, build_network(spec, runtime, channels_last=True), batch_size)
    batch = make_batch(batch_size, spec, runtime.device, channels_last=True, dtype=default.dtype)

    def measure_model(num_batches: int) -> float:
        return measure_seconds(lambda: train(batch), num_batches, runtime.device) / num_batches

    measure_model(1)  # allocations, kernel choice
    return {
        "loader": settle_window(lambda count: time_batches(alone, lambda batch: None, count), protocol, alone.workers),
        "model": settle_window(measure_model, protocol),
        "end_to_end": settle_window(lambda count: time_batches(default, train, count), protocol, default.workers),
    }


def make_loader(
    runtime: Runtime, index: SampleIndex, spec: AlexNetSpec, batch_size: int, data: DataConfig, engine: str
) -> Loader:
    """The training loader of a run with default augmentation."""
    augment = AugmentConfig()
    plan = Plan(index.sizes, build_augmentation(augment, spec.image_size), batch_size, SEED, shuffle=True)
    normalization = build_normalization(augment, spec.in_channels)
    return build_loader(runtime, data, index, plan, normalization, channels_last=True, engine=engine)


def time_batches(loader: Loader, use: Callable[[Any], None], num_batches: int) -> float:
    """Seconds per batch of a loader in full swing.

    Args:
        loader: started anew, and stopped at the end.
        use: what happens to each batch.
        num_batches: how many are timed.
    """
    ahead = count_ahead(loader)
    batches = loader.batches(0, ahead + 1 + num_batches + ahead)  # the last ones keep the workers busy to the end

    def use_next() -> None:
        use(next(batches))

    measure_seconds(use_next, ahead + 1, loader.device)
    return measure_seconds(use_next, num_batches, loader.device) / num_batches


def add_limit(report: Report, seconds: dict[str, list[float]], on_gpu: bool, what: str) -> None:
    """Compare end-to-end with what loader and model allow. Rates in the formula are times here, the other way up."""
    combine: Callable[[float, float], float] = max if on_gpu else lambda loader, model: loader + model
    limit = [combine(*pair) for pair in zip(seconds["loader"], seconds["model"], strict=True)]
    formula = "min(loader, model)" if on_gpu else "1/(1/loader + 1/model)"
    report.add_ratio(
        "end_to_end/limit",
        divide(limit, seconds["end_to_end"]),
        f"images per second over {formula}, {what}; {TARGET}",
    )


# -- memory -----------------------------------------------------------------------------------------------------------


def measure_memory(report: Report, options: argparse.Namespace, effort: Effort, folder: Path) -> None:
    """Train for an epoch of small steps and compare the memory of its beginning and of its end."""
    write_photographs(folder, effort.epoch_steps * effort.small_batch_size, width=80, height=72)
    command = [sys.executable, str(ROOT / "launch" / "train.py"), *list_settings(options, effort, folder)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        samples = watch_memory(process, folder / "run" / "metrics.jsonl")
        assert process.stderr is not None
        message = process.stderr.read()
    if process.returncode:
        raise RuntimeError(f"the memory check's training failed: {message.strip().splitlines()[-1:]}")
    last = effort.epoch_steps - SETTLED_STEP
    settled = statistics.mean(mib for step, mib in samples if SETTLED_STEP <= step < 2 * SETTLED_STEP)
    at_end = statistics.mean(mib for step, mib in samples if last <= step < effort.epoch_steps)
    growth = 100 * (at_end / settled - 1)
    row = {"arm": "memory", "mib_after_50_steps": settled, "mib_at_epoch_end": at_end, "growth_percent": growth}
    report.rows.append(row)
    report.notes.append(
        f"Memory of training and its workers changed by {growth:+.2f} % from step {SETTLED_STEP} "
        f"to the end of an epoch of {effort.epoch_steps} steps ({TARGET_GROWTH})."
    )


def list_settings(options: argparse.Namespace, effort: Effort, folder: Path) -> list[str]:
    """The command line of the watched run."""
    settings = {
        "config": "smoke",
        "model.conv_channels": list(TINY["conv_channels"]),
        "model.fc_width": TINY["fc_width"],
        "device": options.device,
        "data.source": "folder",
        "data.root": folder,
        "data.val_fraction": 0.0,
        "data.cache_dir": folder / "cache",
        "train.epochs": 1,
        "train.global_batch_size": effort.small_batch_size,
        "log.every_steps": 5,
        "log.plots": "false",
        "output_dir": folder / "run",
    }
    return [word for key, value in settings.items() for word in (f"--{key}", str(value))]


def watch_memory(process: subprocess.Popen[str], metrics: Path) -> list[tuple[int, float]]:
    """(last logged step, MiB of the process and its children) until the process ends."""
    samples = []
    tree = psutil.Process(process.pid)
    while process.poll() is None:
        mib = sum_resident_mib(tree)
        samples.append((read_last_step(metrics), mib))
        time.sleep(POLL_SECONDS)
    return samples


def read_last_step(metrics: Path) -> int:
    """The step of the last complete line of metrics.jsonl; 0 before there is one."""
    if not metrics.exists():
        return 0
    lines = metrics.read_text(encoding="utf-8").split("\n")[:-1]
    return int(json.loads(lines[-1])["step"]) if lines else 0


if __name__ == "__main__":
    sys.exit(main())
