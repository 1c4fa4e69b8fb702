"""The pictures of parquet files, read through once and written one after another: parquet is not read at random.

A column is compressed in pages, and a picture of it is no piece of the file: one at random would cost the reading of a
whole group of rows. A pack has the same bytes at known places. Beside it lie arrays: where each picture begins, how
long it is, its label and its name. Packs are kept in the folder parquet/ROOT below data.cache_dir. The only file that
calls pyarrow.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from alexnet_dist.base.disk_errors import name_reason, name_remedy
from alexnet_dist.base.durable import CACHE_SETTING, check_space, disk_errors_named, parse_json, replacing
from alexnet_dist.base.errors import DataError, MachineError
from alexnet_dist.base.extras import import_extra
from alexnet_dist.base.progress import Progress
from alexnet_dist.base.text import format_bytes, join_names
from alexnet_dist.data.files.kept_arrays import Array, keep_arrays

logger = logging.getLogger("alexnet_dist")

FOLDER = "parquet"  # in the cache
NO_BYTES, NO_LABEL = "its row has no bytes", "its row has no label"
_ARRAYS = ("starts", "labels", "names")
_IMAGE_NAMES = ("image", "img", "picture", "jpg", "jpeg", "png", "webp")
_LABEL_NAMES = ("label", "labels", "class", "category", "target", "fine_label", "cls")
_ROWS = 512  # read at once
_SPARE_BYTES = 50_000_000

Ints: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Columns:
    """Which columns of a file hold pictures and labels.

    Args:
        image: of bytes, or of bytes and a path.
        label: of integers or texts; "" where a file without labels is read.
        classes: names of the integers, as the Hub's files give them; None without any.
        holds_path: whether pictures have a path beside their bytes.
    """

    image: str
    label: str
    classes: tuple[str, ...] | None
    holds_path: bool


@dataclass(frozen=True)
class Table:
    """A parquet file before it is read.

    Args:
        path: of the file.
        name: of the file below the root, POSIX.
        columns: what is read of it.
        num_rows: pictures in it.
        image_bytes: of all pictures, about.
        byte_size, modified_ns: of the file.
    """

    path: Path
    name: str
    columns: Columns
    num_rows: int
    image_bytes: int
    byte_size: int
    modified_ns: int


@dataclass(frozen=True, eq=False)
class Pack:
    """The N pictures of a file, in its order.

    Args:
        path: of the file that holds their bytes.
        byte_size, modified_ns: of that file.
        starts: (N + 1,) where each picture begins, and the end of the last one.
        labels: (N,) int64, -1 without a label; or texts, "" without one.
        names: (N,) the paths that stand beside the bytes, "" without any.
    """

    path: Path
    byte_size: int
    modified_ns: int
    starts: Ints
    labels: Array
    names: Array

    @property
    def facts(self) -> tuple[str, int, int]:
        """What tells it from others."""
        return str(self.path.absolute()), self.byte_size, self.modified_ns


def open_table(path: Path, name: str, image: str | None, label: str | None, needs_label: bool = True) -> Table:
    """Look at a file's columns.

    Args:
        path: of the file.
        name: for messages, and for the pack.
        image, label: columns that the user names; None = found by their kind, or by the usual names.
        needs_label: whether a file must have labels.

    Raises:
        DataError: it is no parquet file, or lacks the columns.
        MachineError: pyarrow is not installed.
    """
    with _opened(path) as file:
        schema, status = file.schema_arrow, path.stat()
        columns = _find_columns(path, schema, image, label, needs_label)
        leaves = [
            file.metadata.row_group(group).column(number)
            for group in range(file.metadata.num_row_groups)
            for number in range(file.metadata.num_columns)
            if file.metadata.schema.column(number).path.split(".")[0] == columns.image
        ]
        image_bytes = sum(leaf.total_uncompressed_size for leaf in leaves)
        return Table(path, name, columns, file.metadata.num_rows, image_bytes, status.st_size, status.st_mtime_ns)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A parquet file; what pyarrow cannot read is a damaged file."""
    parquet, arrow = import_extra("pyarrow.parquet", "parquet"), import_extra("pyarrow", "parquet")
    try:
        with parquet.ParquetFile(path) as file:
            yield file
    except arrow.ArrowException as error:
        why = str(error).strip().partition("\n")[0]
        raise DataError("cannot read the parquet file", where=str(path), why=why, remedy="fetch it again") from error
    except OSError as error:
        if error.errno is not None:
            why, remedy = name_reason(error), name_remedy(error)
            raise DataError("cannot read the parquet file", where=str(path), why=why, remedy=remedy) from error
        why = str(error).strip().partition("\n")[0]  # pyarrow's own, of a damaged page
        raise DataError("cannot read the parquet file", where=str(path), why=why, remedy="fetch it again") from error


