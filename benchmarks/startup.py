"""How long a user waits before anything happens: importing the package, `--help`, a mistyped key.

Protocol: each arm starts a fresh Python process and waits for its end; all arms once per round, A B C A B C ...; one
round first, so that files and byte code are in the page cache; 5 rounds. A row is the median. `import_torch`, which no
training program can avoid, is the rival; ratios are of seconds, round by round. Target: 3 s for each.
"""

from __future__ import annotations

import argparse
import functools
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from common.report import Report, describe_environment, new_parser, pick_effort, run_benchmark
from common.timing import Spread, divide, interleave

ROOT = Path(__file__).resolve().parents[1]
TRAIN = str(ROOT / "launch" / "train.py")
TARGET_SECONDS = 3.0
RIVAL = "import_torch"


@dataclass(frozen=True)
class Start:
    """A process to start.

    Args:
        words: what Python is given.
        exit_code: what it must end with.
    """

    words: tuple[str, ...]
    exit_code: int = 0


STARTS = {
    RIVAL: Start(("-c", "import torch")),
    "import_package": Start(("-c", "import alexnet_dist")),
    "train_help": Start((TRAIN, "--help")),
    "unknown_key": Start((TRAIN, "--config", "smoke", "--optimizer.rate", "1"), exit_code=2),
}


def main() -> int:
    """Run the benchmark; the exit code."""
    parser = new_parser("startup", "Seconds until the package is imported, --help printed, a mistyped key refused.")
    return run_benchmark(parser, measure)


def measure(options: argparse.Namespace) -> Report:
    """Every start, several times."""
    report = Report(describe_environment(options))
    windows = {name: functools.partial(run_once, start) for name, start in STARTS.items()}
    interleave(windows, pick_effort(options, full=1, quick=1, tiny=0))
    seconds = interleave(windows, pick_effort(options, full=5, quick=3, tiny=1))
    for name, values in seconds.items():
        spread = Spread.of(values)
        row = {"start": name, "seconds": spread.median, "seconds_min": spread.min, "seconds_max": spread.max}
        report.rows.append(row)
        if name == RIVAL:
            continue
        report.add_ratio(f"{name}/{RIVAL}", divide(values, seconds[RIVAL]), "seconds over seconds; less is better")
        verdict = "within" if spread.median < TARGET_SECONDS else "above"
        report.notes.append(f"{name} takes {spread.median:.2f} s, {verdict} the {TARGET_SECONDS:.0f} s it may take.")
    return report


def run_once(start: Start) -> float:
    """Seconds from the start of a process to its end.

    Raises:
        RuntimeError: it did not end as it must, so the figure would mean nothing.
    """
    began = time.perf_counter()
    done = subprocess.run([sys.executable, *start.words], cwd=ROOT, capture_output=True, text=True)
    seconds = time.perf_counter() - began
    if done.returncode != start.exit_code:
        raise RuntimeError(f"{' '.join(start.words)} ended with {done.returncode}: {done.stderr}")
    return seconds


if __name__ == "__main__":
    sys.exit(main())
