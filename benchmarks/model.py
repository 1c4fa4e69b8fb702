"""How fast the network computes, and what the trainer adds to a minimal loop. Batches are in memory.

Protocol: all arms of one batch size run in one process, one window each per round, A B A B ...; every arm is warmed up
by two calls first; a GPU is timed with CUDA events. A full run has 5 rounds of windows of at least 3 s. A row is the
median over the rounds. A ratio is of images per second, taken round by round, and given as median, least and largest
over the rounds. `--quick` takes one small batch and short windows; its ratios name their batch.

- forward: evaluation mode, no gradients. forward_backward: training mode with cross-entropy. step: the same and the
  project's SGD. Precision is autocast's, as in training; fp16 (CUDA only) scales its loss.
- trainer_step/minimal_loop: two networks with equal first weights, on the same batch, in the same precision and layout,
  both with fused SGD; one is driven as `Trainer` does it, the other by the loop of `minimal_step` below. 9 rounds of
  windows of at least 10 steps, so that each window has a log point.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass
from itertools import product

import torch
from common.report import (
    Report,
    add_device_options,
    describe_environment,
    has_amx,
    new_parser,
    pick_effort,
    run_benchmark,
)
from common.subject import LR, MOMENTUM, WEIGHT_DECAY, TrainerStep, build_network, build_sgd, make_batch, pick_spec
from common.timing import Protocol, Spread, divide, time_calls
from torch import nn
from torch.nn import functional as F
from torch.optim import Optimizer

from alexnet_dist.data.engines.loader import Batch
from alexnet_dist.parallel.runtime import Runtime, start_runtime

VARIANTS = ("paper", "torchvision")
LAYOUTS = ("contiguous", "channels_last")
WORKS = ("forward", "forward_backward", "step")
RATIO_BATCH_SIZE = 64
TARGET_BF16 = "target 3.5 on a CPU with AMX"
TARGET_TRAINER = "target 0.97"


@dataclass(frozen=True)
class Setting:
    """One arm of the grid."""

    variant: str
    precision: str
    layout: str
    batch_size: int
    work: str


@dataclass(eq=False)
class Subject:
    """A network, its optimizer, and a batch of the largest size."""

    model: nn.Module
    optimizer: Optimizer
    batch: Batch


def main() -> int:
    """Run the benchmark; the exit code."""
    parser = new_parser("model", "Speed of the network by variant, precision, layout and batch. No images are read.")
    add_device_options(parser)
    parser.add_argument("--batch_sizes", type=int, nargs="+", help="default: chosen by device and effort")
    return run_benchmark(parser, measure)


def measure(options: argparse.Namespace) -> Report:
    """The grid, then the trainer against the minimal loop."""
    runtime = start_runtime(options.device, options.precision)
    report = Report(describe_environment(options, runtime.device))
    batch_sizes = options.batch_sizes or pick_batch_sizes(options, runtime.device)
    figures = measure_grid(runtime, batch_sizes, options)
    report.rows += [describe_row(setting, figures[setting]) for setting in sorted(figures, key=astuple)]
    size = RATIO_BATCH_SIZE if RATIO_BATCH_SIZE in batch_sizes else max(batch_sizes)
    add_grid_ratios(report, figures, runtime.precision, size)
    compare_with_minimal_loop(report, runtime, size, options)
    return report


def pick_batch_sizes(options: argparse.Namespace, device: torch.device) -> list[int]:
    """Batch sizes that fit the device and the time."""
    full = [64, 256, 1024] if device.type == "cuda" else [16, RATIO_BATCH_SIZE]
    return pick_effort(options, full=full, quick=[RATIO_BATCH_SIZE if device.type == "cuda" else 8], tiny=[2])


# -- the grid ---------------------------------------------------------------------------------------------------------


def measure_grid(runtime: Runtime, batch_sizes: list[int], options: argparse.Namespace) -> dict[Setting, list[float]]:
    """Seconds per call of every setting, one figure per round."""
    protocol = pick_effort(options, full=Protocol(5, 3.0), quick=Protocol(2, 0.0), tiny=Protocol(2, 0.0))
    works = ("forward", "step") if options.quick else WORKS
    subjects = {
        (variant, layout): build_subject(runtime, variant, layout, max(batch_sizes), options.tiny)
        for variant, layout in product(VARIANTS, LAYOUTS)
    }
    figures: dict[Setting, list[float]] = {}
    for batch_size in batch_sizes:
        settings = {str(setting): setting for setting in list_settings(batch_size, works, runtime.device)}
        calls = {
            name: build_call(subjects[setting.variant, setting.layout], setting, runtime.device)
            for name, setting in settings.items()
        }
        for name, seconds in time_calls(calls, protocol, runtime.device).items():
            figures[settings[name]] = seconds
    return figures


def list_settings(batch_size: int, works: Sequence[str], device: torch.device) -> Iterator[Setting]:
    """The arms of one batch size; what a ratio compares stands close together."""
    precisions = ("fp32", "bf16", "fp16") if device.type == "cuda" else ("fp32", "bf16")
    for work, precision, layout, variant in product(works, precisions, LAYOUTS, VARIANTS):
        yield Setting(variant, precision, layout, batch_size, work)


def build_subject(runtime: Runtime, variant: str, layout: str, batch_size: int, tiny: bool) -> Subject:
    """A network with what it needs to train."""
    spec = pick_spec(variant, tiny)
    model = build_network(spec, runtime, layout == "channels_last")
    return Subject(model, build_sgd(model), make_batch(batch_size, spec, runtime.device, layout == "channels_last"))


def build_call(subject: Subject, setting: Setting, device: torch.device) -> Callable[[], None]:
    """What an arm does once."""
    model, optimizer = subject.model, subject.optimizer
    images, labels = subject.batch.images[: setting.batch_size], subject.batch.labels[: setting.batch_size]
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[setting.precision]
    autocast = torch.autocast(device.type, dtype, enabled=setting.precision != "fp32")
    scaler = torch.amp.GradScaler(device.type, enabled=setting.precision == "fp16")

    def forward() -> None:
        model.eval()
        with torch.no_grad(), autocast:
            model(images)

    def forward_backward() -> None:
        model.train()
        optimizer.zero_grad(set_to_none=True)
        with autocast:
            logits = model(images)  # (B, classes)
        scaler.scale(F.cross_entropy(logits.float(), labels)).backward()  # type: ignore[no-untyped-call]

    def step() -> None:
        forward_backward()
        scaler.step(optimizer)
        scaler.update()

    return {"forward": forward, "forward_backward": forward_backward, "step": step}[setting.work]


def describe_row(setting: Setting, seconds: list[float]) -> dict[str, object]:
    """One line of the table."""
    spread = Spread.of(seconds)
    return {
        **vars(setting),
        "images_per_second": setting.batch_size / spread.median,
        "ms": 1000 * spread.median,
        "ms_min": 1000 * spread.min,
        "ms_max": 1000 * spread.max,
    }


def add_grid_ratios(report: Report, figures: dict[Setting, list[float]], precision: str, batch_size: int) -> None:
    """What precision and layout bring, and what the paper's structure costs."""

    def seconds(variant: str, precision: str, layout: str) -> list[float]:
        return figures[Setting(variant, precision, layout, batch_size, "step")]

    on_cpu = report.environment["device"] == "cpu"
    amx = ("; this CPU has AMX" if has_amx(report.environment) else "; this CPU has no AMX") if on_cpu else ""
    report.add_ratio(
        "bf16_channels_last/fp32_contiguous",
        divide(seconds("torchvision", "fp32", "contiguous"), seconds("torchvision", "bf16", "channels_last")),
        f"images per second, torchvision, whole step, batch {batch_size}; {TARGET_BF16}{amx}",
    )
    layout = "channels_last"
    report.add_ratio(
        "paper/torchvision",
        divide(seconds("torchvision", precision, layout), seconds("paper", precision, layout)),
        f"images per second, {precision}, {layout}, whole step, batch {batch_size}",
    )


