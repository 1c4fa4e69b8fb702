"""What each strategy makes of several processes, on one machine and over a cable of 1 Gbit/s; bytes beside formulas.

Protocol: for each link and each number of images per process, all arms run in the same processes, one window each per
round, A B C D ...; one window first, in which DDP makes its final buckets. A window is timed from when all processes
begin to when the last has ended. A full run has 5 rounds of 3 updates. A row is the median over the rounds; a ratio is
of images per second, taken round by round. An update is all that `Trainer` does with a batch; batches are in memory.

- ddp_fp32, ddp_bf16: data parallel, gradients as they are or compressed. towers, hybrid: see the README. hybrid_bf16:
  hybrid with compressed gradients. All have the same global batch: two towers share the images of two processes.
- one_process (links without a limit): the whole batch in one process with the cores of all.

Links: `local`, processes of one machine; `two_machines`, two network namespaces of one core each, joined by a cable
that tc limits to 1 Gbit/s (tests/dist/two_machines.sh; Linux, root; left out, and said so, where that is not allowed).
The ratios of the first link and number of images have plain names; those of the others end in @LINK_IMAGES.

Bytes: what one process sends for an update. Counted where our collectives and DDP's buckets send it, computed in closed
form from the network's shapes (alexnet_dist/parallel/traffic.py), and read from the cable's own counter.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from _report import Report, describe_environment, describe_speed, new_parser, pick_effort, run_benchmark
from _timing import Spread, divide

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
SHARES = ("ddp_fp32", "towers", "hybrid")  # over one_process


def main() -> int:
    """Run the benchmark; the exit code."""
    parser = new_parser("parallel", "Strategies side by side, on one machine and over a slow cable.")
    parser.add_argument("--variant", choices=("paper", "source2012"), default="paper", help="default: paper")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16", help="default: bf16")
    parser.add_argument("--processes", type=int, default=2, help="on one machine; even. Default: 2")
    parser.add_argument("--rate", default="1gbit", help="of the cable between two machines, in tc's words")
    return run_benchmark(parser, measure)


def measure(options: argparse.Namespace) -> Report:
    """Every link with every number of images per process."""
    report = Report(describe_environment(options))
    report.environment["device"] = "cuda" if torch.cuda.device_count() >= options.processes else "cpu"
    for link in pick_effort(options, full=["two_machines", "local"], quick=["two_machines", "local"], tiny=["local"]):
        for images in pick_effort(options, full=[16, 64], quick=[16], tiny=[2]):
            found = run_processes(link, images, options)
            if found is None:
                continue
            add_rows(report, found, link, images)
            add_ratios(report, found, link, images, options)
    if not options.tiny and not any(row["link"] == "two_machines" for row in report.rows):
        report.notes.append("two_machines is left out: network namespaces are not allowed here")
    return report


def run_processes(link: str, images: int, options: argparse.Namespace) -> dict[str, Any] | None:
    """What the main process of a job found; None where the link cannot be made.

    Raises:
        RuntimeError: the job failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        words = [str(HERE / "_strategies.py"), "--variant", options.variant, "--precision", options.precision]
        words += ["--images", str(images), "--out", str(out), *["--tiny"] * options.tiny]
        words += ["--rounds", str(pick_effort(options, full=5, quick=2, tiny=2))]
        words += ["--steps", str(pick_effort(options, full=3, quick=1, tiny=1)), *["--alone"] * (link == "local")]
        launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--dynamo_backend", "no"]
        launcher += ["--mixed_precision", "no", *describe_link(link, options)]
        prefix = [str(TWO_MACHINES), options.rate] if link == "two_machines" else []
        gpus = {} if torch.cuda.device_count() >= options.processes else {"ACCELERATE_USE_CPU": "true"}
        done = subprocess.run(
            [*prefix, *launcher, *words], env={**os.environ, **gpus}, capture_output=True, text=True, cwd=HERE
        )
        if done.returncode == NOT_ALLOWED:
            return None
        if done.returncode:
            raise RuntimeError(f"{link} with {images} images ended with {done.returncode}: {done.stderr[-3000:]}")
        found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
        return found


def describe_link(link: str, options: argparse.Namespace) -> list[str]:
    """Options of `accelerate launch`."""
    if link == "two_machines":
        machines = ["--num_machines", "2", "--num_processes", "2", "--machine_rank", "MACHINE_RANK"]
        return [*machines, "--main_process_ip", "10.77.0.1", "--main_process_port", "29500"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    return ["--num_machines", "1", "--num_processes", str(options.processes), "--main_process_port", port]


def add_rows(report: Report, found: dict[str, Any], link: str, images: int) -> None:
    """A row for each arm."""
    global_batch_size = images * found["world_size"]
    for arm, seconds in found["seconds"].items():
        row = {"link": link, "images_per_process": images, "arm": arm, "seconds": Spread.of(seconds).median}
        row |= describe_speed(Spread.of([global_batch_size / value for value in seconds]))
        traffic = {name: value for name, value in found["traffic"].get(arm, {}).items() if value is not None}
        report.rows.append({**row, **traffic})


def add_ratios(report: Report, found: dict[str, Any], link: str, images: int, options: argparse.Namespace) -> None:
    """What one strategy gains over another, and what each costs against one process."""
    seconds = found["seconds"]
    where = f"{options.rate} cable" if link == "two_machines" else f"{found['world_size']} processes of one machine"
    what = f"images per second, {options.variant}, {found['precision']}, {where}, {images} images per process"
    suffix = f"@{link}_{images}" if report.ratios else ""
    for name, targets in RATIOS.items():
        above, below = name.split("/")
        target = f"; {targets[images]}" if link == "two_machines" and images in targets else ""
        report.add_ratio(f"{name}{suffix}", divide(seconds[below], seconds[above]), what + target)
    for arm in SHARES if "one_process" in seconds else ():
        share = divide(seconds["one_process"], seconds[arm])
        report.add_ratio(f"{arm}/one_process{suffix}", share, f"{what}; one_process has the same cores")


if __name__ == "__main__":
    sys.exit(main())
