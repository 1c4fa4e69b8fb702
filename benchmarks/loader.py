"""How fast each engine makes batches from image files, beside what a user could have written instead.

Protocol: one window of each arm per round, A B C A B C ... Every arm is started once and makes its first batches until
its pools of memory are as large as they get; between its windows it waits with full queues. A window lets as many
batches pass as these hold, and is timed from there, batch by batch, until they are tensors on the device in the layout
of a network. All arms read the same files, which are in the page cache, and may use all cores:

- torchvision, dali_cpu, dali_gpu: this project's engines; random resized crop to 224, mirroring, lighting.
- cache: images cached with their shorter side at 256; random crop of 224, mirroring, lighting.
- standard: torchvision's ImageFolder, transforms and DataLoader; random resized crop, mirroring, no lighting.
- plain_dali, plain_dali_gpu: a DALI pipeline with a file reader; random resized crop, mirroring, no lighting.
  fancy_dali, fancy_dali_gpu: the same with chroma upsampled as this project's engines have it, which is the same work.
- model: on a GPU, the trainer's step of the paper's network on a batch in memory.

torchvision and standard are measured with several numbers of workers, and go on with the best of them; DALI has as many
threads as there are cores. A row is the median over the rounds; percentiles are of the times between batches, over all
rounds. Ratios are of images per second, round by round. A full run has 12 rounds of windows of at least 2 s and 12
batches.

Images come from --data.root (its train/ folder, or itself), of the kinds that every loader reads alike, as many whole
batches as there are; or are made: noise with a photograph's spectrum, 500x375, 100 KB.

Memory: each engine makes 50 batches first, too, and then those of 10 epochs. The
resident set sizes of the process and its workers are summed after each batch, and averaged over the first and the last
of these epochs.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from common.engines import build_cache, count_ahead
from common.images import describe_images, find_images
from common.memory import sum_resident_mib
from common.report import (
    Report,
    add_device_options,
    describe_environment,
    describe_speed,
    new_parser,
    pick_effort,
    run_benchmark,
)
from common.rivals import PREFETCH, iterate_plain_dali, iterate_standard
from common.subject import SEED, TrainerStep, build_network, make_batch, pick_spec
from common.timing import Protocol, Spread, Window, divide, interleave, measure_seconds, settle_window

from alexnet_dist.assembly.loaders import build_augmentation, build_loader, build_normalization
from alexnet_dist.base.machine import available_cores, tune_allocator
from alexnet_dist.data.engines.choose import ENGINES, find_obstacle
from alexnet_dist.data.engines.loader import MAX_WORKERS, Loader
from alexnet_dist.data.index import SampleIndex
from alexnet_dist.data.plan import Plan
from alexnet_dist.parallel.runtime import Runtime, start_runtime
from alexnet_dist.settings.schema import AugmentConfig, DataConfig

STANDARD = "standard"
PLAIN = {"plain_dali": "dali_cpu", "plain_dali_gpu": "dali_gpu"}  # rivals and whose device and threads they take
FANCY = {"fancy_dali": "dali_cpu", "fancy_dali_gpu": "dali_gpu"}
CROPS = AugmentConfig(resize=None, crop="random_resized", lighting="source2012")
CACHED = AugmentConfig(resize=256, crop="random", lighting="source2012")
TARGETS = {
    "torchvision/standard": 0.97,
    "dali_cpu/standard": 1.4,
    "dali_cpu/plain_dali": 0.9,
    "dali_gpu/plain_dali_gpu": 0.9,
    "dali_cpu/fancy_dali": 0.95,
    "dali_gpu/fancy_dali_gpu": 0.95,
    "dali_gpu/dali_cpu": 2.0,
    "cache/standard": 8.0,
    "cache/model": 1.25,
}
PERCENTILES = (50, 95, 99)
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    Args:
        protocol: of the speed's windows.
        batch_size: images in a batch.
        num_images: images made where no --data.root is given.
        workers: numbers of workers that are tried.
        settled_step: batches until pools of memory are as large as they get.
        epochs: for which it is watched.
    """

    protocol: Protocol
    batch_size: int
    num_images: int
    workers: tuple[int, ...]
    settled_step: int
    epochs: int


@dataclass(frozen=True, eq=False)
class Arm:
    """One way to make batches.

    Args:
        start: makes batches without end.
        workers: processes or threads.
        device: where the batches go.
        ahead: batches that are made before they are asked for.
        intervals: seconds between batches, in all windows.
    """

    start: Callable[[], Iterator[Any]]
    workers: int
    device: torch.device
    ahead: int
    intervals: list[float] = field(default_factory=list)

    @cached_property
    def batches(self) -> Iterator[Any]:
        """The stream of batches, started once."""
        return self.start()

    def time_batches(self, num_batches: int) -> float:
        """Seconds per batch in full swing."""

        def take() -> None:
            next(self.batches)
            stamps.append(time.perf_counter())

        stamps: list[float] = []
        measure_seconds(take, self.ahead + 1, self.device)
        del stamps[:-1]
        seconds = measure_seconds(take, num_batches, self.device)
        self.intervals.extend(np.diff(stamps).tolist())
        return seconds / num_batches

    def close(self) -> None:
        """End its workers and threads."""
        self.batches.close()  # type: ignore[attr-defined]


