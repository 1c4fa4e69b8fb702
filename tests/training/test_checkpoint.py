from __future__ import annotations

import dataclasses
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.cards import CARD
from helpers.refusals import refused
from torch import Tensor, nn

from alexnet_dist.base.durable import MANIFEST, format_json, write_json
from alexnet_dist.base.errors import CheckpointError, DivergedError, MachineError, UsageError
from alexnet_dist.base.nested import flatten
from alexnet_dist.data.index import BadFile
from alexnet_dist.inference.model_folder import (
    find_model_folder,
    read_card,
    read_model_weights,
    save_model_folder,
)
from alexnet_dist.runs import folder as run_folder
from alexnet_dist.runs.folder import compare_settings, open_run_folder, store_settings, write_bad_files
from alexnet_dist.settings.reader import build_config
from alexnet_dist.settings.schema import Config
from alexnet_dist.tracking.trackers import MetricsFile, read_rows, rename_for_display
from alexnet_dist.training.checkpoint import (
    Checkpoint,
    choose_checkpoint,
    find_checkpoint_damage,
    list_checkpoints,
    load_checkpoint,
    load_weights,
    pack_tensors,
    save_checkpoint,
)


def list_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_json_does_not_know_is_named_and_not_written(tmp_path: Path, value: float) -> None:
    with pytest.raises(DivergedError, match=r"not finite \(loss of metrics.jsonl\)"):
        MetricsFile(tmp_path / "metrics.jsonl", 0).log({"event": "eval", "top1": 0.9, "loss": value})
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""
    with pytest.raises(DivergedError, match=r"lr of a\.json"):
        write_json(tmp_path / "a.json", {"settings": [{"lr": value}]})
    assert not (tmp_path / "a.json").exists()
    assert format_json({"loss": 1.5}, "a") == '{"loss": 1.5}'


# -- checkpoints ------------------------------------------------------------------------------------------------------


def make_checkpoint(seed: int = 0) -> Checkpoint:
    generator = torch.Generator().manual_seed(seed)
    weights = {"conv.weight": torch.randn(4, 3, 2, 2, generator=generator), "conv.bias": torch.randn(4)}
    momentum = {f"momentum_buffer/{name}": torch.randn(tensor.shape) for name, tensor in weights.items()}
    return Checkpoint(weights, momentum, {"train": {"samples_seen": seed}})


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """A folder with intact checkpoints of steps 5 and 10."""
    for step in (5, 10):
        save_checkpoint(tmp_path, step, make_checkpoint(step), keep=2)
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


@pytest.mark.parametrize("seed", range(150))
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


# -- model/ and weights of others -------------------------------------------------------------------------------------


def test_model_folder_comes_back_equal_and_may_be_moved(tmp_path: Path) -> None:
    weights = make_checkpoint().weights
    (tmp_path / "run").mkdir()
    save_model_folder(tmp_path / "run" / "model", weights, CARD)
    (tmp_path / "run").rename(tmp_path / "moved")
    folder = find_model_folder(tmp_path / "moved")
    assert folder == find_model_folder(tmp_path / "moved" / "model")
    assert read_card(folder) == CARD
    assert all(torch.equal(tensor, weights[name]) for name, tensor in read_model_weights(folder).items())


@pytest.mark.parametrize("path", ["nothing", "."])
def test_folder_without_a_model_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(CheckpointError, match="no model"):
        find_model_folder(tmp_path / path)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": 1}', '{"format": 99}', "\udcff"])
