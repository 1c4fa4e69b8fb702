"""Which archives a set is made of: one, a folder of them, a pattern with braces or stars, or a list in _info.json."""

from __future__ import annotations

import glob
import os
from pathlib import Path
from typing import Any

from alexnet_dist.base.braces import expand_braces
from alexnet_dist.base.durable import read_json_file
from alexnet_dist.base.errors import DataError
from alexnet_dist.base.places import describe_missing
from alexnet_dist.base.text import join_names
from alexnet_dist.data.sources.source import ARCHIVES

INFO = "_info.json"  # in which webdataset's tools, and timm, list the shards of each split
FOLDER_MARK = "!"  # between the archives of a set and the folder within them


def split_name(root: Path, name: str) -> tuple[str, str]:
    """The archives and the folder within them of `ARCHIVES!FOLDER`; the folder is "" where none is named."""
    if FOLDER_MARK not in name or os.path.lexists(root / name):
        return name, ""
    archives, _, folder = name.partition(FOLDER_MARK)
    return archives, folder.strip("/")


def find_archives(root: Path, name: str, key: str) -> list[str]:
    """The archives of a set, relative to the root, POSIX.

    Args:
        root: folder that names are relative to.
        name: an archive, with or without its ending; a folder of archives; a pattern as `train-{0000..0146}.tar` or
            `train-*.tar`, or several joined by `::`; or a split of _info.json.
        key: train, val or test, for messages.

    Raises:
        DataError: an archive is missing, or none is found.
    """
    found = [path for pattern in _split_patterns(name) for path in _find_pattern(root, pattern)]
    if not found:
        found = _read_info(root, name)
    if not found:
        where, why, near = describe_missing(root / name)
        remedy = f"did you mean '{near}'?" if near else f"set --data.{key} to an archive, a folder of them or a pattern"
        raise DataError("no such archive", where=where, why=why, remedy=remedy)
    missing = [path for path in found if not os.path.isfile(root / path)]
    if missing:
        why = f"{len(missing)} of {len(found)} are not there: {join_names(missing)}"
        remedy = f"fetch what is missing, or correct --data.{key}"
        raise DataError("archives are missing", where=str(root / missing[0]), why=why, remedy=remedy)
    return list(dict.fromkeys(found))


def _split_patterns(name: str) -> list[str]:
    """webdataset joins several lists of shards by two colons."""
    return [part for part in name.split("::") if part]


def _find_pattern(root: Path, pattern: str) -> list[str]:
    """What a pattern without `::` names; an archive that its braces name counts whether it is there or not."""
    found = []
    expanded = expand_braces(pattern)
    for name in expanded:
        path = root / name
        if path.is_dir():
            below = sorted(entry.name for entry in path.iterdir() if entry.name.lower().endswith(ARCHIVES))
            found += [_relative(root, path / entry) for entry in below if not entry.startswith(".")]
        elif path.is_file():
            found.append(_relative(root, path))
        elif glob.has_magic(name):
            found += sorted(
                _relative(root, Path(place)) for place in glob.glob(str(Path(glob.escape(str(root))) / name))
            )
        elif len(expanded) > 1:
            found.append(name)
        else:
            found += [name + ending for ending in ARCHIVES if (root / (name + ending)).is_file()][:1]
    return found


def _relative(root: Path, path: Path) -> str:
    return Path(os.path.relpath(path, root)).as_posix()


def _read_info(root: Path, split: str) -> list[str]:
    """The shards of a split in _info.json; none where there is no such file or split."""
    for name in (INFO, INFO.lstrip("_")):
        try:
            info: Any = read_json_file(root / name)
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            remedy = "name the archives instead, or write it again"
            raise DataError(
                "cannot read the list of shards", where=str(root / name), why=str(error), remedy=remedy
            ) from error
        splits = info.get("splits") if isinstance(info, dict) else None
        part = splits.get(split) if isinstance(splits, dict) else None
        names = part.get("filenames") if isinstance(part, dict) else None
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            return [path for name in names for path in expand_braces(name)]
        has = join_names(list(splits)) if isinstance(splits, dict) and splits else "no splits"
        why = f"it has {has}, and no file names of {split!r}"
        raise DataError("no such split", where=str(root / name), why=why, remedy="name one of them, or the archives")
    return []
