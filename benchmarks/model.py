"""How fast the network computes, and what the trainer adds to a minimal loop. Batches are in memory.

Protocol: all arms of one batch size run in one process, one window each per round, A B A B ...; every arm is warmed up
by two calls first; a GPU is timed with CUDA events. A full run has 5 rounds of windows of at least 0.5 s, and ends
within 8 minutes. A row is the median over the rounds. A ratio is of images per second, taken round by round, and given
as median, least and largest over the rounds. `--quick` takes one small batch and short windows; its ratios name their
batch.

- forward: evaluation mode, no gradients. forward_backward: training mode with cross-entropy. step: the same and the
  project's SGD. Precision is autocast's, as in training, and a batch has the type that a loader gives: 16 bits for bf16
  and fp16. fp16 (CUDA only) scales its loss.
- ceiling: a product of square matrices in each precision, and a copy. `percent` is the network's share of the former:
  its FLOPs are those of convolutions and fully connected layers, the backward pass taken as twice the forward pass.
- trainer_step/minimal_loop: two networks with equal first weights, on the same batch, in the same precision and layout,
  both with fused SGD; one is driven as `Trainer` does it, the other by the loop of `minimal_step` below. 7 rounds of
  windows of at least 10 steps, so that each window has a log point. Beside them trainer_compiled, the trainer's step on
  a network under torch.compile, trainer_graph, the same step as one CUDA graph, as train.cuda_graph has it, and
  minimal_graph, the minimal loop as one.

A batch that the memory has no room for is replaced by the largest that it has, and a row says so. An arm that cannot
run here (no GPU, no compiler) says so in its row.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from itertools import product

import torch
from common.ceilings import DTYPES, count_flops, measure_ceilings, percent_of_ceiling
from common.report import (
    Report,
    add_device_options,
    describe_environment,
    has_amx,
    new_parser,
    pick_effort,
    run_benchmark,
)
from common.subject import (
    LR,
    MOMENTUM,
    WEIGHT_DECAY,
    TrainerStep,
    build_network,
    build_sgd,
    drive_graph,
    make_batch,
    pick_spec,
)
from common.timing import Protocol, Spread, divide, time_calls
from torch import nn
from torch.nn import functional as F
from torch.optim import Optimizer

from alexnet_dist.base.errors import MachineError, MemoryExhaustedError
from alexnet_dist.base.exhaustion import explain_exhaustion
from alexnet_dist.base.machine import check_compiler
from alexnet_dist.data.engines.loader import Batch
from alexnet_dist.parallel.runtime import Runtime, start_runtime

VARIANTS = ("paper", "torchvision")
LAYOUTS = ("contiguous", "channels_last")
WORKS = ("forward", "forward_backward", "step")
RATIO_BATCH_SIZE = 64
TARGET_BF16 = "target 3.5 on a CPU with AMX"
TARGET_TRAINER = "target 1"
GRAPH_WARM_UP = 3  # steps before a capture, as PyTorch advises
BATCH_MULTIPLE = 8  # of which the largest batch that fits is one


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
    """A network, its optimizer, and a batch in each precision's type."""

    model: nn.Module
    optimizer: Optimizer
    batches: Mapping[str, Batch]


def main() -> int:
    """Run the benchmark; the exit code."""
    parser = new_parser("model", "Speed of the network by variant, precision, layout and batch. No images are read.")
    add_device_options(parser)
    parser.add_argument("--batch_sizes", type=int, nargs="+", help="default: chosen by device and effort")
    return run_benchmark(parser, measure)


def measure(options: argparse.Namespace) -> Report:
    """The ceilings, the grid, then the trainer against the minimal loop."""
    runtime = start_runtime(options.device, options.precision)
    report = Report(describe_environment(options, runtime.device))
    precisions = ("fp32", "bf16", "fp16") if runtime.device.type == "cuda" else ("fp32", "bf16")
    protocol = pick_effort(options, full=Protocol(5, 0.5), quick=Protocol(2, 0.0), tiny=Protocol(2, 0.0))
    ceilings = measure_ceilings(runtime.device, precisions, protocol, options.tiny)
    add_ceilings(report, ceilings)
    wanted = options.batch_sizes or pick_batch_sizes(options, runtime.device)
    batch_sizes = list(dict.fromkeys(fit_batch(report, runtime, size, options.tiny) for size in wanted))
    figures = measure_grid(runtime, batch_sizes, precisions, protocol, options)
    for setting in sorted(figures, key=astuple):
        report.rows.append(describe_row(setting, figures[setting], ceilings, options.tiny))
    largest = max(batch_sizes)
    usual = RATIO_BATCH_SIZE if RATIO_BATCH_SIZE in batch_sizes else largest
    add_grid_ratios(report, figures, runtime.precision, usual)
    for size in dict.fromkeys([usual, largest]):
        compare_with_minimal_loop(report, runtime, size, ceilings, options, f"@{size}" if size != usual else "")
    return report


