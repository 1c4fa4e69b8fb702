"""`predict` of the Python API: the verb's classes and probabilities, for a network in hand or one that is named."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.archives import write_nested, write_tar, write_zip
from helpers.models import write_model_and_pictures

from alexnet_dist import AlexNet, from_pretrained, predict
from alexnet_dist.base.errors import CheckpointError, DataError, MachineError, UsageError
from alexnet_dist.cli.predict import predict_files


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_and_pictures(tmp_path_factory.mktemp("predict"))


def list_pictures(folder: Path) -> list[Path]:
    return sorted((folder / "pictures").iterdir())


def test_predictions_are_the_verbs(folder: Path) -> None:
    paths = list_pictures(folder)
    wanted = list(predict_files(folder, [str(path) for path in paths], 3, "cpu"))
    assert [row.error is None for row in wanted] == [True, True, True, False, False]
    assert predict(folder, paths, topk=3, device="cpu") == wanted
    found = predict(from_pretrained(folder), paths, topk=3)
    for ours, theirs in zip(found, wanted, strict=True):
        assert (ours.label, ours.error, ours.path) == (theirs.label, theirs.error, theirs.path)
        assert [value for _, value in ours.top] == pytest.approx([value for _, value in theirs.top], rel=1e-6)


def test_an_archive_is_its_pictures(folder: Path, tmp_path: Path) -> None:
    write = {"one.tar": write_tar, "two.zip": write_zip, "three.tar": write_nested}
    members = {f"a/{path.name}": path.read_bytes() for path in list_pictures(folder)}
    wanted = predict(folder, list_pictures(folder))
    for name, writer in write.items():
        writer(tmp_path / name, members | {"a/notes.txt": b"x"})
        found = predict(folder, [tmp_path / name, list_pictures(folder)[0]])
        assert [row.path.replace(".tar!", "/")[-7:] for row in found[:-1]] == [f"a/{number}.png" for number in range(5)]
        assert [row[1:] for row in map(dataclasses.astuple, found[:-1])] == [
            row[1:] for row in map(dataclasses.astuple, wanted)
        ]
        assert (found[-1].path, found[-1].label) == (wanted[0].path, wanted[0].label)
        (alone,) = predict(folder, found[1].path)
        assert (alone.path, alone.label) == (found[1].path, wanted[1].label)
        assert predict(folder, f"{tmp_path / name}!a") == found[:-1]
    with pytest.raises(DataError, match=r"no 'b\.png' in it"):
        predict(folder, f"{tmp_path}/one.tar!b.png")


@pytest.mark.parametrize("labels", [[0, 1, 0, 1, 0, 1], None])
def test_a_parquet_file_is_its_pictures(folder: Path, tmp_path: Path, labels: list[int] | None) -> None:
    parquet = pytest.importorskip("helpers.parquet_files")
    pictures = [(path.name, path.read_bytes()) for path in list_pictures(folder)]
    place = parquet.write_parquet(tmp_path / "data" / "some.parquet", [*pictures, ("to/nowhere.png", None)], labels)
    six = [*list_pictures(folder), tmp_path / "gone.png"]  # last bits follow the size of the batch
    wanted = [dataclasses.astuple(row)[1:] for row in predict(folder, six)[:5]]
    *found, other = predict(folder, [place, list_pictures(folder)[0]])
    assert [row.path for row in found[:5]] == [f"{place}!{number}/{number}.png" for number in range(5)]
    assert [dataclasses.astuple(row)[1:] for row in found] == [*wanted, (None, None, [], "empty file", 3)]
    (alone,) = predict(folder, f"{place}!1")
    assert [alone] == predict(folder, f"{place}!1/1.png")
    assert (alone.path, alone.label, other.label) == (found[1].path, found[1].label, found[0].label)
    with pytest.raises(DataError, match=r"no '6' in it"):
        predict(folder, f"{place}!6")


@pytest.mark.parametrize(
    ("content", "message"), [("junk", "cannot read the parquet file"), ("texts", "pictures is known")]
)
def test_a_parquet_file_without_pictures_is_one_line(folder: Path, tmp_path: Path, content: str, message: str) -> None:
    arrow = pytest.importorskip("pyarrow")
    path = tmp_path / "a.parquet"
    if content == "junk":
        path.write_bytes(b"PAR1 and no more PAR1")
    else:
        pytest.importorskip("pyarrow.parquet").write_table(arrow.table({"text": ["a"]}), path)
    with pytest.raises(DataError, match=message):
        predict(folder, path)


def test_a_single_path_is_one_picture(folder: Path) -> None:
    (alone,) = predict(str(folder / "model"), str(list_pictures(folder)[0]))
    assert alone.label == alone.top[0][0]
    assert math.isclose(sum(value for _, value in alone.top), 1, rel_tol=1e-6)  # all classes of the tiny network
    assert predict(folder, []) == []


@pytest.mark.parametrize("training", [True, False])
def test_a_network_in_hand_keeps_its_mode_and_the_programs_precision(folder: Path, training: bool) -> None:
    model = AlexNet.from_pretrained(folder).train(training)
    before = torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision
    assert predict(model, list_pictures(folder)) == predict(model.eval(), list_pictures(folder))  # without dropout
    model.train(training)
    predict(model, list_pictures(folder))
    assert model.training is training
    assert (torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision) == before


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"topk": 0}, UsageError, "topk must be 1 or more"),
        ({"device": "gpu"}, ValueError, "no device 'gpu'; there are auto, cpu and cuda"),
        ({"device": "cuda"}, MachineError, "no CUDA device"),
        ({"model": torch.nn.Linear(1, 1)}, TypeError, "got Linear"),
        ({"model": Path("nowhere")}, (CheckpointError, MachineError), "no model"),
    ],
)
def test_what_cannot_be_meant_is_refused(folder: Path, changes: dict[str, Any], kind: Any, words: str) -> None:
    if changes.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(kind, match=words):
        predict(**{"model": folder, "paths": list_pictures(folder), **changes})


def test_predictions_are_plain_values(folder: Path) -> None:
    (row,) = predict(folder, list_pictures(folder)[3])
    assert dataclasses.asdict(row) == {
        "path": str(list_pictures(folder)[3]),
        "label": None,
        "confidence": None,
        "top": [],
        "error": row.error,
        "exit_code": 3,
    }
