"""What wants a GPU, section by section, most valuable first; `gpu.sh` starts this and goes on after a fault.

    python benchmarks/gpu.py --out OUT --seconds 560 [--data.root PICTURES] [--only steps profile]

Each row is a line of OUT/rows.jsonl, and is on the disk before the next is measured. A section that fails says so in a
row. One that too little time is left for is named. A second start in the same OUT goes on with the sections that were
not begun, within the time of the first. Without a GPU `--tiny` shows that it runs; figures then mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, TypeAlias

import torch
from common.ceilings import count_flops, measure_ceilings, percent_of_ceiling
from common.report import Report, check_writable, describe_environment
from common.subject import TrainerStep, build_network, drive_graph, make_batch, pick_spec
from common.timing import Protocol, Spread, divide, time_calls
from end_to_end import Effort, measure_speed
from model import build_graph_loop, build_minimal_loop

from alexnet_dist.assembly.loaders import INPUT_DTYPES
from alexnet_dist.base.errors import AlexNetDistError, MachineError
from alexnet_dist.data.engines.cache import device as cache_device
from alexnet_dist.data.engines.loader import Batch
from alexnet_dist.parallel.runtime import Runtime, start_runtime

ROOT = Path(__file__).resolve().parents[1]
ROWS = "rows.jsonl"
VARIANTS = ("paper", "torchvision")
PROFILED_STEPS, KERNELS_SHOWN = 3, 25
LEAST_SECONDS = 20.0  # that a command is started with


@dataclass(frozen=True)
class Lease:
    """Where rows go, and how long there is.

    Args:
        options: the command line.
        runtime: the device and its precision.
        deadline: of `time.time()`.
    """

    options: argparse.Namespace
    runtime: Runtime
    deadline: float

    @property
    def left(self) -> float:
        """Seconds."""
        return self.deadline - time.time()

    @property
    def tiny(self) -> bool:
        """Whether it only has to run."""
        return bool(self.options.tiny)

    @property
    def on_gpu(self) -> bool:
        """Whether there is one."""
        return self.runtime.device.type == "cuda"

    @property
    def sizes(self) -> tuple[int, ...]:
        """Batches, the most valuable first."""
        return (2,) if self.tiny else (512, 128, 64)

    @cached_property
    def ceilings(self) -> dict[str, float]:
        """What the device does at most."""
        precisions = ("fp32", self.runtime.precision)
        return measure_ceilings(self.runtime.device, precisions, self.protocol(0.15), self.tiny)

    def protocol(self, seconds: float, rounds: int = 3) -> Protocol:
        """Windows of so many seconds."""
        return Protocol(2, 0.0) if self.tiny else Protocol(rounds, seconds)

    def time(
        self, calls: Mapping[str, Callable[[], object]], seconds: float, rounds: int = 3
    ) -> dict[str, list[float]]:
        """Seconds per call, A B A B."""
        return time_calls(calls, self.protocol(seconds, rounds), self.runtime.device)

    def say(self, section: str, **values: Any) -> None:
        """A row, which is on the disk when this returns."""
        add_row(self.options.out / ROWS, section, **values)


def add_row(path: Path, section: str, **values: Any) -> None:
    """Append a line and wait for the disk."""
    line = json.dumps({"time": round(time.time(), 1), "section": section, **values})
    is_cut = path.exists() and not path.read_bytes().endswith(b"\n") and path.stat().st_size > 0
    with open(path, "a", encoding="utf-8") as file:
        file.write("\n" * is_cut + line + "\n")
        file.flush()
        os.fsync(file.fileno())
    print(line[:200], flush=True)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The whole lines that earlier starts left."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


# -- sections ---------------------------------------------------------------------------------------------------------


def ceilings(lease: Lease) -> None:
    """A product of matrices, a copy, a launch."""
    for name, value in lease.ceilings.items():
        lease.say("ceilings", what=name, **({"gb_per_s": value / 1e9} if name == "copy" else {"tflops": value / 1e12}))
    number = torch.zeros(1, device=lease.runtime.device)
    seconds = lease.time({"launch": lambda: number.add_(1)}, 0.1)["launch"]
    lease.say("ceilings", what="launch of a small kernel", us=Spread.of(seconds).median * 1e6)


def make_subject(lease: Lease, variant: str, size: int) -> tuple[Batch, TrainerStep, Callable[[], None]]:
    """A batch as the loader gives it, the trainer's step, and the hand-written loop on a network of its own."""
    runtime, spec = lease.runtime, pick_spec(variant, lease.tiny)
    batch = make_batch(size, spec, runtime.device, True, INPUT_DTYPES[runtime.precision])
    trainer = TrainerStep(runtime, build_network(spec, runtime, channels_last=True), size)
    minimal = build_minimal_loop(build_network(spec, runtime, True), batch, runtime.precision, runtime.device)
    return batch, trainer, minimal


