"""Fetching a file into the cache folder, with an answer in seconds where there is no network.

A transfer has an end: of bytes, which are known from the list, and of time, as there is a slowest rate.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import logging
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock

from alexnet_dist.base.durable import CACHE_SETTING, TEMPORARY, disk_errors_named, mark_name, tidy_folder
from alexnet_dist.base.errors import MachineError

logger = logging.getLogger("alexnet_dist")

ANSWER_SECONDS = 12.0  # a name server may take longer to say that it knows nothing
STALL_SECONDS = 10.0  # a transfer that stands still for so long has ended
RATE_SECONDS = 20.0  # over which the rate is measured
MIN_BYTES_PER_SECOND = 5_000
CHUNK_BYTES = 1 << 20
USER_AGENT = "pytorch/vision"  # torchvision's, whose import would take a second

_ALGORITHMS = {32: "md5", 64: "sha256"}  # by the number of digits
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)


class Published(NamedTuple):
    """A file as it is published."""

    digest: str  # sha256, or md5 where no more is known; hexadecimal
    size: int  # bytes, at most


def fetch_file(urls: Sequence[str], path: Path, published: Published, instead: str) -> None:
    """Fetch a file unless it is there, intact.

    Args:
        urls: where it can be had; the next is tried when one fails.
        path: where it goes, in the cache folder.
        published: what it must be.
        instead: what a user without a network can do.

    Raises:
        MachineError: no network, a transfer that was cut short or altered, or a folder that cannot be written.
    """
    with disk_errors_named(path, CACHE_SETTING):
        if _is_whole(path, published):  # before the lock: the folder may be read-only by now
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.parent / ".lock"):
            if _is_whole(path, published):  # another process may have fetched it while this one waited
                return
            tidy_folder(path.parent, of=path.name, alone=True)
            reasons = list(_try_each(urls, path, published))
    if len(reasons) == len(urls):
        raise MachineError(f"cannot fetch {path.name}", where=urls[0], why=reasons[0], remedy=instead)


def _is_whole(path: Path, published: Published) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, _ALGORITHMS[len(published.digest)]).hexdigest() == published.digest


def _try_each(urls: Sequence[str], path: Path, published: Published) -> Iterator[str]:
    """Fetch from the first place that works; the reasons why others did not."""
    for url in urls:
        logger.info("fetching %s", url)
        reason = _fetch(url, path, published)
        if not reason:
            return
        yield reason


def _fetch(url: str, path: Path, published: Published) -> str:
    """Fetch a file; why that failed, or nothing. The file gets its name when it is whole."""
    beside = mark_name(path, TEMPORARY)
    try:
        _run_transfer(_Transfer(url, beside, published.size))
        if not _is_whole(beside, published):
            kind = _ALGORITHMS[len(published.digest)]
            return f"its {kind} is another: cut short or altered"
        _move_aside(path)
        os.replace(beside, path)
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
            raise
        reason = error.reason if type(error) is urllib.error.URLError else error
        return str(getattr(reason, "strerror", None) or reason) or type(reason).__name__
    finally:
        beside.unlink(missing_ok=True)
    return ""


def _move_aside(path: Path) -> None:
    """Keep a file of other content under another name: it may be its user's."""
    if os.path.lexists(path):
        numbered = (path.with_name(f"{path.name}.{number}") for number in range(1, 10**6))
        free = next(other for other in numbered if not os.path.lexists(other))
        path.rename(free)
        logger.warning("%s has other content than it should have: it is %s now", path, free.name)


@dataclass(eq=False)
class _Transfer:
    """One attempt to fetch a file, made in a thread: nothing bounds the time in which a name is looked up, or in which
    a server sends a header byte by byte.

    Args:
        url: where from.
        file: what is written.
        size: the most bytes that are.
    """

    url: str
    file: Path
    size: int
    answered: threading.Event = field(default_factory=threading.Event)
    given_up: threading.Event = field(default_factory=threading.Event)
    error: Exception | None = None

    def run(self) -> None:
        try:
            request = urllib.request.Request(self.url, headers={"User-Agent": USER_AGENT})
            # Made anew: the one that urlopen keeps has the proxies of its first use.
            with urllib.request.build_opener().open(request, timeout=STALL_SECONDS) as reply:
                self.answered.set()
                self._copy(reply)
        except Exception as error:  # noqa: BLE001 (handed to the one who waits)
            self.error = error
        self.answered.set()

    def _copy(self, reply: http.client.HTTPResponse) -> None:
        received, measured, since = 0, 0, time.monotonic()
        with self.file.open("wb") as file:
            while chunk := reply.read1(CHUNK_BYTES):
                received += len(chunk)
                if received > self.size:
                    raise ConnectionError(f"the server sends more than the {self.size:,} bytes of the file")
                if self.given_up.is_set():
                    return
                file.write(chunk)
                if time.monotonic() - since > RATE_SECONDS:
                    if received - measured < MIN_BYTES_PER_SECOND * RATE_SECONDS:
                        raise TimeoutError(f"less than {MIN_BYTES_PER_SECOND:,} bytes a second arrive")
                    measured, since = received, time.monotonic()


def _run_transfer(transfer: _Transfer) -> None:
    """Wait for a transfer, and no longer than the slowest one that is let pass takes.

    Raises:
        OSError, HTTPException: it failed, or took too long.
    """
    thread = threading.Thread(target=transfer.run, daemon=True)
    thread.start()
    if not transfer.answered.wait(ANSWER_SECONDS):
        transfer.given_up.set()
        raise TimeoutError(f"no answer within {ANSWER_SECONDS:g} s")
    thread.join(RATE_SECONDS + STALL_SECONDS + transfer.size / MIN_BYTES_PER_SECOND)
    if thread.is_alive():
        transfer.given_up.set()
        raise TimeoutError(f"less than {MIN_BYTES_PER_SECOND:,} bytes a second arrive")
    if transfer.error is not None:
        raise transfer.error
