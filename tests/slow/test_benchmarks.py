"""The benchmarks run and write what the contract says. Their figures are not looked at."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.images import save_jpeg

from alexnet_dist.data.engines.choose import find_obstacle

pytestmark = pytest.mark.timeout(900)  # all benchmarks run in one fixture: minutes, and twice as many on a busy host
ROOT = Path(__file__).resolve().parents[2]
HAS_DALI, ON_GPU = find_obstacle("dali") is None, torch.cuda.is_available()
HAS_COMPILER = shutil.which("g++") is not None
ENGINES = ["torchvision", "cache", *["dali_cpu"] * HAS_DALI, *["dali_gpu"] * (HAS_DALI and ON_GPU)]
RIVALS = {
    f"{kind}_{engine}": on
    for on, engine in {"dali_cpu": "dali", "dali_gpu": "dali_gpu"}.items()
    for kind in ("plain", "fancy")
    if on in ENGINES
}
RATIOS = {
    "startup": {
        f"{start}/import_torch"
        for start in ("import_package", "version", "help", "train_help", "unknown_key", "first_line", "first_update")
    },
    "model": {
        *("bf16_channels_last/fp32_contiguous", "paper/torchvision", "trainer_step/minimal_loop"),
        *["trainer_compiled/minimal_loop"] * HAS_COMPILER,
        *["minimal_graph/minimal_loop"] * ON_GPU,
    },
    "convolutions": {
        f"{ratio}@{precision}"
        for ratio in ("apart/grouped", "dense/grouped", "space_to_depth/direct")
        for precision in ("bf16", "fp32")
    },
    "normalization": {"lrn/stock_lrn", "paper/paper_without_lrn", "paper/paper_by_layers"},
    "threads": {f"{arm}/as_a_run" for arm in ("one_thread", "bound_to_cores", "waiting_busily")},
    "tracking": {
        ratio for name in ("wandb", "tensorboard", "mlflow") for ratio in (f"{name}/off", f"{name}_calls/updates")
    },
    "loader": {
        *(f"{name}/standard" for name in (*ENGINES, *RIVALS)),
        *(f"{engine}/{rival}" for rival, engine in RIVALS.items()),
        *["dali_gpu/dali_cpu"] * ("dali_gpu" in ENGINES),
        *["cache/model"] * ON_GPU,
    },
    "curves": {"cache/other_seed", *["dali/other_seed"] * HAS_DALI},
    "original": set(),
    "strategy_curves": {"towers@2/other_seed"},
    "end_to_end": {"end_to_end/limit"},
    "sources": {
        f"{source}/folder {how}"
        for source in ("tar", "parquet")
        for how in ("torchvision", "cache", "torchvision cold", *["dali"] * HAS_DALI)
    },
    "parallel": {
        *("hybrid/ddp_fp32", "hybrid/ddp_bf16", "towers/ddp_fp32", "ddp_bf16/ddp_fp32", "hybrid_bf16/ddp_bf16"),
        *("hybrid_batch_by_batch/hybrid", "ddp_fp32/one_process", "towers/one_process", "hybrid/one_process"),
        *(f"estimate/{arm}" for arm in ("ddp_fp32", "ddp_bf16", "towers", "hybrid", "hybrid_bf16")),
    },
}


ENVIRONMENT = {
    "gpus": [],
    "cpu": "a CPU",
    "cores": 2,
    "versions": {"torch": "2"},
    "git_commit": "another",
    "time": "now",
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
        assert 0 <= ratio["min"] <= ratio["median"] <= ratio["max"]


def test_grid_is_complete(results: Path) -> None:
    rows = json.loads((results / "model.json").read_text())["rows"]
    works = ("forward", "forward_backward", "step")
    rows = [row for row in rows if row["work"] in works]
    assert all(row["percent"] > 0 for row in rows)
    grid = {(row["variant"], row["precision"], row["layout"], row["work"]) for row in rows}
    variants, precisions, layouts = ({row[key] for row in rows} for key in ("variant", "precision", "layout"))
    assert {"paper", "torchvision"} == variants
    assert {"fp32", "bf16"} <= precisions
    assert len(grid) == len(variants) * len(precisions) * len(layouts) * len(works)


def test_end_to_end_has_every_arm_and_memory(results: Path) -> None:
    rows = {row["arm"]: row for row in json.loads((results / "end_to_end.json").read_text())["rows"]}
    assert set(rows) == {"loader", "model", "end_to_end", "memory"}
    assert rows["memory"]["mib_at_epoch_end"] > 0


def test_bytes_that_strategies_send_are_those_of_the_closed_form(results: Path) -> None:
    rows = {row["arm"]: row for row in json.loads((results / "parallel.json").read_text())["rows"]}
    assert len(rows) == 7
    for arm in rows.keys() - {"one_process"}:
        assert rows[arm]["mb_counted"] == pytest.approx(rows[arm]["mb_closed_form"], rel=0.01)
        assert rows[arm]["mb_counted"] > 0


def test_loader_has_every_engine_with_its_times_and_memory(results: Path) -> None:
    found = json.loads((results / "loader.json").read_text())["rows"]
    rows = {row["arm"]: row for row in found if "missing" not in row}
    assert HAS_DALI or {"arm", "missing"} == set(found[0])
    memory = {f"memory of {engine}" for engine in ENGINES}
    rivals = {"standard", *RIVALS}
    assert set(rows) == {*ENGINES, *rivals} | memory
    for name in {*ENGINES, *rivals}:
        assert 0 < rows[name]["p50_ms"] <= rows[name]["p95_ms"] <= rows[name]["p99_ms"]
    assert all(rows[name]["mib_last_epoch"] > 0 for name in memory)


def test_curves_have_every_engine(results: Path) -> None:
    rows = json.loads((results / "curves.json").read_text())["rows"]
    assert {row["engine"] for row in rows} == {"torchvision", "cache", *["dali"] * HAS_DALI}
    assert len({row["loss_100%"] for row in rows if row["engine"] == "torchvision"}) == 2  # seeds


@pytest.mark.parametrize("part", ["train", "."])
def test_images_may_lie_below_train_or_directly_below_the_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    find_images = importlib.import_module("common.images").find_images
    for number in range(4):
        save_jpeg(tmp_path / "images" / part / f"class-{number % 2}" / f"{number}.jpg", 48, 40)
    index = find_images(tmp_path / "images", tmp_path / "elsewhere", 0)
    assert index.paths == ("class-0/0.jpg", "class-0/2.jpg", "class-1/1.jpg", "class-1/3.jpg")
    assert index.classes == ("class-0", "class-1")


def test_recipes_go_on_with_runs_that_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    recipes = importlib.import_module("recipes")
    monkeypatch.setitem(recipes.RECIPES, "smoke", recipes.Recipe("smoke", ".", "none"))
    options = argparse.Namespace(data_root=tmp_path, jobs=1, tiny=True, quick=False)
    run = tmp_path / "smoke-0"
    run.mkdir()  # of an earlier start, so the seconds of this one are not those of the command
    row = recipes.run_recipe("smoke", 0, options, tmp_path)
    assert (row["epochs"], row["seconds"]) == (1, None)
    assert row["train_seconds"] > 0
    assert (run / "summary.json").is_file()
    assert not (run / "checkpoints").exists()
    monkeypatch.delattr(recipes.subprocess, "run")
    assert recipes.run_recipe("smoke", 0, options, tmp_path) == row
    page = recipes.format_page([{"environment": ENVIRONMENT, "rows": [row], "notes": [], "ratios": {}}])
    assert f"commit {row['commit']}, " in page


def test_rivals_are_trained_beside_ours(tmp_path: Path) -> None:
    arms = ("imagenet_fp32", "ours_fp32", "fruits_published", "fruits", *["dali_bf16"] * HAS_DALI)
    done = run_script("rivals", "--tiny", "--only", *arms, "--out", str(tmp_path / "rivals.json"))
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "rivals.json").read_text())
    assert {row["arm"] for row in report["rows"] if row.get("images_per_second", 0) > 0} == set(arms)
    assert set(report["ratios"]) == {"ours_fp32/imagenet_fp32", "fruits/fruits_published"}


def test_time_to_accuracy_is_that_of_commands(tmp_path: Path) -> None:
    words = ("--tiny", "--only", "same_recipe_bf16", "published", "--out", str(tmp_path / "times.json"))
    done = run_script("time_to_accuracy", *words)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "times.json").read_text())
    rows = [(row["task"], row["arm"]) for row in report["rows"] if row["reached"] and row["seconds"] > 0]
    rivals = [("imagenette", "same_recipe_bf16"), ("fruits", "same_recipe_bf16"), ("fruits", "published")]
    assert sorted(rows) == sorted([("imagenette", "ours"), ("fruits", "ours"), *rivals])
    assert set(report["ratios"]) == {f"{task}: {rival}/ours" for task, rival in rivals}


@pytest.mark.skipif(ON_GPU, reason="this machine has a GPU, for which --tiny is no measure")
def test_gpu_sections_run_on_a_cpu(tmp_path: Path) -> None:
    words = ("ceilings", "steps", "profile", "graphs", "end_to_end")
    done = subprocess.run(
        [str(ROOT / "benchmarks" / "gpu.sh"), str(tmp_path), "--tiny", "--only", *words],
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [row["section"] for row in rows if row.get("event") == "end"] == list(words)
    assert [row for row in rows if "failed" in row] == []
    assert any("verdict" in row for row in rows)


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


@pytest.mark.skipif(ON_GPU, reason="this machine has a GPU to share")
def test_figures_of_a_cpu_are_not_called_those_of_a_gpu() -> None:
    done = run_script("parallel", "--share_gpu", "--tiny")
    assert (done.returncode, done.stdout) == (5, "")
    assert done.stderr == "error: no CUDA device: --share_gpu is given; leave it out\n"
