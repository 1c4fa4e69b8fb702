from __future__ import annotations

import dataclasses
import random
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from alexnet_dist.base.durable import MANIFEST
from alexnet_dist.base.errors import CheckpointError, DivergedError, MachineError
from alexnet_dist.inference.checkpoints import choose_checkpoint, find_checkpoint_damage, list_checkpoints
from alexnet_dist.inference.weights import load_weights, pack_tensors
from alexnet_dist.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint


def list_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def make_checkpoint(seed: int = 0) -> Checkpoint:
    generator = torch.Generator().manual_seed(seed)
    weights = {"conv.weight": torch.randn(4, 3, 2, 2, generator=generator), "conv.bias": torch.randn(4)}
    momentum = {f"momentum_buffer/{name}": torch.randn(tensor.shape) for name, tensor in weights.items()}
    return Checkpoint(weights, momentum, {"train": {"samples_seen": seed}})


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    for step in (5, 10):
        save_checkpoint(folder, step, make_checkpoint(step), keep=2)
    return folder


@pytest.fixture
def two(saved: Path, tmp_path: Path) -> Path:
    """A folder with intact checkpoints of steps 5 and 10."""
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    return tmp_path


def damage_file(folder: Path, seed: int) -> None:
    """Change a file of the folder: cut it, flip a bit, zero a part, remove it, or exchange it with another."""
    rng = random.Random(seed)
    files = sorted(folder.iterdir())
    path, other = rng.sample(files, 2)
    data = bytearray(path.read_bytes())
    kind = rng.choice(["cut", "flip", "zero", "remove", "exchange"])
    if kind == "cut":
        data = data[: rng.randrange(len(data) - 1)]
    elif kind == "flip":
        data[rng.randrange(len(data) - 1)] ^= 1 << rng.randrange(8)
    elif kind == "zero":
        start = rng.randrange(len(data) // 2)
        data[start : start + len(data) // 2] = bytes(len(data[start : start + len(data) // 2]))
    path.write_bytes(data)
    if kind == "remove":
        path.unlink()
    elif kind == "exchange":
        mine, theirs = path.read_bytes(), other.read_bytes()
        path.write_bytes(theirs)
        other.write_bytes(mine)


@pytest.mark.parametrize("seed", range(80))
def test_every_damage_is_found(two: Path, seed: int) -> None:
    newest = two / "step-00000010"
    assert find_checkpoint_damage(newest) is None
    damage_file(newest, seed)
    assert find_checkpoint_damage(newest) is not None


def test_weights_of_another_checkpoint_are_found(two: Path) -> None:
    shutil.copy(two / "step-00000005" / "weights.safetensors", two / "step-00000010")
    assert find_checkpoint_damage(two / "step-00000010") == "sha256 of weights.safetensors differs"


def test_checkpoint_comes_back_bit_for_bit(two: Path) -> None:
    path, notes = choose_checkpoint(two, None)
    assert path == two / "step-00000010"
    assert notes == []
    back, expected = load_checkpoint(path), make_checkpoint(10)
    assert torch.equal(back.weights["conv.weight"], expected.weights["conv.weight"])
    assert back.optimizer.keys() == expected.optimizer.keys()
    assert back.state == {"format": 1, "step": 10, "train": {"samples_seen": 10}}


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors", "state.json", MANIFEST])
def test_previous_intact_checkpoint_is_taken_and_said(two: Path, name: str) -> None:
    (two / "step-00000010" / name).unlink()
    path, notes = choose_checkpoint(two, None)
    assert path == two / "step-00000005"
    assert notes == [f"checkpoint step-00000010 is damaged ({name} is missing): passed over"]


def test_no_intact_checkpoint_is_an_error_that_names_them(two: Path) -> None:
    for path in list_checkpoints(two):
        (path / "state.json").write_bytes(b"{}")
    with pytest.raises(CheckpointError, match=r"no intact checkpoint .*step-00000010.*step-00000005.*--new"):
        choose_checkpoint(two, None)


def test_no_checkpoint_at_all_is_a_fresh_start(tmp_path: Path) -> None:
    assert choose_checkpoint(tmp_path, None) == (None, [])


@pytest.mark.parametrize("named", ["step-00000005", "5", "PATH"])
def test_checkpoint_can_be_named(two: Path, named: str) -> None:
    path = two / "step-00000005"
    assert choose_checkpoint(two, str(path) if named == "PATH" else named) == (path, [])


@pytest.mark.parametrize("named", ["step-00000010", "10", "step-00000007", "7", ""])
def test_named_checkpoint_that_is_damaged_or_missing_is_an_error(two: Path, named: str) -> None:
    (two / "step-00000010" / MANIFEST).write_bytes(b"")
    with pytest.raises(CheckpointError, match="cannot resume from this checkpoint"):
        choose_checkpoint(two, named)


@pytest.mark.parametrize("named", ["4", "step-4", "elsewhere/step-00000010"])
def test_a_checkpoint_that_is_not_there_is_not_called_damaged(two: Path, named: str) -> None:
    with pytest.raises(CheckpointError, match="there is no such folder"):
        choose_checkpoint(two, named)


def test_checkpoint_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 1, dataclasses.replace(make_checkpoint(), state={"format": 99}), keep=1)
    with pytest.raises(CheckpointError, match="newer version"):
        load_checkpoint(path)


def test_checkpoints_are_ordered_by_number(tmp_path: Path) -> None:
    for name in ("step-00000099", "step-100000000", "step-00000100", "step-00000007.tmp", "step-final"):
        (tmp_path / name).mkdir()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-100000000", "step-00000100", "step-00000099"]


@pytest.mark.parametrize(("keep", "left"), [(1, [15]), (2, [10, 15]), (5, [5, 10, 15])])
def test_only_the_newest_are_kept(two: Path, keep: int, left: list[int]) -> None:
    save_checkpoint(two, 15, make_checkpoint(), keep=keep)
    assert list_names(two) == [f"step-{step:08d}" for step in left]


def test_what_a_user_keeps_among_the_checkpoints_stays(two: Path) -> None:
    shutil.copytree(two / "step-00000010", two / "step-5")  # a name of ours is written with eight digits
    shutil.copytree(two / "step-00000010", two / "step-00000007")  # a copy says of which step it is
    (two / "step-00000005" / "notes.txt").touch()
    for name in ("step-00000010.old", "best"):
        shutil.copytree(two / "step-00000010", two / name)
    save_checkpoint(two, 15, make_checkpoint(), keep=1)
    kept = ["best", "step-00000005", "step-00000007", "step-00000010.old", "step-00000015", "step-5"]
    assert list_names(two) == kept
    assert list_names(two / "step-00000005") == ["notes.txt"]
    assert len(list_names(two / "step-5")) == len(list_names(two / "step-00000015"))


@pytest.mark.usefixtures("two", "full_disk")
def test_nothing_old_is_deleted_before_the_new_one_is_there(tmp_path: Path) -> None:
    with pytest.raises(MachineError):
        save_checkpoint(tmp_path, 15, make_checkpoint(), keep=1)
    assert list_names(tmp_path) == ["step-00000005", "step-00000010"]
    assert choose_checkpoint(tmp_path, None)[0] == tmp_path / "step-00000010"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weight_that_is_not_finite_is_never_saved(two: Path, value: float) -> None:
    broken = make_checkpoint()
    broken.weights["conv.bias"][2] = value
    with pytest.raises(DivergedError, match=r"not finite \(step 15, conv\.bias\)"):
        save_checkpoint(two, 15, broken, keep=1)
    assert list_names(two) == ["step-00000005", "step-00000010"]


def test_equal_weights_give_equal_bytes() -> None:
    weights = make_checkpoint().weights
    last = {name: t.to(memory_format=torch.channels_last) if t.dim() == 4 else t for name, t in weights.items()}
    backwards = dict(reversed(weights.items()))
    assert last["conv.weight"].stride() != weights["conv.weight"].stride()
    assert pack_tensors(last) == pack_tensors(backwards) == pack_tensors(weights)
    weights["conv.weight"][0, 0, 0, 0] += 1e-6
    assert pack_tensors(last) != pack_tensors(weights)


def make_network(out: int = 4) -> nn.Module:
    return nn.ModuleDict({"conv": nn.Conv2d(3, out, 2)})


def test_weights_are_loaded_bit_for_bit() -> None:
    network, weights = make_network(), make_checkpoint().weights
    load_weights(network, weights, "here")
    assert all(torch.equal(tensor, weights[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"conv.weight": torch.zeros(5, 3, 2, 2)}, r"conv\.weight is \(5, 3, 2, 2\) there and \(4, 3, 2, 2\) here"),
        ({"conv.bias": None}, r"conv\.bias is missing there"),
        ({"fc.weight": torch.zeros(1)}, r"fc\.weight is \(1,\) there and missing here"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(change: dict[str, Tensor | None], why: str) -> None:
    changed = {**make_checkpoint().weights, **change}
    network = make_network()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(CheckpointError, match=rf"the weights do not fit the network \(a\.pt\): {why}"):
        load_weights(network, {name: tensor for name, tensor in changed.items() if tensor is not None}, "a.pt")
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