def steps(lease: Lease) -> None:
    """The trainer's step and the hand-written loop, with and without cuDNN's own choice of algorithms."""
    for is_timed, variant, size in product((False, True), VARIANTS, lease.sizes):
        torch.backends.cudnn.benchmark = is_timed
        batch, trainer, minimal = make_subject(lease, variant, size)
        seconds = lease.time({"trainer": lambda run=trainer, one=batch: run(one), "minimal": minimal}, 0.35)
        row = describe_speeds(lease, variant, size, seconds)
        ratio = divide(seconds["minimal"], seconds["trainer"]).median
        lease.say("steps", cudnn_benchmark=is_timed, **row, ratio=ratio, peak_gib=read_peak(lease))


def describe_speeds(lease: Lease, variant: str, size: int, seconds: Mapping[str, list[float]]) -> dict[str, Any]:
    """Images per second of each arm, and its share of what products of matrices reach."""
    row: dict[str, Any] = {"variant": variant, "batch": size}
    flops = count_flops(pick_spec(variant, lease.tiny))
    for name, values in seconds.items():
        speed = size / Spread.of(values).median
        row[f"{name}_images_per_second"] = speed
        row[f"{name}_percent"] = percent_of_ceiling(lease.ceilings, lease.runtime.precision, flops, "step", speed)
    return row


def read_peak(lease: Lease) -> float:
    """Most GiB that tensors took since the last look."""
    if not lease.on_gpu:
        return 0.0
    peak = torch.cuda.max_memory_allocated() / 2**30
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return peak


def profile(lease: Lease) -> None:
    """The kernels of an update, by the time that they take."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as start_profiler

    activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * lease.on_gpu]
    for variant in VARIANTS:
        batch, trainer, _ = make_subject(lease, variant, lease.sizes[0])
        trainer(batch)
        with start_profiler(activities=activities) as profiler:
            for _ in range(PROFILED_STEPS):
                trainer(batch)
            if lease.on_gpu:
                torch.cuda.synchronize()
        key = "self_device_time_total" if lease.on_gpu else "self_cpu_time_total"
        events = sorted(profiler.key_averages(), key=lambda event: -getattr(event, key))
        total = sum(getattr(event, key) for event in events) / PROFILED_STEPS
        lease.say("profile", variant=variant, batch=lease.sizes[0], us_per_step=total)
        for event in events[:KERNELS_SHOWN]:
            us, count = getattr(event, key) / PROFILED_STEPS, event.count / PROFILED_STEPS
            lease.say("profile", variant=variant, kernel=event.key[:100], us=us, count=count)


def graphs(lease: Lease) -> None:
    """The trainer's update and the hand-written loop as one CUDA graph each, beside themselves."""
    if not lease.on_gpu:
        lease.say("graphs", missing="no CUDA device")
        return
    runtime = lease.runtime
    for variant, size in product(VARIANTS, lease.sizes):
        batch, trainer, minimal = make_subject(lease, variant, size)
        network = build_network(pick_spec(variant, lease.tiny), runtime, channels_last=True)
        graph = build_graph_loop(network, batch, runtime.precision, runtime.device)
        calls = {"trainer": lambda run=trainer, one=batch: run(one), "minimal": minimal, "minimal_graph": graph}
        try:
            own = build_network(pick_spec(variant, lease.tiny), runtime, channels_last=True)
            calls["trainer_graph"] = drive_graph(runtime, own, batch)
        except MachineError as error:
            lease.say("graphs", variant=variant, batch=size, missing=str(error))
        lease.say("graphs", **describe_speeds(lease, variant, size, lease.time(calls, 0.3)))


def end_to_end(lease: Lease) -> None:
    """From the cache, with the set on the GPU and with rows that travel; then through DALI."""
    size = 2 if lease.tiny else 512
    effort = Effort(lease.protocol(0.8, 4), size, 2 * size, epoch_steps=0, small_batch_size=0)
    for engine, part in (("cache", cache_device.RESIDENT_PART), ("cache", 0.0), ("dali", 0.0)):
        report = Report(describe_environment(lease.options, lease.runtime.device))
        options = argparse.Namespace(
            **{**vars(lease.options), "engine": engine, "variant": "paper", "batch_size": size}
        )
        cache_device.RESIDENT_PART = part
        with tempfile.TemporaryDirectory() as folder:
            try:
                measure_speed(report, lease.runtime, options, effort, Path(folder))
            except AlexNetDistError as error:
                lease.say("end_to_end", engine=engine, missing=str(error))
                continue
        where = "on the device" if part else "travels"
        for row in report.rows:
            lease.say("end_to_end", set=where, batch=size, **row)
        lease.say("end_to_end", set=where, engine=engine, verdict=report.notes[-1], **report.ratios["end_to_end/limit"])


def compiled(lease: Lease) -> None:
    """The trainer's step on a network under torch.compile."""
    for variant in VARIANTS:
        batch, trainer, _ = make_subject(lease, variant, lease.sizes[0])
        fast = replace(trainer, model=torch.compile(trainer.model))
        began = time.perf_counter()
        fast(batch)
        took = time.perf_counter() - began
        seconds = lease.time({"compiled": lambda run=fast, one=batch: run(one)}, 0.5)
        row = describe_speeds(lease, variant, lease.sizes[0], seconds)
        lease.say("compiled", compile_seconds=took, **row)


