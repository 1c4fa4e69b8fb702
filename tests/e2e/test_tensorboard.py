"""TensorBoard's event files and metrics.csv equal metrics.jsonl, also after a kill, and hold no secret."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.dist_helper import run_processes, start_processes
from helpers.tables import read_table
from helpers.tiny import tiny_config
from PIL import Image

from alexnet_dist.cli.main import run
from alexnet_dist.cli.train import train
from alexnet_dist.runs.folder import start_logging
from alexnet_dist.settings.reader import dump_config
from alexnet_dist.tracking import epochs
from alexnet_dist.tracking.csv import COLUMNS, CsvMirror
from alexnet_dist.tracking.pictures import Picture, Pictures
from alexnet_dist.tracking.tensorboard import TensorboardMirror
from alexnet_dist.tracking.trackers import MetricsFile, Row, Trackers, name_points, read_rows

pytest.importorskip("tensorboard")
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

CANARY = "canary-5f1c2e"
Point = tuple[str, int, float]


def train_with_tensorboard(folder: Path) -> None:
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (a child of the test: its messages are not the test's)
    sys.argv.append(f"--token={CANARY}")
    os.environ["SECRET_TOKEN"] = CANARY
    socket.gethostname = lambda: f"host-{CANARY}"
    train(tiny_config(folder, tracking__tensorboard=True))


def load_events(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0}).Reload()


def read_points(folder: Path) -> list[Point]:
    """Every point of every curve, in order."""
    events = load_events(folder)
    return sorted((tag, e.step, e.value) for tag in events.Tags()["scalars"] for e in events.Scalars(tag))


def expected_points(rows: list[Row]) -> list[Point]:
    """What TensorBoard should hold: the numbers of metrics.jsonl in single precision."""
    return sorted((tag, row["step"], float(np.float32(v))) for row in rows for tag, v in name_points(row).items())


@pytest.fixture(scope="module")
def killed_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed once between two checkpoints and then finished."""
    folder = tmp_path_factory.mktemp("tensorboard") / "run"
    group = start_processes(1, train_with_tensorboard, folder)
    while not any(row["step"] >= 8 for row in read_rows(folder / "metrics.jsonl")) and not group.has_ended():
        time.sleep(0.005)
    group.kill([0])
    group.wait()
    run_processes(1, train_with_tensorboard, folder)
    starts = json.loads((folder / "run.json").read_text())["starts"]
    assert len(starts) == 2
    assert starts[1]["step"] > 0
    return folder


def test_points_equal_metrics_row_by_row(killed_run: Path) -> None:
    points = read_points(killed_run / "tensorboard")
    assert points == expected_points(read_rows(killed_run / "metrics.jsonl"))
    assert {"train/loss", "val/top1", "lr", "perf/images_per_second"} <= {tag for tag, _, _ in points}
    assert len({(tag, step) for tag, step, _ in points}) == len(points)


def test_table_equals_metrics_row_by_row(killed_run: Path) -> None:
    rows = read_rows(killed_run / "metrics.jsonl")
    assert read_table(killed_run / "metrics.csv") == rows
    assert set(COLUMNS) == {*set().union(*rows), "gpu_memory_mib"}


def test_epochs_have_a_row_each(killed_run: Path, tmp_path: Path) -> None:
    rows = read_rows(killed_run / "metrics.jsonl")
    CsvMirror(tmp_path / "anew.csv", rows, epochs.COLUMNS, epochs.EpochRows()).finish({})
    written = (killed_run / "epochs.csv").read_text()
    assert written == (tmp_path / "anew.csv").read_text()
    assert len(written.splitlines()) == 1 + sum(row["event"] == "epoch" for row in rows)


def test_settings_are_a_text_of_the_one_run(killed_run: Path) -> None:
    assert len(list((killed_run / "tensorboard").iterdir())) == 1
    events = load_events(killed_run / "tensorboard")
    (text,) = events.Tensors("settings/text_summary")
    lines = text.tensor_proto.string_val[0].decode().splitlines()
    assert [line.removeprefix("    ") for line in lines] == (killed_run / "config.yaml").read_text().splitlines()


def test_settings_are_in_the_tab_of_hparams(killed_run: Path) -> None:
    events = load_events(killed_run / "tensorboard")
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    start = HParamsPluginData.FromString(content).session_start_info
    assert start.hparams["optimizer.lr"].number_value == 0.01
    assert start.hparams["model.variant"].string_value == "paper"
    assert not [name for name in start.hparams if name.startswith("tracking.")]


