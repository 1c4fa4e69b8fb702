"""metrics.csv: the rows of metrics.jsonl as a table that any spreadsheet and pandas open."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from alexnet_dist.base.durable import disk_errors_named, write_file
from alexnet_dist.tracking.trackers import Kind, Row, Run, Start

COLUMNS = (
    "event",
    "split",
    "step",
    "epoch",
    "samples_seen",
    "loss",
    "top1",
    "top5",
    "num_examples",
    "lr",
    "images_per_second",
    "data_wait_seconds",
    "data_wait_fraction",
    "train_loss",
    "train_top1",
    "val_loss",
    "val_top1",
    "seconds",
)


class MetricsCsv:
    """A mirror of metrics.jsonl with one column per key; a cell is empty where a row lacks the key.

    Numbers have all their digits: `float(cell)` is the number in metrics.jsonl.

    Args:
        path: the file, which is made anew.
        rows: what metrics.jsonl holds already.

    Raises:
        MachineError: the file cannot be written.
        ValueError: a row has a key that is not among the columns.
    """

    def __init__(self, path: Path, rows: list[Row]) -> None:
        header = ",".join(COLUMNS) + "\n"
        write_file(path, "".join([header, *map(format_row, rows)]).encode())
        with disk_errors_named(path):
            self._file = path.open("a", encoding="utf-8", newline="")

    def log(self, row: Row) -> None:
        """Append a row."""
        line = format_row(row)
        with disk_errors_named(Path(self._file.name)):
            self._file.write(line)
            self._file.flush()

    def finish(self, summary: Row) -> None:
        """Close the file."""
        self._file.close()


def format_row(row: Row) -> str:
    """A row as a line of the table.

    Raises:
        ValueError: it has a key that is not among the columns.
    """
    text = io.StringIO()
    csv.DictWriter(text, COLUMNS, lineterminator="\n").writerow(row)
    return text.getvalue()


def _prepare(run: Run) -> Start:
    return lambda rows: MetricsCsv(run.folder / "metrics.csv", rows)


CSV = Kind(_prepare)
