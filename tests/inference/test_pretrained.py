"""Weights to begin with: which layers are taken over, which start afresh, what is refused, and where they are found."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.cards import CARD
from helpers.refusals import refused
from torch import Tensor, nn
from torchvision.models import alexnet

from alexnet_dist.base.durable import hash_file
from alexnet_dist.base.errors import CheckpointError, MachineError
from alexnet_dist.inference import pretrained
from alexnet_dist.inference.model_folder import save_model_folder
from alexnet_dist.inference.pretrained import Pretrained, load_pretrained, read_pretrained
from alexnet_dist.models import AlexNet, build_model, make_spec

CLASSES = ("cat", "dog", "fox")
LAST = ("classifier.6.weight", "classifier.6.bias")


def tiny(**overrides: object) -> AlexNet:
    spec = {"num_classes": 3, "image_size": 64, "conv_channels": [8, 16, 16, 16, 16], "fc_width": 16, **overrides}
    return build_model(make_spec("paper", **spec), seed=int(str(overrides.get("num_classes", 3))))


def take(model: AlexNet, weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The network's weights after it has taken others, and the lines about it."""
    notes = load_pretrained(model, Pretrained("weights.pth", weights, ""), CLASSES)
    return model.state_dict(), notes


@pytest.fixture(scope="module")
def theirs() -> nn.Module:
    """torchvision's network for 7 classes."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return alexnet(weights=None, num_classes=7).eval()


@pytest.mark.heavy
@pytest.mark.parametrize("num_classes", [7, 3])
def test_torchvisions_own_file_gives_its_maps_and_a_new_last_layer(
    theirs: nn.Module, tmp_path: Path, num_classes: int
) -> None:
    torch.save(theirs.state_dict(), tmp_path / "alexnet.pth")
    ours = build_model(make_spec("torchvision", num_classes=num_classes), seed=1).eval()
    before = [ours.state_dict()[name].clone() for name in LAST]
    notes = load_pretrained(ours, read_pretrained(str(tmp_path / "alexnet.pth"), tmp_path), CLASSES)
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        hidden = [network.classifier[:-1](network.features(images).flatten(1)) for network in (ours, theirs)]
    assert torch.equal(*hidden)
    is_fresh = [torch.equal(ours.state_dict()[name], fresh) for name, fresh in zip(LAST, before, strict=True)]
    assert is_fresh == [num_classes == 3] * 2
    assert notes == (["fc8 is new: 3 outputs here, 7 there"] if num_classes == 3 else [])


def test_color_weights_see_a_gray_picture_alike_in_one_channel() -> None:
    color = tiny()
    gray = tiny(in_channels=1)
    _, notes = take(gray, color.state_dict())
    assert notes == ["conv1 reads gray: the sum of its weights for red, green and blue"]
    picture = torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = color.features[0](picture.expand(-1, 3, -1, -1))
        torch.testing.assert_close(gray.features[0](picture), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"fc_width": 24}, ["classifier.0.weight is (24, 16) there and (16, 16) here"]),
        ({"fc_width": 24, "num_classes": 5}, ["classifier.0.weight"]),
        ({"conv_groups": [1, 1, 1, 2, 2]}, ["features.4.weight is (16, 8, 5, 5) there and (16, 4, 5, 5) here"]),
        ({"dropout_position": "before_fc"}, ["classifier.0.weight is missing there"]),
    ],
    ids=str,
)
def test_weights_that_do_not_fit_are_refused(change: dict[str, object], parts: list[str]) -> None:
    line = refused(lambda: take(tiny(), tiny(**change).state_dict()), CheckpointError)
    assert all(part in line for part in ["weights.pth", *parts])


def test_a_folder_of_another_program_is_answered_with_its_file(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "pytorch_model.bin")
    line = refused(lambda: read_pretrained(str(tmp_path), tmp_path), CheckpointError)
    assert line.endswith(f"; name the file of weights in it: --model.pretrained {tmp_path / 'pytorch_model.bin'}")


def test_gray_weights_do_not_fit_color() -> None:
    line = refused(lambda: take(tiny(), tiny(in_channels=1).state_dict()), CheckpointError)
    assert "features.0.weight is (8, 1, 11, 11) there and (8, 3, 11, 11) here" in line


@pytest.mark.parametrize("name", LAST)
def test_a_last_layer_that_is_not_whole_is_refused(name: str) -> None:
    weights = {key: value for key, value in tiny(num_classes=5).state_dict().items() if key != name}
    assert "classifier.6" in refused(lambda: take(tiny(), weights), CheckpointError)


@pytest.mark.parametrize(
    ("classes", "num_classes", "part"),
    [
        (("cat", "dog", "fox"), 3, None),
        (("cat", "fox", "dog"), 3, "class 1 is 'fox' there and 'dog' in the data"),
        (("elk", "gnu", "yak"), 3, "class 0 is 'elk'"),
        (("elk", "gnu"), 2, None),
    ],
)
def test_a_model_folder_must_know_the_classes_unless_the_last_layer_is_new(
    tmp_path: Path, classes: tuple[str, ...], num_classes: int, part: str | None
) -> None:
    network = tiny(num_classes=num_classes)
    card = dataclasses.replace(CARD, spec=network.spec, classes=classes)
    save_model_folder(tmp_path / "model", network.state_dict(), card)
    found = read_pretrained(str(tmp_path), tmp_path)
    assert found.card == card
    if part is None:
        load_pretrained(tiny(), found, CLASSES)
    else:
        assert part in refused(lambda: load_pretrained(tiny(), found, CLASSES), CheckpointError)


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file in the cache folder that passes for torchvision's; nothing can be fetched."""
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    path = tmp_path / "weights" / "alexnet-owt-7be5be79.pth"
    path.parent.mkdir()
    torch.save(tiny().state_dict(), path)
    monkeypatch.setattr(pretrained, "TORCHVISION_SHA256", pretrained.hash_file(path))
    return path


