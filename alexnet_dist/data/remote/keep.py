"""The copy of an address in the cache folder: fetched once a machine, whole or not used, and gone on with after a kill.

A copy is the folder fetched/NAME-DIGEST below data.cache_dir:

    files/        what was fetched; this is the folder that training reads
    objects.csv   a line for each file that is whole: its path, size, tag and sha256
    whole.json    written last: which address, how much, and the sha256 of objects.csv. Without it nothing is used
    parts/, hub/  what is not whole yet
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout

from alexnet_dist.base.addresses import HUB, Address, parse_address
from alexnet_dist.base.durable import (
    CACHE_SETTING,
    check_space,
    disk_errors_named,
    format_csv,
    hash_file,
    read_csv,
    read_object,
    write_csv,
    write_json,
)
from alexnet_dist.base.progress import Progress, View, format_seconds, phase
from alexnet_dist.base.text import format_bytes
from alexnet_dist.data.remote.hub import fetch_from_hub, list_dataset
from alexnet_dist.data.remote.store import RemoteFile, list_files, open_store
from alexnet_dist.data.remote.transfer import Fetched, FetchFile, Work, fetch_all, fetch_object, name_part

logger = logging.getLogger("alexnet_dist")

FOLDER = "fetched"  # in the cache
_HEADER = ("path", "size", "tag", "sha256")
_SPARE_BYTES = 50_000_000  # beside what is fetched, for its record and for folders


@dataclass(frozen=True)
class Row:
    """A line of objects.csv."""

    size: int
    tag: str
    sha256: str


@dataclass(frozen=True)
class Copy:
    """Where the copy of an address lies."""

    address: Address
    folder: Path

    @property
    def files(self) -> Path:
        """What training reads."""
        return self.folder / "files"

    @property
    def root(self) -> Path:
        """What stands for the address: the folder of files, or the one file that it names; known once it is fetched."""
        only = self.files / (self.address.path.rpartition("/")[2] or ".")
        is_one = not self.address.has_pattern and only.is_file() and read_object(self.seal).get("objects") == 1
        return only if is_one else self.files

    @property
    def parts(self) -> Path:
        """What is not whole yet."""
        return self.folder / "parts"

    @property
    def record(self) -> Path:
        """A line for each file that is whole."""
        return self.folder / "objects.csv"

    @property
    def seal(self) -> Path:
        """Is there where all is."""
        return self.folder / "whole.json"


def find_copy(text: str, cache_dir: Path) -> Copy:
    """Where the copy of an address lies, or will lie; nothing is read.

    Raises:
        UsageError: it is no address; see `parse_address`.
    """
    address = parse_address(text, "data.root")
    meant = f"{address.scheme}://{address.place}/{address.path}@{address.revision}"
    name = re.sub(r"[^\w.-]+", "-", f"{address.place}-{address.path}", flags=re.ASCII).strip("-.")[:48]
    digest = hashlib.sha256(meant.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return Copy(address, cache_dir / FOLDER / f"{name}-{digest}")


def is_whole(copy: Copy) -> bool:
    """Whether everything was fetched and lies there; files are known by their sizes."""
    facts = read_object(copy.seal)
    try:
        if not facts or facts["sha256"] != hash_file(copy.record):
            return False
        rows = read_rows(copy)
        return len(rows) == facts["objects"] and all(_has_size(copy, path, row) for path, row in rows.items())
    except (OSError, KeyError):
        return False


def fetch_copy(text: str, cache_dir: Path, shown: bool, again: bool = False) -> Path:
    """The local folder, or file, of an address; what is missing is fetched, by one process a machine.

    Args:
        text: the address.
        cache_dir: folder for prepared data.
        shown: whether this process speaks.
        again: ask for what has changed since, too. Otherwise a whole copy is used as it is, without a network.

    Raises:
        UsageError: it is no address.
        DataError: nothing is there.
        MachineError: no network, no permission, no space.
    """
    copy = find_copy(text, cache_dir)
    if not again and is_whole(copy):
        _say_kept(copy, shown)
        return copy.root
    with held(copy, shown):
        if not again and is_whole(copy):  # another process has fetched it while this one waited
            _say_kept(copy, shown)
        else:
            _bring(copy, shown)
    return copy.root


@contextlib.contextmanager
def held(copy: Copy, shown: bool) -> Iterator[None]:
    """Keep other processes from a copy.

    Raises:
        MachineError: the cache folder cannot be written.
    """
    with disk_errors_named(copy.folder, CACHE_SETTING):
        copy.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(copy.folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            with phase(f"another process fetches {copy.address.text}", shown):
                lock.acquire()
    try:
        yield
    finally:
        lock.release()


def read_rows(copy: Copy) -> dict[str, Row]:
    """The files that are whole, by path; a line that a kill has cut is none."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        return {row["path"]: Row(int(row["size"]), row["tag"], row["sha256"]) for row in read_csv(copy.record)}
    return {}