# -- the trainer against a minimal loop -------------------------------------------------------------------------------


def minimal_step(
    model: nn.Module, optimizer: Optimizer, autocast: torch.autocast, images: torch.Tensor, labels: torch.Tensor
) -> None:
    """What anyone would write: no counters, no mask, no guard against a loss that is not finite."""
    optimizer.zero_grad(set_to_none=True)
    with autocast:
        loss = F.cross_entropy(model(images), labels)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def build_minimal_loop(model: nn.Module, batch: Batch, precision: str, device: torch.device) -> Callable[[], None]:
    """The body of the hand-written loop, on one batch."""
    optimizer = torch.optim.SGD(model.parameters(), LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, fused=True)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
    return lambda: minimal_step(model, optimizer, autocast, batch.images, batch.labels)


def compare_with_minimal_loop(report: Report, runtime: Runtime, batch_size: int, options: argparse.Namespace) -> None:
    """Measure the trainer's step and the minimal loop's, window by window."""
    if runtime.precision == "fp16":
        report.notes.append("trainer_step/minimal_loop is left out: the minimal loop does not scale its loss")
        return
    spec = pick_spec("torchvision", options.tiny)
    batch = make_batch(batch_size, spec, runtime.device, channels_last=True)
    networks = [build_network(spec, runtime, channels_last=True) for _ in range(2)]
    trainer = TrainerStep(runtime, networks[0], batch_size)
    minimal = build_minimal_loop(networks[1], batch, runtime.precision, runtime.device)
    protocol = pick_effort(options, full=Protocol(9, 3.0, 10), quick=Protocol(3, 0.0, 3), tiny=Protocol(2, 0.0, 10))
    figures = time_calls({"trainer_step": lambda: trainer(batch), "minimal_loop": minimal}, protocol, runtime.device)
    for name, seconds in figures.items():
        setting = Setting("torchvision", runtime.precision, "channels_last", batch_size, name)
        report.rows.append(describe_row(setting, seconds))
    what = f"images per second, torchvision, {runtime.precision}, channels_last, batch {batch_size}; {TARGET_TRAINER}"
    report.add_ratio("trainer_step/minimal_loop", divide(figures["minimal_loop"], figures["trainer_step"]), what)


if __name__ == "__main__":
    sys.exit(main())
