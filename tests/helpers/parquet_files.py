"""Parquet files as the Hugging Face Hub has them: pictures as bytes, and labels with the names of the classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from alexnet_dist.base.durable import format_json

PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write_parquet(
    path: Path,
    pictures: Sequence[tuple[str | None, bytes | None]],
    labels: Sequence[Any] | None,
    classes: Sequence[str] | None = None,
    rows_per_group: int = 7,
) -> Path:
    """Write a file with the columns image and label; the file.

    Args:
        path: of the file.
        pictures: (N,) names and bytes.
        labels: (N,) integers or texts; None = nothing, and None in the place of all of them = no such column.
        classes: what the file says that integers mean.
        rows_per_group: see `pyarrow.parquet.write_table`.
    """
    images = pa.array([{"bytes": data, "path": name} for name, data in pictures], type=PICTURE)
    table = pa.table({"image": images} | ({} if labels is None else {"label": pa.array(labels)}))
    if classes is not None:
        features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": list(classes)}}
        facts = format_json({"info": {"features": features}}, "features")
        table = table.replace_schema_metadata({"huggingface": facts})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=rows_per_group)
    return path


def write_folder_as_parquet(
    folder: Path, path: Path, classes: Sequence[str], num_files: int = 2, split: str = "train"
) -> None:
    """Write class folders as files of one split, their rows in no order of classes."""
    found = sorted(file for file in folder.rglob("*") if file.is_file())
    for number in range(num_files):
        part = found[number::num_files][::-1]
        names = [file.relative_to(folder).as_posix() for file in part]
        labels = [list(classes).index(name.split("/")[0]) for name in names]
        pictures = [(name, file.read_bytes()) for name, file in zip(names, part, strict=True)]
        write_parquet(path / f"{split}-{number:05d}-of-{num_files:05d}.parquet", pictures, labels, classes)
