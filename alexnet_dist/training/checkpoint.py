"""The full state of a run at a step: written whole or not at all, and refused when damaged.

A checkpoint knows no topology: weights and optimizer state always lie in the layout of the network on one device.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from alexnet_dist.base.durable import (
    MAX_JSON_BYTES,
    disk_errors_named,
    format_json,
    parse_json,
    write_folder,
)
from alexnet_dist.base.errors import CheckpointError
from alexnet_dist.base.text import find_difference
from alexnet_dist.inference.checkpoints import (
    CONFIG,
    OPTIMIZER,
    STATE,
    WEIGHTS,
    find_checkpoint_damage,
    is_count,
    is_of_other_run,
    list_checkpoints,
    list_own_checkpoints,
    read_run_id,
    read_state,
    read_step,
    refuse_checkpoint,
    remove_checkpoint,
    step_of,
)
from alexnet_dist.inference.weights import check_finite, pack_tensors
from alexnet_dist.inference.weights_file import read_tensors

FORMAT = 1
# Folders below checkpoints/ that hold what a run left behind when it went back to an earlier step.
ABANDONED = "abandoned-"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What a run needs to go on, and what a network needs to be used.

    Args:
        weights: the network's tensors by name.
        optimizer: the optimizer's tensors by "kind/name".
        state: numbers and text (JSON).
        config: config.json of a model folder with these weights; empty in checkpoints of older versions.
        where: the folder it was read from, for messages.
    """

    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]
    config: bytes = b""
    where: str = ""


def save_checkpoint(
    folder: Path, step: int, checkpoint: Checkpoint, keep: int, verdicts: dict[Path, bool] | None = None
) -> Path:
    """Write checkpoints/step-NNNNNNNN and delete what `prune_checkpoints` deletes.

    Raises:
        DivergedError: a weight is not finite; see `check_finite`.
        MachineError: the disk is full or cannot be written; older checkpoints are untouched.
    """
    check_finite(checkpoint.weights, f"step {step}", remedy="")
    path = folder / f"step-{step:08d}"
    state = {"format": FORMAT, "step": step, **checkpoint.state}
    files = {
        WEIGHTS: pack_tensors(checkpoint.weights),
        OPTIMIZER: pack_tensors(checkpoint.optimizer),
        STATE: (format_json(state, STATE, indent=2) + "\n").encode(),
    }
    write_folder(path, files | ({CONFIG: checkpoint.config} if checkpoint.config else {}))
    verdicts = {} if verdicts is None else verdicts
    verdicts[path] = True  # it was read back
    prune_checkpoints(folder, path, keep, verdicts)
    return path


def prune_checkpoints(folder: Path, newest: Path, keep: int, verdicts: dict[Path, bool]) -> None:
    """Delete a run's checkpoints before `newest`, but for the newest intact ones.

    Damaged ones do not count, as nothing can go on from them. Those of another run are left alone, and so are later
    ones.

    Args:
        folder: the run's checkpoints/.
        newest: an intact checkpoint; it is never deleted.
        keep: intact ones that stay, `newest` included.
        verdicts: which are intact, as far as that is known; what is found out is added.
    """
    run_id, num_kept = read_run_id(newest), 1
    for path in list_checkpoints(folder):
        if step_of(path) >= step_of(newest) or is_of_other_run(path, run_id):
            continue
        if num_kept < keep:
            if path not in verdicts:
                verdicts[path] = find_checkpoint_damage(path) is None
            if verdicts[path]:
                num_kept += 1
                continue
        if path.name == f"step-{step_of(path):08d}" and read_step(path) in (None, step_of(path)):  # no user's copy
            remove_checkpoint(path)


def drop_checkpoints(folder: Path, run_id: str) -> None:
    """Delete a run's checkpoints after its end; those of another run, and a user's copies, are left alone.

    Args:
        folder: the run's checkpoints/.
        run_id: of the run.
    """
    for path in list_own_checkpoints(folder, run_id):
        remove_checkpoint(path)


def set_aside_newer(folder: Path, step: int, metrics: Path, model: Path) -> Path | None:
    """Move the checkpoints after a step, which a run leaves behind by going back to it, out of its line.

    Copies of metrics.jsonl and model/ go with them: one can go on from there, and use what was best.

    Args:
        folder: the run's checkpoints/.
        step: that the run goes back to.
        metrics: its metrics.jsonl, before it is cut back.
        model: its model/, before it is replaced.

    Returns:
        The folder that they are in now; None if there are none.
    """
    newer = [path for path in list_checkpoints(folder) if step_of(path) > step]
    if not newer:
        return None
    number = next(n for n in range(1, 10**6) if not (folder / f"{ABANDONED}{n}").exists())
    aside = folder / f"{ABANDONED}{number}"
    with disk_errors_named(aside):
        aside.mkdir()
        if metrics.is_file():
            shutil.copyfile(metrics, aside / metrics.name)
        if model.is_dir():
            shutil.copytree(model, aside / model.name, copy_function=_link_or_copy)
        for path in newer:
            path.rename(aside / path.name)
    return aside


def _link_or_copy(source: str, target: str) -> None:
    """A second name for a file that is only ever replaced, or a copy where the file system has no such names."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint that `choose_checkpoint` found intact.

    Raises:
        CheckpointError: written by a newer version, or holds what no version writes.
    """
    state = read_state(path)
    version = state.get("format", "missing")
    if not is_count(version):
        raise refuse_checkpoint(path, f"format of {STATE} is {version!r}")
    if version > FORMAT:
        raise CheckpointError("checkpoint of a newer version", where=str(path), remedy="update alexnet_dist")
    for key in ("step", "metrics_bytes"):
        if not is_count(state.get(key, 0)):
            raise refuse_checkpoint(path, f"{key} of {STATE} is {str(state[key])[:40]!r}")
    try:
        weights, optimizer = read_tensors(path / WEIGHTS), read_tensors(path / OPTIMIZER)
    except (OSError, ValueError, SafetensorError) as error:
        raise refuse_checkpoint(path, str(error)) from error
    config = b""
    if (path / CONFIG).is_file():
        with (path / CONFIG).open("rb") as file:
            config = file.read(MAX_JSON_BYTES)
    return Checkpoint(weights, optimizer, state, config, str(path))


def check_same_classes(begins_from: Checkpoint, classes: tuple[str, ...]) -> None:
    """Refuse a checkpoint whose outputs stand for other classes; one of an older version does not say which.

    Raises:
        CheckpointError: the first class that differs is named.
    """
    try:
        theirs = parse_json(begins_from.config or b"{}").get("classes")
    except (ValueError, AttributeError):
        theirs = None
    differing = find_difference(theirs, classes) if isinstance(theirs, list) else None
    if differing is not None:
        place, their, our = differing
        why = f"class {place} is {their!r} there and {our!r} here"
        remedy = "to begin with the weights alone, use --model.pretrained"
        raise CheckpointError("the checkpoint is for other classes", where=begins_from.where, why=why, remedy=remedy)
