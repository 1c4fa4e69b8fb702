"""What a run folder says of its run: the names of its files, its marker, and run.json, which is read with suspicion.

A folder that was made here carries a small file, the marker. A run keeps in it a copy of its settings and of what the
next start needs to know of run.json.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from alexnet_dist.base.durable import format_json, read_object
from alexnet_dist.base.errors import CheckpointError, DivergedError

Kind = Literal["run", "crossval", "plots"]

MARKER, CHECKPOINTS = ".alexnet_dist", "checkpoints"
SETTINGS, RUN, SUMMARY, METRICS = "config.yaml", "run.json", "summary.json", "metrics.jsonl"
CLEANED = "cleaned"  # stands in the marker of a run whose checkpoints were removed after its end
WHAT_IT_IS: dict[str, str] = {"run": "a run", "crossval": "a cross-validation", "plots": "a folder of figures"}


def read_marker(folder: Path) -> dict[str, Any]:
    """What the file says that shows who made a folder; empty where there is none, or no such file."""
    path = folder / MARKER
    values = read_object(path)
    is_ours = values.get("kind") in WHAT_IT_IS and re.fullmatch("[0-9a-f]{16}", str(values.get("id"))) is not None
    return values if is_ours else {}


def find_run(model: Path) -> Path | None:
    """The run folder that a model folder or a checkpoint is a part of; None where it stands on its own."""
    model = model if model.name == "model" else Path(os.path.abspath(model))  # it may be `.`
    around = [path.parent for path in (model.parent, model.parent.parent) if path.name == CHECKPOINTS]
    places = [model.parent] if model.name == "model" else around
    for run in places:
        marked = read_marker(run)
        is_run = (run / SETTINGS).is_file() and (bool(marked) or (run / RUN).is_file())
        if is_run or isinstance(marked.get("settings"), dict):  # the marker holds a copy of them
            return run
    return None


def is_step_name(path: Path) -> bool:
    """Whether a name is a checkpoint's: `step-` and digits, which are not of other scripts and not superscript."""
    return re.fullmatch("step-[0-9]+", path.name) is not None


def read_run(folder: Path) -> dict[str, Any]:
    """What run.json says; where it is missing or cut short, what the run's own copy says; empty without either.

    Raises:
        CheckpointError: a value that no run writes.
    """
    path = folder / RUN
    facts = read_object(path)
    if not facts:
        copy = read_marker(folder).get("facts")
        path, facts = folder / MARKER, copy if isinstance(copy, dict) else {}
    for key, value in facts.items():
        has_form = FORMS.get(key, lambda _: True)
        if value is not None and not (has_form(value) and _is_json(value)):
            why = f"{key} is {str(value)[:40]!r}"
            has_copy = path.name == RUN and isinstance(read_marker(folder).get("facts"), dict)
            remedy = f"remove {RUN}: the run has a copy" if has_copy else "put it back, or start afresh with --new"
            raise CheckpointError("a file of this run is damaged", where=str(path), why=why, remedy=remedy)
    return dict(facts)


def _is_json(value: Any) -> bool:
    """Whether a value of run.json can be written again: JSON has no infinity."""
    try:
        format_json(value, RUN)
    except DivergedError:
        return False
    return True


def _is_data(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("fingerprint"), str) and len(value["fingerprint"]) < 100


def _is_list_of_starts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(start, dict) for start in value)


def _has_form(pattern: str) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and re.fullmatch(pattern, value) is not None


def _is_kernels(value: Any) -> bool:
    forms = {"maps": "vectors|joined|reference", "groups": "grouped|apart|dense", "conv1": "direct|space_to_depth"}
    return isinstance(value, dict) and all(_has_form(form)(value.get(name)) for name, form in forms.items())


def _is_graph(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("failure"), str | None)


# What later starts believe of run.json.
FORMS: dict[str, Callable[[Any], bool]] = {
    "run_id": _has_form("[0-9a-f]{16}"),
    "wandb_id": _has_form("[0-9a-z]{8}"),
    "precision": _has_form("fp32|tf32|bf16|fp16"),
    "engine": _has_form("dali|torchvision|cache"),
    "device": _has_form("cpu|cuda"),
    "kernels": _is_kernels,
    "cuda_graph": _is_graph,
    "pretrained": lambda value: isinstance(value, dict),
    "held_out": lambda value: isinstance(value, dict),
    "data": _is_data,
    "starts": _is_list_of_starts,
}
