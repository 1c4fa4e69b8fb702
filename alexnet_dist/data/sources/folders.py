"""Which files lie below a root that has one folder for each class."""

from __future__ import annotations

import logging
import os
import stat
import unicodedata
from array import array
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from alexnet_dist.base.disk_errors import name_reason, name_remedy
from alexnet_dist.base.errors import DataError
from alexnet_dist.base.sources import SOURCES
from alexnet_dist.base.text import join_names
from alexnet_dist.data.decode import DEFAULT_MAX_PIXELS
from alexnet_dist.data.files.index_files import FileRules, index_files
from alexnet_dist.data.files.scan import FileSet, FoundFile
from alexnet_dist.data.index import SampleIndex
from alexnet_dist.data.sources.layouts import LAYOUT_REMEDY, explain_missing_folder, refuse_other_layouts
from alexnet_dist.data.sources.source import ROOT_REMEDY, Source, SourceOptions, find_given_root

LIST_ENDINGS = (".csv", ".tsv", ".txt", ".json", ".jsonl", ".parquet", ".xlsx")  # of files that list images
IMAGE_EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".ppm", ".bmp", ".pgm"),
    *(".tif", ".tiff", ".webp", ".gif", ".avif"),
)

# Pictures too, and a set may be full of them; they are counted and said.
OTHER_EXTENSIONS = (
    *(".jp2", ".j2k", ".jxl", ".heic", ".heif", ".svg", ".ico", ".tga", ".pcx", ".psd"),
    *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".exr", ".hdr", ".dcm", ".npy", ".mat", ".pnm", ".pbm"),
)
# What systems and tools put beside people's folders, in small letters.
SYSTEM_FOLDERS = {
    *("__macosx", "$recycle.bin", "recycler", "system volume information", "lost+found", "found.000"),
    *("@eadir", "@tmp", "@recycle", "#recycle", "#snapshot", "@__thumb"),
}
SOME_EXTENSIONS = " ".join([*IMAGE_EXTENSIONS[:4], "..."])
Place: TypeAlias = tuple[int, int]  # device and number of a file or folder on it

logger = logging.getLogger("alexnet_dist")


def scan_folder(
    root: Path,
    *,
    classes: Sequence[str] | None,
    on_bad_file: Literal["fail", "skip"],
    cache_dir: Path,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    progress: bool = False,
) -> SampleIndex:
    """Index the images below class folders, reading every header that is new or changed.

    Args:
        root: folder of class folders; each is searched at any depth, links are followed, hidden names ignored.
        classes: None for the training set, whose sorted folder names are the classes; else the classes of training,
            to which folders are matched by name.
        on_bad_file: raise on an unreadable file, or leave it out and list it in `bad_files`.
        cache_dir: where header sizes are remembered.
        max_pixels: an image with more pixels is unreadable.
        progress: show a bar when the scan takes longer than two seconds.

    Raises:
        DataError: the folder is not laid out like this, holds nothing readable, or has classes training lacks.
        BadFilesError: unreadable files under `fail`; all of them.
    """
    folders = list_class_folders(root)
    class_names = tuple(folders if classes is None else classes)
    label_of = match_folders(root, folders, class_names)
    folders.sort(key=label_of.__getitem__)
    files_of = list_images(root, folders)
    files = list(chain.from_iterable(files_of))
    labels = np.repeat([label_of[folder] for folder in folders], [len(found) for found in files_of])
    rules = FileRules(cache_dir, on_bad_file, max_pixels, progress)
    return index_files(FileSet(root, files), labels, class_names, rules)


