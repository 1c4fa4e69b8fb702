"""Files of features: `.npz` for NumPy, `.parquet` for pandas, DuckDB and others. They are written as the rows come.

Memory holds the paths and CHUNK_BYTES of rows, however many there are. An `.npz` lies on the disk twice for a moment.
Equal rows give equal bytes with the same versions of NumPy and pyarrow.
"""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from alexnet_dist.base.durable import disk_errors_named, refuse_link, replacing
from alexnet_dist.base.errors import UsageError
from alexnet_dist.base.extras import import_extra
from alexnet_dist.base.text import escape_text

Rows: TypeAlias = tuple[list[str], npt.NDArray[np.float32]]  # (N,) paths, (N, width)

CHUNK_BYTES = 1 << 25
PATHS, FEATURES, LAYER = "paths", "features", "layer"  # of an .npz
PATH, EMBEDDING = "path", "embedding"  # columns of a .parquet, whose metadata say the layer


def check_ending(path: Path) -> None:
    """Refuse a file whose name does not say which kind it is to be.

    Raises:
        UsageError: its ending is neither .npz nor .parquet.
        MachineError: .parquet, and there is no pyarrow.
    """
    if path.suffix.lower() not in _WRITERS:
        raise UsageError("--out does not say its format", where=str(path), remedy="end it in .npz or .parquet")
    if path.suffix.lower() == ".parquet":
        import_extra("pyarrow.parquet", "parquet")


def write_features(path: Path, rows: Iterable[Rows], layer: str) -> tuple[int, int]:
    """Write rows as they come; the number of rows and their width.

    Args:
        path: the file, which is replaced at once at the end; see `check_ending`.
        rows: at least one part, of any number of rows; all have the same width.
        layer: name of the layer that they come from.

    Raises:
        MachineError: it cannot be written.
    """
    refuse_link(path)
    with disk_errors_named(path, "out"), replacing(path) as file:
        return _WRITERS[path.suffix.lower()](file, rows, layer)


def _write_npz(file: IO[bytes], rows: Iterable[Rows], layer: str) -> tuple[int, int]:
    paths: list[str] = []
    with tempfile.TemporaryFile(dir=Path(file.name).parent) as plain:
        for names, part in rows:
            plain.write(part.tobytes())
            paths += names
            width = part.shape[1]
        plain.seek(0)
        header = {"descr": "<f4", "fortran_order": False, "shape": (len(paths), width)}
        with zipfile.ZipFile(file, "w") as archive:
            with archive.open(f"{FEATURES}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(member, header)
                shutil.copyfileobj(plain, member, CHUNK_BYTES)
            for name, value in ((PATHS, np.array(paths, np.str_)), (LAYER, np.array(layer))):
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, value, allow_pickle=False)
    return len(paths), width


def _write_parquet(file: IO[bytes], rows: Iterable[Rows], layer: str) -> tuple[int, int]:
    arrow, parquet = import_extra("pyarrow", "parquet"), import_extra("pyarrow.parquet", "parquet")
    writer: Any = None
    count = 0
    for names, part in _gather(rows):
        width = part.shape[1]
        if writer is None:
            columns = [(PATH, arrow.string()), (EMBEDDING, arrow.list_(arrow.float32(), width))]
            writer = parquet.ParquetWriter(file, arrow.schema(columns, metadata={LAYER: layer}))
        vectors = arrow.FixedSizeListArray.from_arrays(arrow.array(part.ravel(), arrow.float32()), width)
        texts = arrow.array([escape_text(name) for name in names], arrow.string())  # Arrow takes UTF-8 alone
        writer.write_table(arrow.Table.from_arrays([texts, vectors], schema=writer.schema))
        count += len(names)
    writer.close()
    return count, width


def _gather(rows: Iterable[Rows]) -> Iterator[Rows]:
    """Fewer, larger parts: a row group of Parquet for each."""
    names: list[str] = []
    parts: list[npt.NDArray[np.float32]] = []
    for some, part in rows:
        names += some
        parts.append(part)
        if sum(held.nbytes for held in parts) >= CHUNK_BYTES:
            yield names, np.concatenate(parts)
            names, parts = [], []
    if parts:
        yield names, np.concatenate(parts)


_WRITERS: dict[str, Callable[[IO[bytes], Iterable[Rows], str], tuple[int, int]]] = {
    ".npz": _write_npz,
    ".parquet": _write_parquet,
}
