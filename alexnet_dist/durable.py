"""Files that are either whole or not there: temporary name, fsync, rename, fsync of the folder."""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import math
import os
import secrets
import shutil
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from alexnet_dist.errors import DivergedError, MachineError
from alexnet_dist.text import escape_cell, unescape_cell

MANIFEST = "manifest.json"
TEMPORARY, REPLACED = ".tmp", ".old"


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file that takes the place of `path`, flushed to the disk, when the block ends well, and else goes.

    Readers find the old file or the new one. Several processes may write at once: the last one wins.

    Raises:
        OSError: the disk is full or the folder cannot be written.
    """
    beside = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}{TEMPORARY}")
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
        MachineError: the disk is full or the folder cannot be written.
    """
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


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file at once; see `format_json`."""
    write_file(path, (format_json(value, path.name, indent=2) + "\n").encode())


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
    """Replace a folder of files at once, with each file's sha256 in manifest.json.

    Every file is read back before the folder takes its name.

    Args:
        folder: its final name.
        files: contents by file name.

    Raises:
        MachineError: the disk is full, or gives back something else than was written.
    """
    temporary = folder.with_name(folder.name + TEMPORARY)
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    with disk_errors_named(folder):
        _check_space(folder.parent, sum(len(data) for data in files.values()))
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            for name, data in files.items():
                _write_synced(temporary / name, data)
            for name, digest in digests.items():
                if hash_file(temporary / name) != digest:
                    raise MachineError("a file read back differs from what was written", where=name, why="bad disk?")
            _write_synced(temporary / MANIFEST, _list_digests(digests))
            sync_folder(temporary)
            _swap(temporary, folder)
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


def _swap(new: Path, folder: Path) -> None:
    old = folder.with_name(folder.name + REPLACED)
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.rename(folder, old)
    os.rename(new, folder)
    sync_folder(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def tidy_folder(parent: Path, names: str) -> None:
    """Remove what a killed process left half-written, and finish a swap it had begun.

    Args:
        parent: the folder they lie in.
        names: which files and folders are ours, as a pattern ("step-*").
    """
    for old in parent.glob(f"{names}{REPLACED}"):
        whole = old.with_name(old.name.removesuffix(REPLACED))
        if not whole.exists():
            os.rename(old, whole)
        shutil.rmtree(old, ignore_errors=True)
    # A folder is written under its name and the suffix, a file has its writer between the two.
    for temporary in chain(parent.glob(f"{names}{TEMPORARY}"), parent.glob(f"{names}.*{TEMPORARY}")):
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def find_damage(folder: Path, names: Collection[str]) -> str | None:
    """What is wrong with a folder that has a manifest: a file missing or changed; None if it is intact.

    Args:
        folder: the folder.
        names: files that must be in it and in its manifest.
    """
    try:
        digests = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["sha256"]
        for name in names:
            if hash_file(folder / name) != digests[name]:
                return f"sha256 of {name} differs"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} cannot be read ({type(error).__name__})"
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
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        elsewhere = f"set --{setting} to a folder that can be written"
        raise MachineError(
            f"cannot write {path.name}",
            where=str(path),
            why=error.strerror or str(error),
            remedy=f"free some space, or {elsewhere}" if full else f"mend the permissions, or {elsewhere}",
        ) from error


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(errno.ENOSPC, f"needs {needed / 1e6:.0f} MB, {free / 1e6:.0f} MB are free")


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
