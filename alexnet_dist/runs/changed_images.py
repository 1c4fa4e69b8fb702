"""The images of a run that goes on: those it began with, but for files that it has named as bad."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alexnet_dist.assembly.sets import Splits
from alexnet_dist.base.errors import CheckpointError, DataError, UsageError
from alexnet_dist.base.run_record import RUN, read_run
from alexnet_dist.data.engines.cache.build import read_change_times
from alexnet_dist.inference.checkpoints import read_data_fingerprint
from alexnet_dist.runs.folder import NO_COPY, read_reported
from alexnet_dist.runs.image_list import Changes, Images, find_changes, iterate_images, place_paths, read_image_list

logger = logging.getLogger("alexnet_dist")


@dataclass(frozen=True, eq=False)
class Record:
    """What a run folder says of the run's images.

    Args:
        facts: of run.json: fingerprint and counts.
        images: every file; empty where runs of older versions have no list.
        reported: the files that the run has named as bad, relative to data.root.
    """

    facts: Mapping[str, Any]
    images: Images
    reported: set[str]


def find_images_before(folder: Path, checkpoints: Iterable[Path]) -> dict[str, Any]:
    """What is known of the images that a run began with: their fingerprint, and from run.json the counts.

    Args:
        folder: the run folder.
        checkpoints: they are asked, one after the other, where run.json, and the run's copy of it, say nothing.

    Raises:
        CheckpointError: nothing is.
    """
    facts = read_run(folder).get("data")
    if facts:
        return dict(facts)
    for fingerprint in filter(None, map(read_data_fingerprint, checkpoints)):
        return {"fingerprint": fingerprint}
    what, remedy = f"{RUN} of this run is missing or damaged", "put it back, or start afresh with --new"
    raise CheckpointError(what, where=str(folder), why=NO_COPY, remedy=remedy)


def read_record(folder: Path, facts: Mapping[str, Any], fingerprint: str) -> Record | None:
    """What a run folder says of its images; None where these are the ones, or nothing is said.

    Args:
        folder: the run folder.
        facts: what run.json says of the images.
        fingerprint: of the images that are there.
    """
    if facts.get("fingerprint") in (None, fingerprint):
        return None
    return Record(facts, read_image_list(folder), read_reported(folder))


def settle_images(splits: Splits, record: Record, root: Path, is_other_root: bool) -> tuple[Splits, Changes]:
    """The sets of a run that goes on, cut as they were, and what has changed in them.

    Args:
        splits: the images that are there.
        record: what the run folder says of those that the run began with.
        root: of both.
        is_other_root: whether data.root was changed.

    Raises:
        DataError: a file changed that the run has not named as bad.
        UsageError: likewise, in another data.root.
    """
    if splits.uncut is not None and record.images:
        splits = _recut(splits, record.images, root)
    sets = splits.named()
    if not record.images:
        raise _changed_error(splits, record, "names, sizes or classes of files differ", is_other_root)
    changes = find_changes(record.images, dict(iterate_images(sets, root)))
    unreadable = [place_paths(index, [bad.path for bad in index.bad_files], root) for index in sets.values()]
    others = changes.not_among(record.reported.union(*unreadable))
    if others:
        raise _changed_error(splits, record, str(others), is_other_root)
    return splits, changes


def _recut(splits: Splits, images: Images, root: Path) -> Splits:
    """Keep out for validation what was kept out before: after a file is gone, a new draw would pick others."""
    assert splits.uncut is not None
    held_out = {path for split, path in images if split == "val"}
    placed = place_paths(splits.uncut, splits.uncut.paths, root)
    return splits.recut({path for path, place in zip(splits.uncut.paths, placed, strict=True) if place in held_out})


def describe_images(splits: Splits) -> dict[str, Any]:
    """Fingerprint and counts, for run.json."""
    counts = {f"num_{name}": count for name, count in splits.counts().items()}
    return {"fingerprint": splits.fingerprint, **counts, "num_classes": len(splits.train.classes)}


def find_newest(splits: Splits) -> int:
    """When the newest image was changed, in nanoseconds; 0 without files."""
    return max(index.newest_ns for index in splits.named().values())


def warn_about_newer(splits: Splits, before_ns: Any) -> None:
    """Say which images are newer than any was before, whose names and sizes are what they were.

    Args:
        splits: the images that are there.
        before_ns: when the newest one had been changed; anything but a number where that is not known.
    """
    if not isinstance(before_ns, int) or find_newest(splits) <= before_ns:
        return
    newer = [
        index.root / index.paths[position]
        for index in splits.named().values()
        if index.newest_ns > before_ns
        for position in (read_change_times(index) > before_ns).nonzero()[0].tolist()
    ]
    if newer:
        logger.warning(
            "%d image(s) were changed or copied since the last start, and have their names and sizes (%s): if what "
            "they show is other than it was, start afresh with --new",
            len(newer),
            newer[0],
        )


def _changed_error(splits: Splits, record: Record, files: str, is_other_root: bool) -> DataError | UsageError:
    now = describe_images(splits)
    counts = [f"{key} was {record.facts.get(key)}, is {now[key]}" for key in now if record.facts.get(key) != now[key]]
    why = ", ".join([*counts[1:], files])
    if is_other_root:
        return UsageError("data.root holds other images than this run began with", why=why, remedy="or use --new")
    return DataError("the images changed since this run began", why=why, remedy="restore them or use --new")
