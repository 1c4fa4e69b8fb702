"""Files that are either whole or not there: temporary name, fsync, rename, fsync of the folder.

A name that is there for a moment alone carries this project's mark, its writer and a random part
(`model.alexnet_dist-1234-1a2b3c4d-5e6f7a8b.tmp`). Names of exactly that form are tidied up after a kill, and no others:
a `model.old` or `x.tmp` is its user's.
"""

from __future__ import annotations

import csv
import errno
import functools
import hashlib
import io
import json
import math
import os
import re
import secrets
import shutil
import socket
import stat
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from alexnet_dist.base.disk_errors import name_reason, name_remedy
from alexnet_dist.base.errors import DivergedError, MachineError
from alexnet_dist.base.text import escape_cell, format_bytes, unescape_cell

MANIFEST = "manifest.json"
MAX_JSON_BYTES = 8_000_000  # of a file; the largest of ours, for ten thousand classes, has a tenth of that
TEMPORARY, REPLACED = "tmp", "old"
CACHE_SETTING = "data.cache_dir"  # what says where caches and downloads go
ABANDONED_SECONDS = 86400.0  # no write takes a day

_MARKED = re.compile(
    r"(?P<whole>.+)\.alexnet_dist-(?P<pid>[0-9]+)-(?P<machine>[0-9a-f]{8})-[0-9a-f]{8}\.(?P<kind>tmp|old)", re.DOTALL
)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file that takes the place of `path`, flushed to the disk, when the block ends well, and else goes.

    Readers find the old file or the new one. Several processes may write at once: the last one wins. What killed
    processes left of the same file goes first.

    Raises:
        OSError: the disk is full or the folder cannot be written.
    """
    tidy_folder(path.parent, of=path.name)
    beside = mark_name(path, TEMPORARY)
    try:
        with beside.open("w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)  # there only if something went wrong
    sync_folder(path.parent)


def write_file(path: Path, data: bytes, setting: str = "output_dir") -> None:
    """Replace a file at once.

    Args:
        path: the file.
        data: what it is to hold.
        setting: the one that says where; for the message.

    Raises:
        MachineError: the disk is full or the folder cannot be written, or a symbolic link has the file's name.
    """
    refuse_link(path)
    with disk_errors_named(path, setting), replacing(path) as file:
        file.write(data)


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]], setting: str = "output_dir") -> None:
    """Replace a CSV file at once; `read_csv` gives the texts back, whatever characters and bytes are in them."""
    write_file(path, format_csv([header, *rows]).encode(), setting)


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a file that `write_csv` wrote, by the names of its header.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no CSV file.
    """
    text = path.read_bytes().decode("utf-8", "surrogateescape")  # earlier versions wrote names that are not UTF-8
    try:
        header, *rows = csv.reader(io.StringIO(text, newline=""), strict=True)
        return [dict(zip(header, map(unescape_cell, row), strict=True)) for row in rows]
    except csv.Error as error:
        raise ValueError(f"no CSV file: {error}") from error


