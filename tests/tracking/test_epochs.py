"""epochs.csv: what metrics.jsonl says of each epoch in one row, the same however often the run was started."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from alexnet_dist.tracking.csv import CsvMirror
from alexnet_dist.tracking.epochs import COLUMNS, EpochRows
from alexnet_dist.tracking.trackers import Row


def make_epoch(epoch: int, top1: float | None, loss: float = 1.0) -> list[Row]:
    """The rows of an epoch of two updates of 10 images each, with one log point in its middle."""
    logged: list[Row] = [
        {"event": "train", "step": step, "epoch": step // 2, "samples_seen": 10 * step, "loss": 0.1, "lr": 0.1 / step}
        for step in (2 * epoch - 1, 2 * epoch)
    ]
    logged[0]["resident_memory_mib"], logged[1]["resident_memory_mib"] = 9.0 - epoch, 8.0 - epoch
    ended: Row = {"event": "epoch", "epoch": epoch, "step": 2 * epoch, "train_loss": 0.2, "train_top1": 1 / 3}
    if top1 is None:
        return [*logged, {**ended, "seconds": 4.0}]
    found: Row = {"event": "eval", "step": 2 * epoch, "epoch": epoch, "loss": loss, "top1": top1, "top5": 0.9}
    return [*logged, found, {**ended, "val_loss": loss, "val_top1": top1, "seconds": 4.0}]


PARTIAL = [{"event": "eval", "step": 5, "epoch": 2, "loss": 1.0, "top1": 0.4, "top5": 1.0}]
ROWS = [*make_epoch(1, 0.5), *make_epoch(2, 0.25), *PARTIAL, {"event": "test", "step": 5, "epoch": 2, "top1": 0.0}]


def write_table(path: Path, kept: list[Row], logged: list[Row]) -> list[dict[str, str]]:
    table = CsvMirror(path, kept, COLUMNS, EpochRows())
    for row in logged:
        table.log(row)
    table.finish({})
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_row_has_all_that_is_known_of_an_epoch(tmp_path: Path) -> None:
    one, two = write_table(tmp_path / "epochs.csv", [], ROWS)
    assert one == {
        "epoch": "1",
        "step": "2",
        "train_loss": "0.2",
        "train_top1": repr(1 / 3),
        "val_loss": "1.0",
        "val_top1": "0.5",
        "val_top5": "0.9",
        "lr": "0.05",
        "seconds": "4.0",
        "images_per_second": "5.0",
        "is_best": "True",
        "gpu_memory_mib": "",
        "resident_memory_mib": "8.0",
    }
    assert (two["lr"], two["images_per_second"], two["is_best"]) == ("0.025", "5.0", "False")
    assert two["resident_memory_mib"] == "7.0"


@pytest.mark.parametrize("kept", range(len(ROWS)))
def test_a_resumed_run_writes_the_same_bytes(tmp_path: Path, kept: int) -> None:
    write_table(tmp_path / "whole.csv", [], ROWS)
    write_table(tmp_path / "epochs.csv", [], ROWS[: kept + 2])  # and is killed
    write_table(tmp_path / "epochs.csv", ROWS[:kept], ROWS[kept:])
    assert (tmp_path / "epochs.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


@pytest.mark.parametrize(
    ("evaluations", "expected"),
    [
        ([(0.5, 1.0), (0.5, 1.0), (0.5, 0.9), (0.6, 2.0)], ["True", "False", "True", "True"]),
        ([(0.0, 1.0), (None, 1.0)], ["True", ""]),
    ],
)
def test_best_is_the_highest_top1_and_of_equals_the_lowest_loss(
    tmp_path: Path, evaluations: list[tuple[float | None, float]], expected: list[str]
) -> None:
    rows = [row for epoch, (top1, loss) in enumerate(evaluations, start=1) for row in make_epoch(epoch, top1, loss)]
    assert [row["is_best"] for row in write_table(tmp_path / "epochs.csv", [], rows)] == expected


def test_speed_is_left_out_where_the_beginning_of_the_epoch_is_not_known(tmp_path: Path) -> None:
    rows = [*make_epoch(3, 0.5)[1:], *make_epoch(4, 0.5)]  # from the checkpoint of another run
    assert [row["images_per_second"] for row in write_table(tmp_path / "epochs.csv", [], rows)] == ["", "5.0"]