# -- columns ----------------------------------------------------------------------------------------------------------


def _find_columns(path: Path, schema: Any, image: str | None, label: str | None, needs_label: bool) -> Columns:
    features = _read_features(schema)
    kinds = {name: _find_kind(schema.field(name).type) for name in schema.names}
    pictures = [name for name, kind in kinds.items() if kind in ("bytes", "bytes and path")]
    labels = [name for name, kind in kinds.items() if kind in ("integer", "text")]
    marked = [name for name in labels if features.get(name, {}).get("_type") == "ClassLabel"]
    is_image = [name for name in pictures if features.get(name, {}).get("_type") == "Image"]
    chosen_image = _choose(path, "path", "pictures", image, pictures, is_image, _IMAGE_NAMES, schema.names)
    holds_path = kinds[chosen_image] == "bytes and path"
    try:
        chosen_label = _choose(path, "label", "labels", label, labels, marked, _LABEL_NAMES, schema.names)
    except DataError:
        if needs_label:
            raise
        return Columns(chosen_image, "", None, holds_path)
    names = features.get(chosen_label, {}).get("names")
    classes = tuple(map(str, names)) if kinds[chosen_label] == "integer" and isinstance(names, list) else None
    return Columns(chosen_image, chosen_label, classes, holds_path)


def _choose(
    path: Path,
    key: str,
    what: str,
    named: str | None,
    fitting: Sequence[str],
    marked: Sequence[str],
    usual: Sequence[str],
    there: Sequence[str],
) -> str:
    """The column that a user names, the one that the file's features mark, or the one of a usual name."""
    setting = f"set --data.columns.{key} to one of them"
    if named is not None:
        if named in fitting:
            return named
        why = f"it has {join_names(there)}" if named not in there else f"'{named}' holds no {what}"
        raise DataError(f"no column '{named}' of {what}", where=str(path), why=why, remedy=setting)
    for names in ([name for name in usual if name in marked], marked, [name for name in usual if name in fitting]):
        if len(names) == 1 or (names and names[0] in usual):
            return names[0]
    if len(fitting) == 1 and key == "path":
        return fitting[0]
    many = len(marked) > 1
    why = f"{join_names(marked)} could be" if many else f"it has {join_names(there)}"
    raise DataError(f"no column of {what} is known", where=str(path), why=why, remedy=setting)


