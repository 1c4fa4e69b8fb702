"""One run that every engine trains: its settings, and the digest that all of them must end with."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path

from alexnet_dist.inference.checkpoints import list_checkpoints
from alexnet_dist.settings.reader import dump_config
from alexnet_dist.settings.schema import Config
from helpers.dist_helper import run_processes
from helpers.tiny import tiny_config


def settings(folder: Path, epochs: int = 40) -> Config:
    """A checkpoint every 3 of 160 updates."""
    return tiny_config(folder, precision="fp32", device="cpu", train__epochs=epochs)


def write_settings(folder: Path, epochs: int = 40) -> list[str]:
    """The words with which a verb trains into this folder."""
    file = folder.with_suffix(".yaml")
    file.write_text(dump_config(settings(folder, epochs)))
    return ["--config", str(file)]


def train_undisturbed(folder: Path) -> str:
    """The digest that two processes end with which no engine started, and which nothing disturbed."""
    run_processes(2, _train_here, folder)
    return take_digest(folder)


def _train_here(folder: Path) -> None:
    from alexnet_dist.cli.train import train

    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (a child of the test: its messages are not the test's)
    train(settings(folder))


def take_digest(folder: Path) -> str:
    """sha256 of the weights that a run has kept."""
    return hashlib.sha256((folder / "model" / "model.safetensors").read_bytes()).hexdigest()


def list_starts(folder: Path) -> list[int]:
    """The steps at which the processes of a run began."""
    return [start["step"] for start in json.loads((folder / "run.json").read_text())["starts"]]


def has_checkpoint(folder: Path, step: int) -> bool:
    """Whether a run has saved this step, or a later one."""
    return any(path.name >= f"step-{step:08d}" for path in list_checkpoints(folder / "checkpoints"))
