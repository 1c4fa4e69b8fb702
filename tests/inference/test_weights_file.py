"""Weights of other programs: what is taken out of their files, under which names, and why others are refused."""

from __future__ import annotations

import argparse
import gzip
import io
import os
import pathlib
import pickle
import sys
import time
import types
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.refusals import refused
from safetensors.torch import save_file
from torch import Tensor, nn

from alexnet_dist.base.errors import CheckpointError
from alexnet_dist.inference.pretrained import load_pretrained, read_pretrained
from alexnet_dist.inference.weights_file import read_weights_file
from alexnet_dist.models import AlexNet, build_model, make_spec

CLASSES = ("cat", "dog", "fox")
Weights = dict[str, Tensor]


def tiny(seed: int = 0) -> AlexNet:
    spec = {"num_classes": 3, "image_size": 64, "conv_channels": [8, 16, 16, 16, 16], "fc_width": 16}
    return build_model(make_spec("torchvision", **spec), seed=seed)


THEIRS: Weights = tiny(seed=1).state_dict()
OTHERS: Weights = tiny(seed=2).state_dict()


def rename(weights: Weights, change: Callable[[str], str]) -> Weights:
    return {change(name): tensor for name, tensor in weights.items()}


def begin(weights: Weights, text: str) -> Weights:
    return rename(weights, lambda name: text + name)


def inside(name: str) -> str:
    return name.replace("features.", "features.module.", 1)


class AttributeDict(dict[str, Any]):
    """As Lightning keeps its hyperparameters in."""


AttributeDict.__module__ = "lightning.fabric.utilities.data"

SETTINGS = {
    "args": argparse.Namespace(lr=0.1, out=pathlib.Path("runs")),
    "best": np.float64(0.5),
    "rng": np.arange(3),
    "losses": defaultdict(list),
    "optimizer": {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]},
}

FILES: dict[str, tuple[Any, list[str]]] = {
    "plain": (THEIRS, []),
    "ordered": (OrderedDict(THEIRS), []),
    "parameters": ({name: nn.Parameter(tensor) for name, tensor in THEIRS.items()}, []),
    "pytorch/examples": (
        {"epoch": 3, "arch": "alexnet", "state_dict": rename(THEIRS, inside), "best_acc1": torch.tensor(1.0)},
        ["read from state_dict in the file", "names lose module."],
    ),
    "torchvision/references": ({"model": THEIRS, "epoch": 3, **SETTINGS}, ["read from model in the file"]),
    "torchvision, averaged": (
        {"model": OTHERS, "model_ema": {"n_averaged": torch.tensor(3), **begin(THEIRS, "module.")}, **SETTINGS},
        ["read from model_ema in the file, not from model", "names lose module.", "left out: n_averaged"],
    ),
    "timm": (
        {"state_dict": OTHERS, "state_dict_ema": THEIRS, "arch": "alexnet", "args": argparse.Namespace(ema=True)},
        ["read from state_dict_ema in the file, not from state_dict"],
    ),
    "basicsr": (
        {"params": OTHERS, "params_ema": THEIRS},
        ["read from params_ema in the file, not from params"],
    ),
    "compiled": (begin(THEIRS, "_orig_mod."), ["names lose _orig_mod."]),
    "compiled, distributed": (begin(THEIRS, "_orig_mod.module."), ["names lose _orig_mod. and module."]),
    "distributed": (begin(THEIRS, "module."), ["names lose module."]),
    "lightning": (
        {"state_dict": begin(THEIRS, "model."), "hyper_parameters": {}, "epoch": 1},
        ["read from state_dict in the file", "names lose the prefix model."],
    ),
    "lightning, compiled, with a loss of its own": (
        {"state_dict": {**begin(THEIRS, "net._orig_mod."), "loss.weight": torch.ones(3)}, "epoch": 1},
        [
            "read from state_dict in the file",
            "names lose _orig_mod.",
            "names lose the prefix net.",
            "left out: loss.weight",
        ],
    ),
    "averaged beside its own": (
        {"state_dict": {**begin(OTHERS, "net."), **begin(THEIRS, "ema_net.module.")}},
        [
            "read from state_dict in the file",
            "names lose module.",
            "names lose the prefix ema_net.",
            f"left out: {', '.join(f'net.{name}' for name in list(THEIRS)[:4])} and 12 more",
        ],
    ),
    "a name of the user's own": ({"my_alexnet": THEIRS, "step": 3, **SETTINGS}, ["read from my_alexnet in the file"]),
    "state of the average": ({"ema": {"decay": 0.9, "shadow": THEIRS}}, ["read from ema.shadow in the file"]),
    "half": (
        {name: tensor.double() for name, tensor in THEIRS.items()},
        ["float64 in the file, float32 here"],
    ),
}


