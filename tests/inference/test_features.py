"""Features of pictures, and the files that hold them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from helpers.models import write_model_and_pictures
from helpers.refusals import refused
from torchvision.models.feature_extraction import create_feature_extractor

from alexnet_dist import AlexNet
from alexnet_dist.base.errors import DataError, MachineError, UsageError
from alexnet_dist.cli.main import run
from alexnet_dist.data.sources.loose import open_pictures
from alexnet_dist.inference import features_file
from alexnet_dist.inference.features import check_layer, compute_features, read_features
from alexnet_dist.inference.features_file import check_ending, write_features

ENDINGS = ("npz", "parquet")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_and_pictures(tmp_path_factory.mktemp("features"))


def read_file(path: Path) -> tuple[list[str], npt.NDArray[np.float32], str]:
    """What a file of features holds, as its readers see it."""
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return arrays["paths"].tolist(), arrays["features"], str(arrays["layer"])
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(path)
    rows = np.array(table["embedding"].to_pylist(), np.float32)
    return table["path"].to_pylist(), rows, table.schema.metadata[b"layer"].decode()


def test_features_are_those_of_torchvisions_extractor(folder: Path) -> None:
    model = AlexNet.from_pretrained(folder)
    images = model.preprocess([folder / "pictures" / f"{number}.png" for number in range(3)])
    behind = {"conv1": "features.1", "conv5": "features.13", "fc6": "classifier.1", "fc7": "classifier.4"}
    with torch.no_grad():
        for layer, node in {**behind, "fc8": "classifier.6"}.items():
            wanted = create_feature_extractor(model, {node: "x"})(images)["x"].flatten(1)
            assert torch.equal(compute_features(model, images, layer), wanted), layer
    half = compute_features(model.bfloat16(), images.bfloat16(), "fc7")
    assert half.dtype == torch.float32
    assert torch.allclose(half, compute_features(model.float(), images, "fc7"), rtol=0.1, atol=0.1)


def test_pictures_that_cannot_be_used_are_left_out(folder: Path) -> None:
    model = AlexNet.from_pretrained(folder)
    paths = [str(folder / "pictures" / f"{number}.png") for number in range(5)]
    (batch,) = read_features(model, model.card, open_pictures(paths), "fc7")
    assert batch.paths == paths[:3]
    assert torch.equal(
        torch.from_numpy(batch.features), compute_features(model, model.preprocess(paths[:3]), "fc7").detach()
    )
    assert [(path, code) for path, _, code in batch.left_out] == [(path, DataError.exit_code) for path in paths[3:]]
    with torch.no_grad():
        next(model.parameters())[0, 0, 0, 0] = torch.inf
    (batch,) = read_features(model, model.card, open_pictures(paths[:1]), "fc7")
    assert batch.features.shape == (0, 16)
    assert "not finite" in batch.left_out[0][1]


def make_parts(sizes: tuple[int, ...]) -> Iterator[features_file.Rows]:
    rng = np.random.default_rng(0)
    for number, size in enumerate(sizes):
        names = [f"{number}/{row}-größe\udce9.png" for row in range(size)]
        yield names, rng.standard_normal((size, 5), np.float32)


@pytest.mark.parametrize("sizes", [(0,), (1,), (2, 0, 3), (7, 1)])
@pytest.mark.parametrize("ending", ENDINGS)
def test_files_hold_all_rows_whatever_the_parts(
    tmp_path: Path, ending: str, sizes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features_file, "CHUNK_BYTES", 60)  # a row group for three rows
    path = tmp_path / f"features.{ending}"
    assert write_features(path, make_parts(sizes), "fc6") == (sum(sizes), 5)
    paths, rows, layer = read_file(path)
    parts = list(make_parts(sizes))
    escape = {"npz": "\udce9", "parquet": "\\udce9"}[ending]
    assert paths == [name.replace("\udce9", escape) for names, _ in parts for name in names]
    assert np.array_equal(rows.reshape(-1, 5), np.concatenate([part for _, part in parts]))
    assert layer == "fc6"
    before = path.read_bytes()
    write_features(path, make_parts(sizes), "fc6")
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]  # nothing is left beside it


def test_a_file_that_cannot_be_written_whole_is_not_there(tmp_path: Path) -> None:
    def break_off() -> Iterator[features_file.Rows]:
        yield from make_parts((2,))
        raise OSError(28, "No space left on device")

    line = refused(lambda: write_features(tmp_path / "x.npz", break_off(), "fc7"), MachineError)
    assert "cannot write x.npz" in line
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_meant_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "give one of conv1, conv2, " in refused(lambda: check_layer("fc9"), UsageError)
    for name in ("rows.csv", "features", ".npz"):
        assert "end it in .npz or .parquet" in refused(lambda name=name: check_ending(Path(name)), UsageError)
    monkeypatch.setattr("alexnet_dist.base.extras.is_installed", lambda package: False)
    assert "alexnet_dist[parquet]" in refused(lambda: check_ending(Path("x.parquet")), MachineError)
    check_ending(Path("x.NPZ"))


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_verb_writes_a_row_for_each_good_picture(
    folder: Path, tmp_path: Path, ending: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(folder), str(folder / "pictures"), "--features", "fc7", "--out", str(tmp_path / f"x.{ending}")]
    assert run("predict", words) == 3
    said = capsys.readouterr().out
    assert "fc7: 3 pictures, 16 values each" in said
    assert said.count("error: ") == 2
    paths, rows, layer = read_file(tmp_path / f"x.{ending}")
    assert paths == [str(folder / "pictures" / f"{number}.png") for number in range(3)]
    model = AlexNet.from_pretrained(folder)
    wanted = compute_features(model, model.preprocess(paths), "fc7").detach().numpy()
    np.testing.assert_allclose(rows, wanted, rtol=1e-5, atol=1e-6)  # the verb lays channels last
    assert layer == "fc7"
    for more, why in (
        ([], "--out is there already"),
        (["--overwrite", "--explain", str(tmp_path)], "--features and --explain exclude each other"),
        (["--overwrite", "--format", "csv"], "--features and --format exclude each other"),
    ):
        assert run("predict", [*words, *more]) == 2
        assert why in capsys.readouterr().err
    assert run("predict", words[:4]) == 2
    assert "--features needs --out" in capsys.readouterr().err
