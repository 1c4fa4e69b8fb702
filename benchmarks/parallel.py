"""What each strategy makes of several processes, on one machine and over a cable of 1 Gbit/s; bytes beside formulas.

Protocol: for each link, variant and number of images per process, all arms run in the same processes, one window each
per round, A B C D ...; one window first, in which DDP makes its final buckets. A window is timed from when all
processes begin to when the last has ended. A full run has 9 rounds of 2 updates, many and short because a shared host's
speed changes within seconds; --quick has two machines, the first four arms and 2 rounds of 1 update. A row is the
median over the rounds; a ratio is of images per second, taken round by round. An update is all that `Trainer` does with
a batch; batches are in memory.

- ddp_fp32, ddp_bf16: data parallel, gradients as they are or compressed. towers, hybrid: see docs/strategies.md.
  hybrid_bf16:
  hybrid with compressed gradients. All have the same global batch: two towers share the images of two processes.
- one_process (links without a limit): the whole batch in one process with the cores of all.

Links: `local`, processes of one machine; `two_machines`, two network namespaces of one core each, joined by a cable
that tc limits to 1 Gbit/s (tests/dist/two_machines.sh; Linux, root; left out, and said so, where that is not allowed).
With --share_gpu both of them compute on the one GPU of this machine and talk over NCCL; `local` is then left out.
A ratio has a plain name in the first setting that has it; in the others it ends in @LINK_VARIANT_IMAGES. Variant
torchvision has no towers.

Estimates: at the beginning of a round the same processes measure the link and their own computing, as `doctor` does,
and the cost model (alexnet_dist/costs/model.py) predicts every arm; estimate/ARM is the predicted speed over
the measured one, round by round.

Bytes: what one process sends for an update. Counted where our collectives and DDP's buckets send it, computed in closed
form from the network's shapes (benchmarks/common/traffic.py), and read from the cable's own counter.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product, starmap
from pathlib import Path
from typing import Any

import torch
from common.report import Report, describe_environment, describe_speed, new_parser, pick_effort, run_benchmark
from common.timing import Spread, divide

from alexnet_dist.base.errors import MachineError
from alexnet_dist.base.machine import tune_allocator

HERE = Path(__file__).resolve().parent
TWO_MACHINES = HERE.parent / "tests" / "dist" / "two_machines.sh"
NOT_ALLOWED = 77
RATIOS = {
    "hybrid/ddp_fp32": {16: "target 4", 64: "target 2"},
    "hybrid/ddp_bf16": {16: "target 2"},
    "towers/ddp_fp32": {16: "target 3"},
    "ddp_bf16/ddp_fp32": {},
    "hybrid_bf16/ddp_bf16": {},
    "hybrid_batch_by_batch/hybrid": {},
}
ALONE = "one_process"
SHARES = ("ddp_fp32", "towers", "hybrid")  # over one_process
VARIANTS = ("paper", "source2012", "torchvision")


@dataclass(frozen=True)
class Setting:
    """What is measured together."""

    link: str
    variant: str
    images: int

    def __str__(self) -> str:
        return f"{self.link}_{self.variant}_{self.images}"


def main() -> int:
    """Run the benchmark; the exit code."""
    parser = new_parser("parallel", "Strategies side by side, on one machine and over a slow cable.")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, help="default: torchvision, paper")
    parser.add_argument("--sizes", type=int, nargs="+", help="images per process; default: 16, 64")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16", help="default: bf16")
    parser.add_argument("--processes", type=int, default=2, help="on one machine; even. Default: 2")
    parser.add_argument("--rate", default="1gbit", help="of the cable between two machines, in tc's words")
    parser.add_argument("--share_gpu", action="store_true", help="two machines, both with the GPU of this one")
    return run_benchmark(parser, measure)


def measure(options: argparse.Namespace) -> Report:
    """Every link with every number of images per process.

    Raises:
        MachineError: no GPU to share.
    """
    if options.share_gpu and not torch.cuda.is_available():
        raise MachineError("no CUDA device", why="--share_gpu is given", remedy="leave it out")
    report = Report(describe_environment(options))
    tune_allocator()  # the processes inherit a part of it
    report.environment["device"] = "cuda" if uses_gpu(options) else "cpu"
    limited, local = list_settings(options)
    measure_settings(report, limited, options)
    if limited and not report.rows:
        report.notes.append("two_machines is left out: network namespaces are not allowed here")
    if not options.quick or not report.rows:
        measure_settings(report, local, options)
    return report


def measure_settings(report: Report, settings: Sequence[Setting], options: argparse.Namespace) -> None:
    """Rows and ratios of some settings, each in processes of its own."""
    for setting in settings:
        found = run_processes(setting, options)
        if found is not None:
            add_rows(report, found, setting)
            add_ratios(report, found, setting, options)


def list_settings(options: argparse.Namespace) -> tuple[list[Setting], list[Setting]]:
    """Those over the slow cable; those without a limit, for what a strategy itself costs."""
    variants = options.variants or pick_effort(options, full=["torchvision", "paper"], quick=["paper"], tiny=["paper"])
    sizes = options.sizes or pick_effort(options, full=[16, 64], quick=[16], tiny=[2])
    limited, local = (list(starmap(Setting, product([link], variants, sizes))) for link in ("two_machines", "local"))
    return [] if options.tiny and not options.share_gpu else limited, [] if options.share_gpu else local


def uses_gpu(options: argparse.Namespace) -> bool:
    """Whether each process has a GPU, or its share of one."""
    return torch.cuda.device_count() >= (1 if options.share_gpu else options.processes)


def run_processes(setting: Setting, options: argparse.Namespace) -> dict[str, Any] | None:
    """What the main process of a job found; None where the link cannot be made.

    Raises:
        RuntimeError: the job failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        words = ["--module", "common.strategies", "--variant", setting.variant, "--precision", options.precision]
        words += ["--images", str(setting.images), "--out", str(out), *["--tiny"] * options.tiny]
        words += ["--rounds", str(pick_effort(options, full=9, quick=2, tiny=2))]
        words += ["--steps", str(pick_effort(options, full=2, quick=1, tiny=1)), *["--few"] * options.quick]
        words += ["--alone"] * (setting.link == "local")
        launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--dynamo_backend", "no"]
        launcher += ["--mixed_precision", "no", *describe_link(setting.link, options)]
        prefix = [str(TWO_MACHINES), options.rate] if setting.link == "two_machines" else []
        # NCCL refuses a GPU that two processes of one machine share; this is its name of a machine.
        prefix += ["env", "NCCL_HOSTID=MACHINE_RANK"] if options.share_gpu else []
        gpus = {} if uses_gpu(options) else {"ACCELERATE_USE_CPU": "true"}
        done = subprocess.run(
            [*prefix, *launcher, *words], env={**os.environ, **gpus}, capture_output=True, text=True, cwd=HERE
        )
        if done.returncode == NOT_ALLOWED:
            return None
        if done.returncode:
            raise RuntimeError(f"{setting} ended with {done.returncode}: {done.stderr[-3000:]}")
        found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
        return found


