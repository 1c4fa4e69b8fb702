"""Many objects brought to the disk at once; each goes on where an earlier attempt, or an earlier process, stopped.

base/download.py brings files whose digest is published, with what every install has. Here nothing is known beforehand
but what the store says: a size, and a tag that is another one for another content.
"""

from __future__ import annotations

import hashlib
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from alexnet_dist.base.addresses import Address
from alexnet_dist.base.durable import CACHE_SETTING, disk_errors_named, hash_file
from alexnet_dist.base.errors import AlexNetDistError, MachineError
from alexnet_dist.data.remote.store import (
    THREADS,
    BrokenError,
    ChangedError,
    RemoteFile,
    explain,
    knows_no_offset,
    look_again,
    read_chunks,
)

ATTEMPTS = 4  # that bring nothing new, one after another
PAUSE_SECONDS = 0.5  # before the second attempt; each later one waits twice as long
MAX_CHANGES = 3  # of one object while it is fetched
LEAVE_SECONDS = 5.0  # for threads to notice that it is over
LOOK_SECONDS = 0.2  # between two looks at how far it is


@dataclass(eq=False)
class Work:
    """What the threads of a transfer share.

    Args:
        received: bytes that came, less those that were thrown away.
        landed: files that are whole.
        halted: set where it is over before its end.
    """

    received: int = 0
    landed: int = 0
    halted: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def report(self, num_bytes: int) -> None:
        """So many bytes came; below 0: they are worth nothing."""
        with self.lock:
            self.received += num_bytes


class FetchFile(Protocol):
    """Brings an object to a path, where a part of it may lie; what it was, because it may have changed since."""

    def __call__(self, file: RemoteFile, part: Path, work: Work) -> RemoteFile: ...


@dataclass(frozen=True)
class Fetched:
    """A file that is whole and has its name."""

    file: RemoteFile
    sha256: str


def fetch_all(
    files: Sequence[RemoteFile], fetch: FetchFile, folder: Path, parts: Path, work: Work, look: Callable[[], None]
) -> Iterator[Fetched]:
    """Fetch files side by side; each is given when it is whole and has its name.

    Args:
        files: which.
        fetch: brings one.
        folder: where they go.
        parts: folder of what is not whole yet, on the same disk.
        work: what the threads share.
        look: called now and then, in this thread.

    Raises:
        AlexNetDistError: the first that any of them met. What was received stays, to be gone on with.
    """
    waiting, results = iter(files), queue.SimpleQueue[Fetched | BaseException | None]()

    def run() -> None:
        try:
            while not work.halted.is_set():
                with work.lock:
                    file = next(waiting, None)
                if file is None:
                    break
                results.put(_land(file, fetch, folder, parts, work))
            results.put(None)
        except BaseException as error:  # noqa: BLE001 (handed to the one who waits)
            results.put(error)

    threads = [threading.Thread(target=run, name="fetch", daemon=True) for _ in range(min(THREADS, len(files)))]
    for thread in threads:
        thread.start()
    try:
        running = len(threads)
        while running:
            look()
            try:
                result = results.get(timeout=LOOK_SECONDS)
            except queue.Empty:
                continue
            if isinstance(result, BaseException):
                raise result
            running -= result is None
            if result is not None:
                yield result
        look()
    finally:
        work.halted.set()
        end = time.monotonic() + LEAVE_SECONDS
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))


def _land(file: RemoteFile, fetch: FetchFile, folder: Path, parts: Path, work: Work) -> Fetched:
    """Fetch one file and give it its name."""
    part, target = parts / name_part(file), folder / file.path
    with disk_errors_named(target, CACHE_SETTING):
        file = fetch(file, part, work)
        digest = hash_file(part)
        target.parent.mkdir(parents=True, exist_ok=True)
        if file.changed is not None:  # the same time on every machine: it is part of what is remembered of a file
            os.utime(part, (file.changed.timestamp(),) * 2)
        os.replace(part, target)
    with work.lock:
        work.landed += 1
    return Fetched(file, digest)


def name_part(file: RemoteFile) -> str:
    """The name of a file as long as it is not whole: a part of another content has another one."""
    return hashlib.sha256(f"{file.key}\0{file.size}\0{file.tag}".encode()).hexdigest()[:32] + ".part"


def fetch_object(store: Any, address: Address, file: RemoteFile, part: Path, work: Work) -> RemoteFile:
    """Bring an object to a path; see `FetchFile`.

    Args:
        store: see `open_store`.
        address: what the user named.
        file: the object as it was listed.
        part: where it goes.
        work: what the threads share.

    Raises:
        MachineError: the network does not give it, or it changes all the time.
        DataError: it is gone.
        OSError: the disk does not take it.
    """
    for _ in range(MAX_CHANGES):
        try:
            _complete(store, address, file, part, work)
        except ChangedError:
            work.report(-_find_size(part))
            part.unlink(missing_ok=True)
            file = look_again(store, address, file)
        else:
            return file
    where, why = _name(address, file), "it changed each time it was begun again"
    raise MachineError("an object does not hold still", where=where, why=why, remedy="wait until nobody writes it")


def _complete(store: Any, address: Address, file: RemoteFile, part: Path, work: Work) -> None:
    """Add to a part what it lacks, in as many attempts as bring something new."""
    part.touch()
    most, failed = _find_size(part), 0
    while (size := _find_size(part)) < file.size:
        try:
            _append(store, file, part, size, work)
        except BrokenError as error:
            is_further = _find_size(part) > most
            most, failed = (_find_size(part), 1) if is_further else (most, failed + 1)
            if failed >= ATTEMPTS or work.halted.is_set():
                remedy = "check the network, then run the same command again: it goes on where it stopped"
                raise MachineError("cannot fetch", where=_name(address, file), why=str(error), remedy=remedy) from error
            work.halted.wait(PAUSE_SECONDS * 2 ** (failed - 1))
        except (AlexNetDistError, ChangedError, OSError):
            raise
        except BaseException as error:
            if not (knows_no_offset(error) and size):
                raise explain(error, address) from error
            _cut(part, work)


def _append(store: Any, file: RemoteFile, part: Path, size: int, work: Work) -> None:
    with part.open("ab") as out:
        for chunk in read_chunks(store, file, size):
            if work.halted.is_set():
                raise BrokenError("it was given up")
            size += len(chunk)
            if size > file.size:
                raise ChangedError
            out.write(chunk)
            work.report(len(chunk))
        out.flush()
        os.fsync(out.fileno())
    if size < file.size:
        raise BrokenError("the connection ended before the file did")


def _cut(part: Path, work: Work) -> None:
    work.report(-_find_size(part))
    os.truncate(part, 0)


def _find_size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _name(address: Address, file: RemoteFile) -> str:
    return f"{address.scheme}://{address.place}/{file.key}"
