"""Where the files are that come with the package: beside it in a checkout, inside it in an installed wheel."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from alexnet_dist.base.errors import UsageError
from alexnet_dist.base.places import expand_home
from alexnet_dist.base.text import name_few

_PACKAGE = Path(__file__).resolve().parents[1]


def shipped_folder(name: str) -> Path:
    """The folder of shipped files: `configs`, or one of `launch/`."""
    inside = _PACKAGE / name
    return inside if inside.is_dir() else _PACKAGE.parent / name


def list_shipped(folder: Path) -> list[str]:
    """The names of the YAML files in a folder."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def find_yaml(name: str, folders: tuple[Path, ...], what: str) -> Path:
    """The YAML file that a user names: a path, or a name in one of some folders with or without `.yaml`.

    Args:
        name: as the user gave it.
        folders: searched in order; the last one is the shipped one, whose names an error lists.
        what: for the message ("configuration").

    Raises:
        UsageError: there is no such file.
    """
    name = expand_home(name)
    candidates = [Path(name), *(folder / file for folder in folders for file in (name, f"{name}.yaml"))]
    found = next(filter(os.path.isfile, candidates), None)  # False for what no file can be called
    if found is not None:
        return found
    known = list_shipped(folders[-1])
    near = difflib.get_close_matches(Path(name).stem, known, n=1)
    names = sorted(known, key=len)
    remedy = f"did you mean {near[0]}?" if near else f"give a path, or a name in {folders[-1].name}/: {name_few(names)}"
    why = "neither a file nor a name that we ship"
    if os.path.isdir(name) and what == "configuration":
        remedy = "to train on a folder of images, give it without --config"
    if os.path.dirname(name):
        raise UsageError(f"no {what}", where=os.path.abspath(name), why=why, remedy=remedy)
    raise UsageError(f"no {what} {name!r}", why=why, remedy=remedy)
