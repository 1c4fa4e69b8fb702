"""What every benchmark shares around its measurements: command line, environment, printed table, JSON."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from alexnet_dist.base.disk_errors import name_reason
from alexnet_dist.base.errors import AlexNetDistError, MachineError
from alexnet_dist.base.machine import describe_machine, find_git_commit, list_versions
from alexnet_dist.base.text import align
from common.timing import Spread

if TYPE_CHECKING:  # a command line's help should not wait for torch
    import torch

T = TypeVar("T")

EXAMPLES = """{summary}

examples:
  python benchmarks/{name}.py --quick
  python benchmarks/{name}.py --data.root data/imagenet_subset --out {name}.json"""


@dataclass
class Report:
    """What a benchmark found.

    Args:
        environment: machine, versions, settings; see `describe_environment`.
        rows: one measurement each; numbers are medians over rounds.
        ratios: {"A/B": median, min, max and `what`, a description in words}.
        notes: sentences that the figures allow.
    """

    environment: dict[str, Any]
    rows: list[dict[str, Any]] = field(default_factory=list)
    ratios: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add_ratio(self, name: str, spread: Spread, what: str) -> None:
        """Keep a ratio. `what` says what was divided, and the target where there is one."""
        self.ratios[name] = {**asdict(spread), "what": what}


def new_parser(name: str, summary: str, quick: str = "rough figures within a minute") -> argparse.ArgumentParser:
    """A parser with the options that all benchmarks have; its help begins with two examples.

    Args:
        name: of the script.
        summary: what it measures.
        quick: what --quick gives on two cores.
    """
    parser = argparse.ArgumentParser(
        prog=name,
        usage=argparse.SUPPRESS,
        description=EXAMPLES.format(name=name, summary=summary),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--quick", action="store_true", help=f"{quick} on two cores")
    parser.add_argument("--tiny", action="store_true", help="only see that it runs: the figures mean nothing")
    parser.add_argument("--data.root", dest="data_root", type=Path, help="folder with train/CLASS/*.jpg")
    return parser


def add_device_options(parser: argparse.ArgumentParser) -> None:
    """Where and how precisely the network computes, as in the settings of a run."""
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16", "fp16"), default="auto", help="default: auto")


def run_benchmark(parser: argparse.ArgumentParser, measure: Callable[[argparse.Namespace], Report]) -> int:
    """Parse the command line, measure, print, write; the exit code."""
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    try:
        if options.out is not None:
            check_writable(options.out)
        report = measure(options)
    except AlexNetDistError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print_report(report)
    if options.out is not None:
        write_json(options.out, asdict(report))
    return 0


def check_writable(path: Path) -> None:
    """Refuse, before anything is measured, a file that could not be written after it.

    Raises:
        MachineError: its folder cannot be made, it cannot be opened, or it is a folder.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        was_there = path.exists()
        with open(path, "ab"):
            pass
        if not was_there:
            path.unlink()
    except OSError as error:
        raise MachineError(
            "cannot write the figures", where=str(path), why=name_reason(error), remedy="give another --out"
        ) from error


def describe_environment(options: argparse.Namespace, device: torch.device | None = None) -> dict[str, Any]:
    """Where the figures come from. No path and no host name: the text may be published."""
    import torch

    return {
        **describe_machine(),
        "versions": list_versions(),
        "git_commit": find_git_commit(),
        "device": device.type if device is not None else "none",
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 2),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "effort": pick_effort(options, full="full", quick="quick", tiny="tiny"),
    }


def pick_effort(options: argparse.Namespace, *, full: T, quick: T, tiny: T) -> T:
    """The value for a full, a quick or a tiny measurement."""
    return tiny if options.tiny else quick if options.quick else full


def describe_speed(speed: Spread) -> dict[str, float]:
    """Images per second over the rounds."""
    return {
        "images_per_second": speed.median,
        "images_per_second_min": speed.min,
        "images_per_second_max": speed.max,
    }


def has_amx(environment: Mapping[str, Any]) -> bool:
    """Whether the CPU multiplies bf16 matrices in tiles."""
    return "amx_tile" in environment["cpu_features"]


def has_bf16(environment: Mapping[str, Any]) -> bool:
    """Whether the CPU multiplies matrices in bf16, in tiles or in AVX-512."""
    return has_amx(environment) or "avx512_bf16" in environment["cpu_features"]


def print_report(report: Report) -> None:
    """Environment in a line, rows and ratios as tables, notes."""
    environment = report.environment
    hardware = ", ".join(environment["gpus"]) or environment["cpu"]
    print(f"{hardware}, {environment['cores']} cores, {environment['threads']} threads, {environment['effort']}\n")
    columns = list(dict.fromkeys(key for row in report.rows for key in row))
    print_table(columns, [[row.get(column, "") for column in columns] for row in report.rows])
    keys = ("median", "min", "max", "what")
    ratios = [[name, *(ratio[key] for key in keys)] for name, ratio in report.ratios.items()]
    print_table(["ratio", *keys], ratios)
    print("\n".join(report.notes))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Columns as wide as their longest cell, then an empty line."""
    cells = [[*columns], *([format_cell(value) for value in row] for row in rows)]
    print(align(cells, "<"))


def format_cell(value: object) -> str:
    """A number with three digits after the point where it is small, one where it is large."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3f}" if abs(value) < 10 else f"{value:,.1f}"


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a file that a person can read; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
