"""What DALI was decoding when it ended the process: a note for the next start.

DALI decodes in the training process, and a fault in it leaves no one to say which file it had. So the names of the
files that it is given are written down before, and Python's faulthandler adds its words when the process ends by a
fault. A note with these words gets a name that stays: its files are decoded by the reference from then on. A note that
is left without them, by a process that was killed, says nothing and goes.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from alexnet_dist.base.durable import TEMPORARY, mark_name, tidy_folder
from alexnet_dist.data.engines.dali.scaling import Array
from alexnet_dist.data.files.scan import hash_place
from alexnet_dist.data.index import SampleIndex

logger = logging.getLogger("alexnet_dist")

_FOLDER, _SUFFIX = "dali", ".note"
_FATAL = b"Fatal Python error"  # how faulthandler begins
_MOST_BYTES = 2**24
_OPEN: list[BinaryIO] = []  # faulthandler writes to one file: the newest, and after it the one before


@contextlib.contextmanager
def noting(cache_dir: Path, index: SampleIndex) -> Iterator[BinaryIO | None]:
    """A note for `write_names`, gone when the block ends; None where it cannot be written."""
    place = cache_dir / _FOLDER
    try:
        place.mkdir(parents=True, exist_ok=True)
        path = mark_name(place / f"{hash_place(index.root)}{_SUFFIX}", TEMPORARY)
        note = path.open("w+b", buffering=0)
    except OSError as error:
        logger.debug("what DALI is given is not noted (%s): %s", place, error)
        yield None
        return
    was_enabled = bool(_OPEN) or faulthandler.is_enabled()
    with note, path.open("ab", buffering=0) as end:
        _OPEN.append(end)
        faulthandler.enable(end, all_threads=False)
        try:
            yield note
        finally:
            _OPEN.remove(end)
            _hand_back(was_enabled)
            path.unlink(missing_ok=True)


def write_names(note: BinaryIO | None, names: Iterable[Array]) -> None:
    """Replace what a note says; it costs microseconds, and the system keeps it when the process ends.

    Args:
        note: from `noting`.
        names: (n, L) uint8 for each step, as DALI gets them; a zero ends each.
    """
    if note is not None:
        text = b"".join(name.tobytes() for name in names)
        note.seek(0)
        note.truncate()
        note.write(text)


def find_suspects(cache_dir: Path, index: SampleIndex) -> set[int]:
    """The images that DALI had when it ended a process, at any start before this one."""
    place, key = cache_dir / _FOLDER, hash_place(index.root)
    names = {name for path in list(place.glob(f"{key}[.-]*")) for name in _keep_names(path, key)}
    tidy_folder(place, of=f"{key}{_SUFFIX}")
    if not names:
        return set()
    root = os.path.join(index.root, "")
    suspects = {number for number, path in enumerate(index.paths) if os.fsencode(root + path) in names}
    if suspects:
        first = index.root / index.paths[min(suspects)]
        said = "DALI ended an earlier process while it had %d of these images (%s ...): the reference decodes them now"
        logger.warning(said, len(suspects), first)
    return suspects


def _hand_back(was_enabled: bool) -> None:
    if _OPEN:
        faulthandler.enable(_OPEN[-1], all_threads=False)
    elif was_enabled and sys.__stderr__ is not None:
        faulthandler.enable(sys.__stderr__)
    else:
        faulthandler.disable()


def _keep_names(path: Path, key: str) -> list[bytes]:
    """The names in a note that ends in a fault, which is kept, whoever has its writer's process id now; else none."""
    kept = path
    if path.suffix != _SUFFIX:
        kept = path.with_name(f"{key}-{path.stem.rpartition('-')[2]}{_SUFFIX}")
    for place in (path, kept):  # another process may have renamed it since it was found
        with contextlib.suppress(OSError):
            with place.open("rb") as note:
                text, fatal, _ = note.read(_MOST_BYTES).partition(_FATAL)
            if fatal and place != kept:
                with contextlib.suppress(OSError):
                    os.rename(place, kept)
            return text.split(b"\0") if fatal else []
    return []
