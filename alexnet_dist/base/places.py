"""Where a path that a user gave leads, and what lies there instead of what was looked for."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from pathlib import Path

from alexnet_dist.base.disk_errors import name_reason
from alexnet_dist.base.machine import settle_home
from alexnet_dist.base.text import join_names

# What people call the same set; the first word is ours.
SET_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}


def match_sets(names: Sequence[str]) -> dict[str, str]:
    """Those of some names that sets are called by, {set: name}."""
    spelled = {name.lower(): name for name in reversed(names)}
    found = {key: next((spelled[word] for word in words if word in spelled), None) for key, words in SET_NAMES.items()}
    return {key: name for key, name in found.items() if name is not None}


def expand_home(path: str) -> str:
    """A path whose `~` or `~user` is that user's folder, as a shell does it where it sees one."""
    return os.path.expanduser(path) if path.startswith("~") else path


def find_place(path: str | os.PathLike[str]) -> Path:
    """Where a path leads, links followed, as an absolute one; links that lead back to themselves stay as they are."""
    return Path(os.path.realpath(path))


def find_cache_dir(given: str | os.PathLike[str] | None) -> Path:
    """Where prepared data goes: the folder that data.cache_dir names, or alexnet_dist in the user's cache folder."""
    if given:
        return Path(given)
    settle_home()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "alexnet_dist"


def describe_missing(path: str | os.PathLike[str]) -> tuple[str, str, str]:
    """What to say of a path where nothing is.

    Returns:
        the absolute path; what lies beside it, or in the nearest folder above it; the name there that may be meant, ""
        without one.
    """
    looked = os.path.abspath(path)
    missing, folder = os.path.basename(looked), os.path.dirname(looked)
    while not os.path.isdir(folder) and folder != os.path.dirname(folder):
        missing, folder = os.path.basename(folder), os.path.dirname(folder)
    try:
        names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError as error:
        return looked, f"'{folder}' cannot be listed: {name_reason(error)}", ""
    place = "its folder" if folder == os.path.dirname(looked) else f"'{folder}'"
    return looked, f"{place} {_list_names(names)}", _find_near(missing, names)


def _list_names(names: Sequence[str]) -> str:
    return f"has {join_names(names)}" if names else "is empty"


def _find_near(missing: str, names: Sequence[str]) -> str:
    """The name that is another spelling, another word for the same set, or nearly the same."""
    alike = next((group for group in SET_NAMES.values() if missing.lower() in group), ())
    same = [name for name in names if name.lower() == missing.lower() or name.lower() in alike]
    return next(iter(same or difflib.get_close_matches(missing, names, n=1)), "")
