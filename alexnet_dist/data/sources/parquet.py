"""Parquet files of pictures and labels, as the Hugging Face Hub has them; their bytes are unpacked once."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from alexnet_dist.base.braces import expand_braces
from alexnet_dist.base.errors import DataError
from alexnet_dist.base.places import SET_NAMES, match_sets
from alexnet_dist.base.text import join_names
from alexnet_dist.data.files.containers import Containers
from alexnet_dist.data.files.index_files import FileRules, index_files
from alexnet_dist.data.files.kept_index import make_once
from alexnet_dist.data.files.scan import FileSet, FoundFile, hash_place
from alexnet_dist.data.index import SampleIndex
from alexnet_dist.data.sources.given_archives import HERE
from alexnet_dist.data.sources.parquet_packs import (
    FOLDER,
    NO_BYTES,
    NO_LABEL,
    Pack,
    Table,
    open_table,
    unpack,
)
from alexnet_dist.data.sources.source import Source, SourceOptions, find_file_root

ENDING = ".parquet"
_MOST_CLASSES = 100_000


@dataclass(frozen=True, eq=False)
class Rows:
    """The N rows of a part, in the order of its files.

    Args:
        files: a picture is called FILE!ROW, or FILE!ROW/NAME where it has a name.
        names: what pictures are called beside their bytes, or their row: what they are sorted by.
        labels: (N,) int64, or texts.
        reasons: why a row gives no picture; "" where it gives one.
        classes: names of integer labels; None without any.
        containers: where the bytes are.
    """

    files: list[FoundFile]
    names: list[str]
    labels: npt.NDArray[np.int64] | npt.NDArray[np.str_]
    reasons: list[str]
    classes: tuple[str, ...] | None
    containers: Containers


def find_tables(root: Path, name: str, key: str) -> list[Path]:
    """The parquet files of a part, sorted.

    Args:
        root: folder that the name is relative to.
        name: a file, a folder, a pattern, or a split: `train` means `train.parquet`, `train-00000-of-00002.parquet`,
            and the files in a folder `train`, at any depth.
        key: train, val or test; for the message.

    Raises:
        DataError: there is none; the splits that are there are said.
    """
    path = root / name
    if path.is_file():
        return [path]
    if "{" in name or glob.has_magic(name):
        found = sorted({found for text in expand_braces(name) for found in root.glob(text)})
        found = [file for file in found if file.is_file()]
    else:
        there = sorted(file for file in root.rglob(f"*{ENDING}") if file.is_file())
        found = [file for file in there if path in file.parents]
        found = found or [file for file in there if name in _list_splits(file.relative_to(root))]
    if found:
        return found
    splits = sorted({split for file in root.rglob(f"*{ENDING}") for split in _list_splits(file.relative_to(root))[:1]})
    why = f"it has {join_names(splits)}" if splits else "it has no parquet file"
    near = next((word for word in next((w for w in SET_NAMES.values() if name in w), ()) if word in splits), None)
    remedy = f"set --data.{key} to one of them, to a file or to a pattern" if splits else "check --data.root"
    remedy = f"set --data.{key} {near}" if near else remedy
    raise DataError(f"no parquet file of '{name}'", where=str(root), why=why, remedy=remedy)


def match_tables(place: Path) -> dict[str, str] | None:
    """What data.train, data.val and data.test are for parquet files; None where there are none.

    Args:
        place: a file; or a folder that has some, or whose folder `data` has some, as on the Hub.
    """
    if place.is_file():
        return {"train": place.name} if place.suffix == ENDING else None
    there = [file.relative_to(place) for pattern in ("", "data/") for file in place.glob(f"{pattern}*{ENDING}")]
    if not there:
        return None
    sets = match_sets(sorted({_list_splits(file)[0] for file in there}))
    return sets if "train" in sets else {"train": HERE}


def _list_splits(path: Path) -> list[str]:
    """The splits that a file may belong to, by its name and by its folders: `data/train-00000-of-00002.parquet`."""
    stem = path.name.removesuffix(ENDING)
    own = [stem.split("-")[0].split(".")[0].split("_")[0], stem]
    folders = [part for part in path.parts[:-1][::-1] if part not in ("data", "default")]
    return [*folders, *own] if own[0].isdigit() else [*own, *folders]


def unpack_part(options: SourceOptions, key: str) -> tuple[list[Table], list[Pack]]:
    """The files of train, val or test; their bytes are unpacked where they are not yet.

    Raises:
        DataError: files are missing or damaged, or lack the columns.
        MachineError: pyarrow is not installed, or there is too little space.
    """
    root = find_file_root(options)
    tables = _open_tables(root, options, key)
    return tables, unpack(tables, _find_packs(options.rules.cache_dir, root), options.rules.progress)


def _find_packs(cache_dir: Path, root: Path) -> Path:
    """The folder for the packs of the files below a root."""
    return cache_dir / FOLDER / hash_place(root)


def open_file(path: Path, cache_dir: Path, column: str | None, progress: bool) -> tuple[list[FoundFile], Containers]:
    """The pictures of a file, whether it has labels or not, and where they are unpacked; one of no bytes stays.

    Args:
        path: of the file.
        cache_dir: where they are unpacked, as they are for training.
        column: that holds the pictures; None = found by its kind, or by the usual names.
        progress: show how far it is.

    Raises:
        DataError: it is no parquet file, or has no pictures.
        MachineError: pyarrow is not installed, or there is too little space.
    """
    table = open_table(path, path.name, column, None, needs_label=False)
    rows = list_rows([table], unpack([table], _find_packs(cache_dir, path.parent), progress))
    return rows.files, rows.containers


def list_rows(tables: Sequence[Table], packs: Sequence[Pack]) -> Rows:
    """The rows of a part."""
    files, names, reasons = [], [], []
    for table, pack in zip(tables, packs, strict=True):
        for row, (size, name, label) in enumerate(
            zip(np.diff(pack.starts).tolist(), pack.names.tolist(), pack.labels.tolist(), strict=True)
        ):
            shown = PurePosixPath(name).name
            files.append(FoundFile(f"{table.name}!{row}" + (f"/{shown}" if shown else ""), size, pack.modified_ns))
            names.append(name or f"{table.name}!{row:09d}")
            lacking = f"{NO_BYTES}, only the path '{name}'" if name else NO_BYTES
            reasons.append(lacking if size == 0 else NO_LABEL if label in (-1, "") else "")
    labels = np.concatenate([np.asarray(pack.labels) for pack in packs])
    return Rows(files, names, labels, reasons, tables[0].columns.classes, _place(packs))


def _find_part(options: SourceOptions, key: str) -> list[Path]:
    """The files of a part; where data.root is a file, it has the training set."""
    if key == "train" and options.root is not None and options.root.is_file():
        return [options.root]
    return find_tables(find_file_root(options), options.parts[key], key)


def _open_tables(root: Path, options: SourceOptions, key: str) -> list[Table]:
    """The files of a part, which must be of one kind."""
    columns = options.columns
    tables = [
        open_table(path, path.relative_to(root).as_posix(), columns.get("path"), columns.get("label"))
        for path in _find_part(options, key)
    ]
    for table in tables[1:]:
        if table.columns != tables[0].columns:
            why = f"{table.name} has other columns or classes than {tables[0].name}"
            raise DataError("parquet files of one set differ", where=str(root), why=why, remedy=f"mend --data.{key}")
    if not sum(table.num_rows for table in tables):
        raise DataError("no picture", where=str(tables[0].path), why="it has no rows", remedy=f"mend --data.{key}")
    return tables


def _place(packs: Sequence[Pack]) -> Containers:
    """The packs lie in the cache folder: their names are whole paths."""
    return Containers(
        tuple(str(pack.path.absolute()) for pack in packs),
        np.array([pack.byte_size for pack in packs], np.int64),
        np.array([pack.modified_ns for pack in packs], np.int64),
        np.repeat(np.arange(len(packs), dtype=np.int32), [len(pack.starts) - 1 for pack in packs]),
        np.concatenate([pack.starts[:-1] for pack in packs]),
    )


def find_classes(rows: Rows, place: Path) -> tuple[str, ...]:
    """The classes of a part: the names that its file has, its sorted texts, or the numbers that it uses.

    Raises:
        DataError: labels that are no labels.
    """
    if rows.classes is not None:
        return rows.classes
    good = rows.labels[[position for position, reason in enumerate(rows.reasons) if reason != NO_LABEL]]
    if rows.labels.dtype.kind == "U":
        return tuple(sorted(set(good.tolist())))
    if len(good) and not 0 <= good.min() <= good.max() < _MOST_CLASSES:
        why = f"they go from {good.min()} to {good.max()}"
        raise DataError("labels that number no classes", where=str(place), why=why, remedy="set --data.columns.label")
    return tuple(map(str, range(int(good.max()) + 1 if len(good) else 0)))


def _number(rows: Rows, classes: Sequence[str], place: Path) -> npt.NDArray[np.int64]:
    """The position of each label in `classes`; 0 where a row has none."""
    own = find_classes(rows, place)
    unknown = [name for name in own if name not in set(classes)]
    texts = rows.labels if rows.labels.dtype.kind == "U" else None
    used = set(np.unique(texts).tolist()) if texts is not None else {own[n] for n in np.unique(rows.labels) if n >= 0}
    if met := [name for name in unknown if name in used]:
        why, remedy = join_names(met), "name the sets of one data set"
        raise DataError("classes that the training set does not have", where=str(place), why=why, remedy=remedy)
    number_of = {name: number for number, name in enumerate(classes)}
    if texts is not None:
        return np.array([number_of.get(text, 0) for text in texts.tolist()], np.int64)
    numbers = np.array([*(number_of.get(name, 0) for name in own), 0], np.int64)  # the last one is for -1
    return numbers[rows.labels]


def _list_split(options: SourceOptions, key: str, classes: tuple[str, ...] | None) -> SampleIndex:
    root = find_file_root(options)
    place = root / options.parts[key]
    tables, packs = unpack_part(options, key)
    stem = hashlib.sha256(repr([(table.name, table.columns) for table in tables]).encode("utf-8", "surrogateescape"))
    facts = [(table.byte_size, table.modified_ns) for table in tables], [pack.facts for pack in packs], classes

    def make() -> SampleIndex:
        return _index(list_rows(tables, packs), place, root, classes, options.rules)

    return make_once(options.rules, root, f"parquet-{stem.hexdigest()[:12]}", facts, make, place)


def _index(rows: Rows, place: Path, root: Path, classes: tuple[str, ...] | None, rules: FileRules) -> SampleIndex:
    if rows.reasons.count(NO_LABEL) == len(rows.reasons):
        remedy = "leave it out: the labels of such a set are kept secret"
        raise DataError("a set without labels", where=str(place), why="no row has one", remedy=remedy)
    _check_labels(rows, place)
    names = classes if classes is not None else find_classes(rows, place)
    labels = _number(rows, names, place)
    order = sorted(range(len(rows.files)), key=lambda n: (labels[n], rows.names[n], rows.files[n].path))
    files, containers = [rows.files[position] for position in order], rows.containers.take(order)
    images = FileSet(root, files, listed_in=place, containers=containers)
    return index_files(images, labels[order], names, rules, [rows.reasons[position] for position in order])


def _check_labels(rows: Rows, place: Path) -> None:
    """Refuse integers that the file's own names do not reach."""
    if rows.classes is None or rows.labels.dtype.kind == "U":
        return
    low, high = int(rows.labels.min()), int(rows.labels.max())
    if low < -1 or high >= len(rows.classes):
        why = f"labels go from {low} to {high}, and there are {len(rows.classes)} names"
        raise DataError("labels without a class", where=str(place), why=why, remedy="set --data.columns.label")