def find_damaged(copy: Copy, shown: bool) -> list[str]:
    """Read every file of a copy; those that are gone, or whose sha256 is another one."""
    rows, damaged = read_rows(copy), []
    with Progress(f"checking {copy.address.text}", len(rows), "files", shown=shown) as bar:
        for path, row in rows.items():
            try:
                is_good = hash_file(copy.files / path) == row.sha256
            except OSError:
                is_good = False
            damaged += [] if is_good else [path]
            bar.advance()
    return damaged


def forget(copy: Copy, paths: Sequence[str]) -> None:
    """Take files for missing: the next start fetches them."""
    copy.seal.unlink(missing_ok=True)
    gone = set(paths)
    _write_rows(copy, {path: row for path, row in read_rows(copy).items() if path not in gone})


def _has_size(copy: Copy, path: str, row: Row) -> bool:
    try:
        return (copy.files / path).stat().st_size == row.size
    except OSError:
        return False


def _say_kept(copy: Copy, shown: bool) -> None:
    if shown:
        facts = read_object(copy.seal)
        size, day = facts.get("bytes", 0), facts.get("fetched", "")
        text = "data      %s: %s files, %s, kept in %s since %s"
        logger.info(text, copy.address.text, f"{facts.get('objects', 0):,}", format_bytes(size), copy.files, day)


# -- fetching ---------------------------------------------------------------------------------------------------------


def _bring(copy: Copy, shown: bool) -> None:
    """Make a copy what the address has now; this process holds it."""
    with phase(f"asking {copy.address.scheme}://{copy.address.place}", shown):
        listed, fetch = _open(copy)
    with disk_errors_named(copy.folder, CACHE_SETTING):
        rows = _settle_rows(copy)
        good = {file.path for file in listed if _is_there(copy, file, rows.get(file.path))}
        wanted = [file for file in listed if file.path not in good]
        if not wanted and len(good) == len(rows) and is_whole(copy):
            _say_kept(copy, shown)
            return
        copy.seal.unlink(missing_ok=True)
        copy.files.mkdir(exist_ok=True)
        copy.parts.mkdir(exist_ok=True)
        _remove_others(copy, listed, wanted, shown)
        kept = {path: row for path, row in rows.items() if path in good}
        _write_rows(copy, kept)
    _check_space(copy, wanted)
    started = time.monotonic()
    num_bytes = _fetch_wanted(copy, listed, wanted, fetch, kept, shown)
    with disk_errors_named(copy.folder, CACHE_SETTING):
        _write_rows(copy, kept)
        total = sum(row.size for row in kept.values())
        facts = {"address": copy.address.text, "objects": len(kept), "bytes": total}
        facts |= {"fetched": time.strftime("%Y-%m-%d %H:%M"), "sha256": hash_file(copy.record)}
        write_json(copy.seal, facts, CACHE_SETTING)
        shutil.rmtree(copy.parts, ignore_errors=True)
        shutil.rmtree(copy.folder / "hub", ignore_errors=True)
    if shown:
        seconds = max(time.monotonic() - started, 0.01)
        text, rate = "fetched %s files, %s in %.0f s (%s/s) into %s", format_bytes(num_bytes / seconds)
        logger.info(text, f"{len(wanted):,}", format_bytes(num_bytes), seconds, rate, copy.files)


def _open(copy: Copy) -> tuple[list[RemoteFile], FetchFile]:
    """What is to be there, and what brings one of it."""
    address = copy.address
    if address.scheme == HUB:
        commit, files = list_dataset(address)
        return files, partial(fetch_from_hub, address, commit, copy.folder / "hub")
    store = open_store(address)
    return list_files(store, address), partial(fetch_object, store, address)


