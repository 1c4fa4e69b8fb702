"""Folds: every image is held out once, whatever else is set, and what cannot be cut is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.images import save_jpeg
from helpers.refusals import refused
from helpers.tiny import tiny_config

from alexnet_dist.assembly.sets import build_splits
from alexnet_dist.base.errors import UsageError
from alexnet_dist.cli.crossval import configure_fold
from alexnet_dist.cli.main import run
from alexnet_dist.data.folds import draw_stratified, split_fold
from alexnet_dist.data.index import BadFile, SampleIndex
from alexnet_dist.data.sources.synthetic import synthetic_index
from alexnet_dist.runs.crossval_table import FoldResult, format_table, write_table
from alexnet_dist.settings.reader import load_config
from alexnet_dist.settings.schema import Config, DataConfig


def make_index(*counts: int) -> SampleIndex:
    """An index with so many images of each class."""
    index = synthetic_index(sum(counts), len(counts), (8, 8), seed=0)
    return replace(index, labels=np.repeat(np.arange(len(counts)), counts))


@pytest.mark.parametrize(("counts", "num_folds"), [((20, 20), 5), ((7, 13, 30), 5), ((3, 3), 3), ((2, 0, 9), 2)])
def test_each_image_is_held_out_once(counts: tuple[int, ...], num_folds: int) -> None:
    index = make_index(*counts)
    splits = [split_fold(index, num_folds, fold, seed=1) for fold in range(1, num_folds + 1)]
    assert sorted(path for _, val in splits for path in val.paths) == sorted(index.paths)
    order = {path: position for position, path in enumerate(index.paths)}
    for train, val in splits:
        assert sorted([*train.paths, *val.paths]) == sorted(index.paths)
        assert [order[path] for path in val.paths] == sorted(order[path] for path in val.paths)
        wanted = np.bincount(index.labels, minlength=len(counts)) / num_folds
        assert np.abs(np.bincount(val.labels, minlength=len(counts)) - wanted).max() < 1


def test_folds_are_shuffled_and_follow_the_seed() -> None:
    index = make_index(30, 30)
    first, again, other = (split_fold(index, 3, 2, seed)[1].paths for seed in (7, 7, 2**40 + 1))
    assert first == again
    assert first != other
    assert list(first) != sorted(index.paths)[10:20] + sorted(index.paths)[40:50]


@pytest.mark.parametrize("fraction", [0.1, 0.2, 1 / 3, 0.5, 0.85])
@pytest.mark.parametrize("num_classes", [1, 2, 3, 10, 100])
def test_a_validation_set_is_the_one_that_scikit_learn_draws(num_classes: int, fraction: float) -> None:
    from sklearn.model_selection import train_test_split

    draws = np.random.default_rng(num_classes)
    for seed in (0, 1, 7, 2**32 - 1):
        # Some labels do not occur, and equal counts make the lot decide.
        counts = draws.integers(2, 4 if seed == 1 else 40, num_classes)
        labels = draws.permutation(np.repeat(2 * np.arange(num_classes), counts))
        num_val = min(max(round(len(labels) * fraction), num_classes), len(labels) - num_classes)
        expected = train_test_split(np.arange(len(labels)), test_size=num_val, stratify=labels, random_state=seed)
        found = draw_stratified(labels, num_val, seed)
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_array_equal(ours, np.sort(theirs))


def test_bad_files_are_reported_once() -> None:
    index = replace(make_index(4, 4), bad_files=(BadFile("a.jpg", "empty file"),))
    train, val = split_fold(index, 2, 1, seed=0)
    assert train.bad_files == index.bad_files
    assert val.bad_files == ()


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ((9, 4, 9), ["into 5 folds", "class 'class-001' has 4 images", "use at most 4 folds"]),
        ((1, 9), ["class 'class-000' has 1 image, fewer", "; add images of it"]),
    ],
)
def test_a_class_smaller_than_the_folds_is_named(counts: tuple[int, ...], words: list[str]) -> None:
    line = refused(lambda: split_fold(make_index(*counts), 5, 1, seed=0))
    assert [word for word in words if word not in line] == []


def test_a_fold_is_a_runs_validation_set(tmp_path: Path) -> None:
    data = DataConfig(source="synthetic", synthetic_images=60, synthetic_classes=3, folds=4, fold=2)
    splits = build_splits(data, 3, progress=False)
    assert splits.is_held_out
    assert splits.val is not None
    expected = split_fold(synthetic_index(60, 3, (256, 256), seed=3), 4, 2, seed=3)
    assert (splits.train.paths, splits.val.paths) == (expected[0].paths, expected[1].paths)
    unused = replace(data, val_fraction=0.5)
    assert build_splits(unused, 3, progress=False).fingerprint == splits.fingerprint


def test_folds_without_a_fold_are_refused_before_anything_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(lambda: build_splits(DataConfig(source="synthetic", folds=4), 0, False), UsageError)
    assert "data.fold is missing: data.folds is 4; set --data.fold 1" in line
    assert run("train", ["--config", "smoke", "--data.folds", "4", "--output_dir", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err.endswith(f"\nerror: {line}\n")
    assert not (tmp_path / "run").exists()


# -- the verb ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "error: --config is missing"),
        (["--config", "smoke", "--folds", "1"], "error: --folds must be 2 or more: got 1"),
        (["--config", "smoke", "--folds", "3", "--data.folds", "4"], "error: --folds and --data.folds differ"),
        (["--config", "smoke", "--data.fold", "2"], "error: data.fold has no effect: crossval trains every fold"),
        (["--config", "smoke", "--data.val", "val"], "error: data.folds and data.val exclude each other"),
        (["--config", "smoke", "--fold", "3"], "error: unknown option --fold (command line); did you mean --"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("crossval", words) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(message)
    assert printed.count("\n") == 1


@pytest.mark.heavy
def test_too_many_folds_end_before_a_fold_begins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(9):
        save_jpeg(tmp_path / "data" / "train" / ("cat" if number < 3 else "dog") / f"{number}.jpg")
    words = ["--config", "smoke", "--data.source", "folder", "--data.root", str(tmp_path / "data"), "--folds", "4"]
    out = ["--output_dir", str(tmp_path / "out"), "--data.cache_dir", str(tmp_path / "cache")]
    assert run("crossval", [*words, *out, "--quiet"]) == 3
    line = capsys.readouterr().err
    assert "class 'cat' has 3 images, fewer than folds; use at most 3 folds" in line
    assert line.count("\n") == 1
    assert not (tmp_path / "out" / "fold-1").exists()


@pytest.mark.heavy  # crossval starts the server that decoding processes come from
def test_bad_files_are_listed_beside_the_folds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(6):
        save_jpeg(tmp_path / "data" / "train" / ("cat" if number < 3 else "dog") / f"{number}.jpg")
    (tmp_path / "data" / "train" / "cat" / "2.jpg").write_bytes(b"")
    words = ["--config", "smoke", "--data.source", "folder", "--data.root", str(tmp_path / "data"), "--folds", "2"]
    out = ["--output_dir", str(tmp_path / "out"), "--data.cache_dir", str(tmp_path / "cache")]
    assert run("crossval", [*words, *out, "--quiet"]) == 3
    assert capsys.readouterr().err.count("\n") == 1
    assert (tmp_path / "out" / "bad_files.csv").read_text() == "path,reason\ntrain/cat/2.jpg,empty file\n"


@pytest.mark.parametrize(
    ("in_file", "words", "expected"),
    [("", [], 5), ("data: {folds: 3}\n", [], 3), ("data: {folds: 3}\n", ["--folds", "7"], 7)],
)
def test_how_many_folds(
    tmp_path: Path, in_file: str, words: list[str], expected: int, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(in_file or "seed: 1\n")
    given = ["--train.epochs", "1", "--data.root", "x", *words, "--print_config"]
    assert run("crossval", ["--config", str(file), *given]) == 0
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    assert load_config(str(tmp_path / "printed.yaml"), {}).data.folds == expected


# -- the table --------------------------------------------------------------------------------------------------------


def make_result(fold: int, top1: float, **values: Any) -> FoldResult:
    defaults: dict[str, Any] = {"num_train": 80, "num_val": 20, "top5": 1.0, "loss": 0.5, "best_top1": 0.9}
    defaults |= {"best_epoch": 3, "test_top1": None, "epoch": 4, "step": 40, "train_seconds": 2.0}
    return FoldResult(fold=fold, top1=top1, **(defaults | values))


def table_config(out: Path, **overrides: Any) -> Config:
    return tiny_config(out, data__folds=3, **overrides)


@pytest.mark.heavy
def test_the_table_has_mean_and_sample_deviation(tmp_path: Path) -> None:
    config = table_config(tmp_path)
    results = [make_result(1, 0.5), make_result(2, 0.6), make_result(3, 0.7)]
    write_table(config, results, world_size=2, precision="fp32")
    found = json.loads((tmp_path / "crossval.json").read_text())
    assert found["status"] == "finished"
    assert found["mean"]["top1"] == pytest.approx(0.6)
    assert found["std"]["top1"] == pytest.approx(0.1)  # 0.082 if divided by n
    assert found["mean"]["test_top1"] is None
    assert [fold["top1"] for fold in found["folds"]] == [0.5, 0.6, 0.7]
    assert found["settings"]["data"]["folds"] == 3
    rows = [line.split(",") for line in (tmp_path / "crossval.csv").read_text().splitlines()]
    column = rows[0].index("top1")
    assert [row[0] for row in rows] == ["fold", "1", "2", "3", "mean", "std"]
    assert float(rows[4][column]) == pytest.approx(0.6)
    assert float(rows[5][column]) == pytest.approx(0.1)
    text = format_table(config, results)
    mean, std = ([line.split() for line in text.splitlines() if line.startswith(name)] for name in ("mean", "std"))
    assert mean == [["mean", "60.00", "100.00", "90.00"]]
    assert [cells[:2] for cells in std] == [["std", "10.00"]]


@pytest.mark.heavy
def test_one_fold_has_no_deviation(tmp_path: Path) -> None:
    write_table(table_config(tmp_path), [make_result(2, 0.5)], world_size=1, precision="bf16")
    found = json.loads((tmp_path / "crossval.json").read_text())
    assert (found["status"], found["num_finished"], found["std"]["top1"]) == ("unfinished", 1, None)


@pytest.mark.parametrize(
    ("overrides", "word"), [({"train__early_stop": 2}, "train.early_stop"), ({"schedule__name": "plateau"}, "plateau")]
)
def test_what_the_fold_decides_is_said(tmp_path: Path, overrides: dict[str, Any], word: str) -> None:
    results = [make_result(1, 0.5)]
    assert f"{word} looks at the fold" in format_table(table_config(tmp_path, **overrides), results)
    assert "looks at the fold" not in format_table(table_config(tmp_path), results)


def test_runs_of_folds_have_names_of_their_own(tmp_path: Path) -> None:
    config = table_config(tmp_path / "study")
    runs = [configure_fold(config, fold) for fold in (1, 2)]
    assert [run.output_dir for run in runs] == [str(tmp_path / "study" / f"fold-{fold}") for fold in (1, 2)]
    assert [run.tracking.name for run in runs] == ["study-fold-1", "study-fold-2"]
    assert [run.data.fold for run in runs] == [1, 2]