def test_pictures_are_shown_at_their_step(killed_run: Path, tmp_path: Path) -> None:
    images = load_events(killed_run / "tensorboard").Tags()["images"]
    assert set(images) <= {"conv1/tower_1", "conv1/tower_2"}  # they begin with the resume, and with better weights
    mirror = TensorboardMirror(folder=tmp_path, run_id="5e6f7a8b", settings="", rows=[])
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    mirror.show(Pictures(7, [Picture("pixels", pixels), Picture("file", tmp_path / "a.png")]))
    mirror.finish({})
    events = load_events(tmp_path)
    for name in ("pixels", "file"):
        (shown,) = events.Images(name)
        assert shown.step == 7
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(shown.encoded_image_string))), pixels)


def test_files_hold_no_command_line_environment_or_host(killed_run: Path) -> None:
    (file,) = (killed_run / "tensorboard").iterdir()
    assert CANARY in file.name  # TensorBoard names the host there, and only there
    assert CANARY.encode() not in file.read_bytes()


def test_end_of_run_says_how_to_look(killed_run: Path) -> None:
    assert f"TensorBoard: tensorboard --logdir {killed_run / 'tensorboard'}\n" in (killed_run / "run.log").read_text()


# -- a resume, seen closely -------------------------------------------------------------------------------------------


def row_at(step: int, loss: float) -> Row:
    return {"event": "train", "step": step, "epoch": 0, "loss": loss}


def log_resume(folder: Path, defect: bool) -> None:
    """Two rows, a checkpoint between them, and a resume; with the defect, the old event file stays."""
    if defect:
        Path.unlink = lambda self: None  # type: ignore[assignment, method-assign]
    for size in (0, len(json.dumps(row_at(1, 1.0))) + 1):
        trackers = open_trackers_here(folder, size)
        if size == 0:
            trackers.log(row_at(1, 1.0))
            trackers.sync()
        trackers.log(row_at(2, 2.0 + size))
    trackers.finish({})


def open_trackers_here(folder: Path, size: int) -> Trackers:
    def start(rows: list[Row]) -> TensorboardMirror:
        return TensorboardMirror(folder=folder / "tensorboard", run_id="5e6f7a8b", settings="a: 1\n", rows=rows)

    return Trackers(MetricsFile(folder / "metrics.jsonl", size), {"TensorBoard": start})


@pytest.mark.parametrize("defect", [False, True], ids=["sound", "old files stay"])
def test_points_of_lost_rows_are_gone_after_a_resume(tmp_path: Path, defect: bool) -> None:
    run_processes(1, log_resume, tmp_path, defect)
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2]
    assert (read_points(tmp_path / "tensorboard") == expected_points(rows)) is not defect


# -- what can go wrong ------------------------------------------------------------------------------------------------


def log_without_folder(folder: Path) -> str:
    """What is said when somebody removes the folder while the run goes on."""
    threading.excepthook = threading.__excepthook__  # pytest's own would keep a thread's words from us
    with contextlib.redirect_stderr(io.StringIO()) as stderr:
        start_logging(None)
        trackers = open_trackers_here(folder, 0)
        shutil.rmtree(folder / "tensorboard")
        for step in range(3):
            trackers.log(row_at(step, 1.0))
        trackers.finish({})
        time.sleep(0.2)  # a thread of TensorBoard's would speak by now
    return stderr.getvalue()


def test_event_files_of_others_stay(tmp_path: Path) -> None:
    theirs = "events.out.tfevents.1.host.2.0"
    (tmp_path / theirs).write_bytes(b"theirs")
    for _ in range(2):
        mirror = TensorboardMirror(folder=tmp_path, run_id="5e6f7a8b", settings="", rows=[])
        mirror.finish({})
    assert (tmp_path / theirs).read_bytes() == b"theirs"
    assert len(list(tmp_path.iterdir())) == 2


def test_lost_folder_costs_one_line_and_no_row(tmp_path: Path) -> None:
    (text,) = run_processes(1, log_without_folder, tmp_path)
    (line,) = text.splitlines()
    assert line.startswith("TensorBoard failed (FileNotFoundError")
    assert len(read_rows(tmp_path / "metrics.jsonl")) == 3


def train_without_package(config: Path) -> tuple[int, str]:
    sys.modules["tensorboard"] = None  # type: ignore[assignment] (as if it were not installed)
    with contextlib.redirect_stderr(io.StringIO()) as stderr:
        code = run("train", ["--config", str(config), "--tracking.tensorboard", "true"])
    return code, stderr.getvalue()


@pytest.mark.parametrize("processes", [1, 2])
def test_missing_package_is_named_before_training(tmp_path: Path, processes: int) -> None:
    (tmp_path / "tiny.yaml").write_text(dump_config(tiny_config(tmp_path / "run")))
    results = run_processes(processes, train_without_package, tmp_path / "tiny.yaml")
    assert [code for code, _ in results] == [5] * processes
    lines = "".join(text for _, text in results).splitlines()
    said = [line for line in lines if not line.startswith(("alexnet_dist ", "importing "))]
    assert said == ["error: tensorboard is not installed; pip install 'alexnet_dist[tensorboard]'"]
    assert not (tmp_path / "run").exists()
