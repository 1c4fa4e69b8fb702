"""A trial of a W&B sweep: W&B's agent starts the program, and says in variables which trial it is to be."""

from __future__ import annotations

import os
import re
from pathlib import Path

_ID = re.compile("[0-9A-Za-z_-]{1,64}")


def find_trial() -> str | None:
    """The id that the agent has given to this process's run; None where no agent started it."""
    trial = os.environ.get("WANDB_RUN_ID", "") if os.environ.get("WANDB_SWEEP_ID") else ""
    return trial if _ID.fullmatch(trial) else None


def place_trial(output_dir: str | None) -> str | None:
    """The run folder: beside the one that the settings name, with the trial's id, so that each trial has its own."""
    trial = find_trial()
    if trial is None or output_dir is None:
        return output_dir
    folder = Path(output_dir)
    return str(folder.with_name(f"{folder.name}-{trial}"))
