"""The offline W&B log equals metrics.jsonl, also after a kill, and holds no secret."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import json
import multiprocessing
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
from helpers.dist_helper import run_processes, start_processes
from helpers.tiny import tiny_config

from alexnet_dist.cli.train import train
from alexnet_dist.settings.schema import TrackingConfig
from alexnet_dist.tracking import wandb as wandb_mirror
from alexnet_dist.tracking import wandb_account
from alexnet_dist.tracking.trackers import read_rows, rename_for_display
from alexnet_dist.tracking.wandb import WandbMirror

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
    assert {run.host for run in runs} == {""}
    settings = {item.key: item.value_json for record in records for item in record.config.update}
    settings |= {item.key: item.value_json for run in runs for item in run.config.update}
    assert json.loads(settings["optimizer"])["lr"] == 0.01
    metrics = {record.metric.name or record.metric.glob_name: record.metric for record in records if record.metric}
    assert metrics["val/top1"].step_metric == "step"
    assert metrics["val/top1"].summary.max


def test_files_hold_no_command_line_environment_or_secret(killed_run: Path) -> None:
    files = [path for path in killed_run.rglob("*") if path.is_file()]
    assert [str(path) for path in files if CANARY.encode() in path.read_bytes()] == []
    checkout = str(Path(wandb_mirror.__file__).parents[2]).encode()
    assert [str(path) for path in files if "wandb" in path.parts and checkout in path.read_bytes()] == []


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


@pytest.mark.parametrize("failure", [lambda **_: BrokenTracker(), lambda **_: 1 / 0], ids=["log", "start"])
def test_a_broken_wandb_never_ends_a_run(tmp_path: Path, failure: Any, caplog: pytest.LogCaptureFixture) -> None:
    mirror = open_mirror(tmp_path, failure)
    mirror.log({"event": "train", "step": 1, "loss": 1.0})
    mirror.finish({})
    assert mirror._run is None


def test_a_run_that_cannot_begin_online_is_recorded_offline(tmp_path: Path) -> None:
    """The service is left in between, because it holds on to the id of the run that failed."""
    begun: list[str] = []

    def start(**words: Any) -> Any:
        begun.append(words["mode"])
        if words["mode"] == "online":
            raise ConnectionError("no such server")
        return MagicMock()

    mirror = open_mirror(tmp_path, start, mode="online", rows=[{"event": "train", "step": 1, "loss": 1.0}])
    assert begun == ["online", "offline"]
    mirror._run.log.assert_called_once_with({"step": 1, "train/loss": 1.0})


def open_mirror(folder: Path, start: Any, **changes: Any) -> WandbMirror:
    words: dict[str, Any] = {"folder": folder, "mode": "offline", "run_id": "5e6f7a8b", "settings": {}, "rows": []}
    tracking = dataclasses.asdict(TrackingConfig(wandb="online"))
    return WandbMirror(start=start, call=lambda action, _: action(), **{**words, "tracking": tracking, **changes})


END = """
import os, signal, sys
from pathlib import Path
import psutil
from alexnet_dist.settings.schema import TrackingConfig
from alexnet_dist.tracking import wandb_account
from alexnet_dist.tracking import wandb as wandb_mirror
wandb_mirror.WANDB_BUDGET_SECONDS, wandb_mirror.EXIT_SECONDS = 6.0, 0.5
mirror = wandb_mirror.WandbMirror(folder=Path(sys.argv[1]), mode="offline",
    run_id="5e6f7a8b", settings={}, rows=[], tracking=vars(TrackingConfig()))
mirror._budget = 1.0
(service,) = [child for child in psutil.Process().children() if child.name().startswith("wandb-core")]
service.send_signal(int(sys.argv[2]))
mirror.log({"event": "train", "step": 1, "loss": 1.0})
mirror.finish({})
if len(sys.argv) > 3:
    raise SystemError("a bug")
