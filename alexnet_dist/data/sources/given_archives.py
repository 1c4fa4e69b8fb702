"""Archives as their owner has them: one with all sets or classes, or a folder of shards whose names say the set."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from alexnet_dist.base.places import match_sets
from alexnet_dist.data.sources.source import ARCHIVES
from alexnet_dist.data.sources.tar_members import INNER, list_members

HERE = "."

_NUMBERED = re.compile(r"[-_.]?\d+$")  # train-0003


def is_archive(name: str | Path) -> bool:
    """Whether a name is that of an archive."""
    return str(name).lower().endswith(ARCHIVES)


def match_archives(place: Path) -> dict[str, str] | None:
    """What the settings data.train, data.val and data.test are for archives; None where there are none.

    Args:
        place: an archive, which data.root then is; or a folder with archives, or with folders of archives.

    Raises:
        DataError: the archive cannot be read.
    """
    if place.is_file():
        return _match_inside(place) if is_archive(place) else None
    if not place.is_dir():
        return None
    names = sorted(entry.name for entry in os.scandir(place) if not entry.name.startswith("."))
    archives = [name for name in names if is_archive(name)]
    patterns = _name_shards(archives)
    found = {key: patterns[stem] for key, stem in match_sets(list(patterns)).items()}
    if "train" in found:
        return found
    folders = match_sets([name for name in names if (place / name).is_dir()])
    only = {key: name for key, name in folders.items() if _has_archives_alone(place / name)}
    return only if "train" in only else None


def _match_inside(archive: Path) -> dict[str, str]:
    """The sets among the folders of an archive, below the folder that all have in common; or all of it for training."""
    names = [member.name.replace(INNER, "/") for member in list_members(archive).members]
    above = os.path.commonpath(names) if names else ""
    inside = {name[len(above) :].lstrip("/").split("/")[0] for name in names}
    sets = match_sets(sorted(inside))
    return (
        {key: "/".join(filter(None, (above, name))) for key, name in sets.items()}
        if "train" in sets
        else {"train": HERE}
    )


def _name_shards(archives: Sequence[str]) -> dict[str, str]:
    """How archives are named together: train-0000.tar and its like by a pattern, one without a number by its name."""
    stems: dict[str, str] = {}
    for name in archives:
        path = Path(name)
        stem = _NUMBERED.sub("", path.stem)
        stems[stem] = name if stem == path.stem else f"{stem}{path.stem[len(stem)]}*{path.suffix}"
    return stems


def _has_archives_alone(folder: Path) -> bool:
    entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
    return any(is_archive(entry.name) for entry in entries) and not any(entry.is_dir() for entry in entries)
