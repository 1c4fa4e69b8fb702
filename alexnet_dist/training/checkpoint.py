"""The full state of a run at a step: written whole or not at all, and refused when damaged.

A checkpoint knows no topology: weights and optimizer state always lie in the layout of the network on one device.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor, nn

from alexnet_dist.base.durable import (
    MAX_JSON_BYTES,
    disk_errors_named,
    find_damage,
    format_json,
    read_json_file,
    remove_written,
    write_folder,
)
from alexnet_dist.base.errors import CheckpointError, DivergedError
from alexnet_dist.base.places import find_place
from alexnet_dist.base.run_record import is_step_name
from alexnet_dist.inference.weights_file import check_kinds, read_tensors

FORMAT = 1
WEIGHTS, OPTIMIZER, STATE, CONFIG = "weights.safetensors", "optimizer.safetensors", "state.json", "config.json"
OTHERWISE = "name another one with --resume_from, or start afresh with --new"
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
            remove_written(path, (WEIGHTS, OPTIMIZER, STATE, CONFIG))


def read_step(path: Path) -> int | None:
    """The step that a checkpoint says it is of; None where it cannot be read."""
    try:
        step = _read_state(path).get("step")
    except CheckpointError:
        return None
    return step if _is_count(step) else None


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


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, newest first."""
    return sorted((path for path in folder.glob("step-*") if is_step_name(path)), key=step_of, reverse=True)


def step_of(path: Path) -> int:
    """The step that a checkpoint's name says."""
    return int(path.name[5:])


def choose_checkpoint(folder: Path, named: str | None, run_id: str | None = None) -> tuple[Path | None, list[str]]:
    """The checkpoint to go on from, and a line for each damaged one passed over.

    Args:
        folder: the run's checkpoints/.
        named: a checkpoint asked for by name (`step-00000123`), path or step; None takes the newest intact one.
        run_id: of the run; None = not known, and any will do.

    Raises:
        CheckpointError: the named one is missing or damaged, there are some and none is intact, or one that lies in
            the folder is of another run.
    """
    if named is not None:
        path = _find_named(folder, named)
        damage = find_checkpoint_damage(path) if path.is_dir() else "there is no such folder"
        if damage is not None:
            remedy = "leave --resume_from out to go on from the newest intact one"
            raise CheckpointError("cannot resume from this checkpoint", where=str(path), why=damage, remedy=remedy)
        if is_inside(path, folder):
            _check_run(path, run_id)
        return path, []
    damages: list[tuple[str, str]] = []
    for path in list_checkpoints(folder):
        damage = find_checkpoint_damage(path)
        if damage is None:
            _check_run(path, run_id)
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


def _find_named(folder: Path, named: str) -> Path:
    known = next((path for path in list_checkpoints(folder) if named in (path.name, str(step_of(path)))), None)
    if known is not None:
        return known
    inside = folder / named
    return inside if (named and inside.is_dir()) or not Path(named).is_dir() else Path(named)


def is_inside(path: Path, folder: Path) -> bool:
    """Whether a checkpoint lies directly in a folder, however its path is written."""
    return find_place(path).parent == find_place(folder)


def is_of_other_run(path: Path, run_id: str | None) -> bool:
    """Whether a checkpoint says that it is another run's; one of an older version does not say whose it is."""
    said = read_run_id(path)
    return said is not None and run_id is not None and said != run_id


def _check_run(path: Path, run_id: str | None) -> None:
    if is_of_other_run(path, run_id):
        raise CheckpointError(
            "a checkpoint of another run lies here",
            where=str(path),
            remedy="move it out of checkpoints/; a new --output_dir can begin from it with --resume_from PATH",
        )


def read_run_id(path: Path) -> str | None:
    """The run that a checkpoint is of; None where it does not say so, or cannot be read."""
    return _read_text(path, "run_id")


def read_data_fingerprint(path: Path) -> str | None:
    """The fingerprint of the images that a checkpoint was trained on; None where it does not say, or cannot be read."""
    return _read_text(path, "data_fingerprint")


def _read_text(path: Path, key: str) -> str | None:
    try:
        said = _read_state(path).get(key)
    except CheckpointError:
        return None
    return said if isinstance(said, str) else None


def find_checkpoint_damage(path: Path) -> str | None:
    """What is wrong with a checkpoint; None if it is intact."""
    names = (WEIGHTS, OPTIMIZER, STATE, CONFIG) if (path / CONFIG).exists() else (WEIGHTS, OPTIMIZER, STATE)
    damage = find_damage(path, names)
    if damage is not None:
        return damage
    try:
        step = _read_state(path).get("step")
    except CheckpointError:
        return f"{STATE} cannot be read"
    if is_step_name(path) and step != step_of(path):
        return "it holds another step than its name says"
    return None


def _read_state(path: Path) -> dict[str, Any]:
    """state.json, whatever it holds.

    Raises:
        CheckpointError: it is missing, or no JSON object.
    """
    try:
        state = read_json_file(path / STATE)
    except (OSError, ValueError) as error:
        raise _refuse(path, f"{STATE} cannot be read ({type(error).__name__})") from error
    if not isinstance(state, dict):
        raise _refuse(path, f"{STATE} is no object")
    return state


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint that `choose_checkpoint` found intact.

    Raises:
        CheckpointError: written by a newer version, or holds what no version writes.
    """
    state = _read_state(path)
    version = state.get("format", "missing")
    if not _is_count(version):
        raise _refuse(path, f"format of {STATE} is {version!r}")
    if version > FORMAT:
        raise CheckpointError("checkpoint of a newer version", where=str(path), remedy="update alexnet_dist")
    for key in ("step", "metrics_bytes"):
        if not _is_count(state.get(key, 0)):
            raise _refuse(path, f"{key} of {STATE} is {str(state[key])[:40]!r}")
    try:
        weights, optimizer = read_tensors(path / WEIGHTS), read_tensors(path / OPTIMIZER)
    except (OSError, ValueError, SafetensorError) as error:
        raise _refuse(path, str(error)) from error
    config = b""
    if (path / CONFIG).is_file():
        with (path / CONFIG).open("rb") as file:
            config = file.read(MAX_JSON_BYTES)
    return Checkpoint(weights, optimizer, state, config, str(path))


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _refuse(path: Path, why: str) -> CheckpointError:
    return CheckpointError("cannot use this checkpoint", where=str(path), why=why, remedy=OTHERWISE)


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
    check_shapes(model, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, where, remedy)
    model.load_state_dict(tensors)


def check_shapes(model: nn.Module, found: Mapping[str, tuple[int, ...]], where: str, remedy: str = "") -> None:
    """Refuse weights of another network; see `load_weights`.

    Args:
        model: the network; its values are not looked at, so it may lie on the meta device.
        found: shapes by the network's own names.
        where, remedy: for the message.

    Raises:
        CheckpointError: a name or a shape differs.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name in [*wanted, *found]:
        if wanted.get(name) != found.get(name):
            here, there = (str(shapes.get(name, "missing")) for shapes in (wanted, found))
            raise CheckpointError(
                "the weights do not fit the network",
                where=where,
                why=f"{name} is {there} there and {here} here",
                remedy=remedy or "use the variant, image size and number of classes they were trained with",
            )
