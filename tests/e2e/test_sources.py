"""Training, evaluation and prediction on a manifest and on torchvision's files, from end to end."""

from __future__ import annotations

import csv
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.archives import read_files, write_shards
from helpers.array_files import list_files, save_npy_folders, write_cifar10, write_fashion_mnist
from helpers.imagenet import IDS
from helpers.images import save_jpeg
from helpers.pages import ROOT, read_code
from helpers.sources import write_source
from helpers.tiny import tiny_config
from helpers.verbs import NOTHING_DRAWN, call, call_well
from PIL import Image

from alexnet_dist.base.durable import read_csv
from alexnet_dist.data.index import BadFilesError
from alexnet_dist.runs.session import train
from alexnet_dist.settings.reader import dump_config, load_config
from alexnet_dist.tracking.trackers import read_rows

TEST_DATA = os.environ.get("ALEXNET_DIST_TEST_DATA")


def configure(tmp_path: Path, **overrides: Any) -> list[str]:
    """The words of a run of two updates with a tiny network."""
    values = {"model__fc_width": 64, "train__epochs": None, "train__max_steps": 2, "augment__resize": 72}
    values |= {"data__root": str(tmp_path / "data"), "data__cache_dir": str(tmp_path / "cache")}
    config = tiny_config(tmp_path / "run", **(values | overrides))
    (tmp_path / "tiny.yaml").write_text(dump_config(config))
    return ["--config", str(tmp_path / "tiny.yaml")]


def read_summary(tmp_path: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((tmp_path / "run" / "summary.json").read_text())
    return summary


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "workers"), [(1, 1), (2, 0)])
def test_fashion_mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int, workers: int) -> None:
    write_fashion_mnist(tmp_path / "data" / "FashionMNIST" / "raw", monkeypatch)
    before = list_files(tmp_path / "data")
    words = configure(
        tmp_path,
        data__source="fashion_mnist",
        data__test="test",
        data__val_fraction=0.25,
        data__workers=workers,
        model__in_channels=1,
        augment__lighting=None,
    )
    text = call_well("train", *words, processes=processes)
    assert "fashion_mnist: 30 train, 10 val, 20 test images" in text
    assert "predict" not in text  # which takes image files
    assert read_summary(tmp_path)["status"] == "finished"
    assert read_summary(tmp_path)["test_top1"] is not None
    assert json.loads((tmp_path / "run" / "model" / "config.json").read_text())["classes"][-1] == "Ankle boot"
    with (tmp_path / "run" / "held_out.csv").open() as file:
        assert len([row for row in csv.DictReader(file) if row["path"].startswith("train/")]) == 10
    words = ["--model", str(tmp_path / "run"), "--split", "test", "--data.workers", "0"]
    call_well("evaluate", *words, "--out", tmp_path / "out.json")
    result = json.loads((tmp_path / "out.json").read_text())
    assert (result["num_examples"], result["images"]) == (20, None)
    assert result["top1"] == pytest.approx(read_summary(tmp_path)["test_top1"], abs=1e-12)
    assert list_files(tmp_path / "data") == before


def test_cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar10(tmp_path / "data", monkeypatch)
    words = configure(tmp_path, data__source="cifar10", data__val="test")
    assert "cifar10: 100 train, 20 val, 0 test images" in call_well("train", *words)


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    """Pictures of two classes with manifests: text by names to train, CSV by numbers to validate and test."""
    dice = np.random.default_rng(0)
    rows = []
    for number in range(24):
        path = tmp_path / "data" / "all pictures" / f"{number:02d}, a.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(dice.integers(0, 256, (70, 80, 3), dtype=np.uint8)).save(path, quality=90)
        rows.append((f"all pictures\\{path.name}", number % 2))
    (tmp_path / "data" / "names.txt").write_bytes(b"red fox\r\ncat\r\n")
    lines = [f"{path} {('red fox', 'cat')[label]}\r\n" for path, label in rows[:16]]
    (tmp_path / "data" / "train.txt").write_bytes("".join(lines).encode())
    for name, part in (("val", rows[16:20]), ("test", rows[20:])):
        with (tmp_path / "data" / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("path", "label"), *part])
    return tmp_path / "data"