def test_damaged_card_is_refused(tmp_path: Path, text: str) -> None:
    save_model_folder(tmp_path / "model", make_checkpoint().weights, CARD)
    (tmp_path / "model" / "manifest.json").unlink()
    (tmp_path / "model" / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(CheckpointError, match=r"damaged model|newer version"):
        read_card(tmp_path / "model")


@pytest.mark.parametrize(("name", "read"), [("model.safetensors", read_model_weights), ("config.json", read_card)])
def test_bit_flip_in_a_model_is_found(
    tmp_path: Path, name: str, read: Callable[[Path], Any], caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "model"
    save_model_folder(folder, make_checkpoint().weights, CARD)
    data = (folder / name).read_bytes()
    flipped = data[:-1] + bytes([data[-1] ^ 1])
    (folder / name).write_bytes(data.replace(b'"step": 12', b'"step": 13') if name == "config.json" else flipped)
    assert f"sha256 of {name} differs" in refused(lambda: read(folder), CheckpointError)
    (folder / "manifest.json").unlink()  # the remedy
    with caplog.at_level("WARNING", "alexnet_dist"):
        read(folder)
    assert ["has no manifest.json" in text for text in caplog.messages] == [True] * (name == "config.json")


def test_classes_that_were_exchanged_are_found(tmp_path: Path) -> None:
    save_model_folder(tmp_path, make_checkpoint().weights, CARD)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    values["classes"].reverse()
    path.write_text(json.dumps(values, indent=2) + "\n")
    assert "sha256 of config.json differs" in refused(lambda: read_card(tmp_path), CheckpointError)


# -- the run folder ---------------------------------------------------------------------------------------------------


def make_config(**values: Any) -> Config:
    given = {key.replace("__", "."): value for key, value in values.items()}
    return build_config({"data.source": "synthetic", "train.epochs": 2, "tracking.name": "1e3"} | given)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.epochs", 5),
        ("train.micro_batch_size", 8),
        ("device", "cpu"),
        ("data.engine", "torchvision"),
        ("data.workers", 3),
        ("data.root", "elsewhere"),
        ("checkpoint.keep", 7),
        ("log.every_steps", 1),
        ("tracking.wandb", "offline"),
        ("data.on_bad_file", "skip"),
        ("train.early_stop", 3),
        ("optimizer.lr", 0.5),
        ("schedule.warmup_steps", 3),
    ],
)
def test_setting_that_may_change_is_reported_and_stored(tmp_path: Path, key: str, value: Any) -> None:
    store_settings(tmp_path, make_config())
    assert compare_settings(tmp_path, make_config()) == {}
    changed, before = make_config(**{key: value}), flatten(make_config())[key]
    assert compare_settings(tmp_path, changed) == {key: (before, value)}
    store_settings(tmp_path, changed)
    assert compare_settings(tmp_path, changed) == {}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", 1),
        ("optimizer.momentum", 0.5),
        ("train.global_batch_size", 64),
        ("augment.crop", "centre"),
        ("model.dropout", 0.25),
        ("precision", "fp32"),
        ("data.val_fraction", 0.3),
    ],
)
def test_other_changes_are_refused_with_the_difference(tmp_path: Path, key: str, value: Any) -> None:
    store_settings(tmp_path, make_config())
    with pytest.raises(UsageError, match=rf"{key} was .*, is {value}; .*--new"):
        compare_settings(tmp_path, make_config(**{key: value}))


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "LOCK_SECONDS", 0.2)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("new", [False, True])
def test_second_start_in_a_held_folder_is_refused(tmp_path: Path, new: bool) -> None:
    with open_run_folder(tmp_path / "run", new=False):
        (tmp_path / "run" / "metrics.jsonl").write_bytes(b"{}\n")
        with pytest.raises(MachineError, match=r"another run is using this run folder .*run"):
            open_run_folder(tmp_path / "run", new=new)
    open_run_folder(tmp_path / "run", new=False).release()  # free again
    assert (tmp_path / "run" / "metrics.jsonl").exists()


def test_new_renames_the_old_run_and_deletes_nothing(tmp_path: Path) -> None:
    for number in range(3):
        with open_run_folder(tmp_path / "run", new=True):
            (tmp_path / "run" / "mark").write_text(str(number))
    assert list_names(tmp_path) == ["run", "run.1", "run.2"]
    assert [(tmp_path / name / "mark").read_text() for name in ("run.1", "run.2", "run")] == ["0", "1", "2"]


def test_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MachineError, match=r"cannot write run \(.*file/run\)"):
        open_run_folder(tmp_path / "file" / "run", new=False)


def test_bad_files_are_listed_once_relative_to_the_root(tmp_path: Path) -> None:
    root = tmp_path / "data"
    bad = [BadFile(str(root / "b,c" / "1.jpg"), "cut"), BadFile(str(root / "a.jpg"), 'a "word"')]
    write_bad_files(tmp_path, [*bad, *bad], root)
    assert (tmp_path / "bad_files.csv").read_text() == 'path,reason\na.jpg,"a ""word"""\n"b,c/1.jpg",cut\n'


def test_no_bad_files_no_list(tmp_path: Path) -> None:
    write_bad_files(tmp_path, [], tmp_path)
    assert list_names(tmp_path) == []


