"""Programs that train in processes of their own, watched from outside until enough is known, and then stopped.

Ours writes metrics.jsonl; the others (benchmarks/plain) print the same facts. Both end in one `Progress`, so that a
figure of ours and one of a rival are made by the same lines.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from alexnet_dist.base.text import shorten

ROOT = Path(__file__).resolve().parents[2]
PLAIN = ROOT / "benchmarks" / "plain"
POLL_SECONDS = 0.1
OUTPUT, ERRORS, RUN = "output.txt", "errors.txt", "run"  # in a program's folder
LONGEST_REASON = 120


class Point(NamedTuple):
    """How far the training was."""

    seen: int  # images trained
    seconds: float  # on a clock of the program's own


class Score(NamedTuple):
    """An evaluation."""

    epoch: float
    top1: float
    seconds: float  # since the command was given


@dataclass(eq=False)
class Progress:
    """What a program has told so far.

    Args:
        points: after updates, or groups of them.
        scores: after evaluations.
        seconds: since the command was given.
        first: when the first point was seen; None before.
    """

    points: list[Point] = field(default_factory=list)
    scores: list[Score] = field(default_factory=list)
    seconds: float = 0.0
    first: float | None = None


@dataclass(frozen=True)
class Program:
    """A command line that trains, and how its progress is read.

    Args:
        words: of the command line; FOLDER stands for a folder of its own.
        read: from this folder to (points, [(epoch, top1), ...]).
    """

    words: tuple[str, ...]
    read: Callable[[Path], tuple[list[Point], list[tuple[float, float]]]]


class ProgramError(Exception):
    """A program ended before its time; the text is its last word."""


def plain_program(script: str, pictures: Path, *words: str) -> Program:
    """One of benchmarks/plain."""
    return Program((sys.executable, str(PLAIN / script), str(pictures), *words), read_printed)


def our_program(config: str, pictures: Path, settings: dict[str, Any]) -> Program:
    """`launch/train.py` on a folder of pictures."""
    told = {
        "config": config,
        "data.source": "folder",
        "data.root": pictures,
        "data.train": "train",
        "log.plots": "false",
        "output_dir": f"FOLDER/{RUN}",
        **settings,
    }
    words = [word for key, value in told.items() for word in (f"--{key}", str(value))]
    return Program((sys.executable, str(ROOT / "launch" / "train.py"), *words), read_metrics)


def read_printed(folder: Path) -> tuple[list[Point], list[tuple[float, float]]]:
    """The progress of a plain program, from its lines of JSON."""
    rows = _read_rows(folder / OUTPUT)
    points = [Point(row["seen"], row["time"]) for row in rows if "seen" in row]
    return points, [(row["epoch"], row["top1"]) for row in rows if "top1" in row]


def read_metrics(folder: Path) -> tuple[list[Point], list[tuple[float, float]]]:
    """The progress of a run of ours, from metrics.jsonl. Its seconds leave out evaluation and saving."""
    rows = _read_rows(folder / RUN / "metrics.jsonl")
    points = [Point(0, 0.0)]
    for row in rows:
        if row["event"] == "train" and row["images_per_second"]:
            seconds = (row["samples_seen"] - points[-1].seen) / row["images_per_second"]
            points.append(Point(row["samples_seen"], points[-1].seconds + seconds))
    return points[1:], [(row["epoch"], row["top1"]) for row in rows if row["event"] == "eval"]


def _read_rows(path: Path) -> list[dict[str, Any]]:
    """The complete lines of JSON of a file that is being written; other lines are passed over."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    return [json.loads(line) for line in lines if line.startswith("{")]


def watch(program: Program, folder: Path, is_enough: Callable[[Progress], bool], limit: float) -> Progress:
    """Start a program, follow it until enough is known, and end it with all its processes.

    Args:
        program: what is started.
        folder: of its own, made here.
        is_enough: whether the program may be stopped.
        limit: seconds after which it is stopped in any case.

    Raises:
        ProgramError: it failed.
    """
    folder.mkdir(parents=True)
    words = [word.replace("FOLDER", str(folder)) for word in program.words]
    progress, began = Progress(), time.perf_counter()
    with open(folder / OUTPUT, "w") as output, open(folder / ERRORS, "w") as errors:
        process = subprocess.Popen(words, cwd=ROOT, stdout=output, stderr=errors, start_new_session=True)
    is_stopped = False
    try:
        while not is_enough(progress) and progress.seconds < limit:
            has_ended = process.poll() is not None
            _look(program, folder, progress, time.perf_counter() - began)
            if has_ended:
                break
            time.sleep(POLL_SECONDS)
    finally:
        if process.poll() is None:
            is_stopped = True
            os.killpg(process.pid, signal.SIGKILL)
        code = process.wait()
    if code and not is_stopped:
        raise ProgramError(name_reason(folder))
    return progress


def _look(program: Program, folder: Path, progress: Progress, seconds: float) -> None:
    """Bring the progress up to date. What has come since the last look is as old as this look."""
    points, scores = program.read(folder)
    progress.points, progress.seconds = points, seconds
    progress.scores += [Score(*score, seconds) for score in scores[len(progress.scores) :]]
    if points and progress.first is None:
        progress.first = seconds


def name_reason(folder: Path) -> str:
    """Why a program ended: its last line on stderr."""
    lines = [line.strip() for line in (folder / ERRORS).read_text(errors="replace").splitlines() if line.strip()]
    return shorten(lines[-1] if lines else "it ended without a word", LONGEST_REASON)


def cut_window(points: Sequence[Point], skipped: int) -> list[Point]:
    """The points from the first at which more than so many images were trained."""
    return [point for point in points if point.seen > skipped]


def measure_speed(points: Sequence[Point]) -> float:
    """Images per second from the first of several points to the last."""
    return (points[-1].seen - points[0].seen) / (points[-1].seconds - points[0].seconds)


def lasts(points: Sequence[Point], seconds: float, least: int) -> bool:
    """Whether points span so many seconds and so many images."""
    return (
        len(points) > 1
        and points[-1].seconds - points[0].seconds >= seconds
        and points[-1].seen - points[0].seen >= least
    )
