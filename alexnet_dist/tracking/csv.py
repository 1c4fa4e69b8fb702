"""metrics.csv: the rows of metrics.jsonl as a table that any spreadsheet and pandas open."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path

from alexnet_dist.base.durable import disk_errors_named, write_file
from alexnet_dist.tracking.trackers import MEMORY, Kind, Row, Run, Start

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
    *MEMORY,
    "train_loss",
    "train_top1",
    "val_loss",
    "val_top1",
    "seconds",
)


class CsvMirror:
    """A mirror of metrics.jsonl as a table; a cell is empty where a row lacks the key.

    Numbers have all their digits: `float(cell)` is the number in metrics.jsonl.

    Args:
        path: the file, which is made anew.
        rows: what metrics.jsonl holds already.
        columns: keys of the table's rows.
        convert: gives the table's row for one of metrics.jsonl, or None where there is none.

    Raises:
        MachineError: the file cannot be written.
        ValueError: a row has a key that is not among the columns.
    """

    def __init__(
        self,
        path: Path,
        rows: list[Row],
        columns: Sequence[str] = COLUMNS,
        convert: Callable[[Row], Row | None] = lambda row: row,
    ) -> None:
        self._columns, self._convert = columns, convert
        write_file(path, "".join([",".join(columns) + "\n", *map(self._format, rows)]).encode())
        with disk_errors_named(path):
            self._file = path.open("a", encoding="utf-8", newline="")

    def log(self, row: Row) -> None:
        """Append a row."""
        line = self._format(row)
        with disk_errors_named(Path(self._file.name)):
            self._file.write(line)
            self._file.flush()

    def finish(self, summary: Row) -> None:
        """Close the file."""
        self._file.close()

    def _format(self, row: Row) -> str:
        converted, text = self._convert(row), io.StringIO()
        if converted is not None:
            csv.DictWriter(text, self._columns, lineterminator="\n").writerow(converted)
        return text.getvalue()


def _prepare(run: Run) -> Start:
    return lambda rows: CsvMirror(run.folder / "metrics.csv", rows)


CSV = Kind(_prepare)
