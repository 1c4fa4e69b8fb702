"""The forms of the paper's convolutions, side by side: in groups, on towers that lie apart, dense with zeros; conv1.

Protocol as in model.py: all arms of a precision in one process, A B A B ..., a warm-up call each; ratios are taken
round by round. A call is a forward and a backward of `features` in training mode, channels last, at 224 pixels. On a
CPU the processor's time counts, which other programs on the same cores hardly change.

- apart/grouped, dense/grouped: conv2, conv4 and conv5 in another form, conv1 as it is.
- space_to_depth/direct: conv1 in another form, the others in groups.

On a CPU the figures are what `assembly/kernels.py` has its table from; ONEDNN_MAX_CPU_ISA gives those of smaller ones.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial

import torch
from common.report import Report, add_device_options, describe_environment, new_parser, pick_effort, run_benchmark
from common.subject import make_batch, pick_spec
from common.timing import Protocol, Spread, divide, interleave, time_calls

from alexnet_dist.assembly.loaders import place_model
from alexnet_dist.models import build_model
from alexnet_dist.models.convolutions import Conv1Form, GroupsForm, take_forms
from alexnet_dist.parallel.runtime import Runtime, start_runtime

ARMS: dict[str, tuple[GroupsForm, Conv1Form]] = {
    "grouped": ("grouped", "direct"),
    "apart": ("apart", "direct"),
    "dense": ("dense", "direct"),
    "space_to_depth": ("grouped", "space_to_depth"),
}


def main() -> int:
    """Run the benchmark; the exit code."""
    parser = new_parser("convolutions", "Speed of the forms of the convolutions. No images are read.")
    add_device_options(parser)
    return run_benchmark(parser, measure)


def measure(options: argparse.Namespace) -> Report:
    """All forms, in bf16 and in fp32 unless --precision says which."""
    runtime = start_runtime(options.device, "fp32")
    report = Report(describe_environment(options, runtime.device))
    if isa := os.environ.get("ONEDNN_MAX_CPU_ISA"):
        report.environment["onednn_max_cpu_isa"] = isa
    for precision in ("bf16", "fp32") if options.precision == "auto" else (options.precision,):
        measure_forms(report, runtime, precision, options)
    return report


def measure_forms(report: Report, runtime: Runtime, precision: str, options: argparse.Namespace) -> None:
    """The arms of a precision."""
    on_gpu = runtime.device.type == "cuda"
    size = pick_effort(options, full=256 if on_gpu else 16, quick=64 if on_gpu else 8, tiny=2)
    protocol = pick_effort(options, full=Protocol(7, 0.5), quick=Protocol(3, 0.0), tiny=Protocol(2, 0.0))
    calls = {name: build_call(runtime, precision, size, *forms, options.tiny) for name, forms in ARMS.items()}
    figures = time_calls(calls, protocol, runtime.device) if on_gpu else time_processor(calls, protocol.rounds)
    for name, seconds in figures.items():
        report.rows.append(describe_row(name, precision, size, seconds))
    what = f"forward and backward of the convolutions, paper, {precision}, batch {size}: images per second"
    what += "" if on_gpu else " of the processor's time"
    for name in ("apart", "dense", "space_to_depth"):
        base = "direct" if name == "space_to_depth" else "grouped"
        report.add_ratio(f"{name}/{base}@{precision}", divide(figures["grouped"], figures[name]), what)


def time_processor(calls: Mapping[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds of processor time of a call of each arm, one figure per round."""

    def read(call: Callable[[], None]) -> float:
        began = time.process_time()
        call()
        return time.process_time() - began

    for call in calls.values():
        call()  # allocations, weights laid out
    return interleave({name: partial(read, call) for name, call in calls.items()}, rounds)


def build_call(
    runtime: Runtime, precision: str, size: int, groups: GroupsForm, conv1: Conv1Form, tiny: bool
) -> Callable[[], None]:
    """A forward and a backward of one arm."""
    spec, device = pick_spec("paper", tiny), runtime.device
    model = build_model(spec, 0).train()
    place_model(model, runtime, channels_last=True)
    take_forms(model, groups, conv1)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    images = make_batch(size, spec, device, channels_last=True).images.to(dtype)

    def call() -> None:
        model.zero_grad(set_to_none=True)
        with torch.autocast(device.type, dtype, enabled=precision != "fp32"):
            maps = model.features(images)  # (B, C5, 6, 6)
        maps.backward(torch.ones_like(maps))

    return call


def describe_row(name: str, precision: str, size: int, seconds: list[float]) -> dict[str, object]:
    """One line of the table."""
    spread = Spread.of(seconds)
    return {
        "arm": name,
        "precision": precision,
        "batch": size,
        "images_per_second": size / spread.median,
        "ms": 1000 * spread.median,
        "ms_min": 1000 * spread.min,
        "ms_max": 1000 * spread.max,
    }


if __name__ == "__main__":
    sys.exit(main())
