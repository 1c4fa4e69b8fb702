"""Whole runs of `launch/train.py`, for benchmarks that look at what is learned."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alexnet_dist.base.machine import available_cores
from common.photographs import write_photographs
from common.subject import TINY

TRAIN = Path(__file__).resolve().parents[2] / "launch" / "train.py"
MADE = "photographs"  # folder of images that are made
PARTS = (0, 25, 50, 75, 100)  # of a curve, in per cent


def make_images(options: argparse.Namespace, folder: Path, count: int) -> None:
    """Make images where no --data.root is given."""
    if options.data_root is None:
        write_photographs(folder / MADE, count, width=300, height=260)


def share_settings(options: argparse.Namespace, folder: Path) -> dict[str, object]:
    """What all command lines have: images, a place for caches, no figures; with --tiny a toy network and no workers."""
    sets = {} if options.data_root is not None else {"data.val": "null", "data.val_fraction": 0.25}
    toy = {
        "data.workers": 0,
        "model.image_size": TINY["image_size"],
        "model.conv_channels": list(TINY["conv_channels"]),
        "model.fc_width": TINY["fc_width"],
    }
    return {
        "data.root": options.data_root or folder / MADE,
        **sets,
        **(toy if options.tiny else {}),
        "data.cache_dir": folder / "cache",
        "log.plots": "false",
    }


def train(settings: dict[str, object], run: Path, processes: int = 1) -> None:
    """One run in a process of its own, or in several on the CPU, each with its share of the cores.

    Raises:
        RuntimeError: it failed; with its last words.
    """
    words = [str(TRAIN), *(f"--{key}={value}" for key, value in settings.items()), f"--output_dir={run}"]
    launcher, environment = [sys.executable], dict(os.environ)
    if processes > 1:
        launcher += ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes)]
        launcher += ["--num_machines", "1", "--main_process_port", "0", "--mixed_precision", "no"]
        launcher += ["--dynamo_backend", "no"]
        threads = str(max(1, available_cores() // processes))
        environment |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": threads}
    done = subprocess.run([*launcher, *words], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"training failed: {done.stderr.strip().splitlines()[-1:]}")


def read_rows(run: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def pick_losses(losses: Sequence[float]) -> dict[str, float]:
    """A curve's beginning, its quarters and its end, as cells of a row."""
    return {f"loss_{part}%": losses[(len(losses) - 1) * part // 100] for part in PARTS}
