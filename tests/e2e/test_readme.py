"""The commands of README and docs/, word for word, and the links between the pages."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from helpers import lanes
from helpers.pages import PAGES, read_commands

from alexnet_dist.cli.main import run

DATA = os.environ.get("ALEXNET_DIST_TEST_DATA")


def find_headings(page: Path) -> set[str]:
    """The names that a link can end in: as GitHub makes them of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
    for link in (link for link in links if not link.startswith("https://")):
        name, _, heading = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        assert not heading or heading in find_headings(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tests_that_are_named_are_there(page: Path) -> None:
    named = re.findall(r"`(tests/[^`\s]+)`", page.read_text(encoding="utf-8"))
    assert [name for name in named if not (lanes.TESTS.parent / name).exists()] == []


@pytest.mark.parametrize(
    ("verb", "words"), [(verb, words) for verb in ("train", "crossval") for words in read_commands(verb)]
)
def test_settings_of_training_are_accepted(
    verb: str,
    words: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "data" / "flowers" / "train").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
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
