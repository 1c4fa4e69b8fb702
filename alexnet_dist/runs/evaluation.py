"""What a trained network is evaluated on: the settings and the sets of its run, and what is given in their place."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from alexnet_dist.assembly.fetching import fetch_together
from alexnet_dist.assembly.sets import find_root, prepare_source
from alexnet_dist.base.errors import CheckpointError, DataError, UsageError
from alexnet_dist.base.run_record import find_run
from alexnet_dist.data.index import SampleIndex
from alexnet_dist.data.sources.manifest_read import normalize_name
from alexnet_dist.data.sources.source import has_part
from alexnet_dist.inference.model_folder import CONFIG, ModelCard
from alexnet_dist.parallel.runtime import Runtime
from alexnet_dist.runs.folder import read_settings
from alexnet_dist.runs.held_out import restore_splits
from alexnet_dist.runs.image_list import list_changes
from alexnet_dist.settings.reader import build_config
from alexnet_dist.settings.schema import Config

logger = logging.getLogger("alexnet_dist")

UNKNOWN_SETTINGS = {"train.epochs": 1}  # of a model folder that no run has written; the data must then be given
SPLITTING = ("data.val_fraction", "data.folds", "data.fold")  # settings that say which images are held out


def settle_settings(folder: Path, card: ModelCard, given: dict[str, Any]) -> Config:
    """The settings of a model's run, and those given in their place.

    A run's own are in its folder. Away from its run, a model says nothing of where images lie.

    Args:
        folder: the model folder.
        card: what it says.
        given: settings that replace the stored ones, {dotted name: value}.

    Raises:
        UsageError: settings that cannot be meant; or given ones would hold out other images than the run did.
    """
    run = find_run(folder)
    values = {**UNKNOWN_SETTINGS, **card.settings}
    places = dict.fromkeys(values, str(folder / CONFIG))
    if run is not None:
        values, places = read_settings(run)
    if values.get("train.max_steps") is not None:
        values["train.epochs"] = None
    places = {key: place for key, place in places.items() if key not in given}
    if given.get("data.val") is not None:  # another set takes the place of the images that were held out
        return build_config({**values, "data.folds": None, "data.fold": None, **given}, places)
    config = build_config({**values, **given}, places)
    changed = [key for key in SPLITTING if key in given and given[key] != values.get(key, given[key])]
    if changed:
        why = "the run has settled which images were held out"
        raise UsageError(f"{changed[0]} has no effect", why=why, remedy="leave it out, or give a set with --data.val")
    return config


def find_together(runtime: Runtime, config: Config, card: ModelCard, split: str, run: Path | None) -> SampleIndex:
    """`find_split` in every process: what data.root is the address of comes to all machines at once, before."""
    fetch_together(runtime, config.data)
    return runtime.main_first(lambda: find_split(config, card, split, runtime.is_main, run))


def find_split(config: Config, card: ModelCard, split: str, progress: bool, run: Path | None = None) -> SampleIndex:
    """The images of one set, numbered by the model's classes; those that were held out are those of the run.

    Args:
        config: the settings.
        card: of the model.
        split: val or test.
        progress: show a bar where the scan takes long.
        run: the run folder; None where it is not known.

    Raises:
        CheckpointError: the data has a class that the model has not.
        UsageError: the settings have no such set.
        DataError: the held-out images are not known, or changed; or a set is missing or damaged.
    """
    data = config.data
    source, options = prepare_source(data, config.seed, progress)
    if split == "val" and (data.folds is not None or not has_part(options, split)):
        index = restore_splits(data, config.seed, progress, run, card.data_fingerprint).val
        if index is None:
            raise _no_set_error(split)
        check_classes(index.classes, card)
        return index
    if not has_part(options, split):
        raise _no_set_error(split)
    for names in source.read_class_lists(options, ("train", split)).values():
        check_classes(names, card)
    try:
        index = source.list_split(options, split, card.classes)
    except DataError:  # which may be for a class that the model has not: that is another error
        check_classes(tuple(source.name_classes(options, split, card.classes)), card, only_known=True)
        raise
    check_classes(index.classes, card)
    return index


def _no_set_error(split: str) -> UsageError:
    return UsageError(f"there is no {split} set", remedy=f"set --data.{split}; --help says what it names")


def check_classes(found: tuple[str, ...], card: ModelCard, only_known: bool = False) -> None:
    """Refuse data whose classes are not the model's.

    Args:
        found: the data's classes.
        card: of the model.
        only_known: some of the model's classes may be missing, as in a validation set.
    """
    found, ours = (tuple(map(normalize_name, names)) for names in (found, card.classes))
    unknown = [name for name in found if name not in ours]
    if unknown or (not only_known and found != ours):
        missing = [name for name in ours if name not in found]
        why = f"the data lacks {missing[0]!r}" if missing else "their order is another"
        why = f"the model does not know {unknown[0]!r}" if unknown else why
        raise CheckpointError(
            "the data's classes are not the model's",
            why=why,
            remedy="evaluate on data with the classes it was trained on",
        )


def name_changes(run: Path, config: Config, split: str, index: SampleIndex) -> None:
    """Say that a set of a run, which its settings name, is not what it was when the run read it."""
    if getattr(config.data, split) is None:
        return
    changes = list_changes(run, {split: index}, find_root(config.data))
    if changes:
        logger.warning("the %s images changed since the run began: %s", split, changes)
