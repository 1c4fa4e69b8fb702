"""What a run knows of the images that it began with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alexnet_dist.base.errors import CheckpointError
from alexnet_dist.runs.changed_images import find_images_before


def test_checkpoints_are_asked_where_the_run_says_nothing(tmp_path: Path) -> None:
    states = {"step-3": "{", "step-2": "{}", "step-1": json.dumps({"data_fingerprint": "of images"})}
    for name, text in states.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.json").write_text(text)
    checkpoints = [tmp_path / name for name in states]
    assert find_images_before(tmp_path, checkpoints) == {"fingerprint": "of images"}
    with pytest.raises(CheckpointError, match=r"run\.json of this run is missing or damaged .*start afresh with --new"):
        find_images_before(tmp_path, checkpoints[:2])
    (tmp_path / "run.json").write_text(json.dumps({"data": {"fingerprint": "f", "num_train": 5}}))
    assert find_images_before(tmp_path, checkpoints) == {"fingerprint": "f", "num_train": 5}
