"""Ray: the rows of evaluations and epochs as Ray Train's and Ray Tune's metrics, where Ray started the processes.

`ray.train.report` waits until every process has called it as often. So each of them has this tracker.
"""

from __future__ import annotations

import sys
from typing import Any

from alexnet_dist.tracking.trackers import Kind, Row, Run, Start, rename_for_display


class RayMirror:
    """Reports whatever is not the figure of a few steps; Ray's barrier would cost them too much.

    Args:
        report: `ray.train.report`.
    """

    def __init__(self, report: Any) -> None:
        self._report = report

    def log(self, row: Row) -> None:
        """Report a row under the names that W&B and TensorBoard have, such as `val/top1`."""
        if row["event"] != "train":
            self._report(rename_for_display(row))

    def finish(self, summary: Row) -> None:
        """Nothing: `runs/on_ray.py` gives the summary back."""


def find_report() -> Any | None:
    """`ray.train.report`, in a worker of Ray Train; None elsewhere. Ray is not imported for this."""
    ray_train = sys.modules.get("ray.train")
    if ray_train is None:
        return None
    try:
        ray_train.get_context().get_world_rank()
    except Exception:  # noqa: BLE001 (each version of Ray says in its own way that there is no worker)
        return None
    return ray_train.report


def _prepare(run: Run) -> Start | None:
    report = find_report()
    return None if report is None else lambda rows: RayMirror(report)


RAY = Kind(_prepare, is_everywhere=True)
