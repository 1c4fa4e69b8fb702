"""The full state of a run at a step: written whole or not at all, and refused when damaged.

A checkpoint knows no topology: weights and optimizer state always lie in the layout of the network on one device.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save
from torch import Tensor, nn

from alexnet_dist.durable import find_damage, format_json, write_folder
from alexnet_dist.errors import CheckpointError, DivergedError
from alexnet_dist.training.weights_file import check_kinds

FORMAT = 1
WEIGHTS, OPTIMIZER, STATE = "weights.safetensors", "optimizer.safetensors", "state.json"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What a run needs to go on.

    Args:
        weights: the network's tensors by name.
        optimizer: the optimizer's tensors by "kind/name".
        state: numbers and text (JSON).
    """

    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]


def save_checkpoint(folder: Path, step: int, checkpoint: Checkpoint, keep: int) -> Path:
    """Write checkpoints/step-NNNNNNNN and delete all but the newest `keep`.

    Raises:
        DivergedError: a weight is not finite; see `check_finite`.
        MachineError: the disk is full or cannot be written; older checkpoints are untouched.
    """
    check_finite(checkpoint.weights, f"step {step}")
    path = folder / f"step-{step:08d}"
    state = {"format": FORMAT, "step": step, **checkpoint.state}
    files = {
        WEIGHTS: pack_tensors(checkpoint.weights),
        OPTIMIZER: pack_tensors(checkpoint.optimizer),
        STATE: (format_json(state, STATE, indent=2) + "\n").encode(),
    }
    write_folder(path, files)
    for old in list_checkpoints(folder)[keep:]:
        shutil.rmtree(old, ignore_errors=True)
    return path


def check_finite(weights: Mapping[str, Tensor], where: str, remedy: str = "lower optimizer.lr") -> None:
    """Refuse weights that no one could use: an update may break them although its loss was finite.

    Args:
        weights: by name.
        where, remedy: for the message.

    Raises:
        DivergedError: one is not finite.
    """
    broken = [name for name, tensor in weights.items() if not tensor.isfinite().all()]
    if broken:
        raise DivergedError("a weight is not finite", where=f"{where}, {broken[0]}", remedy=remedy)


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, newest first."""
    return sorted((path for path in folder.glob("step-*") if path.name[5:].isdigit()), key=step_of, reverse=True)


def step_of(path: Path) -> int:
    """The step that a checkpoint's name says."""
    return int(path.name[5:])


def choose_checkpoint(folder: Path, named: str | None) -> tuple[Path | None, list[str]]:
    """The checkpoint to go on from, and a line for each damaged one passed over.

    Args:
        folder: the run's checkpoints/.
        named: a checkpoint asked for by name (`step-00000123`), path or step; None takes the newest intact one.

    Raises:
        CheckpointError: the named one is missing or damaged, or there are some and none is intact.
    """
    if named is not None:
        path = next((p for p in list_checkpoints(folder) if named in (p.name, str(p), str(step_of(p)))), folder / named)
        damage = find_checkpoint_damage(path)
        if damage is not None:
            raise CheckpointError("cannot resume from this checkpoint", where=str(path), why=damage)
        return path, []
    damages: list[tuple[str, str]] = []
    for path in list_checkpoints(folder):
        damage = find_checkpoint_damage(path)
        if damage is None:
            return path, [f"checkpoint {name} is damaged ({text}): passed over" for name, text in damages]
        damages.append((path.name, damage))
    if damages:
        raise CheckpointError(
            "no intact checkpoint",
            where=str(folder),
            why=", ".join(f"{name} ({damage})" for name, damage in damages),
            remedy="start afresh with --new",
        )
    return None, []


def find_checkpoint_damage(path: Path) -> str | None:
    """What is wrong with a checkpoint; None if it is intact."""
    damage = find_damage(path, (WEIGHTS, OPTIMIZER, STATE))
    if damage is None and json.loads((path / STATE).read_text(encoding="utf-8")).get("step") != step_of(path):
        return "it holds another step than its name says"
    return damage


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint that `choose_checkpoint` found intact.

    Raises:
        CheckpointError: written by a newer version.
    """
    state = json.loads((path / STATE).read_text(encoding="utf-8"))
    if state["format"] > FORMAT:
        raise CheckpointError("checkpoint of a newer version", where=str(path), remedy="update alexnet_dist")
    return Checkpoint(load_file(path / WEIGHTS), load_file(path / OPTIMIZER), state)


def pack_tensors(tensors: dict[str, Tensor]) -> bytes:
    """Tensors as the bytes of a .safetensors file: equal values give equal bytes, whatever device or layout."""
    return bytes(save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}))


def load_weights(model: nn.Module, tensors: dict[str, Tensor], where: str, remedy: str = "") -> None:
    """Copy weights into a network of the same shape.

    Args:
        model: the network.
        tensors: by the network's own names.
        where: file or folder they come from, for the message.
        remedy: for weights of another shape, where more is known than that.

    Raises:
        CheckpointError: a name or a shape differs, or they are no plain floating-point numbers.
    """
    check_kinds(tensors, where)
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name in [*wanted, *found]:
        if wanted.get(name) != found.get(name):
            here, there = (str(shapes.get(name, "missing")) for shapes in (wanted, found))
            raise CheckpointError(
                "the weights do not fit the network",
                where=where,
                why=f"{name} is {there} there and {here} here",
                remedy=remedy or "use the variant, image size and number of classes they were trained with",
            )
    model.load_state_dict(tensors)
