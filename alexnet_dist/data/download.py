"""Fetching a file into the cache folder, with an answer in seconds where there is no network."""

from __future__ import annotations

import errno
import hashlib
import http.client
import logging
import os
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock
from torchvision.datasets.utils import USER_AGENT, download_url

from alexnet_dist.data.kept_arrays import CACHE_SETTING
from alexnet_dist.durable import TEMPORARY, disk_errors_named, mark_name, tidy_folder
from alexnet_dist.errors import MachineError

logger = logging.getLogger("alexnet_dist")

ANSWER_SECONDS = 12.0  # a name server may take longer to say that it knows nothing
STALL_SECONDS = 10.0  # a transfer that stands still for so long has ended

_ALGORITHMS = {32: "md5", 64: "sha256"}  # by the number of digits
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)


def fetch_file(urls: Sequence[str], path: Path, digest: str, instead: str) -> None:
    """Fetch a file unless it is there, intact.

    Args:
        urls: where it can be had; the next is tried when one fails.
        path: where it goes, in the cache folder.
        digest: the md5 or sha256 it must have, in hexadecimal.
        instead: what a user without a network can do.

    Raises:
        MachineError: no network, a transfer that was cut short or altered, or a folder that cannot be written.
    """
    with disk_errors_named(path, CACHE_SETTING):
        if has_digest(path, digest):  # before the lock: the folder may be read-only by now
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.parent / ".lock"):
            if has_digest(path, digest):  # another process may have fetched it while this one waited
                return
            tidy_folder(path.parent, of=path.name, alone=True)
            reasons = list(_try_each(urls, path, digest))
    if not has_digest(path, digest):
        raise MachineError(f"cannot fetch {path.name}", where=urls[0], why=reasons[0], remedy=instead)


def has_digest(path: Path, digest: str) -> bool:
    """Whether a file is there with this md5 or sha256, in hexadecimal."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, _ALGORITHMS[len(digest)]).hexdigest() == digest


def _try_each(urls: Sequence[str], path: Path, digest: str) -> Iterator[str]:
    """Fetch from the first place that works; the reasons why others did not."""
    for url in urls:
        logger.info("fetching %s", url)
        reason = _fetch(url, path, digest)
        if not reason:
            return
        yield reason


def _fetch(url: str, path: Path, digest: str) -> str:
    """Fetch with torchvision; why that failed, or nothing. The file gets its name when it is whole."""
    beside = mark_name(path, TEMPORARY)
    try:
        _await_answer(url)
        with _stalls_end():
            download_url(url, str(path.parent), beside.name)
        if not has_digest(beside, digest):
            return f"what arrived has another {_ALGORITHMS[len(digest)]}: it was cut short or altered on the way"
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


def _await_answer(url: str) -> None:
    """Ask for the file without reading it, and wait no longer than `ANSWER_SECONDS`.

    In a thread, because nothing bounds the time in which a name is looked up.

    Raises:
        OSError: no answer, or a refusal.
    """
    outcome: list[Exception | None] = []

    def ask() -> None:
        request = urllib.request.Request(url, headers={"User-Agent": USER_AGENT})
        try:
            with urllib.request.urlopen(request, timeout=ANSWER_SECONDS):
                outcome.append(None)
        except Exception as error:  # noqa: BLE001 (handed to the caller)
            outcome.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(ANSWER_SECONDS)
    if not outcome:
        raise TimeoutError(f"no answer within {ANSWER_SECONDS:g} s")
    if outcome[0] is not None:
        raise outcome[0]


@contextmanager
def _stalls_end() -> Iterator[None]:
    """Give every socket a limit; torchvision gives none."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(STALL_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
