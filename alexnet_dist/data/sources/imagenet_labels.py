"""The classes of ImageNet 2012's validation pictures: from the development kit, or from Kaggle's table.

A folder called val says nothing of classes where all pictures lie in it side by side.
"""

from __future__ import annotations

import csv
import io
import re
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from alexnet_dist.base.disk_errors import name_reason
from alexnet_dist.base.errors import DataError
from alexnet_dist.base.text import join_names

DEVKIT = "ILSVRC2012_devkit_t12"
SOLUTION = "LOC_val_solution.csv"

_META, _TRUTH = "meta.mat", "ILSVRC2012_validation_ground_truth.txt"
_COLUMNS = ("ImageId", "PredictionString")
_NAME = re.compile(r"ILSVRC2012_val_(\d{8})")
_WORDNET_ID = re.compile(r"n\d{8}")
_MOST_BYTES = 2**24  # of a file of the kit; the largest has 0.5 MB
_ABOVE = 3  # folders above Kaggle's pictures, ILSVRC/Data/CLS-LOC, where its table lies
_REMEDY = f"put {DEVKIT}.tar.gz (image-net.org), or Kaggle's {SOLUTION}, into data.root"


def read_val_classes(root: Path) -> tuple[Path, dict[str, str]]:
    """The WordNet id of each validation picture, by its name without ending; and the file that says so.

    Raises:
        DataError: there is neither a development kit nor a table, or it cannot be read, or is another year's.
    """
    for folder in (root, *list(root.absolute().parents)[:_ABOVE]):
        for path in (folder / SOLUTION, folder / "ILSVRC" / SOLUTION):
            if path.is_file():
                return path, _read_solution(path)
        for path in (folder / DEVKIT, folder / f"{DEVKIT}.tar.gz", folder / f"{DEVKIT}.tar"):
            if path.exists():
                return path, _read_kit(path)
    others = sorted(path.name for path in root.iterdir() if "devkit" in path.name)
    why = f"there is {join_names(others)}, of another year" if others else "nothing here says which class each is of"
    raise DataError("no classes of the validation pictures", where=str(root), why=why, remedy=_REMEDY)


def find_class(classes: Mapping[str, str], name: str) -> str:
    """The WordNet id of a picture by its file's name; "" where it has none."""
    return classes.get(PurePosixPath(name).stem, "")


def _read_kit(path: Path) -> dict[str, str]:
    """Names are counted from ILSVRC2012_val_00000001; the n-th line of the truth has the number of a synset."""
    if path.is_dir():
        meta, truth = (_read_bytes(path / "data" / name) for name in (_META, _TRUTH))
    else:
        meta, truth = _read_packed(path)
    synsets = _read_synsets(path, meta)
    numbers = truth.split()
    unknown = [number for number in numbers if not number.isdigit() or int(number) not in synsets]
    if unknown or not numbers:
        why = f"{_TRUTH} has {unknown[0].decode('ascii', 'replace')!r}" if unknown else f"{_TRUTH} is empty"
        raise DataError("a damaged development kit", where=str(path), why=why, remedy="fetch it again")
    return {f"ILSVRC2012_val_{place:08d}": synsets[int(number)] for place, number in enumerate(numbers, start=1)}


def _read_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MOST_BYTES)
    except OSError as error:
        remedy = f"fetch {DEVKIT}.tar.gz again"
        raise DataError("a damaged development kit", where=str(path), why=name_reason(error), remedy=remedy) from error


def _read_packed(path: Path) -> tuple[bytes, bytes]:
    """Both files of a packed kit, read into memory."""
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r|*") as archive:
            for info in archive:
                name = PurePosixPath(info.name).name
                if info.isreg() and name in (_META, _TRUTH) and info.size <= _MOST_BYTES:
                    file = archive.extractfile(info)
                    found[name] = b"" if file is None else file.read()
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise DataError(
            "a damaged development kit", where=str(path), why=str(error), remedy="fetch it again"
        ) from error
    missing = [name for name in (_META, _TRUTH) if name not in found]
    if missing:
        why = f"it has no {' and no '.join(missing)}"
        raise DataError("not the kit of 2012", where=str(path), why=why, remedy=_REMEDY)
    return found[_META], found[_TRUTH]


def _read_synsets(path: Path, meta: bytes) -> dict[int, str]:
    """The WordNet id of each synset without children, by its number."""
    from scipy.io import loadmat  # with scikit-learn, which asks for it

    try:
        table = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
        leaves = [row for row in table if int(row["num_children"]) == 0]
        synsets = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in leaves}
    except Exception as error:  # scipy raises whatever it likes at a file that is none
        why = f"{_META} cannot be read ({type(error).__name__}): it is damaged, or another year's"
        raise DataError("not the kit of 2012", where=str(path), why=why, remedy=_REMEDY) from error
    strange = [name for name in synsets.values() if not _WORDNET_ID.fullmatch(name)]
    if strange or not synsets:
        why = f"{_META} has {strange[0]!r} for a WordNet id" if strange else f"{_META} has no synsets"
        raise DataError("not the kit of 2012", where=str(path), why=why, remedy=_REMEDY)
    return synsets


def _read_solution(path: Path) -> dict[str, str]:
    """Kaggle's table: a picture's name, and its boxes, each of which begins with its class."""
    try:
        text = path.read_text("utf-8-sig")
        rows = list(csv.reader(io.StringIO(text, newline="")))
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(
            "cannot read Kaggle's table", where=str(path), why=str(error), remedy="fetch it again"
        ) from error
    header = rows[0] if rows else []
    if tuple(header) != _COLUMNS:
        why = f"its columns are {join_names(header)}, not {join_names(_COLUMNS)}" if header else "it is empty"
        raise DataError("not Kaggle's table", where=str(path), why=why, remedy=f"fetch {SOLUTION} again")
    classes = {}
    for number, row in enumerate(rows[1:], start=2):
        words = row[1].split() if len(row) == len(_COLUMNS) else []
        if not words or not _WORDNET_ID.fullmatch(words[0]):
            why = f"it is {','.join(row)[:60]!r}"
            raise DataError(
                "a line without a class", where=f"{path}:{number}", why=why, remedy=f"fetch {SOLUTION} again"
            )
        classes[row[0]] = words[0]
    return classes