def _read_features(schema: Any) -> dict[str, dict[str, Any]]:
    """What the Hub's files say of their columns, by name."""
    try:
        features = parse_json((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: value for name, value in features.items() if isinstance(value, dict)}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


def _find_kind(kind: Any) -> str:
    arrow = import_extra("pyarrow", "parquet")
    types = arrow.types
    if types.is_binary(kind) or types.is_large_binary(kind):
        return "bytes"
    if types.is_struct(kind) and any(kind.field(n).name == "bytes" for n in range(kind.num_fields)):
        fields = {kind.field(number).name: kind.field(number).type for number in range(kind.num_fields)}
        return "bytes and path" if "path" in fields else "bytes of a struct"
    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_integer(kind):
        return "integer"
    return "text" if types.is_string(kind) or types.is_large_string(kind) else "other"


# -- packs ------------------------------------------------------------------------------------------------------------


def unpack(tables: Sequence[Table], folder: Path, progress: bool) -> list[Pack]:
    """The pictures of some files; those that are not there yet are written, one process at a time.

    Args:
        tables: the files.
        folder: of the packs; made where it is missing.
        progress: show how far it is.

    Raises:
        DataError: a damaged file.
        MachineError: too little space, or the folder cannot be written.
    """
    missing = [table for table in tables if not _has_pack(table, folder)]
    if missing:
        _check_space(missing, folder, progress)
    shown = progress and bool(missing)
    with Progress("unpacking parquet", sum(table.num_rows for table in missing), shown=shown) as bar:
        return [_keep_pack(table, folder, bar) for table in tables]


def _check_space(missing: Sequence[Table], folder: Path, progress: bool) -> None:
    needed = sum(table.image_bytes for table in missing) + _SPARE_BYTES
    check_space(folder, needed, "to unpack parquet files", CACHE_SETTING)
    if progress:
        rows, size = sum(table.num_rows for table in missing), format_bytes(sum(table.image_bytes for table in missing))
        logger.info("data      %s pictures, %s, are unpacked once into %s", f"{rows:,}", size, folder)


def _name_pack(table: Table) -> tuple[str, str]:
    """What the packs of one file begin with, and the whole name of the one for its present state."""
    columns = table.columns
    place = hashlib.sha256("\0".join([table.name, columns.image, columns.label]).encode("utf-8", "surrogateescape"))
    state = hashlib.sha256(f"{table.byte_size} {table.modified_ns}".encode()).hexdigest()[:12]
    first = place.hexdigest()[:16]
    return first, f"{first}-{state}"


def _has_pack(table: Table, folder: Path) -> bool:
    stem = _name_pack(table)[1]
    return all((folder / name).is_file() for name in (f"{stem}.pack", *(f"{stem}-{name}.npy" for name in _ARRAYS)))


def _keep_pack(table: Table, folder: Path, bar: Progress) -> Pack:
    first, stem = _name_pack(table)
    path = folder / f"{stem}.pack"
    for _ in range(2):
        kept = keep_arrays(folder, stem, _ARRAYS, lambda: _write_pack(table, path, first, bar))
        starts = np.asarray(kept["starts"].array)
        with contextlib.suppress(OSError):
            status = path.stat()
            if status.st_size == starts[-1] and len(starts) == table.num_rows + 1:
                labels, names = kept["labels"].array, kept["names"].array
                return Pack(path, status.st_size, status.st_mtime_ns, starts, labels, names)
        with disk_errors_named(folder, CACHE_SETTING):  # the pack is gone, or another one: all of it is made again
            for name in _ARRAYS:
                (folder / f"{stem}-{name}.npy").unlink(missing_ok=True)
    why = "what was read back is not what was written"
    raise MachineError(
        "cannot keep the data", where=str(path), why=why, remedy=f"set --{CACHE_SETTING} to another disk"
    )


def _write_pack(table: Table, path: Path, first: str, bar: Progress) -> tuple[Array, Array, Array]:
    """Write the bytes of all pictures; where each begins, their labels and their names."""
    with disk_errors_named(path, CACHE_SETTING):
        for old in path.parent.glob(f"{first}-*"):  # of the same file as it was before
            old.unlink()
    lengths: list[Ints] = []
    labels: list[Array] = []
    names: list[Array] = []
    with disk_errors_named(path, CACHE_SETTING), replacing(path) as out:
        for batch in _read_batches(table):
            data, sizes = _take_bytes(batch.column(0))
            out.write(data)
            lengths.append(sizes)
            labels.append(_take_labels(batch.column(1)) if table.columns.label else np.full(len(sizes), -1, np.int64))
            names.append(_take_names(batch.column(0), table.columns.holds_path))
            bar.advance(len(sizes))
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate([np.zeros(0, np.int64), *lengths]))])
    empty: list[Array] = [np.zeros(0, np.int64)]
    return starts, np.concatenate(labels or empty), np.concatenate(names or empty)


def _read_batches(table: Table) -> Iterator[Any]:
    with _opened(table.path) as file:
        names = [name for name in (table.columns.image, table.columns.label) if name]
        for batch in file.iter_batches(batch_size=_ROWS, columns=names):
            yield batch.select(names)


def _take_bytes(column: Any) -> tuple[memoryview, Ints]:
    """The bytes of pictures in one piece, and how many each has; 0 where a row has none."""
    arrow, compute = import_extra("pyarrow", "parquet"), import_extra("pyarrow.compute", "parquet")
    if arrow.types.is_struct(column.type):
        column = compute.struct_field(column, "bytes")
    column = compute.fill_null(column.cast(arrow.large_binary()), b"")
    _, bounds, data = column.buffers()
    offsets = np.frombuffer(bounds, np.int64)[column.offset : column.offset + len(column) + 1]
    whole = memoryview(data) if data is not None else memoryview(b"")
    return whole[offsets[0] : offsets[-1]], np.diff(offsets)


def _take_labels(column: Any) -> Array:
    arrow, compute = import_extra("pyarrow", "parquet"), import_extra("pyarrow.compute", "parquet")
    if arrow.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if arrow.types.is_integer(column.type):
        return np.asarray(compute.fill_null(column.cast(arrow.int64()), -1).to_numpy(zero_copy_only=False))
    return np.array(compute.fill_null(column, "").to_pylist(), dtype=np.str_)


def _take_names(column: Any, holds_path: bool) -> Array:
    if not holds_path:
        return np.full(len(column), "", dtype=np.str_)
    compute = import_extra("pyarrow.compute", "parquet")
    names = compute.fill_null(compute.struct_field(column, "path").cast("string"), "").to_pylist()
    return np.array([name.replace("\0", "") for name in names], dtype=np.str_)
