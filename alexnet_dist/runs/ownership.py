"""Whose a folder is: nothing is deleted, renamed or replaced in one that this project did not make.

A name says nothing: `model/`, `plots/` and `metrics.csv` are names that everybody uses. A folder that was made here
carries a small file, `.alexnet_dist`; one of an earlier version is known by what only a run writes.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from alexnet_dist.base.durable import MANIFEST, is_marked, read_object, refuse_link, write_json
from alexnet_dist.base.errors import AlexNetDistError, MachineError, UsageError
from alexnet_dist.base.places import find_place
from alexnet_dist.base.run_record import (
    CHECKPOINTS,
    MARKER,
    METRICS,
    RUN,
    SETTINGS,
    SUMMARY,
    WHAT_IT_IS,
    Kind,
    read_marker,
)
from alexnet_dist.settings.reader import read_yaml
from alexnet_dist.settings.schema import Config, walk_fields

LOCK = ".lock"
# What a run writes by name; checkpoints, model, ... are folders.
OWN_FILES: dict[str, tuple[str, ...]] = {
    "run": (
        SETTINGS,
        RUN,
        METRICS,
        "metrics.csv",
        "epochs.csv",
        SUMMARY,
        "held_out.csv",
        "bad_files.csv",
        "images.csv.gz",
        "report.html",
        "run.log",
    ),
    "crossval": ("crossval.json", "crossval.csv", "bad_files.csv"),
    "plots": (),
}
OWN_FOLDERS: dict[str, tuple[str, ...]] = {
    "run": (CHECKPOINTS, "model", "plots", "profile", "tensorboard", "wandb"),
    "crossval": ("tensorboard", "wandb"),
    "plots": (),
}
# How tables that are made anew at each start begin; anything else of that name is its user's.
FIRST_WORDS = {
    "metrics.csv": b"event,",
    "epochs.csv": b"epoch,step,",
    "held_out.csv": b"path,",
    "bad_files.csv": b"path,",
    "images.csv.gz": b"\x1f\x8b",
    "report.html": b"<!doctype html>\n<!-- report of alexnet_dist -->",
    "crossval.csv": b"fold,",
    "classes.csv": b"class,count,top1,",
    "predictions.csv": b"path,true_class,",
}
# A start that is going on, the root of a disk, and what keeps a folder in git or remembers how it is shown.
_HARMLESS = {LOCK, "lost+found", ".gitkeep", ".DS_Store"}


def check_ownership(folder: Path, kind: Kind, remedy: str = "set --output_dir to a new or empty folder") -> None:
    """Refuse a folder that holds something and that was not made here. Nothing is touched.

    Args:
        folder: where something of this kind is to be kept; it need not be there.
        kind: of the folder.
        remedy: for the message.

    Raises:
        UsageError: it is no folder, somebody else's, of another kind, or holds a file of theirs under a name of ours.
        MachineError: something in it is a link, or no file or folder where one should be.
    """
    if not folder.is_dir():
        if os.path.lexists(folder):
            raise UsageError("a file has the name of this folder", where=str(folder), remedy=remedy)
        return
    names = sorted(os.listdir(folder))
    if all(name in _HARMLESS or is_marked(name) for name in names):
        return
    marked = read_marker(folder).get("kind")
    if marked not in (None, kind):
        made = WHAT_IT_IS.get(str(marked), "something else")
        raise UsageError(f"this folder holds {made}, not {WHAT_IT_IS[kind]}", where=str(folder), remedy=remedy)
    if marked is None and not _LOOKS_MADE_HERE[kind](folder):
        shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        why = f"it holds {shown}, and this program would write among them"
        what = f"this folder is not {WHAT_IT_IS[kind]} of alexnet_dist"
        raise UsageError(what, where=str(folder), why=why, remedy=remedy)
    _check_contents(folder, kind)


def _check_contents(folder: Path, kind: Kind) -> None:
    for name in (*OWN_FILES[kind], *OWN_FOLDERS[kind], MARKER, LOCK):
        refuse_link(folder / name)
    for name in (*OWN_FILES[kind], MARKER, LOCK):
        path = folder / name
        if path.exists() and not path.is_file():
            raise MachineError(f"{name} is no file", where=str(path), remedy="move it away")
        if name in FIRST_WORDS and not _begins_with(path, FIRST_WORDS[name]):
            remedy = "move it away: a table of that name is written here"
            raise UsageError(f"{name} is not one that this program wrote", where=str(path), remedy=remedy)


def is_made_here(folder: Path, kind: Kind) -> bool:
    """Whether a folder is one of this kind that this program made."""
    marked = read_marker(folder).get("kind")
    return marked == kind if marked is not None else _LOOKS_MADE_HERE[kind](folder)


def mark_folder(folder: Path, kind: Kind, facts: dict[str, Any] | None = None) -> None:
    """Write the file that says who made a folder, also where it is there already.

    Args:
        folder: the folder.
        kind: of the folder.
        facts: what it is to hold besides; what it holds of other names stays.

    Raises:
        MachineError: the folder cannot be written.
    """
    write_json(folder / MARKER, {"kind": kind, "id": secrets.token_hex(8), **read_marker(folder), **(facts or {})})


def owns(path: Path) -> bool:
    """Whether a path is that of a file that a run, a cross-validation, a model folder or a checkpoint keeps itself."""
    places = {find_place(path.parent) / path.name, find_place(path)}
    return any(_keeps(folder, place) for place in places for folder in place.parents)


def is_own_table(path: Path) -> bool:
    """Whether a CSV file of one of our names begins as ours do; one that is not there does."""
    return _begins_with(path, FIRST_WORDS[path.name])


def _keeps(folder: Path, path: Path) -> bool:
    first, *rest = path.relative_to(folder).parts
    written = read_object(folder / MANIFEST).get("sha256")
    if not rest and isinstance(written, dict) and (first == MANIFEST or first in written):
        return True
    kind = read_marker(folder).get("kind") or ("run" if _looks_like_run(folder) else None)
    if kind is None:
        return False
    if not rest:
        return first in OWN_FILES[kind] or first in OWN_FOLDERS[kind] or first in (MARKER, LOCK)
    return first in OWN_FOLDERS[kind] and first != "model"


# -- folders of earlier versions --------------------------------------------------------------------------------------


def _looks_like_run(folder: Path) -> bool:
    facts = read_object(folder / "run.json")
    is_recorded = isinstance(facts.get("versions"), dict) and isinstance(facts.get("starts"), list)
    return (is_recorded or _holds_settings_and_checkpoints(folder)) and _begin_alike(folder, "run")


def _holds_settings_and_checkpoints(folder: Path) -> bool:
    """Whether config.yaml is one that a run wrote, with nearly all keys and no comment, and checkpoints/ a run's."""
    settings, checkpoints = folder / "config.yaml", folder / "checkpoints"
    try:
        values, _ = read_yaml(settings)
        is_written = not any(line.lstrip().startswith(b"#") for line in settings.read_bytes().splitlines())
        steps = os.listdir(checkpoints)
    except (AlexNetDistError, OSError):
        return False
    keys = {key for key, _ in walk_fields(Config)}
    is_whole = len(values.keys() & keys) > len(keys) // 2
    return is_written and is_whole and all(_is_step(checkpoints / name) for name in steps)