def format_csv(rows: Iterable[Sequence[str]]) -> str:
    """Rows of texts as CSV: a line each, whatever is in them, and no cell that a spreadsheet would compute."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(map(escape_cell, row) for row in rows)
    return text.getvalue()


def write_json(path: Path, value: Any, setting: str = "output_dir") -> None:
    """Replace a JSON file at once; see `format_json` and `write_file`."""
    write_file(path, (format_json(value, path.name, indent=2) + "\n").encode(), setting)


def format_json(value: Any, name: str, *, indent: int | None = None, sort_keys: bool = False) -> str:
    """JSON as every reader takes it, in ASCII: the one place where it is made.

    Args:
        value: what is written.
        name: of the file or the row; for the message.
        indent, sort_keys: as of `json.dumps`.

    Raises:
        DivergedError: a number in it is not finite. JSON knows no NaN and no infinity.
    """
    try:
        return json.dumps(value, allow_nan=False, indent=indent, sort_keys=sort_keys)
    except ValueError:
        broken = [key for key, number in _walk_numbers(value) if not math.isfinite(number)]
        if not broken:
            raise
        where, remedy = f"{broken[0]} of {name}", "start again from before it"
        raise DivergedError("a number is not finite", where=where, why="JSON cannot hold it", remedy=remedy) from None


def parse_json(text: str | bytes) -> Any:
    """A JSON text: the one place where it is read.

    Raises:
        ValueError: it is none, or brackets lie in brackets without end.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def check_regular(path: Path) -> None:
    """Refuse what is no regular file: opening a pipe would wait for ever.

    Raises:
        OSError: it is none, or cannot be looked up.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "it is no regular file", str(path))


def read_json_file(path: Path, most: int = MAX_JSON_BYTES) -> Any:
    """The value in a JSON file, which may be anybody's.

    Args:
        path: the file.
        most: bytes that it may have; a value takes up to 50 times as much memory.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON, no regular file, larger, or nested too deeply.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("it is no regular file")
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"it is larger than {most / 1e6:g} MB")
    return parse_json(data.decode())


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object in a file; empty where it cannot be read as one."""
    try:
        values = read_json_file(path)
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _walk_numbers(value: Any, key: str = "a value") -> Iterator[tuple[str, float]]:
    if isinstance(value, float):
        yield key, value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from _walk_numbers(inner, str(name))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _walk_numbers(inner, key)


def write_folder(folder: Path, files: dict[str, bytes]) -> None:
    """Replace the files of a folder at once, with each file's sha256 in manifest.json.

    Every file is read back before the folder takes its name. What lies in the old folder besides these files is its
    user's, and moves on into the new one.

    Args:
        folder: its final name.
        files: contents by file name.

    Raises:
        MachineError: the disk is full, or gives back something else than was written; or something else than a folder
            has its name.
    """
    refuse_link(folder)
    temporary = mark_name(folder, TEMPORARY)
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    with disk_errors_named(folder):
        _check_space(folder.parent, sum(len(data) for data in files.values()))
        temporary.mkdir(parents=True)
        try:
            for name, data in files.items():
                _write_synced(temporary / name, data)
            for name, digest in digests.items():
                if hash_file(temporary / name) != digest:
                    raise MachineError("a file read back differs from what was written", where=name, why="bad disk?")
            _write_synced(temporary / MANIFEST, _list_digests(digests))
            sync_folder(temporary)
            _swap(temporary, folder, files)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def write_into_folder(folder: Path, files: dict[str, bytes], setting: str) -> None:
    """Replace some files of a folder, one by one, and leave the others; their sha256 in manifest.json goes last.

    Args:
        folder: the folder.
        files: contents by file name.
        setting: what says where; for the message.

    Raises:
        MachineError: the disk is full or the folder cannot be written.
    """
    for name, data in files.items():
        write_file(folder / name, data, setting)
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    write_file(folder / MANIFEST, _list_digests(digests), setting)


def _list_digests(digests: dict[str, str]) -> bytes:
    return (format_json({"sha256": digests}, MANIFEST, indent=2) + "\n").encode()


def _swap(new: Path, folder: Path, names: Collection[str]) -> None:
    old = mark_name(folder, REPLACED)
    if os.path.lexists(folder):
        if not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "a file has the name of this folder", str(folder))
        os.rename(folder, old)
    try:
        os.rename(new, folder)
    except BaseException:
        with suppress(OSError):
            os.rename(old, folder)
        raise
    sync_folder(folder.parent)
    remove_written(old, names, heir=folder)


def remove_written(folder: Path, names: Collection[str], heir: Path | None = None) -> None:
    """Remove a folder that `write_folder` wrote. What else lies in it is its user's, and is kept.

    Args:
        folder: the folder; nothing happens where there is none.
        names: of the files that were written; manifest.json is another.
        heir: a folder that takes what is kept, under the same names where those are free; else it stays where it is.
    """
    with suppress(OSError):
        for entry in list(os.scandir(folder)):
            if entry.name in names or entry.name == MANIFEST:
                os.unlink(entry.path)
            elif heir is not None and not os.path.lexists(heir / entry.name):
                os.rename(entry.path, heir / entry.name)
        os.rmdir(folder)


# -- names that are there for a moment --------------------------------------------------------------------------------


def mark_name(path: Path, kind: str) -> Path:
    """A name beside `path`, of a kind TEMPORARY or REPLACED, that `tidy_folder` knows again."""
    return path.with_name(f"{path.name}.alexnet_dist-{os.getpid()}-{_identify_machine()}-{secrets.token_hex(4)}.{kind}")


def tidy_folder(parent: Path, of: str | None = None, alone: bool = False) -> None:
    """Remove what killed processes left half-written in a folder, and finish swaps they had begun.

    Args:
        parent: the folder.
        of: the file or folder whose leftovers are meant; None = all.
        alone: the caller holds the lock under which others write here. Without it a name is left alone while its writer
            may live.
    """
    found: list[re.Match[str]] = []
    with suppress(OSError):
        found = [match for name in os.listdir(parent) if (match := _MARKED.fullmatch(name))]
    for match in found:
        path = parent / match.string
        with suppress(OSError):
            if of in (None, match["whole"]) and (alone or _is_abandoned(path, match)):
                _finish(path, parent / match["whole"], match["kind"])


def is_marked(name: str) -> bool:
    """Whether a name has the form of `mark_name`."""
    return _MARKED.fullmatch(name) is not None


def _finish(path: Path, whole: Path, kind: str) -> None:
    if path.is_symlink():
        return
    if kind == TEMPORARY and path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    elif kind == TEMPORARY:
        path.unlink(missing_ok=True)
    elif not os.path.lexists(whole):
        os.rename(path, whole)
    else:
        remove_written(path, _list_written(path) | _list_written(whole), heir=whole)


def _list_written(folder: Path) -> set[str]:
    """Names in a folder's manifest; none where it cannot be read."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        return {str(name) for name in read_json_file(folder / MANIFEST)["sha256"]}
    return set()