# -- as a source ------------------------------------------------------------------------------------------------------


def _check(options: SourceOptions) -> None:
    for key, name in options.parts.items():
        if name:
            _find_part(options, key)


def _list_files(options: SourceOptions, key: str) -> FileSet:
    rows = list_rows(*unpack_part(options, key))
    pairs = list(enumerate(zip(rows.files, rows.reasons, strict=True)))
    good = [position for position, (_, reason) in pairs if not reason]
    return FileSet(
        find_file_root(options),
        [rows.files[position] for position in good],
        missing=[(file.path, reason) for _, (file, reason) in pairs if reason],
        listed_in=find_file_root(options) / options.parts[key],
        containers=rows.containers.take(good),
    )


@lru_cache(maxsize=1)
def _read_first_columns(path: Path, image: str | None, label: str | None) -> tuple[str, ...] | None:
    return open_table(path, path.name, image, label).columns.classes


def _count_classes(options: SourceOptions) -> tuple[int | None, str]:
    try:
        first = _find_part(options, "train")[0]
        classes = _read_first_columns(first, options.columns.get("path"), options.columns.get("label"))
    except DataError:
        return None, "no parquet file is there"
    return (len(classes), f"the names in {first}") if classes else (None, f"{first} names no classes")


SOURCE = Source(
    list_split=_list_split,
    check=_check,
    find_root=find_file_root,
    list_files=_list_files,
    count_classes=_count_classes,
)