# -- metrics.jsonl ----------------------------------------------------------------------------------------------------


def test_metrics_after_the_restored_step_are_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(path, 0)
    metrics.log({"event": "train", "step": 1})
    size = metrics.sync()
    metrics.log({"event": "train", "step": 2})
    metrics.close()
    again = MetricsFile(path, size)
    again.log({"event": "train", "step": 2, "again": True})
    again.close()
    assert [row["step"] for row in read_rows(path)] == [1, 2]
    assert read_rows(path)[1]["again"]


def test_metrics_that_somebody_removed_are_not_filled_with_zeros(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path / "metrics.jsonl", 500)
    metrics.log({"event": "train", "step": 9})
    metrics.close()
    assert read_rows(tmp_path / "metrics.jsonl") == [{"event": "train", "step": 9}]


def test_metrics_that_go_while_they_are_written_are_written_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, rows = tmp_path / "metrics.jsonl", [{"event": "train", "step": step} for step in range(4)]
    metrics = MetricsFile(path, 0)
    for row in rows[:3]:
        metrics.log(row)
        path.unlink()
        size = metrics.sync()
    metrics.log(rows[3])
    metrics.close()
    assert read_rows(path) == rows
    assert path.stat().st_size > size
    assert [f"{path} was removed" in text for text in caplog.messages] == [True] * 3


def test_metrics_that_are_cut_while_they_are_written_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(path, 0)
    for step in (1, 2):
        metrics.log({"event": "train", "step": step})
        if step == 1:
            path.write_bytes(b"")
    assert metrics.sync() == path.stat().st_size
    metrics.close()
    assert ["rows may be missing" in text for text in caplog.messages] == [True]


def test_another_file_in_the_place_of_metrics_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(path, 0)
    path.unlink()
    path.write_text("mine")
    assert "another file took the place" in refused(metrics.sync, MachineError)
    assert path.read_text() == "mine"


def test_a_second_name_of_metrics_keeps_what_it_has(tmp_path: Path) -> None:
    path, backup = tmp_path / "metrics.jsonl", tmp_path / "backup.jsonl"
    path.write_text('{"event": "train", "step": 1}\n')
    backup.hardlink_to(path)
    MetricsFile(path, 0).log({"event": "train", "step": 2})
    assert [row["step"] for row in read_rows(backup)] == [1]
    assert [row["step"] for row in read_rows(path)] == [2]


def test_damaged_lines_are_named_and_the_others_mirrored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "metrics.jsonl"
    good = '{"event": "train", "step": 1}\n'
    path.write_bytes(f"{good}{{\n[1]\n{good}".encode() + b"\xff\n" + b"[" * 10**5 + b"\n")
    assert len(MetricsFile(path, 10**6).rows()) == 2
    assert [text.endswith("left out of its mirrors: 2, 3, 5, 6") for text in caplog.messages] == [True]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ('{"event": "a"}\n', [{"event": "a"}]),
        ('{"event": "a"}\n{"event": "b"', [{"event": "a"}]),
        ('{"event"', []),
    ],
)
def test_torn_last_row_is_left_out(tmp_path: Path, text: str, expected: list[dict[str, str]]) -> None:
    (tmp_path / "metrics.jsonl").write_text(text)
    assert read_rows(tmp_path / "metrics.jsonl") == expected


def test_missing_metrics_have_no_rows(tmp_path: Path) -> None:
    assert read_rows(tmp_path / "metrics.jsonl") == []


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            {"event": "train", "step": 3, "loss": 1.0, "top1": 0.5, "lr": 0.1, "images_per_second": 9.0},
            {"step": 3, "train/loss": 1.0, "train/top1": 0.5, "lr": 0.1, "perf/images_per_second": 9.0},
        ),
        (
            {"event": "eval", "split": "val", "step": 3, "top1": 0.5, "num_examples": 7},
            {"step": 3, "val/top1": 0.5, "val/num_examples": 7},
        ),
        ({"event": "test", "step": 3, "top5": 1.0}, {"step": 3, "test/top5": 1.0}),
        ({"event": "epoch", "epoch": 1, "val_loss": 2.0}, {"epoch": 1, "epoch/val_loss": 2.0}),
    ],
)
def test_rows_have_their_names_in_views(row: dict[str, Any], expected: dict[str, Any]) -> None:
    assert rename_for_display(row) == expected