def list_class_folders(root: Path) -> list[str]:
    """Names of the class folders directly below root, sorted; what is hidden or the system's is no class.

    Raises:
        DataError: root is missing, is a file, cannot be listed, has no class folder or is laid out otherwise.
    """
    try:
        with os.scandir(root) as entries:
            visible = [entry for entry in entries if not is_stray(entry.name)]
        names = sorted(entry.name for entry in visible if is_folder(entry) and not _leads_upwards(entry))
    except OSError as error:
        raise _listing_error(error, root) from error
    refuse_other_layouts(root, names, [entry.name for entry in visible])
    if not names:
        has_images = any(entry.name.lower().endswith(IMAGE_EXTENSIONS) for entry in visible)
        why = "images lie directly in it, without class folders" if has_images else "it is empty of folders"
        raise DataError("no class folders", where=str(root), why=why, remedy=LAYOUT_REMEDY)
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

    What is passed over below root is said in a line of each kind.

    Raises:
        DataError: a folder cannot be listed or lies in two classes, or class folders hold no image (all are named).
    """
    walks: list[Walk] = []
    for folder in folders:
        try:
            walks.append(Walk(os.path.join(root, folder), folder + "/"))
        except OSError as error:
            raise _listing_error(error, root / folder) from error
    _refuse_shared_folders(root, folders, walks)
    empty = [folder for folder, walk in zip(folders, walks, strict=True) if not walk.files]
    if empty:
        notes = _describe_passed([walk for walk in walks if not walk.files])
        raise DataError(
            f"{_count(len(empty), 'class folder')} without an image",
            where=str(root),
            why="; ".join([join_names(empty), *notes]),
            remedy=f"add images ({SOME_EXTENSIONS}) or remove the folder",
        )
    notes = [*_describe_passed(walks, *_find_no_classes(root)), *_describe_shared_pictures(walks)]
    if lost := _find_lost_links(root):
        notes.append(f"{_count(len(lost), 'link')} without a target, which may be missing classes, {join_names(lost)}")
    for note in notes:
        logger.warning("%s: %s", root, note)
    return [sorted(walk.files) for walk in walks]


def list_images_below(folder: Path) -> list[FoundFile]:
    """All image files of a folder, at any depth, sorted by path, whatever its folders mean.

    Raises:
        DataError: the folder cannot be listed, or holds no image.
    """
    try:
        walk = Walk(str(folder), "")
    except OSError as error:
        raise _listing_error(error, folder) from error
    notes = _describe_passed([walk])
    if not walk.files:
        remedy = f"give a folder with images ({SOME_EXTENSIONS})"
        raise DataError("a folder without an image", where=str(folder), why="; ".join(notes), remedy=remedy)
    for note in notes:
        logger.warning("%s: %s", folder, note)
    return sorted(walk.files)


class Walk:
    """What lies below a folder at any depth. Links are followed, each folder once, and never to one that holds it.

    Args:
        folder: where to begin.
        prefix: of the paths of its files.

    Raises:
        OSError: a folder cannot be listed.
    """

    def __init__(self, folder: str, prefix: str) -> None:
        self.files: list[FoundFile] = []
        self.places = array("Q")  # device and number of each file, one after the other: a name is not a file
        self.has_links = False  # whether a file has another name, or is one
        self.folders: dict[Place, str] = {}  # that were read, by where they lie on the disk
        self.links: list[str] = []  # to folders, passed over since these are read already or hold the link
        self.strays: list[str] = []
        self.others: Counter[str] = Counter()  # extensions of pictures that nothing here decodes
        links = [(folder, prefix)]
        while links:  # real folders come before links, so that a picture has its own path where it has one
            folder, prefix = links.pop(0)
            place = folder_place(folder)
            if place in self.folders or (os.path.islink(folder) and place in _list_holders(folder)):
                self.links.append(prefix.rstrip("/"))
            else:
                links.extend(sorted(self._read_tree(folder, prefix)))

    def _read_tree(self, folder: str, prefix: str) -> list[tuple[str, str]]:
        """Take what lies below a folder; the links to other folders there, and the prefixes of their files."""
        links: list[tuple[str, str]] = []
        waiting = [(folder, prefix)]
        while waiting:
            folder, prefix = waiting.pop()
            if self.folders.setdefault(folder_place(folder), prefix.rstrip("/")) != prefix.rstrip("/"):
                self.links.append(prefix.rstrip("/"))  # read through another link, to this folder itself
                continue
            with os.scandir(folder) as entries:
                for entry in entries:
                    if is_folder(entry):
                        below = (entry.path, f"{prefix}{entry.name}/")
                        if is_stray(entry.name):
                            self.strays.append(prefix + entry.name)
                        else:
                            (links if entry.is_symlink() else waiting).append(below)
                    elif not is_stray(entry.name):
                        self._take(entry, prefix + entry.name)
        return links

    def _take(self, entry: os.DirEntry[str], path: str) -> None:
        name = entry.name.lower()
        if name.endswith(IMAGE_EXTENSIONS):
            self._look_up(entry, path)
        elif name.endswith(OTHER_EXTENSIONS):
            self.others[os.path.splitext(name)[1]] += 1

    def _look_up(self, entry: os.DirEntry[str], path: str) -> None:
        try:
            status = entry.stat()
        except OSError:
            self.files.append(FoundFile(path, -1, 0))
            self.places.extend((0, 0))
            return
        if stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
            self.files.append(FoundFile(path, status.st_size, status.st_mtime_ns))
            self.places.extend((status.st_dev, status.st_ino))
            self.has_links |= status.st_nlink > 1 or entry.is_symlink()


def folder_place(folder: str) -> Place:
    """Where a folder lies on the disk, whatever path leads to it."""
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder, or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _list_holders(folder: str) -> set[Place]:
    """Where the folders lie that hold a folder: those of its path, and those of what the path's links lead to."""
    holders = {parent for path in (os.path.abspath(folder), os.path.realpath(folder)) for parent in Path(path).parents}
    holders |= set(Path(os.path.realpath(os.path.dirname(folder))).parents)
    return {folder_place(str(holder)) for holder in holders}