def _is_step(path: Path) -> bool:
    is_named = re.fullmatch(r"step-[0-9]+(\.old|\.tmp)?", path.name) is not None
    return is_marked(path.name) or (is_named and (path / MANIFEST).is_file())


def _looks_like_crossval(folder: Path) -> bool:
    table = read_object(folder / "crossval.json")
    is_recorded = isinstance(table.get("folds"), list) and "num_folds" in table
    folds = [path for path in folder.glob("fold-*") if path.is_dir()]
    has_runs = bool(folds) and all(_looks_like_run(path) or read_marker(path) for path in folds)
    return (is_recorded or has_runs) and _begin_alike(folder, "crossval")


def _looks_like_plots(folder: Path) -> bool:
    return False


_LOOKS_MADE_HERE: dict[Kind, Callable[[Path], bool]] = {
    "run": _looks_like_run,
    "crossval": _looks_like_crossval,
    "plots": _looks_like_plots,
}


def _begin_alike(folder: Path, kind: Kind) -> bool:
    return all(_begins_with(folder / name, words) for name, words in FIRST_WORDS.items() if name in OWN_FILES[kind])


def _begins_with(path: Path, words: bytes) -> bool:
    """Whether a file begins like this, is empty, or is not there."""
    try:
        with path.open("rb") as file:
            start = file.read(len(words))
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return start in (words, b"")
