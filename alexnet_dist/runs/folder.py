"""The run folder: its lock, its settings, run.json, summary.json, bad_files.csv, run.log."""

from __future__ import annotations

import dataclasses
import logging
import os
import secrets
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from alexnet_dist.base.durable import (
    disk_errors_named,
    read_csv,
    read_object,
    tidy_folder,
    write_csv,
    write_file,
    write_json,
)
from alexnet_dist.base.errors import CheckpointError, MachineError, UsageError
from alexnet_dist.base.nested import flatten
from alexnet_dist.base.places import find_place
from alexnet_dist.base.progress import ScreenHandler, is_debug
from alexnet_dist.base.run_record import CHECKPOINTS, FORMS, MARKER, RUN, SETTINGS, SUMMARY, Kind, read_marker, read_run
from alexnet_dist.base.text import LogFormatter
from alexnet_dist.data.index import BadFile, BadFilesError
from alexnet_dist.runs.ownership import LOCK, check_ownership, mark_folder
from alexnet_dist.settings.reader import dump_config, read_yaml
from alexnet_dist.settings.schema import Config

logger = logging.getLogger("alexnet_dist")

LOCK_SECONDS = 10
PROBE_SECONDS = 0.5  # to see whether a lock is held: other processes that look are done within a millisecond
MOST_REPORTED = 10_000  # bad files that run.json remembers
NO_COPY = "there is no copy of it"
BAD_FILES, PLOTS = "bad_files.csv", "plots"


def open_run_folder(folder: Path, new: bool) -> FileLock:
    """`open_folder`, with a place for checkpoints, tidied up after a killed process."""
    lock = open_folder(folder, new, "run")
    with disk_errors_named(folder):
        (folder / CHECKPOINTS).mkdir(exist_ok=True)
    for place in (folder, folder / CHECKPOINTS):
        tidy_folder(place, alone=True)
    tidy_folder(folder / PLOTS)
    return lock


def open_folder(folder: Path, new: bool, kind: Kind) -> FileLock:
    """Make a folder of results and take its lock. The caller keeps the lock while it runs.

    Args:
        folder: where.
        new: rename a folder that is there to NAME.1, NAME.2, ... and start afresh.
        kind: of the folder.

    Raises:
        UsageError: the folder was not made here; nothing in it is touched.
        MachineError: the folder cannot be written, or another run holds it.
    """
    check_ownership(folder, kind)
    with disk_errors_named(folder):
        if new and folder.exists():
            _move_away(folder)
        folder.mkdir(parents=True, exist_ok=True)
        lock = _lock(folder)
    check_ownership(folder, kind)  # somebody may have been faster
    mark_folder(folder, kind)  # at each start: a folder that can be made is not always one that can be written
    return lock


def _move_away(folder: Path) -> None:
    place = folder.absolute()
    if Path.cwd().is_relative_to(find_place(place)):
        why = "the program was started in it"
        remedy = "start it from the folder above and give the path from there"
        raise UsageError("--new cannot rename this folder", where=str(place), why=why, remedy=remedy)
    numbered = (place.with_name(f"{place.name}.{number}") for number in range(1, 10**6))
    free = next(path for path in numbered if not os.path.lexists(path))
    _lock(folder)  # never from under a run that is going on
    place.rename(free)


def is_held(folder: Path) -> bool:
    """Whether a run is going on in a folder. Other processes that ask the same hold it for a moment."""
    lock = FileLock(folder / LOCK)
    try:
        if os.path.isfile(folder / LOCK):
            lock.acquire(timeout=PROBE_SECONDS, poll_interval=0.01)
    except Timeout:
        return True
    except OSError:  # said when the folder is opened
        return False
    lock.release()
    return False


def _lock(folder: Path) -> FileLock:
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=LOCK_SECONDS)
    except Timeout:
        raise MachineError(
            "another run is using this run folder",
            where=str(folder),
            remedy="wait for it to end or choose another --output_dir",
        ) from None
    return lock


