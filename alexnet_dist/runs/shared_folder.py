"""Whether every process sees the same run folder: the main process writes a word in it, and the others read it."""

from __future__ import annotations

import os
import platform
import secrets
import time
from pathlib import Path

from alexnet_dist.base.durable import TEMPORARY, disk_errors_named, mark_name
from alexnet_dist.base.errors import MachineError
from alexnet_dist.parallel.runtime import Runtime

LOOK_SECONDS = 5.0  # a network's disk may show a new file late
RETRY_SECONDS = 0.1


def check_folder_is_shared(runtime: Runtime, folder: Path) -> None:
    """Refuse machines of which each has a run folder of its own: they could not go on from a checkpoint.

    Raises:
        MachineError: a process does not see what the main process wrote.
    """
    if runtime.world_size == 1:
        return
    word = secrets.token_hex(16)
    path = mark_name(folder / "shared", TEMPORARY)  # what a killed process leaves is tidied up
    name, word = runtime.on_main(lambda: _write(path, word))
    try:
        runtime.raise_together(None if runtime.is_main else _look(folder / name, word, runtime.rank))
    finally:
        if runtime.is_main:
            path.unlink(missing_ok=True)


def _write(path: Path, word: str) -> tuple[str, str]:
    with disk_errors_named(path.parent):
        path.write_text(word, encoding="ascii")
    return path.name, word


def _look(path: Path, word: str, rank: int) -> MachineError | None:
    end = time.monotonic() + LOOK_SECONDS
    while True:
        try:
            os.listdir(path.parent)  # some disks of networks look anew only then
            if path.read_text(encoding="ascii") == word:
                return None
            why = "it is another folder there"
        except (OSError, ValueError):
            why = "what rank 0 writes in it is not there"
        if time.monotonic() > end:
            where = f"{path.parent.absolute()} on {platform.node()}, rank {rank}"
            remedy = "set --output_dir to a folder on a disk that all machines see"
            return MachineError("the run folder is not shared", where=where, why=why, remedy=remedy)
        time.sleep(RETRY_SECONDS)