def _is_abandoned(path: Path, match: re.Match[str]) -> bool:
    """Whether nobody writes there any more: its writer was a process of this machine and is gone, or it is old."""
    if match["machine"] == _identify_machine():
        try:
            os.kill(int(match["pid"]), 0)
        except (ProcessLookupError, OverflowError):
            return True
        except OSError:
            pass
    return time.time() - path.lstat().st_mtime > ABANDONED_SECONDS


@functools.cache
def _identify_machine() -> str:
    """Eight digits that tell machines, and containers with process ids of their own, apart."""
    container = ""
    with suppress(OSError):
        container = os.readlink("/proc/self/ns/pid")
    return hashlib.sha256(f"{socket.gethostname()} {container}".encode()).hexdigest()[:8]


def refuse_link(path: Path) -> None:
    """See to it that what is written under a name does not land elsewhere.

    Raises:
        MachineError: the name is a symbolic link.
    """
    if path.is_symlink():
        raise MachineError(
            f"{path.name} is a symbolic link",
            where=str(path),
            why="nothing is written through links",
            remedy="remove the link, or put in its place what it leads to",
        )


def find_damage(folder: Path, names: Collection[str]) -> str | None:
    """What is wrong with a folder that has a manifest: a file missing or changed; None if it is intact.

    Args:
        folder: the folder.
        names: files that must be in it and in its manifest.
    """
    try:
        digests = read_json_file(folder / MANIFEST)["sha256"]
        for name in names:
            if hash_file(folder / name) != digests[name]:
                return f"sha256 of {name} differs"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} cannot be read ({type(error).__name__})"
    return None


def read_digest(folder: Path, name: str) -> str | None:
    """The sha256 that a folder's manifest gives for a file, see `find_damage`; None where it gives none."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        return str(read_json_file(folder / MANIFEST)["sha256"][name])
    return None


def hash_file(path: Path) -> str:
    """The file's sha256, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def disk_errors_named(path: Path, setting: str = "output_dir") -> Iterator[None]:
    """Turn an operating system's error about a path into one line.

    Args:
        path: what is written.
        setting: the one that says where.

    Raises:
        MachineError: full disk, missing permission, read-only file system and the like.
    """
    try:
        yield
    except OSError as error:
        remedy = name_remedy(error, f"set --{setting} to a folder that can be written")
        raise MachineError(
            f"cannot write {path.name}", where=os.path.abspath(path), why=name_reason(error), remedy=remedy
        ) from error


def check_space(folder: Path, needed: int, what: str, setting: str) -> None:
    """Hold what is to be written against what is free.

    Args:
        folder: where it goes; it need not be there.
        needed: bytes.
        what: cannot be done; for the message.
        setting: the one that says where.

    Raises:
        MachineError: it does not fit, or the disk cannot be looked at.
    """
    place = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.is_dir())
    with disk_errors_named(place, setting):
        free = shutil.disk_usage(place).free
    if free < needed:
        why = f"{format_bytes(needed)} are needed, {format_bytes(free)} are free"
        remedy = f"free some space, or set --{setting} to a larger disk"
        raise MachineError(f"too little space {what}", where=str(folder), why=why, remedy=remedy)


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(errno.ENOSPC, f"needs {needed / 1e6:.0f} MB, {free / 1e6:.0f} MB are free")


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