def _find_no_classes(root: Path) -> tuple[list[str], list[str]]:
    """Folders beside those of the classes that are none: hidden ones and the system's, and links to what holds them."""
    with os.scandir(root) as entries:
        folders = sorted((entry for entry in entries if is_folder(entry)), key=lambda entry: entry.name)
    strays = [entry.name for entry in folders if is_stray(entry.name)]
    return strays, [entry.name for entry in folders if entry.name not in strays and _leads_upwards(entry)]


def _find_lost_links(root: Path) -> list[str]:
    """Links beside the class folders that lead nowhere and are not named as files are."""
    with os.scandir(root) as entries:
        links = sorted(entry.name for entry in entries if entry.is_symlink() and not os.path.exists(entry.path))
    return [name for name in links if not is_stray(name) and not os.path.splitext(name)[1]]


def _describe_passed(walks: Sequence[Walk], strays: Sequence[str] = (), links: Sequence[str] = ()) -> list[str]:
    """A line for each kind of thing that is passed over."""
    links = [*links, *(path for walk in walks for path in walk.links)]
    strays = [*strays, *(path for walk in walks for path in walk.strays)]
    others = sum((walk.others for walk in walks), Counter[str]())
    lines = []
    if strays:
        lines.append(f"{_count(len(strays), 'folder')} of the system or hidden passed over, {join_names(strays)}")
    if links:
        why = "to folders that are read already or hold the link"
        lines.append(f"{_count(len(links), 'link')} passed over, {why}, {join_names(links)}")
    if others:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(others.items()))
        lines.append(f"pictures of a kind that is not read: {kinds}")
    return lines


def _refuse_shared_folders(root: Path, folders: Sequence[str], walks: Sequence[Walk]) -> None:
    """Links between classes would give the pictures of one the label of another."""
    first: dict[Place, tuple[str, str]] = {}
    for folder, walk in zip(folders, walks, strict=True):
        for place, path in walk.folders.items():
            other, other_path = first.setdefault(place, (folder, path))
            if other != folder:
                raise DataError(
                    f"a folder lies in two classes, '{other}' and '{folder}'",
                    where=str(root),
                    why=f"'{other_path}' and '{path}' are one folder, through a link",
                    remedy="remove the link",
                )


