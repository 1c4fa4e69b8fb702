"""Pictures that decode well but that the recipe cannot be carried out on, in every engine and verb."""

from __future__ import annotations

import csv
import importlib.util
from pathlib import Path
from typing import Any

import pytest
from helpers.images import save_jpeg
from helpers.tiny import tiny_config

from alexnet_dist.cli.main import run
from alexnet_dist.settings.reader import dump_config

LINE, SMALL = "train/cat/line.jpg", "train/dog/small.jpg"
has_dali = importlib.util.find_spec("nvidia") is not None and importlib.util.find_spec("nvidia.dali") is not None
each_engine = pytest.mark.parametrize(
    "engine",
    ["torchvision", "cache", pytest.param("dali", marks=pytest.mark.skipif(not has_dali, reason="no DALI"))],
)


def make_set(root: Path, **sizes: tuple[int, int]) -> None:
    for number in range(12):
        save_jpeg(root / "train" / ("cat", "dog")[number % 2] / f"{number}.jpg", 70 + number, 80)
    for path, size in ((LINE, sizes.get("line")), (SMALL, sizes.get("small"))):
        if size:
            save_jpeg(root / path, *size)


def write_settings(tmp_path: Path, **overrides: Any) -> str:
    settings = {
        "data__source": "folder",
        "data__root": str(tmp_path / "data"),
        "data__val_fraction": 0.0,
        "data__cache_dir": str(tmp_path / "cache"),
        "augment__resize": 66,
        "train__epochs": 2,
        "train__global_batch_size": 7,
        **overrides,
    }
    (tmp_path / "config.yaml").write_text(dump_config(tiny_config(tmp_path / "run", **settings)))
    return str(tmp_path / "config.yaml")


def read_list(path: Path) -> dict[str, str]:
    with path.open() as file:
        rows = [(row["path"], row["reason"]) for row in csv.DictReader(file)]
    assert len(dict(rows)) == len(rows)  # each file once
    return dict(rows)


@each_engine
def test_they_are_left_out_and_listed_under_skip(tmp_path: Path, engine: str) -> None:
    make_set(tmp_path / "data", line=(12_000, 1))
    config = write_settings(tmp_path, data__engine=engine, data__on_bad_file="skip")

    assert run("train", ["--config", config]) == 0

    reasons = read_list(tmp_path / "run" / "bad_files.csv")
    assert reasons == {LINE: "it would become too large: 792000 x 66 after augment.resize"}


def test_a_cache_of_them_is_made_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    make_set(tmp_path / "data", line=(12_000, 1))
    config = write_settings(tmp_path, data__engine="cache", data__on_bad_file="skip")
    for output, is_made in (("run", True), ("again", False)):
        assert run("train", ["--config", config, "--output_dir", str(tmp_path / output)]) == 0
        said = "".join(capfd.readouterr())
        assert ("cached 13 images" in said) == is_made
        assert "made again" not in said


@each_engine
def test_they_are_named_at_the_start_under_fail(
    tmp_path: Path, engine: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make_set(tmp_path / "data", small=(40, 63))
    config = write_settings(tmp_path, data__engine=engine, augment__resize=None)

    assert run("train", ["--config", config]) == 3

    assert (
        f"error: an image does not fit the recipe ({tmp_path / 'data' / SMALL}): smaller than"
        in capsys.readouterr().err
    )
    assert [*read_list(tmp_path / "run" / "bad_files.csv")] == [SMALL]


@pytest.mark.parametrize("policy", ["skip", "fail"])
def test_the_other_verbs_count_them(tmp_path: Path, policy: str, capsys: pytest.CaptureFixture[str]) -> None:
    make_set(tmp_path / "data", line=(1, 12_000), small=(63, 200))
    config = write_settings(tmp_path, data__on_bad_file=policy, augment__resize=None)
    is_skipped = policy == "skip"
    # Neither is as wide as the crop.
    assert run("prepare", ["verify", "--config", config, "--out", str(tmp_path / "bad.csv")]) == 3
    assert [*read_list(tmp_path / "bad.csv")] == [LINE, SMALL]
    assert run("prepare", ["cache", "--config", config]) == (0 if is_skipped else 3)
    assert run("train", ["--config", config]) == (0 if is_skipped else 3)
    if is_skipped:
        capsys.readouterr()
        given = ["--model", str(tmp_path / "run"), "--data.val", "train"]
        assert run("evaluate", given) == 0
        output = capsys.readouterr()
        assert '"num_examples": 12' in output.out
        assert '"num_bad_files": 2' in output.out
        assert str(tmp_path / "data" / SMALL) in output.err


def test_where_none_fits_it_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_set(tmp_path / "data")
    config = write_settings(tmp_path, data__on_bad_file="skip", augment__resize=60)
    assert run("train", ["--config", config]) == 3
    assert "no image fits the recipe" in capsys.readouterr().err


def test_a_random_resized_crop_takes_every_picture(tmp_path: Path) -> None:
    make_set(tmp_path / "data", line=(12_000, 1), small=(9, 9))
    config = write_settings(tmp_path, augment__crop="random_resized")
    assert run("prepare", ["verify", "--config", config, "--out", str(tmp_path / "bad.csv")]) == 0
    assert run("train", ["--config", config]) == 0
