"""Which files lie below a root that has one folder for each class."""

from __future__ import annotations

import os
import stat
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from alexnet_dist.errors import DataError

IMAGE_EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".ppm", ".bmp", ".pgm"),
    *(".tif", ".tiff", ".webp", ".gif", ".avif"),
)

_LAYOUT_REMEDY = "put the images of each class into a folder of their own: ROOT/CLASS/IMAGE"
_MOST_NAMED = 5  # a message names this many things and counts the others


class FoundFile(NamedTuple):
    """A file that its name says is an image; nothing has read it yet."""

    path: str  # relative to the root, POSIX
    byte_size: int  # -1 where the file cannot even be looked up (a link that leads nowhere)
    modified_ns: int


def list_class_folders(root: Path) -> list[str]:
    """Names of the class folders directly below root, sorted; hidden ones and `__MACOSX` are no classes.

    Raises:
        DataError: root is missing, is a file, cannot be listed or has no class folder.
    """
    try:
        with os.scandir(root) as entries:
            visible = [entry for entry in entries if not _is_stray(entry.name)]
        names = sorted(entry.name for entry in visible if _is_folder(entry))
    except OSError as error:
        raise _listing_error(error, root) from error
    if not names:
        has_images = any(entry.name.lower().endswith(IMAGE_EXTENSIONS) for entry in visible)
        why = "images lie directly in it, without class folders" if has_images else "it is empty of folders"
        raise DataError("no class folders", where=str(root), why=why, remedy=_LAYOUT_REMEDY)
    return names


def match_folders(root: Path, folders: Sequence[str], classes: Sequence[str]) -> dict[str, int]:
    """Class number of each folder, by name.

    Composed and decomposed Unicode spellings of a name are the same name: file systems change one into the other.

    Raises:
        DataError: a folder is no class of training, or two folders are the same class.
    """
    number_of = {unicodedata.normalize("NFC", name): number for number, name in enumerate(classes)}
    labels = {folder: number_of.get(unicodedata.normalize("NFC", folder), -1) for folder in folders}
    unknown = [folder for folder, label in labels.items() if label < 0]
    if unknown:
        raise DataError(
            f"{_count(len(unknown), 'class folder')} the training set does not have",
            where=str(root),
            why=join_names(unknown) + _suggest_spelling(unknown[0], classes),
            remedy="rename or remove it, or add the class to the training set",
        )
    if len(set(labels.values())) < len(labels):
        twice = [folder for folder, label in labels.items() if list(labels.values()).count(label) > 1]
        why = f"{join_names(twice)} differ only in how Unicode spells them"
        raise DataError("two folders of one class", where=str(root), why=why, remedy="merge them")
    return labels


def list_images(root: Path, folders: Sequence[str]) -> list[list[FoundFile]]:
    """The image files of each class folder, at any depth, each list sorted by path.

    Raises:
        DataError: a folder cannot be listed, or class folders hold no image (all of them are named).
    """
    files: list[list[FoundFile]] = []
    for folder in folders:
        try:
            files.append(sorted(_walk_images(os.path.join(root, folder), folder + "/")))
        except OSError as error:
            raise _listing_error(error, root / folder) from error
    empty = [folder for folder, found in zip(folders, files, strict=True) if not found]
    if empty:
        raise DataError(
            f"{_count(len(empty), 'class folder')} without an image",
            where=str(root),
            why=join_names(empty),
            remedy=f"add images ({' '.join(IMAGE_EXTENSIONS)}) or remove the folder",
        )
    return files


def list_images_below(folder: Path) -> list[FoundFile]:
    """All image files of a folder, at any depth, sorted by path, whatever its folders mean.

    Raises:
        DataError: the folder cannot be listed, or holds no image.
    """
    try:
        files = sorted(_walk_images(str(folder), ""))
    except OSError as error:
        raise _listing_error(error, folder) from error
    if not files:
        remedy = f"give a folder with images ({' '.join(IMAGE_EXTENSIONS)})"
        raise DataError("a folder without an image", where=str(folder), remedy=remedy)
    return files


def join_names(names: Sequence[str], most: int = _MOST_NAMED) -> str:
    """The first few names, quoted, and how many more there are."""
    quoted = ", ".join(f"'{name}'" for name in names[:most])
    return quoted if len(names) <= most else f"{quoted} and {len(names) - most} more"


def _walk_images(folder: str, prefix: str) -> Iterator[FoundFile]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if _is_stray(entry.name):
                continue
            if _is_folder(entry):
                if not _leads_upwards(entry):
                    yield from _walk_images(entry.path, f"{prefix}{entry.name}/")
            elif entry.name.lower().endswith(IMAGE_EXTENSIONS):
                yield from _look_up(entry, prefix)


def _look_up(entry: os.DirEntry[str], prefix: str) -> Iterator[FoundFile]:
    try:
        status = entry.stat()
    except OSError:
        yield FoundFile(prefix + entry.name, -1, 0)
        return
    if stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
        yield FoundFile(prefix + entry.name, status.st_size, status.st_mtime_ns)


def _is_stray(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _leads_upwards(entry: os.DirEntry[str]) -> bool:
    """Whether a link points at one of the folders that hold it, which would never end."""
    if not entry.is_symlink():
        return False
    target = os.path.realpath(entry.path)
    holder = os.path.realpath(os.path.dirname(entry.path))
    return holder == target or holder.startswith(target.rstrip(os.sep) + os.sep)


def _listing_error(error: OSError, folder: Path) -> DataError:
    if isinstance(error, FileNotFoundError):
        return DataError(
            "no such folder", where=str(folder), remedy="check data.root and the names of the sets below it"
        )
    if isinstance(error, NotADirectoryError):
        return DataError("not a folder", where=str(folder), why="it is a file", remedy=_LAYOUT_REMEDY)
    why = error.strerror or str(error)
    return DataError("cannot list the folder", where=str(folder), why=why, remedy="check its permissions")


def _suggest_spelling(unknown: str, classes: Sequence[str]) -> str:
    same = [name for name in classes if name.casefold() == unknown.casefold()]
    return f" (training has '{same[0]}')" if same else ""


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