def _describe_shared_pictures(walks: Sequence[Walk]) -> list[str]:
    """A line on files that two classes have, through links of files: one of the labels is wrong.

    A folder that is mounted at two places is not found: its files have no links.
    """
    if not any(walk.has_links for walk in walks):
        return []  # sorting a million places takes half a second
    together = b"".join(walk.places.tobytes() for walk in walks)
    places = np.frombuffer(together, np.uint64).reshape(-1, 2)  # (N, 2)
    label = np.repeat(np.arange(len(walks)), [len(walk.files) for walk in walks])  # (N,)
    order = np.lexsort((label, places[:, 0], places[:, 1]))
    ordered = places[order]
    is_again = (ordered[1:] == ordered[:-1]).all(axis=1) & (label[order][1:] != label[order][:-1])
    is_again &= ordered[1:].any(axis=1)  # what could not be looked up has no place
    if not is_again.any():
        return []
    names = [file.path for walk in walks for file in walk.files]
    position = int(is_again.argmax())
    pair = join_names(sorted(names[number] for number in order[position : position + 2]))
    return [f"{_count(int(is_again.sum()), 'picture')} in more than one class, through links ({pair} are one file)"]


def is_stray(name: str) -> bool:
    """Whether a name is hidden, or one of what systems and tools put beside people's folders."""
    return name.startswith(".") or name.casefold() in SYSTEM_FOLDERS


def _leads_upwards(entry: os.DirEntry[str]) -> bool:
    """Whether a link points at one of the folders that hold it, which would never end."""
    if not entry.is_symlink():
        return False
    target = os.path.realpath(entry.path)
    holder = os.path.realpath(os.path.dirname(entry.path))
    return holder == target or holder.startswith(target.rstrip(os.sep) + os.sep)


def _listing_error(error: OSError, folder: Path) -> DataError:
    if isinstance(error, FileNotFoundError):
        return explain_missing_folder(folder)
    if isinstance(error, NotADirectoryError):
        is_list = folder.suffix.lower() in LIST_ENDINGS
        remedy = "a list is read with --data.source manifest" if is_list else LAYOUT_REMEDY
        return DataError("not a folder", where=str(folder), why="it is a file", remedy=remedy)
    where, why = str(error.filename or folder), name_reason(error)
    return DataError("cannot list the folder", where=where, why=why, remedy=name_remedy(error))


def _suggest_spelling(unknown: str, classes: Sequence[str]) -> str:
    same = [name for name in classes if name.casefold() == unknown.casefold()]
    return f" (training has '{same[0]}')" if same else ""


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


# -- as a source ------------------------------------------------------------------------------------------------------


def _list_split(options: SourceOptions, key: str, classes: tuple[str, ...] | None) -> SampleIndex:
    rules = options.rules
    return scan_folder(
        _find_root(options) / options.parts[key],
        classes=classes,
        on_bad_file=rules.on_bad_file,
        cache_dir=rules.cache_dir,
        max_pixels=rules.max_pixels,
        progress=rules.progress,
    )


def _find_root(options: SourceOptions) -> Path:
    parts = filter(None, (options.parts.get("train"), options.parts.get("val")))
    layout = "put images at " + " and ".join(f"{options.root}/{part}/CLASS/*.jpg" for part in parts)
    return find_given_root(options, layout if SOURCES[options.name].has_folders else ROOT_REMEDY)


def _check(options: SourceOptions) -> None:
    root = _find_root(options)
    for key, name in options.parts.items():
        if name and not os.path.lexists(root / name):
            raise explain_missing_folder(root / name, key, name)


def _list_files(options: SourceOptions, key: str) -> FileSet:
    folder = _find_root(options) / options.parts[key]
    return FileSet(folder, list(chain.from_iterable(list_images(folder, list_class_folders(folder)))))


def _name_classes(options: SourceOptions, key: str, classes: Sequence[str]) -> Sequence[str]:
    folder = _find_root(options) / options.parts[key]
    return list_class_folders(folder) if folder.is_dir() else ()


def _count_classes(options: SourceOptions) -> tuple[int | None, str]:
    folder = Path(options.root or ".") / options.parts["train"]
    try:
        return len(list_class_folders(folder)), f"the folders of {folder}"
    except DataError:
        return None, f"{folder} has no class folders"


SOURCE = Source(
    list_split=_list_split,
    check=_check,
    find_root=_find_root,
    list_files=_list_files,
    name_classes=_name_classes,
    count_classes=_count_classes,
)