def pick_batch_sizes(options: argparse.Namespace, device: torch.device) -> list[int]:
    """Batch sizes that fit the device and the time."""
    full = [RATIO_BATCH_SIZE, 512] if device.type == "cuda" else [RATIO_BATCH_SIZE]
    return pick_effort(options, full=full, quick=[RATIO_BATCH_SIZE if device.type == "cuda" else 8], tiny=[2])


def add_ceilings(report: Report, ceilings: Mapping[str, float]) -> None:
    """A row for each."""
    for name, value in ceilings.items():
        unit = {"gb_per_s": value / 1e9} if name == "copy" else {"tflops": value / 1e12}
        report.rows.append({"work": "ceiling", "precision": "" if name == "copy" else name, **unit})


# -- what fits --------------------------------------------------------------------------------------------------------


def fit_batch(report: Report, runtime: Runtime, size: int, tiny: bool) -> int:
    """The batch size, or the largest that the device has memory for, with a row that says so.

    Raises:
        MemoryExhaustedError: not even one image fits.
    """

    def fits(images: int) -> bool:
        return has_room(lambda: try_step(runtime, images, tiny), runtime.device)

    found = find_largest(fits, size)
    if found == 0:
        raise MemoryExhaustedError("out of memory", why="one image does not fit", remedy="free some memory")
    if found < size:
        report.rows.append({"batch_size": size, "missing": f"does not fit; the largest batch that does has {found}"})
    return found


