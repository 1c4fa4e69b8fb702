"""The offline W&B log equals metrics.jsonl, also after a kill, and holds no secret."""

from __future__ import annotations

import base64
import dataclasses
import functools
import hashlib
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
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import yaml
from helpers.dist_helper import run_processes, start_processes
from helpers.tiny import tiny_config
from PIL import Image
from safetensors import safe_open

from alexnet_dist.cli.crossval import cross_validate
from alexnet_dist.cli.train import train
from alexnet_dist.settings.schema import TrackingConfig
from alexnet_dist.tracking import wandb as wandb_mirror
from alexnet_dist.tracking import wandb_account
from alexnet_dist.tracking.pictures import Picture, Pictures
from alexnet_dist.tracking.trackers import read_rows, rename_for_display
from alexnet_dist.tracking.wandb import WandbMirror

pytest.importorskip("wandb")
CANARY = "canary-5f1c2e"


def take_time() -> None:
    """W&B's service starts within seconds; on a machine that does much else, it takes longer than a run would wait."""
    wandb_mirror.WANDB_BUDGET_SECONDS = 120.0


def train_with_wandb(folder: Path) -> None:
    take_time()
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (a child of the test: its messages are not the test's)
    sys.argv.append(f"--token={CANARY}")
    os.environ["SECRET_TOKEN"] = CANARY
    tracking = {"wandb": "offline", "tags": ["tiny"], "group": "toys", "notes": "a note"}
    train(tiny_config(folder, **{f"tracking__{key}": value for key, value in tracking.items()}))


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
            row: dict[str, Any] = {}
            for item in record.history.item:
                *places, last = [item.key] if item.key else item.nested_key
                part = row
                for place in places:
                    part = part.setdefault(place, {})
                part[last] = json.loads(item.value_json)
            rows.append({key: value for key, value in row.items() if not key.startswith("_")})
    return rows, records


def is_media(row: dict[str, Any]) -> bool:
    """Whether a row holds pictures or tables, and no numbers."""
    return any(isinstance(value, dict) for value in row.values())


@pytest.fixture(scope="module")
def killed_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed once between two checkpoints and then finished."""
    folder = tmp_path_factory.mktemp("wandb") / "run"
    group = start_processes(1, train_with_wandb, folder)
    while not any(row["step"] >= 8 for row in read_rows(folder / "metrics.jsonl")) and not group.has_ended():
        time.sleep(0.01)
    group.kill([0])
    group.wait()
    run_processes(1, train_with_wandb, folder)
    starts = json.loads((folder / "run.json").read_text())["starts"]
    assert len(starts) == 2
    assert starts[1]["step"] > 0
    return folder


def test_offline_log_equals_metrics_row_by_row(killed_run: Path) -> None:
    rows, _ = read_offline_run(killed_run)
    rows = [row for row in rows if not is_media(row)]
    assert rows == [rename_for_display(row) for row in read_rows(killed_run / "metrics.jsonl")]
    assert {"train/loss", "train/top1", "lr", "perf/images_per_second", "perf/data_wait_fraction"} <= rows[0].keys()
    assert any({"val/loss", "val/top1", "val/top5"} <= row.keys() for row in rows)


def test_run_keeps_its_id_settings_and_axis(killed_run: Path) -> None:
    _, records = read_offline_run(killed_run)
    wandb_id = json.loads((killed_run / "run.json").read_text())["wandb_id"]
    runs = [record.run for record in records if record.WhichOneof("record_type") == "run"]
    assert {run.run_id for run in runs} == {wandb_id}
    (run,) = runs
    assert (run.tags, run.run_group, run.job_type, run.notes, run.host) == (["tiny"], "toys", "train", "a note", "")
    settings = {item.key: item.value_json for record in records for item in record.config.update}
    settings |= {item.key: item.value_json for run in runs for item in run.config.update}
    assert json.loads(settings["optimizer"])["lr"] == 0.01
    facts, recorded = json.loads(settings["run"]), json.loads((killed_run / "run.json").read_text())
    assert facts["data"]["fingerprint"] == recorded["data"]["fingerprint"]
    assert facts["versions"] == recorded["versions"]
    with safe_open(killed_run / "model" / "model.safetensors", "np") as weights:
        assert facts["parameters"] == sum(weights.get_tensor(name).size for name in weights.keys())  # noqa: SIM118
    metrics = {record.metric.name or record.metric.glob_name: record.metric for record in records if record.metric}
    assert metrics["val/top1"].step_metric == "step"
    assert metrics["val/top1"].summary.max


def test_files_hold_no_command_line_environment_or_secret(killed_run: Path) -> None:
    files = [path for path in killed_run.rglob("*") if path.is_file()]
    assert [str(path) for path in files if CANARY.encode() in path.read_bytes()] == []
    checkout = str(Path(wandb_mirror.__file__).parents[2]).encode()
    assert [str(path) for path in files if "wandb" in path.parts and checkout in path.read_bytes()] == []


ROOT = Path(wandb_mirror.__file__).parents[2]
SECRETS = {
    "variable": "OTHER_SECRET",
    "token": "HF_TOKEN",
    "store": "AWS_SECRET_ACCESS_KEY",
    "key": "WANDB_API_KEY",
    "user": "LOGNAME",
    "agent": "SSH_AUTH_SOCK",
}
PASSED_ON = ("command", "home", "host", "remote", "email", "netrc")  # in other ways than by a variable
LEVELS = (pytest.param("minimal", marks=pytest.mark.slow), "standard", pytest.param("full", marks=pytest.mark.slow))
DEFAULT = "minimal"


def canary(name: str) -> str:
    return f"canary{name}5f1c2e"


def train_among_secrets(folder: Path, level: str) -> None:
    """In a git repository, below a home folder, and with variables that all hold secrets."""
    take_time()
    home, project = folder / canary("home"), folder / "project"
    home.mkdir(parents=True)
    remote = f"https://me:{canary('remote')}@example.org/toy.git"
    words = ("-c", "user.name=me", "-c", f"user.email={canary('email')}@example.org")
    subprocess.run(["git", "init", "-q", str(project)], check=True)
    os.chdir(project)
    subprocess.run(["git", *words, "commit", "-q", "--allow-empty", "-m", "first"], check=True)
    subprocess.run(["git", "remote", "add", "origin", remote], check=True)
    (home / ".netrc").write_text(f"machine api.wandb.ai\n  login user\n  password {canary('netrc')}\n")
    os.environ.update({variable: canary(name) for name, variable in SECRETS.items()}, HOME=str(home))
    os.environ["XDG_CACHE_HOME"] = str(home / ".cache")
    sys.argv.append(f"--token={canary('command')}")
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (a child of the test: its messages are not the test's)
    socket.gethostname = lambda: canary("host")
    chosen = {} if level == DEFAULT else {"privacy": level}
    tracking = {"wandb": "offline", "log_model": "best", **chosen}
    settings = {f"tracking__{key}": value for key, value in tracking.items()}
    train(tiny_config(folder / "run", train__epochs=2, log__plots=True, **settings))


@pytest.fixture(scope="module")
def runs_among_secrets(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives the folder of a run at a level of `tracking.privacy`, which is trained when it is first asked for."""

    @functools.cache
    def train_once(level: str) -> Path:
        folder = tmp_path_factory.mktemp(level)
        run_processes(1, train_among_secrets, folder, level)
        return folder / "run"

    return train_once


@pytest.mark.parametrize("level", LEVELS)
def test_no_secret_is_in_a_file_at_any_level(runs_among_secrets: Callable[[str], Path], level: str) -> None:
    run = runs_among_secrets(level)
    files = {
        path: path.read_bytes()
        for place in (run, run.parent / canary("home"))
        for path in place.rglob("*.*")
        if path.is_file() and path.name != ".netrc"
    }
    assert any(path.suffix == ".wandb" for path in files)
    found = {name for name in (*SECRETS, *PASSED_ON) if any(canary(name).encode() in data for data in files.values())}
    assert found == ({"host"} if level == "full" else set())


@pytest.mark.parametrize("level", LEVELS)
def test_a_level_tells_what_the_page_says(runs_among_secrets: Callable[[str], Path], level: str) -> None:
    rows, records = read_offline_run(runs_among_secrets(level))
    shown = {key for row in rows if is_media(row) for key in row} - {"step"}
    (run,) = [record.run for record in records if record.WhichOneof("record_type") == "run"]
    kinds = {record.WhichOneof("record_type") for record in records}
    assert {"conv1/tower_1", "conv1/tower_2", "plots/curves", "plots/conv1"} <= shown
    assert ("plots/worst" in shown, "worst_predictions" in shown) == (level != "minimal",) * 2
    assert ("stats" in kinds) == (level != "minimal")
    assert "environment" not in kinds
    git = ("https://example.org/toy.git", True) if level == "full" else ("", False)
    assert (run.git.remote_url, bool(run.git.commit)) == git
    assert run.host == (canary("host") if level == "full" else "")
    assert bool(find_artifacts(records, "code")) == (level == "full")
    settings = {item.key: item.value_json for record in records for item in record.config.update}
    assert json.loads(settings["output_dir"]) == ("run" if level == "minimal" else str(runs_among_secrets(level)))


def test_pictures_and_tables_are_there_and_can_be_opened(runs_among_secrets: Callable[[str], Path]) -> None:
    """As what they name says: W&B's file has their sha256, the table's pictures lie where its artifact says."""
    whole = runs_among_secrets("standard")
    rows, records = read_offline_run(whole)
    (folder,) = whole.glob("wandb/offline-run-*/files")
    shown = {key: value for row in rows if is_media(row) for key, value in row.items() if key != "step"}
    names = {f"plots/{name}" for name in ("confusion", "inputs", "worst", "curves", "conv1")}
    # Of the first epoch; the second one comes too soon after.
    first = {"train/inputs", "val/confusion", "val/worst"}
    assert shown.keys() == {"conv1/tower_1", "conv1/tower_2", *names, *first, "worst_predictions"}
    for value in shown.values():
        content = (folder / value["path"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == value["sha256"]
    with Image.open(folder / shown["conv1/tower_1"]["path"]) as filters:
        assert min(filters.size) >= 92  # 11 weights and a line, twice, 4 pixels each
    for name in ("confusion", "worst"):
        drawn = (whole / "plots" / f"{name}.png").read_bytes()
        assert (folder / shown[f"plots/{name}"]["path"]).read_bytes() == drawn
    columns = ["picture", "truth", "prediction", "confidence", "true_confidence", "file"]
    staged = {entry.path: entry.local_path for _, entries in find_artifacts(records, "run_table") for entry in entries}
    table = json.loads(Path(staged["worst_predictions.table.json"]).read_text())
    assert (table["columns"], bool(table["data"])) == (columns, True)
    for picture, *_ in table["data"]:
        with Image.open(staged[picture["path"]]) as image:
            assert image.size == (64, 64)


def test_models_are_versions_that_stay_as_they_were(runs_among_secrets: Callable[[str], Path]) -> None:
    whole = runs_among_secrets("standard")
    _, records = read_offline_run(whole)
    versions = find_artifacts(records, "model")
    assert [set(artifact.aliases) for artifact, _ in versions] == [{"best", "latest"}] * len(versions)
    steps = [json.loads(artifact.metadata)["step"] for artifact, _ in versions]
    assert steps == sorted(set(steps))
    summary = json.loads((whole / "summary.json").read_text())
    assert json.loads(versions[-1][0].metadata)["val_top1"] == summary["best_top1"]
    for _, entries in versions:
        for entry in entries:
            digest = base64.b64encode(hashlib.md5(Path(entry.local_path).read_bytes()).digest())
            assert digest.decode() == entry.digest
    weights = {entry.path: Path(entry.local_path).read_bytes() for entry in versions[-1][1]}["model.safetensors"]
    assert weights == (whole / "model" / "model.safetensors").read_bytes()


def find_artifacts(records: list[Any], kind: str) -> list[tuple[Any, list[Any]]]:
    """The artifacts of a kind in their order, each with its files."""
    found = [record.artifact for record in records if record.WhichOneof("record_type") == "artifact"]
    return [(artifact, list(artifact.manifest.contents)) for artifact in found if artifact.type == kind]


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


@pytest.mark.parametrize(
    ("chosen", "shown"), [({}, {"conv1/filters"}), ({"privacy": "standard"}, {"conv1/filters", "plots/worst"})]
)
def test_images_are_shown_to_wandb_only_where_that_was_chosen(
    tmp_path: Path, chosen: dict[str, Any], shown: set[str]
) -> None:
    pixels = np.zeros((4, 4, 3), np.uint8)
    pictures = Pictures(7, [Picture("conv1/filters", pixels, tells_of_images=False), Picture("plots/worst", pixels)])
    tracking = dataclasses.asdict(TrackingConfig(wandb="online", **chosen))
    mirror = open_mirror(tmp_path, lambda **arguments: MagicMock(), tracking=tracking)
    mirror.show(pictures)
    mirror._aside.wait()
    (row,) = mirror._run.log.call_args.args
    assert row.keys() - {"step"} == shown
    assert mirror.shows_images == bool(chosen)


@pytest.mark.parametrize(
    ("level", "root", "train"),
    [("minimal", "acme", "train-{0..9}.tar"), ("standard", "~/clients/acme", "../x/train-{0..9}.tar")],
)
def test_paths_are_told_as_the_level_says(monkeypatch: pytest.MonkeyPatch, level: str, root: str, train: str) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    data = {"root": "/home/me/clients/acme", "train": "../x/train-{0..9}.tar", "fold": None}
    assert wandb_account.hide_places({"data": data}, level) == {"data": {"root": root, "train": train, "fold": None}}


def open_mirror(folder: Path, start: Any, **changes: Any) -> WandbMirror:
    words: dict[str, Any] = {"folder": folder, "mode": "offline", "run_id": "5e6f7a8b", "config": {}, "rows": []}
    tracking = dataclasses.asdict(TrackingConfig(wandb="online"))
    words |= {"tracking": tracking, **changes}
    return WandbMirror(start=start, call=lambda action, _: action(), **words)


END = """
import os, signal, sys
from pathlib import Path
import psutil
from alexnet_dist.settings.schema import TrackingConfig
from alexnet_dist.tracking import wandb_account
from alexnet_dist.tracking import wandb as wandb_mirror
wandb_mirror.WANDB_BUDGET_SECONDS, wandb_mirror.EXIT_SECONDS = 6.0, 0.5
mirror = wandb_mirror.WandbMirror(folder=Path(sys.argv[1]), mode="offline",
    run_id="5e6f7a8b", config={}, rows=[], tracking=vars(TrackingConfig()))
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


# -- folds ------------------------------------------------------------------------------------------------------------


def cross_validate_with_wandb(folder: Path) -> None:
    take_time()
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (a child of the test: its messages are not the test's)
    words = {"train__epochs": 1, "data__folds": 2, "tracking__wandb": "offline", "tracking__tensorboard": True}
    cross_validate(tiny_config(folder, **words))


@pytest.mark.slow
def test_folds_are_a_group_with_a_run_for_all(tmp_path: Path) -> None:
    run_processes(1, cross_validate_with_wandb, tmp_path / "toy")
    runs = {}
    for folder in (tmp_path / "toy" / "fold-1", tmp_path / "toy" / "fold-2", tmp_path / "toy"):
        rows, records = read_offline_run(folder)
        (runs[folder.name],) = [record.run for record in records if record.WhichOneof("record_type") == "run"]
    assert {run.run_group for run in runs.values()} == {"toy"}
    assert [run.job_type for run in runs.values()] == ["fold", "fold", "summary"]
    table = json.loads((tmp_path / "toy" / "crossval.json").read_text())
    found = [(row["step"], row["fold/top1"]) for row in rows if "fold/top1" in row]
    assert found == [(fold["fold"], fold["top1"]) for fold in table["folds"]]
    summary = [item.value_json for record in records for item in record.summary.update if "final" in str(item)]
    assert json.loads(summary[-1])["top1_mean"] == table["mean"]["top1"]
    assert (tmp_path / "toy" / "tensorboard").is_dir()


# -- a sweep ----------------------------------------------------------------------------------------------------------


def start_trial(folder: Path, trial: str, values: dict[str, Any]) -> str:
    """What W&B's agent does, by its own functions: a command from the file, and the trial's id in variables."""
    from wandb.sdk.launch.sweeps import utils

    sweep = yaml.safe_load((ROOT / "launch" / "sweep_wandb.yaml").read_text())
    assert values.keys() <= sweep["parameters"].keys()
    words = utils.create_sweep_command_args({"args": {key: {"value": value} for key, value in values.items()}})
    words |= {"env": ["/usr/bin/env"], "interpreter": [sys.executable], "program": [str(ROOT / sweep["program"])]}
    command = [part for word in sweep["command"] for part in (words[word[2:-1]] if word.startswith("${") else [word])]
    command = [
        "smoke" if word == "fruits" else word for word in command if word not in ("--data.root", "data/fruits10")
    ]
    variables = {"WANDB_SWEEP_ID": "s1w2e3p4", "WANDB_RUN_ID": trial, "HOME": str(folder), "NETRC": str(folder / "no")}
    ended = subprocess.run(
        command, cwd=folder, env={**os.environ, **variables}, capture_output=True, text=True, timeout=200
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stderr


@pytest.mark.slow
def test_each_trial_of_a_sweep_has_its_folder_and_the_agents_id(tmp_path: Path) -> None:
    for trial in ("aaaa1111", "bbbb2222"):  # the same settings twice, as a sweep may choose them
        assert "WANDB_RUN_ID" not in start_trial(
            tmp_path, trial, {"optimizer.lr": 0.001, "optimizer.weight_decay": 0.0}
        )
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["smoke-aaaa1111", "smoke-bbbb2222"]
    for trial in ("aaaa1111", "bbbb2222"):
        _, records = read_offline_run(tmp_path / "runs" / f"smoke-{trial}")
        (run,) = [record.run for record in records if record.WhichOneof("record_type") == "run"]
        assert (run.run_id, run.sweep_id) == (trial, "s1w2e3p4")
        summary = {item.key: item.value_json for record in records for item in record.summary.update}
        best = json.loads((tmp_path / "runs" / f"smoke-{trial}" / "summary.json").read_text())["best_top1"]
        assert json.loads(summary["best_top1"]) == best


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


THEIRS = {"project": "theirs", "entity": "team", "name": "named", "tags": ["a", "b"]}
THEIRS |= {"group": "g", "job_type": "j", "notes": "n"}
OURS = {"project": "ours", "entity": "us", "name": "n", "tags": ["c"], "group": "h", "job_type": "k", "notes": "m"}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, THEIRS),
        (OURS, OURS),
    ],
    ids=["theirs", "ours"],
)
def test_the_runs_own_names_go_before_wandbs(tmp_path: Path, given: dict[str, Any], expected: dict[str, Any]) -> None:
    tracking = dataclasses.asdict(TrackingConfig(**given))
    words = {key if key in ("project", "entity") else f"run_{key}": value for key, value in THEIRS.items()}
    theirs = SimpleNamespace(**words)
    assert wandb_account.settle_names(tracking, tmp_path, theirs) == expected
    nothing = SimpleNamespace(**dict.fromkeys([*words, "run_name"]))
    names = wandb_account.settle_names(dataclasses.asdict(TrackingConfig()), tmp_path, nothing)
    own = {"project": "alexnet_dist", "entity": None, "name": tmp_path.name, "tags": []}
    assert names == {**own, "group": None, "job_type": "train", "notes": None}


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
