"""The end of a run, and what stays of it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from helpers.tiny import tiny_config

from alexnet_dist.base.errors import UsageError
from alexnet_dist.base.started import name_command
from alexnet_dist.runs import session


@pytest.mark.parametrize(
    ("program", "line"),
    [
        ("launch/train.py", "python launch/predict.py runs/a b.jpg"),
        ("/opt/my code/launch/crossval.py", "python '/opt/my code/launch/predict.py' runs/a b.jpg"),
        ("/usr/bin/alexnet-dist", "alexnet-dist predict runs/a b.jpg"),
        ("/x/site-packages/alexnet_dist/__main__.py", "python -m alexnet_dist predict runs/a b.jpg"),
        ("/my/train.py", "alexnet-dist predict runs/a b.jpg"),
        ("", "alexnet-dist predict runs/a b.jpg"),
    ],
)
def test_the_next_command_fits_how_the_run_was_started(
    program: str, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [program])
    assert f"{name_command('predict')} runs/a b.jpg" == line


@pytest.mark.heavy
def test_a_run_that_keeps_no_checkpoint_leaves_its_model_and_is_finished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config(tmp_path / "run", checkpoint__keep=0, log__plots=False)
    summary = session.train(config)
    ended = capsys.readouterr().err.splitlines()
    assert not list((tmp_path / "run" / "checkpoints").iterdir())
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
    assert [line.partition(":")[0] for line in ended[-5:]][:2] == ["best validation top-1", "run folder"]
    assert ended[-3].startswith("next: ")
    metrics = (tmp_path / "run" / "metrics.jsonl").read_bytes()

    assert session.train(config)["step"] == summary["step"]
    assert "this run is finished" in capsys.readouterr().err
    with pytest.raises(UsageError, match=r"^this run has ended .*checkpoint\.keep was 0"):
        session.train(tiny_config(tmp_path / "run", checkpoint__keep=0, log__plots=False, train__epochs=50))
    with pytest.raises(UsageError, match="started with other settings"):
        session.train(tiny_config(tmp_path / "run", checkpoint__keep=0, log__plots=False, seed=5))
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == metrics