def _settle_rows(copy: Copy) -> dict[str, Row]:
    """The rows of an earlier fetch, less a line that a kill has cut."""
    with contextlib.suppress(FileNotFoundError), copy.record.open("r+b") as file:
        data = file.read()
        file.truncate(data.rfind(b"\n") + 1)
    return read_rows(copy)


def _is_there(copy: Copy, file: RemoteFile, row: Row | None) -> bool:
    return row is not None and (row.size, row.tag) == (file.size, file.tag) and _has_size(copy, file.path, row)


def _remove_others(copy: Copy, listed: Sequence[RemoteFile], wanted: Sequence[RemoteFile], shown: bool) -> None:
    """Remove files and parts of what is no longer there: a picture that was taken out is not to be trained on."""
    names, parts, num_removed = {file.path for file in listed}, {name_part(file) for file in wanted}, 0
    for folder, _, files in os.walk(copy.files, topdown=False):
        for name in files:
            path = Path(folder, name)
            if path.relative_to(copy.files).as_posix() not in names:
                path.unlink()
                num_removed += 1
        if folder != str(copy.files):
            with contextlib.suppress(OSError):  # it is not empty
                os.rmdir(folder)
    for path in copy.parts.iterdir():
        if path.name not in parts:
            path.unlink()
    if num_removed and shown:
        logger.info("removed %s files that are no longer at %s", f"{num_removed:,}", copy.address.text)


def _check_space(copy: Copy, wanted: Sequence[RemoteFile]) -> None:
    there = sum(path.stat().st_size for path in copy.parts.iterdir())
    needed = sum(file.size for file in wanted) - there + _SPARE_BYTES
    check_space(copy.folder, needed, "to fetch", CACHE_SETTING)


def _fetch_wanted(
    copy: Copy,
    listed: Sequence[RemoteFile],
    wanted: Sequence[RemoteFile],
    fetch: FetchFile,
    kept: dict[str, Row],
    shown: bool,
) -> int:
    """Fetch files, note each in the record and in `kept`, and show how far it is; the bytes that came."""
    total, work = sum(file.size for file in wanted), Work()
    if shown:
        text = "data      %s: %s files, %s; %s of them are fetched into %s"
        whole = format_bytes(sum(file.size for file in listed))
        logger.info(text, copy.address.text, f"{len(listed):,}", whole, format_bytes(total), copy.files)
    before = sum(path.stat().st_size for path in copy.parts.iterdir())
    bar = _Bar(copy, total, before, shown)
    with bar.progress, disk_errors_named(copy.record, CACHE_SETTING), copy.record.open("ab", buffering=0) as record:
        for done in fetch_all(wanted, fetch, copy.files, copy.parts, work, lambda: bar.show(work)):
            kept[done.file.path] = row = _to_row(done)
            record.write(format_csv([(done.file.path, str(row.size), row.tag, row.sha256)]).encode())
    return work.received


class _Bar:
    """How far a fetch is: in MB, with the files beside."""

    def __init__(self, copy: Copy, total: int, before: int, shown: bool) -> None:
        self._name, self._total, self._before = f"fetching {copy.address.text}", total, before
        self._received, self._files, self._began = 0, 0, time.monotonic()
        self.progress = Progress(self._name, total, "MB", done=before, shown=shown, describe=self._describe)

    def show(self, work: Work) -> None:
        """Take a look at what has come."""
        more, self._received, self._files = work.received - self._received, work.received, work.landed
        self.progress.advance(more)

    def _describe(self) -> View:
        done, seconds = self._before + self._received, time.monotonic() - self._began
        rate = max(self._received, 0) / seconds if seconds > 0 else 0.0
        left = f"{format_seconds((self._total - done) / rate if rate else None)} left"
        speed, files = f"{format_bytes(rate)}/s", f"{self._files:,} files"
        facts = [(speed, speed), (left, left), (files, files)]
        return View(self._name, round(done / 1e6), round(self._total / 1e6), facts)


def _to_row(done: Fetched) -> Row:
    return Row(done.file.size, done.file.tag, done.sha256)


def _write_rows(copy: Copy, rows: dict[str, Row]) -> None:
    lines = ((path, str(row.size), row.tag, row.sha256) for path, row in sorted(rows.items()))
    write_csv(copy.record, _HEADER, lines, CACHE_SETTING)