Section: TypeAlias = tuple[Callable[[Lease], None], float]
"""What to do, and the seconds of the lease without which it is not begun."""


def command(name: str, limit: float, *words: str) -> Section:
    """A section that is a program of its own, stopped after so many seconds; its words go to OUT/NAME.log."""

    def section(lease: Lease) -> None:
        log = lease.options.out / f"{name}.log"
        told = [sys.executable, *(word.format(out=lease.options.out) for word in words)]
        with open(log, "w", encoding="utf-8") as file:
            process = subprocess.Popen(told, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
            try:
                code: int | str = process.wait(max(1.0, min(limit, lease.left)))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                code = f"stopped after {limit:.0f} s"
        lease.say(name, code=code, end=log.read_text(encoding="utf-8", errors="replace")[-1500:])

    return section, LEAST_SECONDS


def benchmark(name: str, limit: float, *words: str, reads: bool = True) -> Section:
    """One of the other benchmarks, shortened; its figures go to OUT/NAME.json. `reads`: it takes --data.root."""

    def section(lease: Lease) -> None:
        root = lease.options.data_root
        more = ("--data.root", str(root)) if root is not None and reads else ()
        more += ("--tiny",) if lease.tiny else ("--quick", *words)
        command(name, limit, f"benchmarks/{name}.py", *more, "--out", f"{{out}}/{name}.json")[0](lease)

    return section, LEAST_SECONDS


PYTEST = ("-m", "pytest", "tests/gpu", "tests/parity", "-q", "-m", "", "-n", "4", "--dist", "loadfile")
SECTIONS: dict[str, Section] = {
    "ceilings": (ceilings, 5),
    "steps": (steps, 50),
    "profile": (profile, 15),
    "convolutions": benchmark("convolutions", 40, reads=False),
    "graphs": (graphs, 30),
    "end_to_end": (end_to_end, 60),
    "normalization": benchmark("normalization", 40, reads=False),
    "loader": benchmark("loader", 90, "--batch_size", "256"),
    "rivals": benchmark("rivals", 150, "--batch_size", "256"),
    "compiled": (compiled, 60),
    "model": benchmark("model", 60, reads=False),
    "strategies": benchmark("parallel", 80, "--share_gpu", reads=False),
    "tests": command("tests", 150, *PYTEST),
}


# -- the lease --------------------------------------------------------------------------------------------------------


def main() -> int:
    """Every section that there is time for; the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the rows")
    parser.add_argument("--seconds", type=float, default=560, help="of the lease, all starts together; default: 560")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="default: all")
    parser.add_argument("--data.root", dest="data_root", type=Path, help="folder with train/CLASS/*.jpg")
    parser.add_argument("--tiny", action="store_true", help="only see that it runs: the figures mean nothing")
    options = parser.parse_args()
    options.quick = False
    options.out = options.out.resolve()
    try:
        measure(options)
    except AlexNetDistError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def measure(options: argparse.Namespace) -> None:
    """Go through the sections that no earlier start has begun.

    Raises:
        MachineError: the folder cannot be written, or there is no GPU.
    """
    if not options.tiny and not torch.cuda.is_available():
        raise MachineError("no CUDA device", remedy="give --tiny to see that it runs")
    path = options.out / ROWS
    check_writable(path)
    earlier = read_rows(path)
    began = earlier[0]["time"] if earlier else time.time()
    lease = Lease(options, start_runtime("auto", "bf16"), began + options.seconds)
    if not earlier:
        lease.say("environment", **describe_environment(options, lease.runtime.device))
    for name in list_rest(options.only, earlier):
        run_section(lease, name)


def list_rest(names: list[str], earlier: list[dict[str, Any]]) -> Iterator[str]:
    """The sections that were not begun."""
    begun = {row["section"] for row in earlier if row.get("event") == "begin"}
    return (name for name in names if name not in begun)


def run_section(lease: Lease, name: str) -> None:
    """One section, if there is time for it. What fails within it costs no other, unless it takes the device along."""
    section, least = SECTIONS[name]
    if lease.left < least and not lease.tiny:
        lease.say(name, skipped=f"{lease.left:.0f} s are left, {least:.0f} are wanted")
        return
    lease.say(name, event="begin")
    began = time.perf_counter()
    try:
        section(lease)
    except Exception as error:  # noqa: BLE001 (whatever it is, the next section may still give its figures)
        lease.say(name, failed=f"{type(error).__name__}: {error}"[:300], trace=traceback.format_exc()[-1500:])
    if lease.on_gpu:
        torch.cuda.synchronize()  # fails after a fault of a kernel: then a new process goes on
        torch.cuda.empty_cache()
    lease.say(name, event="end", seconds=round(time.perf_counter() - began, 1))


if __name__ == "__main__":
    sys.exit(main())