def describe_link(link: str, options: argparse.Namespace) -> list[str]:
    """Options of `accelerate launch`."""
    if link == "two_machines":
        machines = ["--num_machines", "2", "--num_processes", "2", "--machine_rank", "MACHINE_RANK"]
        return [*machines, "--main_process_ip", "192.0.2.1", "--main_process_port", "29500"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    return ["--num_machines", "1", "--num_processes", str(options.processes), "--main_process_port", port]


def add_rows(report: Report, found: dict[str, Any], setting: Setting) -> None:
    """A row for each arm."""
    global_batch_size = setting.images * found["world_size"]
    for arm, seconds in found["seconds"].items():
        row = {**vars(setting), "arm": arm, "seconds": Spread.of(seconds).median}
        row |= describe_speed(Spread.of([global_batch_size / value for value in seconds]))
        if arm in found["estimated"]:
            row["estimated_images_per_second"] = global_batch_size / Spread.of(found["estimated"][arm]).median
        traffic = {name: value for name, value in found["traffic"].get(arm, {}).items() if value is not None}
        report.rows.append({**row, **traffic})


def add_ratios(report: Report, found: dict[str, Any], setting: Setting, options: argparse.Namespace) -> None:
    """What one strategy gains over another, and what each costs against one process."""
    seconds, images = found["seconds"], setting.images
    is_limited = setting.link == "two_machines"
    cable = f"{options.rate} cable" + ", one GPU shared" * options.share_gpu
    where = cable if is_limited else f"{found['world_size']} processes of one machine"
    what = f"images per second, {setting.variant}, {found['precision']}, {where}, {images} images per process"

    def add(name: str, ratio: Spread, what: str) -> None:
        report.add_ratio(f"{name}@{setting}" if name in report.ratios else name, ratio, what)

    for name, targets in RATIOS.items():
        above, below = name.split("/")
        target = f"; {targets[images]}" if is_limited and images in targets else ""
        if above in seconds and below in seconds:
            add(name, divide(seconds[below], seconds[above]), what + target)
    for arm, predicted in found["estimated"].items():
        accuracy = divide(seconds[arm], predicted)
        add(f"estimate/{arm}", accuracy, f"{what}; predicted over measured, target 0.75 to 1.25")
    for arm in SHARES if ALONE in seconds else ():
        if arm in seconds:
            share = divide(seconds[ALONE], seconds[arm])
            add(f"{arm}/{ALONE}", share, f"{what}; {ALONE} has the same cores")


if __name__ == "__main__":
    sys.exit(main())