def take(path: Path) -> tuple[Weights, list[str]]:
    """The network's weights after it has taken a file's, and the lines about it."""
    model = tiny()
    notes = load_pretrained(model, read_pretrained(str(path), path.parent), CLASSES)
    return model.state_dict(), notes


def is_equal(mine: Weights, theirs: Weights) -> bool:
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize("name", FILES)
def test_weights_of_other_programs_are_taken_and_what_they_lost_is_named(tmp_path: Path, name: str) -> None:
    content, lines = FILES[name]
    torch.save(content, tmp_path / "w.pth")
    weights, notes = take(tmp_path / "w.pth")
    assert is_equal(weights, THEIRS)
    assert notes == lines


def test_torchs_format_before_zip_is_read(tmp_path: Path) -> None:
    content = {"model": THEIRS, "args": argparse.Namespace(lr=0.1)}
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    assert is_equal(take(tmp_path / "w.pth")[0], THEIRS)


def test_lightnings_hyperparameters_are_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are of a class that need not be installed."""
    content = {"state_dict": begin(THEIRS, "model."), "hyper_parameters": AttributeDict(lr=0.1)}
    with monkeypatch.context() as patch:
        for dots in range(4):
            name = ".".join(AttributeDict.__module__.split(".")[: dots + 1])
            patch.setitem(sys.modules, name, types.ModuleType(name))
        sys.modules[AttributeDict.__module__].AttributeDict = AttributeDict  # type: ignore[attr-defined]
        torch.save(content, tmp_path / "w.ckpt")
    assert is_equal(take(tmp_path / "w.ckpt")[0], THEIRS)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "w.npz"])
def test_other_formats_are_read(tmp_path: Path, name: str) -> None:
    weights = begin(THEIRS, "model.")
    if name == "w.npz":
        np.savez_compressed(tmp_path / name, **{key: tensor.numpy().astype(">f4") for key, tensor in weights.items()})
    else:
        save_file(weights, tmp_path / name)
    mine, notes = take(tmp_path / name)
    assert is_equal(mine, THEIRS)
    assert notes == ["names lose the prefix model."]


@pytest.mark.parametrize(
    ("kept", "prefix", "new"),
    [
        ("features.", "", "fc6, fc7, fc8"),
        ("features.", "backbone.", "fc6, fc7, fc8"),
        ("features.", None, "fc6, fc7, fc8"),
        ("features.", "net.backbone", "fc6, fc7, fc8"),
        ("features. classifier.1 classifier.4", "", "fc8"),
    ],
)
def test_layers_at_the_end_that_a_file_lacks_begin_afresh(
    tmp_path: Path, kept: str, prefix: str | None, new: str
) -> None:
    kinds = tuple(kept.split())
    theirs = {name: tensor for name, tensor in THEIRS.items() if name.startswith(kinds)}
    saved = begin(theirs, prefix or "")
    if prefix in (None, "net.backbone"):  # the features alone, as a network of their own
        saved = rename(theirs, lambda name: name.replace("features", prefix or "").removeprefix("."))
        saved |= {"net.head.weight": torch.ones(3, 3)} if prefix else {}
    torch.save(saved, tmp_path / "w.pth")
    mine, notes = take(tmp_path / "w.pth")
    fresh = tiny().state_dict()
    assert all(torch.equal(mine[name], theirs.get(name, fresh[name])) for name in mine)
    assert f"new, as the file has no weights for them: {new}" in notes


def replace(name: str, tensor: Tensor | None) -> Weights:
    changed = {**THEIRS, name: tensor}
    return {key: value for key, value in changed.items() if value is not None}


CONV1 = "features.0.weight"


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (replace("features.3.weight", None), ["features.3.weight is missing there"]),
        (replace("classifier.1.bias", None), ["classifier.1.bias is missing there"]),
        (replace("features.1.running_mean", torch.ones(8)), ["features.1.running_mean is (8,) there and missing here"]),
        ({**begin(THEIRS, "a."), **begin(OTHERS, "b.")}, ["two networks in one file", "under a. and b."]),
        ({**THEIRS, **begin(OTHERS, "module.")}, ["two tensors for one name", "features.0.weight"]),
        (
            {"layer1.0.weight": torch.ones(3), "fc.weight": torch.ones(3)},
            ["weights of another network", "layer1.0.weight, fc.weight, and no features.0.weight"],
        ),
        (replace(CONV1, THEIRS[CONV1].to(torch.complex64)), [CONV1, "complex64"]),
        (replace(CONV1, THEIRS[CONV1] > 0), [CONV1, "bool"]),
        (replace(CONV1, THEIRS[CONV1].long()), [CONV1, "int64"]),
        (replace(CONV1, THEIRS[CONV1].to_sparse()), [CONV1, "sparse"]),
        (replace(CONV1, THEIRS[CONV1].flatten(1).to_sparse_csr()), [CONV1, "sparse"]),
        (replace(CONV1, torch.quantize_per_tensor(THEIRS[CONV1], 0.1, 0, torch.qint8)), [CONV1, "qint8"]),
        (replace(CONV1, THEIRS[CONV1].to("meta")), [CONV1, "meta"]),
        (replace(CONV1, torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])), [CONV1, "nested"]),
        (replace(CONV1, THEIRS[CONV1].to(torch.float8_e4m3fn)), [CONV1, "float8"]),
        (replace(CONV1, THEIRS[CONV1] / 0), [CONV1, "NaN or infinity"]),
        (replace(CONV1, THEIRS[CONV1].double() * 1e300), [CONV1, "NaN or infinity"]),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_cannot_be_taken_is_refused_by_name(tmp_path: Path, content: Any, parts: list[str]) -> None:
    torch.save(content, tmp_path / "w.pth")
    line = refused(lambda: take(tmp_path / "w.pth"), CheckpointError)
    assert all(part in line for part in [str(tmp_path), *parts]), line
    assert len(line) < 200 + len(str(tmp_path))


def test_the_variant_of_weights_is_named(tmp_path: Path) -> None:
    features = AlexNet(make_spec("torchvision", num_classes=3)).features.state_dict(prefix="features.")
    torch.save(features, tmp_path / "w.pth")
    assert "--model.variant torchvision" in refused(lambda: take(tmp_path / "w.pth"), CheckpointError)


class Whole(nn.Module):
    """Saved as an object, as torch.save(model) does."""


def write(data: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(data)


def deflate(path: Path) -> None:
    """A tenth of a megabyte that holds 100."""
    torch.save({"a": torch.ones(3)}, path)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive, archive.open("w/data/1", "w") as record:
        for _ in range(100):
            record.write(bytes(1_000_000))


def cut_zip(path: Path) -> None:
    torch.save(THEIRS, path)
    path.write_bytes(path.read_bytes()[:20_000])


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (
            lambda path: torch.save(Whole(), path),
            "Whole, and opening that would run code; save model.state_dict() alone",
        ),
        (lambda path: torch.jit.save(torch.jit.script(nn.Linear(2, 2)), str(path)), "TorchScript"),
        (lambda path: torch.save({"epoch": 3, "lr": 0.1}, path), "no state dict: it holds epoch, lr"),
        (lambda path: torch.save([torch.ones(1)], path), "no state dict: it holds a list"),
        (lambda path: torch.save({"model": {"a": {"b": "c"}}}, path), "no state dict: it holds model"),
        (deflate, "0.1 MB unpack to 100.0 MB"),
        (lambda path: torch.save({}, path), "no state dict: it holds nothing"),
        (cut_zip, "it is cut or damaged"),
        (write(b""), "it is empty"),
        (write(b"version https://git-lfs.github.com/spec/v1\n"), "Git LFS"),
        (write(b"<!DOCTYPE html><html>"), "a web page"),
        (write(gzip.compress(b"weights")), "gzip"),
        (write(b"\x89HDF\r\n\x1a\n"), "HDF5"),
        (write(b"hello, these are no weights"), "no file of torch.save"),
        (write(b"PK\x03\x04" + bytes(50)), ""),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_the_true_reason_is_given(tmp_path: Path, make: Callable[[Path], object], why: str) -> None:
    make(tmp_path / "w.pth")
    with pytest.raises(CheckpointError) as error:
        take(tmp_path / "w.pth")
    line = str(error.value)
    assert line.startswith(f"cannot read weights ({tmp_path / 'w.pth'}): ")
    assert why in line
    assert len(line) < 200 + len(str(tmp_path))
    assert "\x1b" not in line
    assert "weights_only" not in line


def test_an_array_that_says_it_is_larger_than_it_is(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (10**12,)})
    with zipfile.ZipFile(tmp_path / "w.npz", "w") as archive:
        archive.writestr("features.0.weight.npy", header.getvalue())
    with pytest.raises(CheckpointError, match="it is cut or damaged"):
        take(tmp_path / "w.npz")


def test_dicts_that_name_each_other_a_million_times_are_looked_at_once(tmp_path: Path) -> None:
    content: dict[str, Any] = {}
    for _ in range(4):
        content = {f"a{number}": content for number in range(1000)}
    torch.save({"state_dict": content}, tmp_path / "w.pth")
    start = time.monotonic()
    with pytest.raises(CheckpointError, match="no state dict"):
        take(tmp_path / "w.pth")
    assert time.monotonic() - start < 5


def test_a_dict_that_holds_itself_ends(tmp_path: Path) -> None:
    content: dict[str, Any] = {"a": torch.ones(1)}
    content["model"] = content
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="no state dict"):
        take(tmp_path / "w.pth")


class Malicious:
    """Unpickled, it makes a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.canary),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path: Path, write: Any) -> None:
    path, canary = tmp_path / "weights.pt", tmp_path / "canary"
    write({"a": Malicious(canary)}, path)
    with pytest.raises(CheckpointError, match=r"cannot read weights .*weights\.pt"):
        read_weights_file(path)
    assert not canary.exists()


def test_that_pickle_would_run_code_if_it_were_trusted(tmp_path: Path) -> None:
    torch.save({"a": Malicious(tmp_path / "canary")}, tmp_path / "weights.pt")
    torch.load(tmp_path / "weights.pt", weights_only=False)
    assert (tmp_path / "canary").exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
@pytest.mark.parametrize("content", [b"", b"hello\n", b"\x80\x04.", b"\xff" * 40, b"PK\x03\x04" + bytes(50)])
def test_files_that_are_no_weights_are_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot read weights"):
        read_weights_file(tmp_path / name)


@pytest.mark.parametrize("value", [torch.zeros(1), {"optimizer": {"a": torch.zeros(1)}}])
def test_tensors_that_are_no_state_dict_are_refused(tmp_path: Path, value: Any) -> None:
    torch.save(value, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="it is no state dict"):
        read_weights_file(tmp_path / "a.pt")


def test_cut_safetensors_file_is_refused(tmp_path: Path) -> None:
    save_file(THEIRS, tmp_path / "a.safetensors")
    data = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "a.safetensors").write_bytes(data[:-7])
    with pytest.raises(CheckpointError, match="cannot read weights"):
        read_weights_file(tmp_path / "a.safetensors")
