"""What is said and shown of a picture, beside what `predict` says; and what is refused, with which status."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.models import write_model_and_pictures
from PIL import Image

from alexnet_dist.cli.networks import open_network
from alexnet_dist.data.sources.loose import open_pictures
from alexnet_dist.inference.predict import describe_prediction, predict_pictures
from alexnet_dist.models import named_layers
from alexnet_dist.serving.markup import format_examination, format_head, format_refusal
from alexnet_dist.serving.pictures import FILTERS, Examiner
from alexnet_dist.serving.refusal import RefusedError

HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = {"data": {"max_pixels": 100_000}}
    return write_model_and_pictures(tmp_path_factory.mktemp("serve"), (HOSTILE, 'a"b&c'), settings=settings)


@pytest.fixture(scope="module")
def examiner(folder: Path) -> Examiner:
    return Examiner(*open_network(folder, "cpu"))


def test_classes_are_those_of_predict(folder: Path, examiner: Examiner) -> None:
    paths = [folder / "pictures" / f"{number}.png" for number in range(3)]
    expected = list(predict_pictures(examiner.network, examiner.card, open_pictures(list(map(str, paths))), 5))
    for path, prediction in zip(paths, expected, strict=True):
        found = describe_prediction(examiner.classify(path))
        assert [row["class"] for row in found["topk"]] == [name for name, _ in prediction.top]
        np.testing.assert_allclose([row["confidence"] for row in found["topk"]], [p for _, p in prediction.top], 1e-5)
        assert (found["class"], found["confidence"]) == (found["topk"][0]["class"], found["topk"][0]["confidence"])


def test_a_name_that_looks_like_an_archive_or_a_member_is_a_picture(tmp_path: Path, examiner: Examiner) -> None:
    for name in ("x.zip", "a!b.png", "ü .tar"):
        Image.new("RGB", (80, 80), "red").save(tmp_path / name, "PNG")
        assert examiner.classify(tmp_path / name).label


def test_filters_are_shown_where_they_answer(folder: Path, examiner: Examiner) -> None:
    found = examiner.examine(folder / "pictures" / "0.png")
    assert found.picture.shape == found.evidence.shape == (64, 64, 3)
    conv1 = named_layers(examiner.network)["conv1"]
    scale = examiner.card.normalization
    pixels = (torch.from_numpy(found.picture).float() - torch.tensor(scale.mean)) / torch.tensor(scale.std)
    with torch.no_grad():
        maps = conv1(examiner.network.pad(pixels.permute(2, 0, 1)[None]))[0].relu()
    assert len(found.filters) == min(FILTERS, len(maps))
    for view in found.filters:
        assert view.strength == pytest.approx(float(maps[view.number].max()), rel=0.02)  # the picture is in bytes
        assert view.weights.shape == (11, 11, 3)
        assert view.places.shape == (64, 64, 3)
    assert [view.strength for view in found.filters] == sorted((view.strength for view in found.filters), reverse=True)


def save_bytes(form: str, size: tuple[int, int]) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, "red").save(file, form)
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "status", "sentence"),
    [
        (b"no picture", 415, "not an image"),
        (b"", 415, "empty file"),
        (b"<!doctype html><p>", 415, "an HTML page, not an image"),
        (b"%PDF-1.7", 415, "a PDF document"),
        (save_bytes("PNG", (400, 300)), 413, "too many pixels (400x300, the limit is 100000)"),
        (save_bytes("JPEG", (99, 99))[:-200], 422, "damaged image"),
        (save_bytes("PNG", (99, 99))[:30], 422, "damaged PNG header"),
        (save_bytes("PNG", (1, 3000)), 422, "smaller than the crop of 64"),
    ],
    ids=("text", "empty", "page", "document", "bomb", "cut", "header", "narrow"),
)
def test_refusals_have_a_status_and_a_sentence(
    tmp_path: Path, examiner: Examiner, data: bytes, status: int, sentence: str
) -> None:
    (tmp_path / "picture").write_bytes(data)
    for ask in (examiner.classify, examiner.examine):
        with pytest.raises(RefusedError) as refused:
            ask(tmp_path / "picture")
        assert refused.value.status == status
        assert sentence in refused.value.sentence


def test_an_output_that_is_not_finite_is_said(folder: Path) -> None:
    examiner = Examiner(*open_network(folder, "cpu"))
    with torch.no_grad():
        named_layers(examiner.network)["fc8"].get_parameter("bias")[0] = float("nan")
    with pytest.raises(RefusedError, match="not finite") as refused:
        examiner.examine(folder / "pictures" / "0.png")
    assert refused.value.status == 500


def test_names_are_no_markup(folder: Path, examiner: Examiner) -> None:
    texts = [format_examination(examiner.examine(folder / "pictures" / f"{number}.png")) for number in range(3)] + [
        format_head(HOSTILE, 2),
        format_refusal(RefusedError(415, HOSTILE)),
    ]
    shown = "".join(texts)
    assert HOSTILE not in shown
    assert 'a"b' not in shown
    assert "&lt;img src=x onerror=alert(1)&gt;" in shown
    assert shown.count('src="data:image/png;base64,') == 3 * (3 + 2 * FILTERS)
