"""The offline W&B log equals metrics.jsonl, also after a kill, and holds no secret."""

from __future__ import annotations

import json
import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dist_helper import run_processes, start_processes
from tiny import tiny_config

from alexnet_dist.commands.train import train
from alexnet_dist.training import wandb_mirror
from alexnet_dist.training.trackers import read_rows, rename_for_display
from alexnet_dist.training.wandb_mirror import WandbMirror, choose_wandb_mode

pytest.importorskip("wandb")
CANARY = "canary-5f1c2e"


def train_with_wandb(folder: Path) -> None:
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (a child of the test: its messages are not the test's)
    sys.argv.append(f"--token={CANARY}")
    os.environ["SECRET_TOKEN"] = CANARY
    train(tiny_config(folder, tracking__wandb="offline", tracking__tags=["tiny"]))


def read_blocks(data: bytes) -> Iterator[bytes]:
    """The records of a .wandb file: LevelDB's log format behind a header of 7 bytes, in blocks of 32 KiB."""
    position, parts = 7, b""
    while position + 7 <= len(data):
        room = 32768 - position % 32768
        if room < 7:
            position += room
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield parts
            parts = b""


def read_offline_run(folder: Path) -> tuple[list[dict[str, Any]], list[Any]]:
    """The logged rows of the offline runs below a run folder, and all records, by wandb's own schema."""
    from wandb.proto.wandb_internal_pb2 import Record

    records = []
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        for block in read_blocks(path.read_bytes()):
            record = Record()
            record.ParseFromString(block)
            records.append(record)
    rows = []
    for record in records:
        if record.WhichOneof("record_type") == "history":
            items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            rows.append({key: value for key, value in items.items() if not key.startswith("_")})
    return rows, records


@pytest.fixture(scope="module")
def killed_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed once between two checkpoints and then finished."""
    folder = tmp_path_factory.mktemp("wandb") / "run"
    group = start_processes(1, train_with_wandb, folder)
    while not any(row["step"] >= 8 for row in read_rows(folder / "metrics.jsonl")) and not group.has_ended():
        pass
    group.kill([0])
    group.wait()
    run_processes(1, train_with_wandb, folder)
    starts = json.loads((folder / "run.json").read_text())["starts"]
    assert len(starts) == 2
    assert starts[1]["step"] > 0
    return folder


def test_offline_log_equals_metrics_row_by_row(killed_run: Path) -> None:
    rows, _ = read_offline_run(killed_run)
    assert rows == [rename_for_display(row) for row in read_rows(killed_run / "metrics.jsonl")]
    assert {"train/loss", "train/top1", "lr", "perf/images_per_second", "perf/data_wait_fraction"} <= rows[0].keys()
    assert any({"val/loss", "val/top1", "val/top5"} <= row.keys() for row in rows)


def test_run_keeps_its_id_settings_and_axis(killed_run: Path) -> None:
    _, records = read_offline_run(killed_run)
    wandb_id = json.loads((killed_run / "run.json").read_text())["wandb_id"]
    runs = [record.run for record in records if record.WhichOneof("record_type") == "run"]
    assert {run.run_id for run in runs} == {wandb_id}
    assert list(runs[0].tags) == ["tiny"]
    settings = {item.key: item.value_json for record in records for item in record.config.update}
    settings |= {item.key: item.value_json for run in runs for item in run.config.update}
    assert json.loads(settings["optimizer"])["lr"] == 0.01
    metrics = {record.metric.name or record.metric.glob_name: record.metric for record in records if record.metric}
    assert metrics["val/top1"].step_metric == "step"
    assert metrics["val/top1"].summary.max


def test_files_hold_no_command_line_environment_or_secret(killed_run: Path) -> None:
    files = [path for path in killed_run.rglob("*") if path.is_file()]
    assert [str(path) for path in files if CANARY.encode() in path.read_bytes()] == []


class BrokenTracker:
    """Fails at every call, as W&B does when its service was killed."""

    def __getattr__(self, name: str) -> Any:
        raise BrokenPipeError("the service is gone")


def test_only_folders_of_this_run_are_removed(tmp_path: Path) -> None:
    names = ["offline-run-20260101_000000-5e6f7a8c", "offline-run-mine-5e6f7a8b", "run-20260101_000000-5e6f7a8b"]
    for name in ["offline-run-20260101_000000-5e6f7a8b", *names]:
        (tmp_path / "wandb" / name).mkdir(parents=True)
    (tmp_path / "victim").mkdir()
    (tmp_path / "wandb" / "offline-run-20260101_000001-5e6f7a8b").symlink_to(tmp_path / "victim")
    for run_id in ("5e6f7a8b", "x/../../../victim", "*"):
        wandb_mirror._remove_offline_runs(tmp_path / "wandb", run_id)
    left = sorted(path.name for path in (tmp_path / "wandb").iterdir())
    assert left == sorted([*names, "offline-run-20260101_000001-5e6f7a8b"])
    assert (tmp_path / "victim").is_dir()


@pytest.mark.parametrize("failure", [lambda *_: BrokenTracker(), lambda *_: 1 / 0], ids=["log", "start"])
def test_a_broken_wandb_never_ends_a_run(tmp_path: Path, failure: Any, caplog: pytest.LogCaptureFixture) -> None:
    tracking = {"project": "p", "entity": None, "name": None, "tags": []}
    mirror = WandbMirror(
        failure,
        lambda action, _: action(),
        folder=tmp_path,
        mode="offline",
        run_id="x",
        settings={},
        rows=[],
        tracking=tracking,
    )
    mirror.log({"event": "train", "step": 1, "loss": 1.0})
    mirror.finish({})
    assert mirror._tracker is None


def test_auto_without_account_is_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb_mirror, "_has_account", lambda host: False)
    assert choose_wandb_mode("auto")[0] == "offline"
    assert choose_wandb_mode("online")[0] == "offline"


def test_unreachable_server_is_noticed_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    mode, reason = choose_wandb_mode("online")
    assert mode == "offline"
    assert "cannot be reached" in reason
