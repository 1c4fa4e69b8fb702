"""The checkpoints that lie in a folder: which are intact, whose they are, and which one a name means.

What is in them is read and written in training/checkpoint.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeGuard

from alexnet_dist.base.durable import find_damage, read_json_file, remove_written
from alexnet_dist.base.errors import CheckpointError
from alexnet_dist.base.places import find_place
from alexnet_dist.base.run_record import is_step_name

WEIGHTS, OPTIMIZER, STATE, CONFIG = "weights.safetensors", "optimizer.safetensors", "state.json", "config.json"
OTHERWISE = "name another one with --resume_from, or start afresh with --new"


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, newest first."""
    return sorted((path for path in folder.glob("step-*") if is_step_name(path)), key=step_of, reverse=True)


def list_own_checkpoints(folder: Path, run_id: str | None) -> list[Path]:
    """The checkpoints that a run wrote, newest first: those of another run, links and a user's copies are left out.

    Args:
        folder: the run's checkpoints/.
        run_id: of the run; None = not known, and any will do.
    """
    if folder.is_symlink():
        return []
    named = [path for path in list_checkpoints(folder) if path.name == f"step-{step_of(path):08d}"]
    return [path for path in named if not (path.is_symlink() or is_of_other_run(path, run_id))]


def remove_checkpoint(path: Path) -> None:
    """Remove what was written of a checkpoint; what else lies in it is its user's."""
    remove_written(path, (WEIGHTS, OPTIMIZER, STATE, CONFIG))


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
        said = read_state(path).get(key)
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
        step = read_state(path).get("step")
    except CheckpointError:
        return f"{STATE} cannot be read"
    if is_step_name(path) and step != step_of(path):
        return "it holds another step than its name says"
    return None


def read_state(path: Path) -> dict[str, Any]:
    """state.json, whatever it holds.

    Raises:
        CheckpointError: it is missing, or no JSON object.
    """
    try:
        state = read_json_file(path / STATE)
    except (OSError, ValueError) as error:
        raise refuse_checkpoint(path, f"{STATE} cannot be read ({type(error).__name__})") from error
    if not isinstance(state, dict):
        raise refuse_checkpoint(path, f"{STATE} is no object")
    return state


def read_step(path: Path) -> int | None:
    """The step that a checkpoint says it is of; None where it cannot be read."""
    try:
        step = read_state(path).get("step")
    except CheckpointError:
        return None
    return step if is_count(step) else None


def is_count(value: Any) -> TypeGuard[int]:
    """Whether a value as JSON knows it is a whole number of at least 0."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def refuse_checkpoint(path: Path, why: str) -> CheckpointError:
    """The error for a checkpoint that holds what no version writes."""
    return CheckpointError("cannot use this checkpoint", where=str(path), why=why, remedy=OTHERWISE)
