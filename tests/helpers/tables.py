"""metrics.csv as a reader who knows nothing of the program sees it."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any


def read_table(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.csv without their empty cells: words as words, everything else by `float`."""
    with path.open(newline="") as file:
        table = list(csv.DictReader(file))
    return [
        {key: cell if key in ("event", "split") else float(cell) for key, cell in row.items() if cell != ""}
        for row in table
    ]
