"""How long a user waits before anything happens: `--help`, a mistyped key, the first line, the first update.

Protocol: each arm starts a fresh Python process and waits for its end; all arms once per round, A B C A B C ...; one
round first, so that files and byte code are in the page cache; 5 rounds. A row is the median. `import_torch`, which no
training program can avoid, is the rival; ratios are of seconds, round by round. The last arm is `train --config
digits`: seconds until its first line and until the line of its first update, and those of each phase in between, as the
program itself tells them. Targets: 1 s for an answer and for the first line, 6 s for the first update.
"""

from __future__ import annotations

import argparse
import functools
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from common.report import Report, describe_environment, new_parser, pick_effort, run_benchmark
from common.timing import Spread, divide, interleave

ROOT = Path(__file__).resolve().parents[1]
TRAIN = str(ROOT / "launch" / "train.py")
ANSWER_SECONDS, UPDATE_SECONDS = 1.0, 6.0
RIVAL = "import_torch"
FIRST_LINE, FIRST_UPDATE = "first_line", "first_update"
TRAINING = ("--config", "digits", "--log.level", "debug", "--output_dir")


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
    "version": Start(("-m", "alexnet_dist", "--version")),
    "help": Start(("-m", "alexnet_dist", "--help")),
    "train_help": Start((TRAIN, "--help")),
    "unknown_key": Start((TRAIN, "--config", "smoke", "--optimizer.rate", "1"), exit_code=2),
}
TARGETS = {**dict.fromkeys([*STARTS, FIRST_LINE], ANSWER_SECONDS), FIRST_UPDATE: UPDATE_SECONDS}


def main() -> int:
    """Run the benchmark; the exit code."""
    parser = new_parser("startup", "Seconds until --help is printed, a mistyped key refused, a training has begun.")
    return run_benchmark(parser, measure)


def measure(options: argparse.Namespace) -> Report:
    """Every start, several times."""
    report = Report(describe_environment(options))
    windows = {name: functools.partial(run_once, start) for name, start in STARTS.items()}
    interleave(windows, pick_effort(options, full=1, quick=1, tiny=0))
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(pick_effort(options, full=5, quick=3, tiny=1)):
            figures = interleave(windows, 1) | {
                name: [value] for name, value in time_training(f"{folder}/{number}").items()
            }
            for name, values in figures.items():
                seconds.setdefault(name, []).extend(values)
    for name, values in seconds.items():
        spread = Spread.of(values)
        row = {"start": name, "seconds": spread.median, "seconds_min": spread.min, "seconds_max": spread.max}
        report.rows.append(row)
        if name == RIVAL or name not in TARGETS:
            continue
        report.add_ratio(f"{name}/{RIVAL}", divide(values, seconds[RIVAL]), "seconds over seconds; less is better")
        verdict = "within" if spread.median < TARGETS[name] else "above"
        report.notes.append(f"{name} takes {spread.median:.2f} s, {verdict} the {TARGETS[name]:.0f} s it may take.")
    return report


def time_training(folder: str) -> dict[str, float]:
    """Seconds until the first line of a training and that of its first update; those of its phases, by their names.

    Args:
        folder: of the run, which is ended then.

    Raises:
        RuntimeError: it ended before.
    """
    began, figures = time.perf_counter(), {}
    command = [sys.executable, TRAIN, *TRAINING, folder]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as training:
        assert training.stderr is not None
        for line in training.stderr:
            figures.setdefault(FIRST_LINE, time.perf_counter() - began)
            if (phase := re.fullmatch(r"([a-zA-Z ]+): ([\d.]+) s\n", line)) is not None:
                figures[phase[1]] = float(phase[2])
            if line.startswith("epoch 1/"):
                figures[FIRST_UPDATE] = time.perf_counter() - began
                break
        training.terminate()
    if FIRST_UPDATE not in figures:
        raise RuntimeError(f"{' '.join(command)} ended with {training.returncode}")
    return figures


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