"""


@pytest.mark.parametrize(("number", "bug"), [(signal.SIGSTOP, []), (signal.SIGKILL, ["bug"])])
def test_a_service_that_is_stopped_or_gone_does_not_keep_a_process(
    tmp_path: Path, number: signal.Signals, bug: list[str]
) -> None:
    words = [sys.executable, "-c", END, str(tmp_path), str(int(number)), *bug]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=60)  # W&B alone waits without a limit
    assert ended.returncode == len(bug), ended.stderr
    assert ended.stderr.count("Traceback") == len(bug)
    assert ("was killed" in ended.stderr) == (number == signal.SIGSTOP)
    assert "failed" in ended.stderr


# -- W&B's own word ---------------------------------------------------------------------------------------------------

KEY = "0123456789" * 4


@pytest.fixture
def server() -> Iterator[str]:
    """The address of something that listens; nobody answers there."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def ask(requested: str, variables: dict[str, str], home: Path) -> tuple[str, str]:
    """In a process of its own, as W&B reads its settings once."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        del os.environ[name]
    os.environ.update({"HOME": str(home), "NETRC": str(home / "nothing"), **variables})
    return wandb_account.choose_wandb_mode(requested)


def ask_apart(requests: list[tuple[str, dict[str, str], Path]]) -> list[tuple[str, str]]:
    """The answers to each; W&B is imported once, and not by this process."""
    (answers,) = run_processes(1, ask_each, requests)
    return answers  # type: ignore[no-any-return]


def ask_each(requests: list[tuple[str, dict[str, str], Path]]) -> list[tuple[str, str]]:
    importlib.import_module("wandb.sdk.wandb_setup")
    with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as pool:
        return pool.starmap(ask, requests, chunksize=1)


def test_an_account_is_found_where_wandb_finds_it(tmp_path: Path, server: str) -> None:
    (tmp_path / "netrc").write_text(f"machine {server}\n  login user\n  password {KEY}\n")
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "settings").write_text(f"[default]\nbase_url = http://{server}\n")
    url, netrc = {"WANDB_BASE_URL": f"http://{server}"}, {"NETRC": str(tmp_path / "netrc")}
    accounts = {
        "variable": {**url, "WANDB_API_KEY": KEY},
        "netrc elsewhere": {**url, **netrc},
        "settings file": {"WANDB_CONFIG_DIR": str(tmp_path / "config"), **netrc},
        "proxy": {"WANDB_BASE_URL": "https://wandb.invalid", "WANDB_API_KEY": KEY, "https_proxy": f"http://{server}"},
    }
    cases = list(itertools.product(("online", "auto"), accounts))
    answers = ask_apart([(requested, accounts[account], tmp_path) for requested, account in cases])
    assert [case for case, (found, _) in zip(cases, answers, strict=True) if found != "online"] == []


NOT_ONLINE: list[tuple[str, dict[str, str], str, str]] = [
    ("online", {}, "offline", "no W&B account"),
    ("auto", {}, "offline", "no W&B account"),
    ("online", {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": "http://127.0.0.1:9"}, "offline", "cannot be reached"),
    ("online", {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": "http://127.0.0.1:abc"}, "offline", "port"),
    ("online", {"WANDB_API_KEY": "canary"}, "offline", ""),
    ("auto", {"WANDB_API_KEY": KEY, "WANDB_MODE": "offline"}, "offline", "W&B's own"),
    ("auto", {"WANDB_API_KEY": KEY, "WANDB_MODE": "disabled"}, "disabled", "W&B's own"),
    ("auto", {"WANDB_API_KEY": KEY, "WANDB_DISABLED": "true"}, "disabled", "W&B's own"),
]


def test_why_a_run_is_not_online(tmp_path: Path) -> None:
    answers = ask_apart([(requested, variables, tmp_path) for requested, variables, _, _ in NOT_ONLINE])
    for (requested, variables, mode, reason), (found, why) in zip(NOT_ONLINE, answers, strict=True):
        assert (found, reason in why) == (mode, True), (requested, variables, why)
        assert "canary" not in why


def test_errors_of_wandb_are_told_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert wandb_account.explain(RuntimeError(f"bad key {KEY}\nof W&B")) == "RuntimeError: bad key *** of W&B"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"project": "theirs", "entity": "team", "name": "named", "tags": ["a", "b"]}),
        (
            {"project": "ours", "entity": "us", "name": "n", "tags": ["c"]},
            {"project": "ours", "entity": "us", "name": "n", "tags": ["c"]},
        ),
    ],
    ids=["theirs", "ours"],
)
def test_the_runs_own_names_go_before_wandbs(tmp_path: Path, given: dict[str, Any], expected: dict[str, Any]) -> None:
    tracking = dataclasses.asdict(TrackingConfig(**given))
    theirs = SimpleNamespace(project="theirs", entity="team", run_name="named", run_tags=("a", "b"))
    assert wandb_account.settle_names(tracking, tmp_path, theirs) == expected
    nothing = SimpleNamespace(project=None, entity=None, run_name=None, run_tags=None)
    names = wandb_account.settle_names(dataclasses.asdict(TrackingConfig()), tmp_path, nothing)
    assert names == {"project": "alexnet_dist", "entity": None, "name": tmp_path.name, "tags": []}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"wandb": "online"}, ["WANDB_MODE", "WANDB_DIR"]),
        ({"wandb": "auto", "project": "ours", "tags": ["c"]}, ["WANDB_TAGS", "WANDB_PROJECT", "WANDB_DIR"]),
        ({"wandb": "disabled"}, ["WANDB_MODE"]),
    ],
)
def test_variables_without_effect_are_named(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], expected: list[str]
) -> None:
    for name in ("MODE", "PROJECT", "TAGS", "DIR"):
        monkeypatch.setenv(f"WANDB_{name}", "offline")
    named = wandb_account.list_overruled(dataclasses.asdict(TrackingConfig(**given)))
    assert [text.split()[0] for text in named] == expected
