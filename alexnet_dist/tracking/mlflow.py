"""MLflow's file store as a mirror of metrics.jsonl."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator, Mapping
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

from alexnet_dist.base.extras import import_extra
from alexnet_dist.base.nested import flatten
from alexnet_dist.base.text import escape_text, escape_values, quote_word
from alexnet_dist.tracking.pictures import Pictures
from alexnet_dist.tracking.trackers import Kind, Row, Run, Start, name_points

logger = logging.getLogger("alexnet_dist")

RUN_TAG = "alexnet_dist.run_id"
LONGEST = 500  # characters of a parameter
# The file store must be asked for; neither MLflow's reports about itself nor its look at git are wanted.
VARIABLES = {"MLFLOW_ALLOW_FILE_STORE": "true", "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}


class MlflowMirror:
    """A run of MLflow: settings as parameters, a curve a metric over `step`, figures and model/ as artifacts.

    MLflow only appends. So the run is made anew at each start, and that of an earlier start is deleted as MLflow
    deletes: it stays in the trash of the store.

    Args:
        store: folder of the file store; it may hold other runs.
        experiment: to which the run belongs.
        name: of the run.
        run_id: of the run, which finds those of earlier starts.
        params: settings and facts, flat.
        keeps_model: whether model/ becomes an artifact at the end.
        rows: what metrics.jsonl holds already.

    Raises:
        Exception: whatever MLflow raises.
    """

    def __init__(
        self,
        *,
        store: Path,
        experiment: str,
        name: str,
        run_id: str,
        params: Mapping[str, Any],
        keeps_model: bool,
        rows: list[Row],
    ) -> None:
        self._store, self._keeps_model = store, keeps_model
        with _own_variables():
            tracking = import_extra("mlflow.tracking", "mlflow")
            self._client = tracking.MlflowClient(tracking_uri=store.absolute().as_uri())
            found = self._client.get_experiment_by_name(experiment)
            place = found.experiment_id if found else self._client.create_experiment(experiment)
            for old in self._client.search_runs([place], f"tags.`{RUN_TAG}` = '{run_id}'"):
                self._client.delete_run(old.info.run_id)
            self._id = self._client.create_run(place, run_name=name, tags={RUN_TAG: run_id}).info.run_id
        for key, value in params.items():
            self._client.log_param(self._id, key, str(value)[:LONGEST])
        for row in rows:
            self.log(row)

    def log(self, row: Row) -> None:
        """Add the points of a row."""
        entities, now = import_extra("mlflow.entities", "mlflow"), int(time.time() * 1000)
        points = {key: value for key, value in name_points(row).items() if isinstance(value, int | float)}
        # In the store a metric is a file, and `epoch` the folder of `epoch/seconds`.
        names = {"epoch": "epochs"}
        metrics = [
            entities.Metric(names.get(key, key), float(value), now, row["step"]) for key, value in points.items()
        ]
        self._client.log_batch(self._id, metrics=metrics)

    def show(self, pictures: Pictures) -> None:
        """Keep pictures as artifacts: those of a step below its number, the figures of the run in plots/."""
        from PIL import Image

        for picture in pictures.pictures:
            if isinstance(picture.content, Path):
                self._client.log_artifact(self._id, str(picture.content), "plots")
                continue
            file = BytesIO()
            Image.fromarray(picture.content.squeeze()).save(file, "PNG")
            self._write(f"{picture.name}/step-{pictures.step:08d}.png", file.getvalue())

    def keep(self, model: Path, facts: Row, is_last: bool) -> None:
        """Keep model/ as an artifact, once, if `tracking.log_model` asks for it."""
        if self._keeps_model and is_last:
            self._client.log_artifacts(self._id, str(model), "model")

    def finish(self, summary: Row) -> None:
        """Close the run as it ended, and say how to look at it."""
        for key, value in summary.items():
            if isinstance(value, int | float):
                self._client.log_metric(self._id, f"final/{key}", float(value))
        status = {"finished": "FINISHED", "interrupted": "KILLED"}.get(summary.get("status", ""), "FAILED")
        self._client.set_terminated(self._id, status)
        allow = "MLFLOW_ALLOW_FILE_STORE=true"
        logger.info("MLflow: %s mlflow ui --backend-store-uri %s", allow, quote_word(self._store))

    def _write(self, name: str, content: bytes) -> None:
        """An artifact below its run's folder, which MLflow only fills from files that lie elsewhere."""
        place = Path(self._client.get_run(self._id).info.artifact_uri.removeprefix("file://")) / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)


@contextlib.contextmanager
def _own_variables() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in VARIABLES}
    os.environ.update(VARIABLES)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _check_installed() -> None:
    with _own_variables():
        import_extra("mlflow.tracking", "mlflow")


def _prepare(run: Run) -> Start | None:
    tracking = escape_values(run.tracking)
    if tracking["mlflow"] is None:
        return None
    return partial(
        _start,
        store=Path(run.tracking["mlflow"]),
        experiment=tracking["project"],
        name=tracking["name"] or escape_text(run.folder.name),
        run_id=run.run_id,
        params=flatten(escape_values({**run.settings, "run": dict(run.facts)})),
        keeps_model=bool(tracking["log_model"]),
    )


def _start(rows: list[Row], **words: Any) -> MlflowMirror:
    return MlflowMirror(rows=rows, **words)


MLFLOW = Kind(_prepare, lambda tracking: tracking["mlflow"] is not None, _check_installed, is_for_sets=True)
