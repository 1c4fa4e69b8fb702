"""Where results may go: never among the images, never in the place of a file that is there or that a run keeps."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from alexnet_dist.base.durable import tidy_folder
from alexnet_dist.base.errors import UsageError
from alexnet_dist.base.places import find_place
from alexnet_dist.base.sources import SOURCES
from alexnet_dist.runs.ownership import is_made_here, owns
from alexnet_dist.settings.schema import DataConfig


def check_output_dir(out: str, data: DataConfig) -> None:
    """Refuse a folder of results among the images or around them, and the roots of all.

    A folder beside the sets (`ROOT/runs` where the images are in `ROOT/train`) is as good as any other.

    Raises:
        UsageError: it is such a folder.
    """
    folder = find_place(out)
    remedy = "set --output_dir to a folder elsewhere"
    if not out.strip():
        raise UsageError("--output_dir is empty", remedy="give the folder for the run")
    if folder in (Path(folder.anchor), find_place(os.path.expanduser("~"))):
        why = "it is the root of a disk, or somebody's home"
        raise UsageError("--output_dir cannot be this folder", where=str(folder), why=why, remedy=remedy)
    if is_made_here(folder, "run") or is_made_here(folder, "crossval"):  # what began earlier goes on
        return
    from alexnet_dist.assembly.sets import local_root  # numpy; whoever only checks an option should not wait for it

    root = local_root(data)
    for images in _list_image_folders(data, find_place(root or ".")):
        if folder.is_relative_to(images) or images.is_relative_to(folder):
            why = f"nothing is ever written among the images of {images}"
            raise UsageError("--output_dir and the images overlap", where=str(folder), why=why, remedy=remedy)
    if root is not None and find_place(root).is_relative_to(folder):
        why = "it is data.root, or holds it"
        raise UsageError("--output_dir cannot be this folder", where=str(folder), why=why, remedy=remedy)


def _list_image_folders(data: DataConfig, root: Path) -> Iterator[Path]:
    """The folders that the sets are read from; what a list names lies in data.image_dir, if anywhere in particular."""
    sets = (data.train, data.val, data.test) if SOURCES[data.source].has_folders else (data.image_dir,)
    yield from (root / name for name in sets if name)


def check_target(out: str, overwrite: bool, option: str = "--out") -> Path:
    """The path of a file that is to be written, where it may be.

    Args:
        out: the path as it was given.
        overwrite: whether a file that is there may be replaced.
        option: what gave it; for the message.

    Raises:
        UsageError: it is empty, a folder or a device, a file that is there, or one that a run keeps itself.
    """
    if not out.strip():
        raise UsageError(f"{option} is empty", where="command line", remedy="give the file to write")
    path = Path(out)
    remedy = f"give another {option}"
    if path.is_dir() or not path.name:
        raise UsageError(f"{option} is a folder", where=out, remedy="give the name of a file in it")
    if owns(path):
        why = "it is a file that a run keeps itself"
        raise UsageError(f"{option} cannot be written", where=out, why=why, remedy=remedy)
    if path.is_symlink() or (path.exists() and not path.is_file()):
        kind = "a symbolic link" if path.is_symlink() else "no ordinary file"
        raise UsageError(f"{option} is {kind}", where=out, remedy=remedy)
    tidy_folder(path.parent)
    if path.exists() and not overwrite:
        raise UsageError(f"{option} is there already", where=out, remedy=f"{remedy}, or --overwrite")
    return path