def main() -> int:
    """Run the benchmark; the exit code."""
    parser = new_parser(
        "loader", "Speed of the engines on image files, beside other loaders; their memory over epochs."
    )
    add_device_options(parser)
    parser.add_argument("--batch_size", type=int, help="default: 64, or 16 with --quick; more suits a GPU")
    return run_benchmark(parser, measure)


def measure(options: argparse.Namespace) -> Report:
    """Speed, then memory."""
    cores = available_cores()
    effort = pick_effort(
        options,
        full=Effort(Protocol(12, 2.0, 12), 64, 256, pick_workers(cores), settled_step=50, epochs=10),
        quick=Effort(Protocol(2, 1.0, 6), 16, 64, (cores,), settled_step=20, epochs=3),
        tiny=Effort(Protocol(2, 0.0, 2), 2, 8, (1,), settled_step=2, epochs=2),
    )
    tune_allocator()  # as every verb does
    runtime = start_runtime(options.device, options.precision)
    report = Report(describe_environment(options, runtime.device))
    batch_size = options.batch_size or effort.batch_size
    with tempfile.TemporaryDirectory() as folder:
        index = take_batches(find_images(options.data_root, Path(folder), effort.num_images), batch_size)
        report.environment["images"] = describe_images(index, made=options.data_root is None)
        obstacles = {engine: find_obstacle(engine) for engine in ENGINES}
        report.rows += [{"arm": engine, "missing": why} for engine, why in obstacles.items() if why]
        loaders = build_loaders(runtime, index, batch_size, Path(folder) / "cache")
        measure_speed(report, runtime, loaders, options, effort)
        for name, loader in loaders.items():
            measure_memory(report, name, loader, effort)
    return report