def test_torchvisions_weights_are_fetched_once(cached: Path, tmp_path: Path) -> None:
    found = read_pretrained("torchvision", tmp_path)
    assert found.weights.keys() == tiny().state_dict().keys()
    assert found.sha256 == pretrained.TORCHVISION_SHA256


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are summed."""
    names: list[str] = []
    digest = hashlib.file_digest

    def note(file: Any, kind: str) -> Any:
        names.append(Path(file.name).name)
        return digest(file, kind)

    monkeypatch.setattr(hashlib, "file_digest", note)
    return names


def test_weights_are_summed_once(cached: Path, tmp_path: Path, hashed: list[str]) -> None:
    read_pretrained("torchvision", tmp_path)
    assert hashed == [cached.name]
    save_model_folder(tmp_path / "model", tiny().state_dict(), CARD)
    for name in ("model", "model/model.safetensors"):
        hashed.clear()
        found = read_pretrained(str(tmp_path / name), tmp_path)
        assert hashed.count("model.safetensors") == 1
        assert found.sha256 == hash_file(tmp_path / "model" / "model.safetensors")
    (tmp_path / "model" / "manifest.json").unlink()
    assert read_pretrained(str(tmp_path / "model"), tmp_path).sha256 == found.sha256


def test_torchvisions_weights_with_another_sha256_are_not_used(cached: Path, tmp_path: Path) -> None:
    cached.write_bytes(cached.read_bytes() + b"\0")
    line = refused(lambda: read_pretrained("torchvision", tmp_path), MachineError)
    assert "cannot fetch alexnet-owt-7be5be79.pth" in line
    assert cached.exists()  # it may be its user's


def test_what_arrives_is_held_against_the_sha256(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = SimpleNamespace(open=lambda request, timeout: io.BytesIO(b"other"))
    monkeypatch.setattr(urllib.request, "build_opener", lambda: answer)
    line = refused(lambda: read_pretrained("torchvision", tmp_path), MachineError)
    assert "its sha256 is another" in line


def test_the_whole_sha256_begins_as_the_files_name_says() -> None:
    from torchvision.models import AlexNet_Weights

    prefix = AlexNet_Weights.IMAGENET1K_V1.url.rpartition("-")[2].removesuffix(".pth")
    assert len(pretrained.TORCHVISION_SHA256) == 64
    assert pretrained.TORCHVISION_SHA256.startswith(prefix)
