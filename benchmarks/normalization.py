"""What local response normalization costs: ours against PyTorch's layer, and the paper's network with and without it.

Protocol as in model.py: all arms in one process, A B A B ..., two warm-up calls each, 5 rounds of windows of at least
3 s in a full run; ratios are taken round by round. A layer's call is a forward and a backward on maps as conv1 makes
them, channels last. A network's call is a whole training step at 224 pixels.

- lrn/stock_lrn: both across all 96 channels, the same function, in fp32 (PyTorch's has no bf16 on a CPU). lrn_per_tower
  is what the network uses, on two groups.
- paper/paper_without_lrn: the same weights and step, with and without the two normalizations, in bf16 unless
  --precision says otherwise.
- paper/paper_by_layers: the same network, computed as a run does and with kernels.maps reference.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial

import torch
from common.report import Report, add_device_options, describe_environment, new_parser, pick_effort, run_benchmark
from common.subject import AS_A_RUN, TrainerStep, build_network, make_batch, pick_spec
from common.timing import Protocol, Spread, divide, time_calls
from torch import nn

from alexnet_dist.models import LocalResponseNorm
from alexnet_dist.parallel.runtime import Runtime, start_runtime
from alexnet_dist.settings.schema import KernelsConfig

TARGET_LAYER, TARGET_STEP = "target 4 in fp32 on a CPU", "target 0.9 in bf16 on a CPU"


def main() -> int:
    """Run the benchmark; the exit code."""
    parser = new_parser("normalization", "Speed of local response normalization. No images are read.")
    add_device_options(parser)
    return run_benchmark(parser, measure)


def measure(options: argparse.Namespace) -> Report:
    """The layer, then the network."""
    runtime = start_runtime(options.device, "bf16" if options.precision == "auto" else options.precision)
    report = Report(describe_environment(options, runtime.device))
    measure_layers(report, runtime.device, options)
    measure_networks(report, runtime, options)
    return report


def measure_layers(report: Report, device: torch.device, options: argparse.Namespace) -> None:
    """Forward and backward of one layer."""
    shape = pick_effort(options, full=(64, 96, 55, 55), quick=(16, 96, 55, 55), tiny=(2, 8, 9, 9))
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(shape, generator=generator).to(device, memory_format=torch.channels_last)
    layers = {
        "lrn_per_tower": LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=2.0, groups=2),
        "lrn": LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=2.0),
        "stock_lrn": nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=2.0),
    }
    protocol = pick_effort(options, full=Protocol(5, 3.0), quick=Protocol(3, 0.1, 2), tiny=Protocol(2, 0.0))
    figures = time_calls({name: build_call(layer, maps) for name, layer in layers.items()}, protocol, device)
    size = "x".join(map(str, shape))
    report.rows += [describe_row(name, "fp32", size, shape[0], seconds) for name, seconds in figures.items()]
    what = f"images per second, forward and backward, {size} channels last, fp32; {TARGET_LAYER}"
    report.add_ratio("lrn/stock_lrn", divide(figures["stock_lrn"], figures["lrn"]), what)


def build_call(layer: nn.Module, maps: torch.Tensor) -> Callable[[], None]:
    """A forward and a backward of one layer."""
    inputs = maps.clone().requires_grad_()  # (B, C, H, W)
    grad = torch.ones_like(maps)

    def call() -> None:
        inputs.grad = None
        layer(inputs).backward(grad)

    return call


def measure_networks(report: Report, runtime: Runtime, options: argparse.Namespace) -> None:
    """A training step of the paper's network, with and without the normalization, and by PyTorch's layers."""
    batch_size = pick_effort(options, full=64, quick=8, tiny=2)
    spec = pick_spec("paper", options.tiny)
    batch = make_batch(batch_size, spec, runtime.device, channels_last=True)
    arms = {
        "paper": (spec, AS_A_RUN),
        "paper_without_lrn": (pick_spec("paper", options.tiny, lrn=False), AS_A_RUN),
        "paper_by_layers": (spec, KernelsConfig(maps="reference")),
    }
    steps = {
        name: TrainerStep(runtime, build_network(spec, runtime, True, kernels), batch_size)
        for name, (spec, kernels) in arms.items()
    }
    protocol = pick_effort(options, full=Protocol(7, 3.0), quick=Protocol(3, 0.2), tiny=Protocol(2, 0.0))
    calls = {name: partial(step, batch) for name, step in steps.items()}
    figures = time_calls(calls, protocol, runtime.device)
    size, precision = f"{batch_size}x3x{spec.image_size}x{spec.image_size}", runtime.precision
    report.rows += [describe_row(name, precision, size, batch_size, seconds) for name, seconds in figures.items()]
    report.add_ratio(
        "paper/paper_without_lrn",
        divide(figures["paper_without_lrn"], figures["paper"]),
        f"images per second, whole training step, batch {batch_size}, channels last, {precision}; {TARGET_STEP}",
    )
    report.add_ratio(
        "paper/paper_by_layers",
        divide(figures["paper_by_layers"], figures["paper"]),
        f"images per second, whole training step, batch {batch_size}, channels last, {precision}",
    )


def describe_row(name: str, precision: str, size: str, batch_size: int, seconds: list[float]) -> dict[str, object]:
    """One line of the table."""
    spread = Spread.of(seconds)
    return {
        "arm": name,
        "precision": precision,
        "input": size,
        "images_per_second": batch_size / spread.median,
        "ms": 1000 * spread.median,
        "ms_min": 1000 * spread.min,
        "ms_max": 1000 * spread.max,
    }


if __name__ == "__main__":
    sys.exit(main())
