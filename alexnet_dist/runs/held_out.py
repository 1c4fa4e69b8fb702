"""held_out.csv: the images that a run kept out of its training set, and a set cut again as the list says."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from alexnet_dist.assembly.sets import Splits, cut_splits, find_root, find_sets
from alexnet_dist.base.durable import hash_file, read_csv, write_csv
from alexnet_dist.base.errors import DataError
from alexnet_dist.base.run_record import RUN, read_run
from alexnet_dist.base.text import join_names
from alexnet_dist.data.index import SampleIndex
from alexnet_dist.data.sources.manifest_read import normalize_name
from alexnet_dist.runs.image_list import list_changes, place_paths
from alexnet_dist.settings.checks import check_fold_is_chosen
from alexnet_dist.settings.schema import DataConfig

logger = logging.getLogger("alexnet_dist")

HELD_OUT = "held_out.csv"
_REMEDY = "restore what was there, or give another set with --data.val"


def write_held_out(folder: Path, index: SampleIndex, root: Path) -> dict[str, Any]:
    """List the images that were kept for validation in held_out.csv, as paths relative to a root, and classes.

    Returns:
        What run.json says of the list, so that a change of it, or of its images, is noticed.
    """
    names = (index.classes[label] for label in index.labels.tolist())
    write_csv(folder / HELD_OUT, ("path", "class"), zip(place_paths(index, index.paths, root), names, strict=True))
    return {"sha256": hash_file(folder / HELD_OUT), "num_bytes": int(index.byte_sizes.sum())}


def restore_splits(data: DataConfig, seed: int, progress: bool, run: Path | None, trained_on: str | None) -> Splits:
    """The sets of a run that has trained: no image that it has learned from is held out.

    Args:
        data: the settings.
        seed: of the run.
        progress: show a bar where the scan takes long.
        run: the run folder, whose held_out.csv says which images were held out; None where it is not known.
        trained_on: the fingerprint of the run's sets, as the model says.

    Raises:
        DataError: nothing says which images were held out; or they changed; or as `build_splits`.
    """
    check_fold_is_chosen(data)
    sets = find_sets(data, seed, progress)
    train, val, test = sets
    if data.folds is None and (val is not None or not data.val_fraction):
        return Splits(train, val, test, is_held_out=False)
    facts = read_run(run).get("data") if run is not None else None
    facts = facts if isinstance(facts, dict) else {}
    if run is not None and (run / HELD_OUT).is_file():
        splits = Splits(*split_as_listed(run, train, find_root(data)), test, is_held_out=True)
        drawn = dataclasses.replace(splits, test=None).named()
        changes = list_changes(run, drawn, find_root(data))
        before = facts.get("num_train")
        if not changes and before != len(splits.train):  # a run of an older version has no list of its images
            changes = f"{before} in training then, {len(splits.train)} now"
        if changes:
            logger.warning("the images changed since the run began (%s); val is as listed in %s", changes, HELD_OUT)
        return splits
    splits = cut_splits(sets, data, seed)
    if splits.fingerprint not in (facts.get("fingerprint"), trained_on):
        why = f"{HELD_OUT} of the run is not there, and images drawn anew may be ones that the network has learned from"
        remedy = f"{'restore it' if run else 'evaluate the run folder'}, or give a set with --data.val"
        raise DataError("the held-out images are not known", where=str(run or ""), why=why, remedy=remedy)
    return splits


def split_as_listed(run: Path, index: SampleIndex, root: Path) -> tuple[SampleIndex, SampleIndex]:
    """Cut a set as it was cut when the run began, whatever was added to it since; both parts keep its order.

    Args:
        run: the run folder with the list.
        index: the set.
        root: folder that the list's paths are relative to.

    Returns:
        (the images that are not listed, the listed ones). A listed image that is bad now is among the second part's
        bad files.

    Raises:
        DataError: the list was changed; or a listed image is gone, or is of another class or size.
    """
    facts = read_run(run)
    class_of = _read_list(run / HELD_OUT, facts)
    paths = [normalize_name(path) for path in place_paths(index, index.paths, root)]
    is_held = np.array([path in class_of for path in paths], dtype=np.bool_)
    bad_paths = place_paths(index, [file.path for file in index.bad_files], root)
    bad_files = dict(zip(map(normalize_name, bad_paths), index.bad_files, strict=True))
    left_out = tuple(file for path, file in bad_files.items() if path in class_of)
    others = tuple(file for path, file in bad_files.items() if path not in class_of)
    missing = sorted(class_of.keys() - set(paths) - bad_files.keys())
    if missing:
        why = f"{len(missing)} of {len(class_of)} are not there: {join_names(missing)}"
        raise _changed_error(index, why)
    for path, label in zip(paths, index.labels.tolist(), strict=True):
        if class_of.get(path, index.classes[label]) != normalize_name(index.classes[label]):
            raise _changed_error(index, f"'{path}' was '{class_of[path]}' and is '{index.classes[label]}'")
    train, val = index.subset(np.flatnonzero(~is_held)), index.subset(np.flatnonzero(is_held))
    before, now = _part(facts, "held_out").get("num_bytes"), int(val.byte_sizes.sum())
    if before not in (None, now) and not left_out:
        raise _changed_error(index, f"their files have {now:,} bytes in all, and had {before:,}")
    return dataclasses.replace(train, bad_files=others), dataclasses.replace(val, bad_files=left_out)


def _read_list(path: Path, facts: Mapping[str, Any]) -> dict[str, str]:
    """{path: class}, both normalized, of a list that is the run's own.

    run.json has the list's sha256, or of runs of older versions the number of its images.
    """
    try:
        rows = [(row["path"], row["class"]) for row in read_csv(path)]
    except (OSError, ValueError, KeyError) as error:
        raise _list_error(path, f"it cannot be read ({error})") from None
    class_of = {normalize_name(listed): normalize_name(name) for listed, name in rows}
    digest, num_val = _part(facts, "held_out").get("sha256"), _part(facts, "data").get("num_val")
    is_ours = len(rows) == len(class_of) == num_val if digest is None else hash_file(path) == digest
    if not is_ours:
        raise _list_error(path, f"it was changed, or {RUN} is damaged")
    return class_of


def _part(facts: Mapping[str, Any], key: str) -> dict[str, Any]:
    part = facts.get(key)
    return part if isinstance(part, dict) else {}


def _list_error(path: Path, why: str) -> DataError:
    remedy = "restore it from a copy, or give another set with --data.val"
    return DataError("the list of held-out images cannot be trusted", where=str(path), why=why, remedy=remedy)


def _changed_error(index: SampleIndex, why: str) -> DataError:
    return DataError("the held-out images changed since the run began", where=index.place, why=why, remedy=_REMEDY)
