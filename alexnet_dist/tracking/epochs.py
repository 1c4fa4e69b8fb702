"""epochs.csv: one row for each epoch, put together from the rows of metrics.jsonl."""

from __future__ import annotations

from alexnet_dist.tracking.csv import CsvMirror
from alexnet_dist.tracking.trackers import MEMORY, Kind, Row, Run, Start, find_most_memory

COLUMNS = (
    *("epoch", "step", "train_loss", "train_top1", "val_loss", "val_top1", "val_top5"),
    *("lr", "seconds", "images_per_second", "is_best", *MEMORY),
)


class EpochRows:
    """Gives the row of an epoch when it ends, from all rows of metrics.jsonl in their order.

    `lr` is that of the epoch's last update. `seconds` are those of training, without validation, and
    `images_per_second` the images of the epoch over them. Memory is the most of the epoch's log points. `is_best` says
    whether no earlier validation was better: the last such epoch has given model/ its weights, unless the run ended
    within an epoch and was better there, or model/ was lost.
    """

    def __init__(self) -> None:
        self._train, self._eval = Row(), Row()  # the last of each
        self._memory = Row()  # the most since the epoch began
        self._best: tuple[float, float] | None = None
        self._is_best = False
        self._ended = (0, 0)  # the last epoch that has ended, and the images seen until then

    def __call__(self, row: Row) -> Row | None:
        """Take a row; that of the epoch which it ends, or None."""
        if row["event"] == "train":
            self._train = row
            self._memory = find_most_memory([self._memory, row])
        elif row["event"] == "eval":
            self._eval, found = row, (row["top1"], -row["loss"])
            self._is_best = self._best is None or found > self._best
            self._best = found if self._is_best else self._best
        return self._end(row) if row["event"] == "epoch" else None

    def _end(self, row: Row) -> Row:
        ended = {key: row.get(key) for key in COLUMNS}
        ended |= self._memory
        self._memory = Row()
        if self._train.get("step") == row["step"]:
            samples, (epoch, samples_before) = self._train["samples_seen"], self._ended
            self._ended = (row["epoch"], samples)
            ended["lr"] = self._train["lr"]
            # A run that began from another's checkpoint lacks a part of its first epoch.
            if row.get("seconds") and row["epoch"] == epoch + 1:
                ended["images_per_second"] = (samples - samples_before) / row["seconds"]
        if self._eval.get("step") == row["step"]:
            ended |= {"val_top5": self._eval["top5"], "is_best": self._is_best}
        return ended


def _prepare(run: Run) -> Start:
    return lambda rows: CsvMirror(run.folder / "epochs.csv", rows, COLUMNS, EpochRows())


EPOCHS = Kind(_prepare)
