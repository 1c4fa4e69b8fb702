"""The README's commands, word for word."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import pytest

from alexnet_dist.cli.main import run

ROOT = Path(__file__).resolve().parents[2]
DATA = os.environ.get("ALEXNET_DIST_TEST_DATA")


def read_commands(verb: str) -> list[list[str]]:
    """The words after `python launch/VERB.py`, of each such command in a block of code."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    found = re.findall(rf"^    (?:accelerate launch|python) launch/{verb}\.py (.*)$", text, re.MULTILINE)
    return [shlex.split(words, comments=True) for words in found]


@pytest.mark.parametrize(
    ("verb", "words"), [(verb, words) for verb in ("train", "crossval") for words in read_commands(verb)]
)
def test_settings_of_training_are_accepted(verb: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(verb, [*words, "--print_config"]) == 0
    assert "output_dir: runs/" in capsys.readouterr().out


@pytest.mark.parametrize("words", read_commands("summary"), ids=" ".join)
def test_summaries_are_printed(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("summary", words) == 0
    assert "conv1" in capsys.readouterr().out


@pytest.mark.skipif(DATA is None, reason="ALEXNET_DIST_TEST_DATA is not set")
def test_fashion_mnist_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (words,) = [words for words in read_commands("train") if "fashion_mnist" in words]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(str(DATA))
    short = ["--train.max_steps", "2", "--data.val_fraction", "0.002", "--data.cache_dir", "cache"]
    assert run("train", [*words, *short, "--data.test", "null"]) == 0
    assert (tmp_path / "runs" / "fashion_mnist" / "model" / "model.safetensors").is_file()
