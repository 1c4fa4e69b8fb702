"""report.html: what stands in it, that it needs nothing else, and that no name can do harm."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from helpers.past_runs import make_run
from helpers.report_runs import EVIL, make_full_run

from alexnet_dist.figures import vega
from alexnet_dist.runs.past_runs import find_runs
from alexnet_dist.runs.report import find_limits, format_page, write_report

VEGA = "window.vegaEmbed=()=>0;window.vegaLite=0;"
VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """A page that is read strictly: every tag is closed in its turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.words.append(data.strip())

    @property
    def text(self) -> str:
        return " ".join(filter(None, self.words))


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_full_run(tmp_path_factory.mktemp("runs") / "full")


def test_a_page_needs_nothing_else_and_is_well_formed(full: Path) -> None:
    text = format_page(find_runs(full), VEGA)
    page = Page(text)
    for tag, facts in page.tags:
        for key in ("src", "href", "srcset", "action", "data"):
            if key in facts:
                assert re.match(r"data:|#", facts[key] or ""), (tag, facts[key])
    assert not re.search(r"@import|url\(", text)
    (policy,) = [facts["content"] or "" for tag, facts in page.tags if facts.get("http-equiv")]
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert policy.count("'sha256-") == 2
    assert "unsafe-eval" not in policy
    ids = [facts["id"] for _, facts in page.tags if "id" in facts]
    assert len(ids) == len(set(ids))
    links = {(facts["href"] or "")[1:] for tag, facts in page.tags if tag == "a"}
    assert links <= set(ids)


def test_a_page_tells_all_that_the_folder_does(full: Path) -> None:
    page = Page(format_page(find_runs(full), VEGA))
    for words in (
        *("Summary", "Loss", "Top-1 accuracy", "Learning rate", "Throughput", "Waiting for images"),
        *("table of epochs", "The images limit the speed", "table of worst predictions"[:5], "damaged image"),
        *("optimizer.lr", "a CPU", "torchvision", "66.67%", "80.00%"),
    ):
        assert words in page.text, words
    pictures = [facts for tag, facts in page.tags if tag == "img"]
    assert len(pictures) == 4
    assert all(facts["alt"] and (facts["src"] or "").startswith("data:image/") for facts in pictures)


def test_no_name_is_a_tag_or_moves_a_cursor(full: Path) -> None:
    text = format_page(find_runs(full), VEGA)
    page = Page(text)
    assert sum(tag == "script" for tag, _ in page.tags) == 3
    assert [facts for tag, facts in page.tags if "onerror" in facts] == []
    assert EVIL in page.text
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "\\x1b[31mred\\x07" in page.text


def test_runs_stand_beside_each_other_with_what_differs(tmp_path: Path) -> None:
    for seed in range(3):
        make_run(tmp_path / f"seed-{seed}", top1=(0.5, 0.6 + seed / 10), settings={"seed": seed})
    make_run(tmp_path / EVIL.replace("/", ""), settings={"optimizer__lr": 0.7})
    page = Page(format_page(find_runs(tmp_path), VEGA))
    assert "Settings that differ" in page.text
    assert "optimizer.lr" in page.text
    assert "3 seeds" in page.text
    assert "70.00% 10.00% 60.00% 80.00%" in page.text
    assert sum(tag == "script" for tag, _ in page.tags) == 3


def list_kinds(page: str, chart: str) -> list[str]:
    """What the curves of a chart are, in the order of their first values."""
    specs = json.loads(re.search(r'id="specs">(.*?)</script>', page, re.DOTALL)[1])  # type: ignore[index]
    (spec,) = [each["spec"] for each in specs if each["id"] == f"chart-{chart}"]
    return list(dict.fromkeys(value["what"] for value in spec["data"]["values"]))


def test_beside_other_runs_validation_is_solid_and_a_run_alone_shows_its_test(full: Path, tmp_path: Path) -> None:
    for seed in range(2):
        make_full_run(tmp_path / f"seed-{seed}", seed=seed)
    assert list_kinds(format_page(find_runs(tmp_path), VEGA), "loss") == ["validation", "train, mean of the epoch"]
    alone = list_kinds(format_page(find_runs(full), VEGA), "top1")
    assert alone == ["train, log points", "train, mean of the epoch", "validation", "test, of the best weights"]


def test_settings_that_are_not_the_defaults_come_first(full: Path) -> None:
    text = Page(format_page(find_runs(full), VEGA)).text
    chosen = text.partition("These differ from the defaults:")[2].partition("all settings")[0]
    assert "model.image_size 64" in chosen
    assert "optimizer.trust_coefficient" not in chosen
    assert "optimizer.trust_coefficient" in text


def test_without_vega_the_figure_stands_in_and_a_line_tells_how_to_get_it(
    full: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vega, "is_installed", lambda name: False)
    page = Page(format_page(find_runs(full), None))
    assert "pip install vl-convert-python" in page.text
    assert sum(tag == "script" for tag, _ in page.tags) == 2
    assert not any((facts.get("class") or "") == "chart" for _, facts in page.tags)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: [path.unlink() for path in folder.iterdir() if path.is_file() and path.name != "metrics.jsonl"],
        lambda folder: (folder / "metrics.jsonl").write_bytes((folder / "metrics.jsonl").read_bytes()[:-30]),
        lambda folder: (folder / "metrics.jsonl").unlink(),
        lambda folder: (folder / "run.json").write_text('{"versions": 5, "machine": [1], "data": "x", "engine": 7}'),
        lambda folder: (folder / "bad_files.csv").write_bytes(b'"\x00\xff'),
    ],
)
def test_a_damaged_folder_makes_a_page_with_a_note(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    folder = make_run(tmp_path / "a")
    damage(folder)
    page = Page(format_page(find_runs(tmp_path), VEGA))
    assert "Summary" in page.text
    is_noted = any((facts.get("class") or "") == "note" for _, facts in page.tags)
    assert is_noted or (folder / "bad_files.csv").exists()


@pytest.mark.slow
def test_ninety_epochs_take_less_than_five_megabytes(tmp_path: Path) -> None:
    runs = find_runs(make_full_run(tmp_path / "long", epochs=90, steps_per_epoch=200, pictures=24))
    script = "x" * 900_000 + VEGA
    write_report(tmp_path / "report.html", runs, script)
    assert (tmp_path / "report.html").stat().st_size < 5e6
    for seed in range(1, 4):
        make_full_run(tmp_path / f"long-{seed}", epochs=30, seed=seed, pictures=24)
    write_report(tmp_path / "four.html", find_runs(tmp_path), script)
    assert (tmp_path / "four.html").stat().st_size < 7e6


@pytest.mark.parametrize(
    ("wait", "words"),
    [(0.4, "The images limit the speed"), (0.1, "Mostly computing"), (0.001, "Computing limits the speed")],
)
def test_what_limits_the_speed_is_read_from_the_waits(tmp_path: Path, wait: float, words: str) -> None:
    (run,) = find_runs(make_run(tmp_path / "a"))
    rows = [{**row, "data_wait_fraction": wait} for row in run.rows]
    assert find_limits(replace(run, given_rows=rows)).startswith(words)
    assert find_limits(replace(run, given_rows=[])) == ""
