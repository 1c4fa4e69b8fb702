"""The benchmarks run and write what the contract says. Their figures are not looked at."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
RATIOS = {
    "startup": {"import_package/import_torch", "train_help/import_torch", "unknown_key/import_torch"},
    "model": {"bf16_channels_last/fp32_contiguous", "paper/torchvision", "trainer_step/minimal_loop"},
    "normalization": {"lrn/stock_lrn", "paper/paper_without_lrn"},
    "end_to_end": {"end_to_end/limit"},
}


def run_script(name: str, *words: str) -> subprocess.CompletedProcess[str]:
    """A benchmark in a process of its own, with one thread: two would wait for each other on a busy machine."""
    script = str(ROOT / "benchmarks" / f"{name}.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, script, *words], env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `run_all.py` wrote for toy networks."""
    folder = tmp_path_factory.mktemp("results")
    done = run_script("run_all", "--tiny", "--out", str(folder))
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("name", RATIOS)
def test_json_has_environment_rows_and_ratios(results: Path, name: str) -> None:
    report: dict[str, Any] = json.loads((results / f"{name}.json").read_text())
    assert {"cpu", "cpu_features", "cores", "gpus", "versions", "git_commit", "threads", "device", "time"} <= set(
        report["environment"]
    )
    assert report["rows"]
    assert set(report["ratios"]) == RATIOS[name]
    for ratio in report["ratios"].values():
        assert 0 < ratio["min"] <= ratio["median"] <= ratio["max"]


def test_grid_is_complete(results: Path) -> None:
    rows = json.loads((results / "model.json").read_text())["rows"]
    works = ("forward", "forward_backward", "step")
    grid = {(row["variant"], row["precision"], row["layout"], row["work"]) for row in rows if row["work"] in works}
    variants, precisions, layouts = ({row[key] for row in rows} for key in ("variant", "precision", "layout"))
    assert {"paper", "torchvision"} == variants
    assert {"fp32", "bf16"} <= precisions
    assert len(grid) == len(variants) * len(precisions) * len(layouts) * len(works)


def test_end_to_end_has_every_arm_and_memory(results: Path) -> None:
    rows = {row["arm"]: row for row in json.loads((results / "end_to_end.json").read_text())["rows"]}
    assert set(rows) == {"loader", "model", "end_to_end", "memory"}
    assert rows["memory"]["mib_at_epoch_end"] > 0


def test_page_is_made_from_the_json(results: Path) -> None:
    page = (results / "README.md").read_text()
    for name, ratios in RATIOS.items():
        for ratio in ratios:
            assert f"| {name} | {ratio} |" in page


@pytest.mark.parametrize("name", ["startup", "run_all"])
def test_help_begins_with_two_examples(name: str) -> None:
    """The others make theirs with the parser of startup.py, but import torch first."""
    done = run_script(name, "--help")
    assert done.returncode == 0
    head = done.stdout.partition("options:")[0]
    assert head.count(f"python benchmarks/{name}.py") == 2