@pytest.mark.parametrize("processes", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_manifest(tmp_path: Path, listed: Path, processes: int) -> None:
    before = list_files(listed)
    settings = {"source": "manifest", "train": "train.txt", "val": "val.csv", "test": "test.csv"}
    settings["classes"] = "names.txt"
    words = configure(tmp_path, **{f"data__{key}": value for key, value in settings.items()})
    text = call_well("train", *words, processes=processes)
    assert "manifest: 16 train, 4 val, 4 test images" in text
    assert json.loads((tmp_path / "run" / "model" / "config.json").read_text())["classes"] == ["red fox", "cat"]
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    assert {row["num_examples"] for row in rows if row["event"] in ("eval", "test")} == {4}
    assert text.count(" predict ") == 1
    call_well("evaluate", "--model", tmp_path / "run", "--out", tmp_path / "out.json", processes=processes)
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["top1"] == pytest.approx(read_summary(tmp_path)["best_top1"], abs=1e-12)
    assert result["images"] == str(listed)
    assert list_files(listed) == before


@pytest.mark.slow
@pytest.mark.skipif(TEST_DATA is None, reason="ALEXNET_DIST_TEST_DATA is not set")
def test_two_epochs_of_the_real_fashion_mnist(tmp_path: Path) -> None:
    root = Path(str(TEST_DATA)) / "fashion_mnist"
    before = list_files(root)
    words = configure(
        tmp_path,
        data__source="fashion_mnist",
        data__root=str(root),
        data__val_fraction=0.2,
        data__test="test",
        data__workers=1,
        model__in_channels=1,
        augment__lighting=None,
        optimizer__name="adam",
        optimizer__lr=0.001,
        train__max_steps=None,
        train__epochs=2,
        train__global_batch_size=64,
        log__every_steps=100,
        checkpoint__every_steps=None,
    )
    call_well("train", *words)
    assert read_summary(tmp_path)["epoch"] == 2
    assert read_summary(tmp_path)["test_top1"] > 0.5
    assert list_files(root) == before


@pytest.mark.slow
def test_a_source_of_the_page_is_one_file_and_one_line(tmp_path: Path) -> None:
    """In a copy of the package, with what docs/data-sources.md says and nothing else, with its own commands."""
    code, line = read_code("data-sources.md")
    for folder in ("alexnet_dist", "configs", "launch"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    (tmp_path / "alexnet_dist" / "data" / "sources" / "npy.py").write_text(code)
    table = tmp_path / "alexnet_dist" / "base" / "sources.py"
    before, after = table.read_text().split('    "digits": ')
    table.write_text(f'{before}{line}    "digits": {after}')
    save_npy_folders(tmp_path / "data" / "npy")
    commands = next(text for text in read_code("data-sources.md", "") if "--data.source npy" in text)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    train, evaluate = (shlex.split(command)[1:] for command in commands.splitlines())
    sizes = ["--train.max_steps", "1", "--train.global_batch_size", "4", "--data.val", "val", *NOTHING_DRAWN]
    for words in ([*train, *sizes], evaluate):
        done = subprocess.run(
            [sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200
        )
        assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["num_examples"] == 12


def test_a_life_on_shards(tmp_path: Path) -> None:
    for number in range(24):
        save_jpeg(tmp_path / "pictures" / ("ant", "bee", "cat")[number % 3] / f"{number}.jpg", 90, 80)
    shards = tmp_path / "data"
    write_shards(shards, read_files(tmp_path / "pictures"), 3)
    words = configure(
        tmp_path, data__source="tar", data__train="train-*.tar", data__val_fraction=0.25, model__num_classes=None
    )
    assert "tar: 18 train, 6 val" in call_well("train", *words)
    held_out = (tmp_path / "run" / "held_out.csv").read_text().splitlines()
    assert all(line.startswith("train-000") and ".tar!" in line for line in held_out[1:])
    assert '"num_examples": 6' in call_well("evaluate", "--model", tmp_path / "run")
    member = held_out[1].partition(",")[0]
    assert member in call_well("predict", tmp_path / "run", tmp_path / "data" / member)
    picture = tmp_path / "pictures" / member.partition("!")[2]
    picture.write_bytes(picture.read_bytes()[:-300])
    write_shards(shards, read_files(tmp_path / "pictures"), 3)
    code, errors, _ = call("evaluate", "--model", tmp_path / "run")
    assert (code, len(errors)) == (3, 1)
    out = tmp_path / "bad.csv"
    data = ("--data.source", "tar", "--data.root", shards, "--data.train", "train-*.tar")
    code, _, _ = call("prepare", "verify", *data, "--data.cache_dir", tmp_path / "cache", "--out", out)
    assert code == 3
    assert out.read_text().splitlines()[1].startswith(f"{member},")
    code, errors, _ = call("train", *words, "--train.max_steps", "4")
    assert (code, len(errors)) == (3, 1)
    assert member in errors[0]


@pytest.mark.parametrize(
    "name",
    [
        "parquet",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("imagenet", "manifest", "inside", "half extracted", "kaggle")
        ),
    ],
)
def test_a_part_is_held_out_evaluated_again_and_cut_into_folds(tmp_path: Path, name: str) -> None:
    settings = write_source(name, tmp_path / "data")
    words = configure(
        tmp_path,
        **{f"data__{key}": value for key, value in settings.items() if key not in ("root", "val")},
        data__val_fraction=0.2,
        model__num_classes=None,
        train__global_batch_size=6,
    )
    assert "12 train, 3 val" in call_well("train", *words)
    held_out = read_csv(tmp_path / "run" / "held_out.csv")
    assert sorted(row["class"] for row in held_out) == sorted(IDS)
    assert '"num_examples": 3' in call_well("evaluate", "--model", tmp_path / "run")
    val = ("--data.val", settings["val"])
    assert '"num_examples": 6' in call_well("evaluate", "--model", tmp_path / "run", *val)
    if name == "parquet":
        assert '"num_examples": 6' in call_well("evaluate", tmp_path / "run", tmp_path / "data")
    call_well("crossval", *words, "--folds", 2, "--output_dir", tmp_path / "folds")
    table = json.loads((tmp_path / "folds" / "crossval.json").read_text())
    assert len(table["folds"]) == 2


@pytest.mark.parametrize("name", ["tar", "parquet"])
def test_an_archive_that_is_replaced_during_a_run_is_not_read(tmp_path: Path, name: str) -> None:
    settings = write_source(name, tmp_path / "data")
    values = {f"data__{key}": value for key, value in settings.items() if key != "root"}
    words = configure(tmp_path, **values, data__workers=0, model__num_classes=None, train__max_steps=8)
    config = load_config(words[1], {})

    def replace() -> bool:  # asked between two updates
        for place in [*(tmp_path / "data").glob("*-0000.tar"), *(tmp_path / "cache").rglob("*.pack")]:
            place.write_bytes(place.read_bytes() + bytes(512))
        return False

    with pytest.raises(BadFilesError, match="its container changed since it was listed"):
        train(config, stop=replace)
    call_well("train", *words)  # the archive is listed, and the pack is made, anew: the pictures are the same