def pick_workers(cores: int) -> tuple[int, ...]:
    """Numbers of workers to try: half as many as cores, as many, and twice as many where that is no crowd."""
    return tuple(sorted({max(1, cores // 2), cores, min(2 * cores, MAX_WORKERS)}))


def take_batches(index: SampleIndex, batch_size: int) -> SampleIndex:
    """Whole batches of the files that every loader reads alike; some files twice where there are too few for one."""
    ids = np.flatnonzero(index.is_plain)
    return index.subset(np.resize(ids, max(1, len(ids) // batch_size) * batch_size))


def build_loaders(runtime: Runtime, index: SampleIndex, batch_size: int, cache_dir: Path) -> dict[str, Loader]:
    """The engines that can run here, by arm, with a worker or thread for each core."""
    build = partial(make_loader, runtime, index, batch_size, cache_dir)
    loaders = {}
    for engine in ENGINES:
        if find_obstacle(engine) is not None:
            continue
        loader = build(engine)
        build_cache(loader)
        if engine == "dali":
            loaders["dali_cpu"] = replace(loader, device=CPU)
            if runtime.device.type == "cuda":
                loaders["dali_gpu"] = loader
        else:
            loaders[engine] = loader
    return loaders


def make_loader(runtime: Runtime, index: SampleIndex, batch_size: int, cache_dir: Path, engine: str) -> Loader:
    """The training loader of a run."""
    augment = CACHED if engine == "cache" else CROPS
    plan = Plan(index.sizes, build_augmentation(augment, crop_size=224), batch_size, SEED, shuffle=True)
    data = DataConfig(workers=available_cores(), cache_dir=str(cache_dir))
    normalization = build_normalization(augment, channels=3)
    return build_loader(runtime, data, index, plan, normalization, channels_last=True, engine=engine)


# -- speed ------------------------------------------------------------------------------------------------------------


def measure_speed(
    report: Report, runtime: Runtime, loaders: dict[str, Loader], options: argparse.Namespace, effort: Effort
) -> None:
    """All arms, round by round."""
    arms = build_arms(loaders, effort)
    batch_size = loaders["torchvision"].plan.global_batch_size
    windows = {name: settle(arm, effort) for name, arm in arms.items()}
    if runtime.device.type == "cuda":
        windows["model"] = settle_window(build_step(runtime, batch_size, options), effort.protocol)
    for arm in arms.values():
        arm.intervals.clear()
    seconds = interleave(windows, effort.protocol.rounds)
    for name, arm in arms.items():
        arm.close()
        speed = Spread.of([batch_size / value for value in seconds[name]])
        report.rows.append({"arm": name, "workers": arm.workers, **describe_speed(speed), **describe_times(arm)})
    add_ratios(report, seconds, f"{runtime.device.type}, batch {batch_size}")


def build_arms(loaders: dict[str, Loader], effort: Effort) -> dict[str, Arm]:
    """The engines and, after them, their rivals."""
    reference = loaders["torchvision"]
    index, device, batch_size = reference.index, reference.device, reference.plan.global_batch_size

    def start_standard(workers: int) -> Arm:
        return Arm(partial(iterate_standard, index, batch_size, workers, device), workers, device, PREFETCH * workers)

    def start_plain_dali(rival: Loader, is_fancy: bool) -> Arm:
        start = partial(iterate_plain_dali, index, batch_size, rival.workers, rival.device, is_fancy)
        return Arm(start, rival.workers, rival.device, PREFETCH)

    arms = {name: start_engine(loader) for name, loader in loaders.items()}
    choices = [start_engine(replace(reference, workers=workers)) for workers in effort.workers]
    arms["torchvision"] = pick_fastest(choices, effort)
    arms[STANDARD] = pick_fastest([start_standard(workers) for workers in effort.workers], effort)
    for name, engine in {**PLAIN, **FANCY}.items():
        if engine in loaders:
            arms[name] = start_plain_dali(loaders[engine], is_fancy=name in FANCY)
    return arms


def start_engine(loader: Loader) -> Arm:
    """A loader as an arm."""
    return Arm(partial(loader.batches, 0, 10**8), loader.workers, loader.device, count_ahead(loader))


def settle(arm: Arm, effort: Effort) -> Window:
    """An arm's window, of a multiple of its workers in batches: they tend to finish together."""
    for _ in range(effort.settled_step):
        next(arm.batches)
    return settle_window(arm.time_batches, effort.protocol, max(1, arm.workers))


def pick_fastest(arms: Sequence[Arm], effort: Effort) -> Arm:
    """The fastest of arms that differ in their workers; the others are closed."""
    if len(arms) == 1:
        return arms[0]
    windows = {str(arm.workers): settle(arm, effort) for arm in arms}
    figures = interleave(windows, rounds=3)
    fastest = min(arms, key=lambda arm: statistics.median(figures[str(arm.workers)]))
    for arm in arms:
        if arm is not fastest:
            arm.close()
    return fastest


def build_step(runtime: Runtime, batch_size: int, options: argparse.Namespace) -> Callable[[int], float]:
    """Seconds per step of so many steps of the paper's network."""
    spec = pick_spec("paper", options.tiny)
    train = TrainerStep(runtime, build_network(spec, runtime, channels_last=True), batch_size)
    batch = make_batch(batch_size, spec, runtime.device, channels_last=True)
    return lambda steps: measure_seconds(lambda: train(batch), steps, runtime.device) / steps


def describe_times(arm: Arm) -> dict[str, float]:
    """Percentiles of the times between batches in ms."""
    values = np.percentile(arm.intervals, PERCENTILES).tolist()
    return {f"p{percent}_ms": 1000 * value for percent, value in zip(PERCENTILES, values, strict=True)}


def add_ratios(report: Report, seconds: dict[str, list[float]], where: str) -> None:
    """Every pair of arms that there is a target for, or that shares the standard."""
    pairs = [*TARGETS, *(f"{name}/{STANDARD}" for name in seconds if name not in (STANDARD, "model"))]
    for pair in dict.fromkeys(pairs):
        numerator, denominator = pair.split("/")
        if not {numerator, denominator} <= set(seconds):
            continue
        target = f"; target {TARGETS[pair]:g}" if pair in TARGETS else ""
        what = f"images per second, {where}{target}"
        report.add_ratio(pair, divide(seconds[denominator], seconds[numerator]), what)


# -- memory -----------------------------------------------------------------------------------------------------------


def measure_memory(report: Report, name: str, loader: Loader, effort: Effort) -> None:
    """Make the batches of several epochs, and compare the memory of the first with that of the last."""
    tree, steps = psutil.Process(), loader.plan.steps_per_epoch
    stop = effort.settled_step + effort.epochs * steps
    samples = [sum_resident_mib(tree) for _ in loader.batches(0, stop)][effort.settled_step :]
    first, last = statistics.mean(samples[:steps]), statistics.mean(samples[-steps:])
    growth = 100 * (last / first - 1)
    row = {"arm": f"memory of {name}", "mib_first_epoch": first, "mib_last_epoch": last, "growth_percent": growth}
    report.rows.append(row)
    report.notes.append(
        f"Memory of {name} and its workers changed by {growth:+.2f} % over {effort.epochs} epochs, "
        f"after the first {effort.settled_step} batches; target: below 2 %."
    )


if __name__ == "__main__":
    sys.exit(main())