def read_settings(folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The settings that a run went on with until now: its own copy's, as config.yaml may have been edited.

    Returns:
        {dotted name: value}, and where each was read, for messages.

    Raises:
        CheckpointError: neither is there.
        UsageError: there is no copy, and config.yaml is no YAML.
    """
    kept = read_marker(folder).get("settings")
    if isinstance(kept, dict):
        values = flatten(kept)
        return values, dict.fromkeys(values, str(folder / MARKER))
    if (folder / SETTINGS).is_file():
        values, lines = read_yaml(folder / SETTINGS)
        return values, {key: f"{folder / SETTINGS}:{line}" for key, line in lines.items()}
    remedy = "put it back, or start afresh with --new"
    raise CheckpointError(f"{SETTINGS} of this run is missing", where=str(folder), why=NO_COPY, remedy=remedy)


def store_settings(folder: Path, config: Config) -> None:
    """Replace config.yaml, and keep a copy of it and of what the next start needs to know of run.json."""
    write_file(folder / SETTINGS, dump_config(config).encode())
    facts = {key: value for key, value in read_run(folder).items() if key in FORMS and key != "starts"}
    mark_folder(folder, "run", {"settings": dataclasses.asdict(config), "facts": facts})


def update_run_json(folder: Path, facts: dict[str, Any], start: dict[str, Any]) -> dict[str, Any]:
    """Store what is known of the run, and append this start to the list of its starts."""
    before = read_run(folder)
    values = {
        **before,
        **facts,
        "wandb_id": before.get("wandb_id") or secrets.token_hex(4),
        "starts": [*(before.get("starts") or []), {"time": now(), **start}],
    }
    write_json(folder / RUN, values)
    return values


def add_facts(folder: Path, facts: dict[str, Any]) -> None:
    """Store what a start has found out on its way."""
    write_json(folder / RUN, {**read_run(folder), **facts})


def new_run_id() -> str:
    """An id that no other run has."""
    return secrets.token_hex(8)


def write_summary(folder: Path, summary: dict[str, Any]) -> None:
    """Replace summary.json."""
    write_json(folder / SUMMARY, summary)


def write_bad_files(folder: Path, bad_files: Iterable[BadFile], root: Path) -> None:
    """Replace bad_files.csv where it says something else, with paths relative to data.root; none are no list."""
    rows = sorted({(relative_path(Path(bad.path), root), bad.reason) for bad in bad_files})
    if rows and rows != _read_bad_files(folder):
        write_csv(folder / BAD_FILES, ("path", "reason"), rows)


def _read_bad_files(folder: Path) -> list[tuple[str, str]]:
    """The rows of bad_files.csv; empty where it cannot be read."""
    try:
        return [(row["path"], row["reason"]) for row in read_csv(folder / BAD_FILES)]
    except (OSError, ValueError, KeyError):
        return []


def list_bad_files(folder: Path, error: BadFilesError, root: Path) -> None:
    """Replace bad_files.csv by the files that were refused; run.json remembers them all, see `read_reported`."""
    own = error.data_root or root  # of the process that met them
    named = {relative_path(error.root / bad.path, own): bad.reason for bad in error.bad_files}
    facts = read_object(folder / RUN)
    if facts:
        write_json(folder / RUN, {**facts, "bad_files": sorted(named.keys() | read_reported(folder))[:MOST_REPORTED]})
    write_bad_files(folder, [BadFile(str(root / path), reason) for path, reason in named.items()], root)


def read_reported(folder: Path) -> set[str]:
    """The files that the run has named as bad at any time, relative to data.root: those may be mended or removed."""
    listed = read_object(folder / RUN).get("bad_files")
    reported = {path for path in listed if isinstance(path, str)} if isinstance(listed, list) else set()
    return reported | {path for path, _ in _read_bad_files(folder)}


def relative_path(path: Path, root: Path) -> str:
    """A path as it is listed: relative to a root, POSIX."""
    return Path(os.path.relpath(path, root)).as_posix()


def start_logging(path: Path | None) -> None:
    """Send the package's messages to the terminal, and to run.log where a path is given."""
    logger = logging.getLogger("alexnet_dist")
    logger.setLevel(logging.DEBUG if is_debug() else logging.INFO)
    logger.propagate = False
    _remove_handlers(logger)
    logger.addHandler(ScreenHandler())
    if path is not None:
        with disk_errors_named(path):
            file = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
        file.setFormatter(LogFormatter("%(asctime)s %(levelname)s %(message)s"))
        logger.addHandler(file)


def silence_logging() -> None:
    """Let only the main process speak."""
    logger = logging.getLogger("alexnet_dist")
    _remove_handlers(logger)
    logger.addHandler(logging.NullHandler())
    logger.propagate = False


def _remove_handlers(logger: logging.Logger) -> None:
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()  # of an earlier run in this process: its run.log would stay open


def now() -> str:
    """The time, for people to read; nothing depends on it."""
    return datetime.now(UTC).isoformat(timespec="seconds")