def find_largest(fits: Callable[[int], bool], size: int) -> int:
    """`size` if it fits; else the largest multiple of 8 below it that does, or 1, or 0."""
    if fits(size):
        return size
    low, high = 0, -(-size // BATCH_MULTIPLE)  # in multiples: what fits, and what does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle * BATCH_MULTIPLE) else (low, middle)
    return low * BATCH_MULTIPLE or int(fits(1))


def has_room(call: Callable[[], None], device: torch.device) -> bool:
    """Whether a call ends without running out of memory."""
    try:
        call()
    except (RuntimeError, MemoryError) as error:
        if not isinstance(explain_exhaustion(error), MemoryExhaustedError):
            raise
        return False
    finally:
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return True


def try_step(runtime: Runtime, size: int, tiny: bool) -> None:
    """The arm of the grid that takes most memory, beside the other networks of the grid."""
    if runtime.device.type == "cpu":
        return  # a CPU's memory is not what limits its batch, and the step would take seconds
    subjects = [build_subject(runtime, variant, "contiguous", size, ("fp32",), tiny) for variant in VARIANTS * 2]
    build_call(subjects[0], Setting(VARIANTS[0], "fp32", "contiguous", size, "step"), runtime.device)()
    torch.cuda.synchronize()


# -- the grid ---------------------------------------------------------------------------------------------------------


def measure_grid(
    runtime: Runtime,
    batch_sizes: list[int],
    precisions: tuple[str, ...],
    protocol: Protocol,
    options: argparse.Namespace,
) -> dict[Setting, list[float]]:
    """Seconds per call of every setting, one figure per round."""
    works = ("forward", "step") if options.quick else WORKS
    figures: dict[Setting, list[float]] = {}
    for batch_size in batch_sizes:
        subjects = {
            (variant, layout): build_subject(runtime, variant, layout, batch_size, precisions, options.tiny)
            for variant, layout in product(VARIANTS, LAYOUTS)
        }
        settings = {str(setting): setting for setting in list_settings(batch_size, works, precisions)}
        calls = {
            name: build_call(subjects[setting.variant, setting.layout], setting, runtime.device)
            for name, setting in settings.items()
        }
        for name, seconds in time_calls(calls, protocol, runtime.device).items():
            figures[settings[name]] = seconds
    return figures


def list_settings(batch_size: int, works: Sequence[str], precisions: Sequence[str]) -> Iterator[Setting]:
    """The arms of one batch size; what a ratio compares stands close together."""
    for work, precision, layout, variant in product(works, precisions, LAYOUTS, VARIANTS):
        yield Setting(variant, precision, layout, batch_size, work)


def build_subject(
    runtime: Runtime, variant: str, layout: str, batch_size: int, precisions: Sequence[str], tiny: bool
) -> Subject:
    """A network with what it needs to train."""
    spec, is_last = pick_spec(variant, tiny), layout == "channels_last"
    model = build_network(spec, runtime, is_last)
    batches = {name: make_batch(batch_size, spec, runtime.device, is_last, DTYPES[name]) for name in precisions}
    return Subject(model, build_sgd(model), batches)


def build_call(subject: Subject, setting: Setting, device: torch.device) -> Callable[[], None]:
    """What an arm does once."""
    model, optimizer = subject.model, subject.optimizer
    images, labels = subject.batches[setting.precision][:2]
    autocast = torch.autocast(device.type, DTYPES[setting.precision], enabled=setting.precision != "fp32")
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


def describe_row(
    setting: Setting, seconds: list[float], ceilings: Mapping[str, float], tiny: bool
) -> dict[str, object]:
    """One line of the table."""
    spread = Spread.of(seconds)
    flops, speed = count_flops(pick_spec(setting.variant, tiny)), setting.batch_size / spread.median
    return {
        **vars(setting),
        "images_per_second": speed,
        "ms": 1000 * spread.median,
        "ms_min": 1000 * spread.min,
        "ms_max": 1000 * spread.max,
        "percent": percent_of_ceiling(ceilings, setting.precision, flops, setting.work, speed),
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


def build_graph_loop(model: nn.Module, batch: Batch, precision: str, device: torch.device) -> Callable[[], None]:
    """The hand-written loop's body as one CUDA graph, which a replay launches at once."""
    loop = build_minimal_loop(model, batch, precision, device)
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        for _ in range(GRAPH_WARM_UP):
            loop()
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loop()
    return graph.replay


def explain_no_compiler(device: torch.device, is_quick: bool) -> str:
    """Why torch.compile is not measured; "" where it is."""
    if is_quick:
        return "left out by --quick: compiling takes longer than a minute"
    try:
        check_compiler(device.type == "cuda")
    except MachineError as error:
        return str(error)
    return ""


def compare_with_minimal_loop(
    report: Report,
    runtime: Runtime,
    batch_size: int,
    ceilings: Mapping[str, float],
    options: argparse.Namespace,
    suffix: str,
) -> None:
    """Measure the trainer's step and the minimal loop's, window by window; both in their faster forms, too."""
    if runtime.precision == "fp16":
        report.notes.append("trainer_step/minimal_loop is left out: the minimal loop does not scale its loss")
        return
    device, spec = runtime.device, pick_spec("torchvision", options.tiny)
    batch = make_batch(batch_size, spec, device, True, DTYPES[runtime.precision])

    def drive(trainer: TrainerStep) -> Callable[[], None]:
        return lambda: trainer(batch)

    def network() -> nn.Module:
        return build_network(spec, runtime, channels_last=True)

    calls = {
        "trainer_step": drive(TrainerStep(runtime, network(), batch_size)),
        "minimal_loop": build_minimal_loop(network(), batch, runtime.precision, device),
    }
    setting = Setting("torchvision", runtime.precision, "channels_last", batch_size, "")
    missing = {"trainer_compiled": explain_no_compiler(device, options.quick)}
    missing["minimal_graph"] = "" if device.type == "cuda" else "no CUDA device"
    try:
        calls["trainer_graph"] = drive_graph(runtime, network(), batch)
    except MachineError as error:
        missing["trainer_graph"] = str(error)
    extra: dict[str, object] = {}
    if not missing["trainer_compiled"]:
        calls["trainer_compiled"] = drive(TrainerStep(runtime, torch.compile(network()), batch_size))
        began = time.perf_counter()
        calls["trainer_compiled"]()
        extra = {"compile_seconds": time.perf_counter() - began}
    if not missing["minimal_graph"]:
        calls["minimal_graph"] = build_graph_loop(network(), batch, runtime.precision, device)
    protocol = pick_effort(options, full=Protocol(7, 1.0, 10), quick=Protocol(3, 0.0, 3), tiny=Protocol(2, 0.0, 10))
    figures = time_calls(calls, protocol, device)
    for name, seconds in figures.items():
        row = describe_row(replace(setting, work=name), seconds, ceilings, options.tiny)
        report.rows.append({**row, **(extra if name == "trainer_compiled" else {})})
    for name, reason in missing.items():
        if reason:
            report.rows.append({**vars(replace(setting, work=name)), "missing": reason})
    what = f"images per second, torchvision, {runtime.precision}, channels_last, batch {batch_size}"
    targets = {"trainer_step": f"; {TARGET_TRAINER}", "trainer_compiled": "", "trainer_graph": "", "minimal_graph": ""}
    for name in targets.keys() & figures.keys():
        ratio = divide(figures["minimal_loop"], figures[name])
        report.add_ratio(f"{name}/minimal_loop{suffix}", ratio, what + targets[name])


if __name__ == "__main__":
    sys.exit(main())
