"""Every source of image files is listed, cut to a part, packed, verified and compared by `prepare`."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.sources import WRITERS, write_source

from alexnet_dist.assembly.sets import Splits, build_splits
from alexnet_dist.cli.prepare import manifest, pack, parity, subset, verify
from alexnet_dist.data.engines.choose import ENGINES
from alexnet_dist.data.engines.loader import Batch, Loader
from alexnet_dist.settings.reader import build_config

pytestmark = pytest.mark.heavy

LISTED = [name for name in WRITERS if name != "parquet"]


def find(tmp_path: Path, settings: dict[str, str]) -> Splits:
    values: dict[str, Any] = {f"data.{key}": value for key, value in settings.items()}
    data = build_config({"train.epochs": 1, "data.cache_dir": str(tmp_path / "cache"), **values}).data
    return build_splits(data, seed=0, progress=False)


def read(splits: Splits) -> list[tuple[str, bytes, str]]:
    found = []
    for part, index in splits.named().items():
        for sample in range(len(index)):
            encoded = index.find_encoded(sample)
            data = encoded if isinstance(encoded, bytes) else Path(str(encoded)).read_bytes()
            found.append((part, data, index.classes[index.labels[sample]]))
    return found


def read_settings(text: str) -> dict[str, str]:
    """The settings after `use:`, or after `train with`."""
    line = next(line for line in text.splitlines() if line.startswith(("use: ", "train with ")))
    words = shlex.split(line)
    return {word.removeprefix("--data."): words[at + 1] for at, word in enumerate(words) if word.startswith("--data.")}


def words(settings: dict[str, str], out: Path) -> list[str]:
    names = {"--data": "root", "--source": "source", "--train": "train", "--val": "val"}
    return [word for option, key in names.items() for word in (option, settings[key])] + ["--out", str(out)]


@pytest.mark.parametrize("name", LISTED)
def test_lists_are_the_set(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    settings = write_source(name, tmp_path / "root")
    whole = find(tmp_path, settings)
    assert manifest.main(words(settings, tmp_path / "lists")) == 0
    listed = find(tmp_path, read_settings(capsys.readouterr().out))
    assert listed.train.classes == whole.train.classes
    assert read(listed) == read(whole)


@pytest.mark.parametrize("name", LISTED)
def test_a_part_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    settings = write_source(name, tmp_path / "root")
    choice = ["--num_classes", "2", "--per_class", "3", "--val_per_class", "1"]
    assert subset.main([*words(settings, tmp_path / "lists"), *choice]) == 0
    part = find(tmp_path, read_settings(capsys.readouterr().out))
    assert np.bincount(part.train.labels).tolist() == [3, 3]
    assert part.val is not None
    assert np.bincount(part.val.labels).tolist() == [1, 1]
    assert set(read(part)) < set(read(find(tmp_path, settings)))


@pytest.mark.parametrize("name", WRITERS)
def test_all_of_it_or_a_part_is_packed(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    settings = write_source(name, tmp_path / "root")
    given = [word for key, value in settings.items() for word in (f"--data.{key}", value)]
    given += ["--data.cache_dir", str(tmp_path / "cache")]
    assert pack.main([*given, "--out", str(tmp_path / "all")]) == 0
    whole = find(tmp_path, settings)
    assert read(find(tmp_path, read_settings(capsys.readouterr().out))) == read(whole)
    choice = ["--num_classes", "2", "--per_class", "3"]
    assert pack.main([*given, *choice, "--out", str(tmp_path / "part"), "--labels", "json"]) == 0
    part = find(tmp_path, read_settings(capsys.readouterr().out))
    assert np.bincount(part.train.labels).tolist() == [3, 3]
    assert part.val is not None
    assert len(part.val) == 4
    assert set(read(part)) < set(read(whole))


@pytest.mark.parametrize("name", WRITERS)
def test_all_of_it_is_verified(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    settings = write_source(name, tmp_path / "root")
    given = [word for key, value in settings.items() for word in (f"--data.{key}", value)]
    given += ["--data.cache_dir", str(tmp_path / "cache"), "--out", str(tmp_path / "bad.csv")]
    assert verify.main(given) == 0
    said = capsys.readouterr().out.split()
    assert [said[said.index(part) + 1] for part in ("train", "val")] == ["15", "6"]


@pytest.fixture
def brighter(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that differs by a tenth of each pixel, so that differences tell which pictures were compared."""

    def iterate(loader: Loader, start: int, stop: int) -> Iterator[Batch]:
        for batch in ENGINES["torchvision"](loader, start, stop):
            yield batch._replace(images=1.1 * batch.images)

    monkeypatch.setitem(ENGINES, "brighter", iterate)


@pytest.mark.usefixtures("brighter")
@pytest.mark.parametrize("name", WRITERS)
def test_engines_are_compared_on_it(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    settings = write_source(name, tmp_path / "root")
    given = [word for key, value in settings.items() for word in (f"--data.{key}", value)]
    given += ["--data.cache_dir", str(tmp_path / "cache"), "--split", "val"]

    def compare(*words: str) -> tuple[int, list[float]]:
        common = ["--engines", "torchvision", "brighter", "--resize", "32", "--crop", "24", "--format", "json"]
        assert parity.main([*words, *common]) == 0
        report = json.loads(capsys.readouterr().out)
        (comparison,) = report["comparisons"]
        return report["num_images"], [stage["mean"] for stage in comparison["stages"][:3]]  # the last one is random

    count, means = compare(*given)
    assert (count, min(means) > 1) == (6, True)
    assert (count, pytest.approx(means)) == compare("--data", str(tmp_path / "pictures" / "val"))
