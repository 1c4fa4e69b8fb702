"""After a loss that is not finite: which checkpoint one can go on from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from alexnet_dist.inference.checkpoints import WEIGHTS
from alexnet_dist.training.divergence import find_good_checkpoint

GUESS = 2.0
GOOD, LOST = {"w": torch.ones(2)}, {"w": torch.full((2,), torch.inf)}
FIRST = {"event": "train", "step": 1, "loss": 2.0}


def write_steps(folder: Path, *steps: bytes) -> Path:
    """Checkpoints of steps 10, 20, ... with these files of weights."""
    for number, data in enumerate(steps, start=1):
        path = folder / f"step-{10 * number:08d}"
        path.mkdir(parents=True)
        (path / WEIGHTS).write_bytes(data)
    return folder


@pytest.mark.parametrize(
    ("steps", "rows", "expected"),
    [
        ([save(GOOD), save(GOOD)], [FIRST], 20),
        ([save(GOOD), save(LOST)], [FIRST], 10),  # the newest is what gave the loss
        ([save(GOOD), b"cut"], [FIRST], 10),  # nobody can go on from what cannot be read
        ([save(GOOD), save(GOOD)], [FIRST, {"event": "train", "step": 15, "loss": 1e9}], 20),
        ([save(GOOD), save(GOOD)], [FIRST, {"event": "train", "step": 25, "loss": 1e9}], None),
        ([save(GOOD)], [{"event": "train"}, {"event": "train", "step": "x", "loss": []}, FIRST], 10),
        ([save(LOST)], [], None),
    ],
)
def test_the_newest_of_use_is_found(
    tmp_path: Path, steps: list[bytes], rows: list[dict[str, Any]], expected: int | None
) -> None:
    found = find_good_checkpoint(write_steps(tmp_path, *steps), rows, GUESS, LOST)
    assert (found.name if found else None) == (f"step-{expected:08d}" if expected else None)


def test_a_folder_whose_name_is_not_utf_8_is_read(tmp_path: Path) -> None:
    folder = write_steps(tmp_path / os.fsdecode(b"caf\xe9"), save(GOOD), save(LOST))
    found = find_good_checkpoint(folder, [FIRST], GUESS, LOST)
    assert found is not None
    assert found.name == "step-00000010"
