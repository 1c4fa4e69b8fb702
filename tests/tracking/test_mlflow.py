"""MLflow's store equals metrics.jsonl, also after a resume, and holds the pictures and the model of the run."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.refusals import refused

from alexnet_dist.assembly.trackers import open_trackers
from alexnet_dist.base.errors import UsageError
from alexnet_dist.settings.reader import build_config
from alexnet_dist.settings.schema import Config, TrackingConfig
from alexnet_dist.tracking import mlflow as mirror
from alexnet_dist.tracking.pictures import Picture, Pictures
from alexnet_dist.tracking.trackers import Row, name_points, read_rows

# Its import takes two seconds, which who collects these tests does not wait for.
pytestmark = [pytest.mark.heavy, pytest.mark.skipif(find_spec("mlflow") is None, reason="needs the extra mlflow")]
ROWS: list[Row] = [
    {"event": "train", "step": 1, "epoch": 0, "loss": 2.0, "lr": 0.1},
    {"event": "eval", "split": "val", "step": 2, "epoch": 1, "loss": 1.0, "top1": 0.5},
    {"event": "epoch", "step": 2, "epoch": 1, "train_loss": 2.0},
    {"event": "train", "step": 3, "epoch": 1, "loss": 1.5, "lr": 0.1},
]


def open_store(folder: Path) -> tuple[Any, list[Any]]:
    """MLflow's own client, and the runs that it shows."""
    from mlflow.tracking import MlflowClient

    with mirror._own_variables():
        client = MlflowClient(tracking_uri=(folder / "mlruns").as_uri())
        (place,) = [place for place in client.search_experiments() if place.name == "toys"]
        return client, list(client.search_runs([place.experiment_id]))


def settings(folder: Path) -> Config:
    return Config(tracking=TrackingConfig(mlflow=str(folder / "mlruns"), project="toys", log_model="end"))


@pytest.fixture
def resumed(tmp_path: Path) -> Path:
    """A run that lost its last row and went on, and another run in the same store."""
    run, model = tmp_path / "run", tmp_path / "run" / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    size = 0
    for rows in (ROWS[:3], ROWS[3:]):
        trackers = open_trackers(settings(tmp_path), run, size, "5e6f7a8b", facts={"device": "cpu"})
        for row in rows:
            trackers.log(row)
        size = trackers.sync()
        trackers.log({"event": "train", "step": 4, "epoch": 1, "loss": 9.0, "lr": 0.1})
    (run / "curves.png").write_bytes(b"png")
    pixels = np.full((8, 8, 3), 7, np.uint8)
    trackers.show(Pictures(3, [Picture("conv1/tower_1", pixels), Picture("plots/curves", run / "curves.png")]))
    trackers.keep(model, {"step": 3}, is_last=True)
    trackers.finish({"status": "finished", "best_top1": 0.5})
    other = tmp_path / "other"
    other.mkdir()
    open_trackers(settings(tmp_path), other, 0, "5e6f7a8c").finish({"status": "failed"})
    return tmp_path


def test_a_run_is_there_once_with_its_rows_settings_pictures_and_model(resumed: Path) -> None:
    client, runs = open_store(resumed)
    by_name = {run.info.run_name: run for run in runs}
    assert sorted(by_name) == ["other", "run"]
    run = by_name["run"]
    assert (run.info.status, by_name["other"].info.status) == ("FINISHED", "FAILED")
    found = {
        key: [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, key)]
        for key in run.data.metrics
    }
    expected: dict[str, list[tuple[int, float]]] = {"final/best_top1": [(0, 0.5)]}
    for row in read_rows(resumed / "run" / "metrics.jsonl"):
        for key, value in name_points(row).items():
            expected.setdefault("epochs" if key == "epoch" else key, []).append((row["step"], float(value)))
    assert found == expected
    assert len(expected["train/loss"]) == 3  # the last row is lost again
    assert {"optimizer.lr", "train.epochs", "run.device"} <= run.data.params.keys()
    artifacts = Path(run.info.artifact_uri.removeprefix("file://"))
    files = {path.relative_to(artifacts).as_posix() for path in artifacts.rglob("*") if path.is_file()}
    assert files == {"conv1/tower_1/step-00000003.png", "plots/curves.png", "model/config.json"}


def test_it_neither_leaves_variables_nor_names_the_user(resumed: Path) -> None:
    assert not mirror.VARIABLES.keys() & os.environ.keys()
    _, runs = open_store(resumed)
    assert {run.info.user_id for run in runs} <= {"unknown", ""}


def test_a_store_that_breaks_costs_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "mlruns").write_text("in the way")
    trackers = open_trackers(settings(tmp_path), tmp_path, 0, "5e6f7a8b")
    trackers.log(ROWS[0])
    trackers.finish({"status": "finished"})
    assert [text.split(" (")[0] for text in caplog.messages] == ["MLflow failed"]
    assert read_rows(tmp_path / "metrics.jsonl") == ROWS[:1]


def test_an_address_is_refused() -> None:
    line = refused(
        lambda: build_config({"data.source": "synthetic", "tracking.mlflow": "https://example.org"}), UsageError
    )
    assert "tracking.mlflow is an address" in line
