"""The same pictures as files, shards, a tar, a tar of tars, a zip and parquet train the same, to the last bit."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.archives import FORMS, read_files, write_forms
from helpers.images import save_jpeg
from helpers.one_run import take_digest
from helpers.parquet_files import write_folder_as_parquet
from helpers.tiny import tiny_config
from helpers.verbs import call_well

from alexnet_dist.settings.reader import dump_config


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root: Path = tmp_path_factory.mktemp("pictures")
    for part, count in (("train", 8), ("val", 3)):
        for number in range(count):
            for name, size in (("ant", (90, 80)), ("bee", (76, 100)), ("cat", (72, 72))):
                save_jpeg(root / "files" / part / name / f"{number}.jpg", *size)
        files = read_files(root / "files" / part)
        write_forms(root, part, files, 3)
        write_folder_as_parquet(root / "files" / part, root / "parquet", ("ant", "bee", "cat"), split=part)
    return root


def train(root: Path, tmp_path: Path, form: str, engine: str, processes: int) -> str:
    """sha256 of the weights of a run."""
    config = tiny_config(
        tmp_path / form,
        data__source={"files": "folder", "parquet": "parquet"}.get(form, "tar"),
        data__root=str(root / form),
        data__val="val",
        data__engine=engine,
        data__cache_dir=str(tmp_path / "cache" / form),
        augment__resize=72,
        model__num_classes=None,
        train__epochs=2,
        checkpoint__every_steps=100,
    )
    (tmp_path / "tiny.yaml").write_text(dump_config(config))
    text = call_well("train", "--config", tmp_path / "tiny.yaml", processes=processes)
    assert "24 train, 9 val" in text
    return take_digest(tmp_path / form)


@pytest.mark.parametrize(
    ("engine", "processes", "forms"),
    [
        ("torchvision", 1, [*FORMS, "parquet"]),
        pytest.param("torchvision", 2, ["shards", "parquet"], marks=pytest.mark.slow),
        ("cache", 1, ["nested", "parquet"]),
        ("dali", 1, ["shards", "parquet"]),
    ],
)
def test_one_digest(pictures: Path, tmp_path: Path, engine: str, processes: int, forms: list[str]) -> None:
    if engine == "dali":
        pytest.importorskip("nvidia.dali")
    digests = {form: train(pictures, tmp_path, form, engine, processes) for form in ("files", *forms)}
    assert len(set(digests.values())) == 1, digests
