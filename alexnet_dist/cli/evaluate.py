"""`evaluate`: loss, top-1 and top-5 of a trained network on a set of images."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alexnet_dist.base.durable import format_json, read_object, write_json
from alexnet_dist.base.errors import CheckpointError, UsageError
from alexnet_dist.cli.model_options import add_model_options
from alexnet_dist.data.engines.workers import start_worker_server
from alexnet_dist.figures.canvas import check_matplotlib
from alexnet_dist.runs.targets import OVERWRITE_HELP, check_target
from alexnet_dist.settings.reader import build_config, new_parser, parse_arguments
from alexnet_dist.settings.schema import Config, DataConfig, EvaluationConfig

if TYPE_CHECKING:
    from alexnet_dist.data.engines.loader import Loader
    from alexnet_dist.data.index import SampleIndex
    from alexnet_dist.data.plan import Augmentation, Plan
    from alexnet_dist.inference.model_folder import ModelCard
    from alexnet_dist.models import AlexNet
    from alexnet_dist.parallel.runtime import Runtime
    from alexnet_dist.training.gate import BatchGate
    from alexnet_dist.training.predictions import Predictions

logger = logging.getLogger("alexnet_dist")

EXAMPLES = """Evaluate a trained network; each image is counted once on any number of processes.

examples:
  python launch/evaluate.py --model runs/digits
  python launch/evaluate.py --model runs/imagenet_subset/model --split val --data.root data/imagenet_subset
  python launch/evaluate.py --model runs/imagenet_subset --ten_crop
  python launch/evaluate.py --model runs/digits --plots
  accelerate launch launch/evaluate.py --model runs/imagenet_subset --out result.json

The settings below replace those the network was trained with."""

UNKNOWN_SETTINGS = {"train.epochs": 1}  # of a model folder that no run has written; the data must then be given
SPLITTING = ("data.val_fraction", "data.folds", "data.fold")  # settings that say which images are held out


def main(argv: Sequence[str]) -> int:
    """Run the verb; its exit code."""
    parser = new_parser("evaluate", EXAMPLES)
    add_model_options(parser)
    parser.add_argument("--split", type=str, default="val", choices=["val", "test"], help="which set")
    parser.add_argument(
        "--ten_crop", action="store_true", help="average the probabilities of corners, centre and their mirrors"
    )
    parser.add_argument("--batch_size", type=int, default=128, help="crops of images per process and forward")
    parser.add_argument("--plots", action="store_true", help="draw the figures of the run's plots/ again, of this set")
    parser.add_argument("--out", type=str, help="also write the JSON to this file")
    parser.add_argument("--overwrite", action="store_true", help=OVERWRITE_HELP)
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    arguments = parse_arguments(argv, parser, EvaluationConfig)
    options = arguments.options
    if options.model is None:
        raise UsageError("--model is missing", remedy="give a run folder or its model/")
    if options.batch_size < 1:
        raise UsageError("--batch_size must be 1 or more")
    out = check_target(options.out, options.overwrite) if options.out is not None else None
    result = evaluate_model(
        Path(options.model),
        options.split,
        arguments.given,
        options.batch_size,
        ten_crop=options.ten_crop,
        plots=options.plots,
        weights=options.weights,
    )
    if result is not None and out is not None:
        write_json(out, result, "out")
    if result is not None:
        print(format_json(result, "the result", indent=2))
    return 0


def evaluate_model(
    path: Path,
    split: str,
    given: dict[str, Any],
    batch_size: int,
    ten_crop: bool = False,
    plots: bool = False,
    weights: str = "best",
) -> dict[str, Any] | None:
    """Evaluate a run or model folder; the result in the main process, None elsewhere.

    Args:
        path: run folder, model folder or checkpoint.
        split: val or test.
        given: settings that replace the stored ones, {dotted name: value}.
        batch_size: crops of images per process and forward, rounded up to whole images.
        ten_crop: ten views of an image, their probabilities averaged, instead of the centre crop.
        plots: draw the run's figures.
        weights: best or last, of a run folder.

    Raises:
        CheckpointError: no model there, a damaged one, or data with other classes.
        DataError: no such set, or an image smaller than the crop.
        MachineError: figures without matplotlib.
    """
    if plots:
        check_matplotlib()
    if given.get("data.workers") != 0:
        start_worker_server()
    from alexnet_dist.base.run_record import find_run
    from alexnet_dist.inference.model_folder import find_model_folder, read_fitting_card
    from alexnet_dist.parallel.runtime import lost_peers_named, start_runtime
    from alexnet_dist.runs.folder import silence_logging, start_logging
    from alexnet_dist.training.evaluate import evaluate

    folder = find_model_folder(path, weights)
    card = read_fitting_card(folder)
    config = settle_settings(folder, card, given)
    runtime = start_runtime(config.device, config.precision)
    with lost_peers_named(), contextlib.closing(runtime):
        start_logging(None) if runtime.is_main else silence_logging()
        run = find_run(folder)
        index = runtime.main_first(lambda: find_split(config, card, split, runtime.is_main, run))
        is_own = getattr(config.data, split) is not None and f"data.{split}" not in given
        if run is not None and is_own and runtime.is_main:
            _name_changes(run, config, split, index)
        model = _load_network(folder, card, runtime, config.channels_last)
        plan = plan_evaluation(config.data, card.evaluation, index, batch_size, runtime.dp_size, ten_crop)
        loader, gate = _open_set(runtime, config, card, index, plan, is_engine_given="data.engine" in given)
        said: list[Predictions] = []
        result = asdict(evaluate(runtime, model, loader, gate.admit, said.append if plots else None, where=str(path)))
        num_bad_files = report_bad_files(index, gate)
        said = [part for parts in runtime.gather(said) for part in parts]
    if not runtime.is_main:
        return None
    if plots:
        _draw(folder, card, config, runtime.alone(), split, index, said)
    facts = {"model": str(path), "step": card.source.get("step"), "split": split, "views": plan.augmentation.views}
    return {**facts, **result, "num_bad_files": num_bad_files}


def _open_set(
    runtime: Runtime, config: Config, card: ModelCard, index: SampleIndex, plan: Plan, is_engine_given: bool
) -> tuple[Loader, BatchGate]:
    """The set's batches, and what they pass; a cache is built where one is asked for."""
    from alexnet_dist.assembly.caches import build_caches
    from alexnet_dist.assembly.loaders import build_loader
    from alexnet_dist.data.engines.choose import choose_evaluation_engine
    from alexnet_dist.training.gate import BatchGate

    engine = choose_evaluation_engine(config.data.engine, is_given=is_engine_given)
    loader = build_loader(runtime, config.data, index, plan, card.normalization, config.channels_last, engine)
    gate = BatchGate(runtime, config.data.on_bad_file == "skip")
    gate.stop.listen()
    if engine == "cache":
        build_caches(runtime, config.data, [loader], gate.stop)
    return loader, gate


def _load_network(folder: Path, card: ModelCard, runtime: Runtime, channels_last: bool) -> AlexNet:
    from alexnet_dist.assembly.loaders import place_model
    from alexnet_dist.inference.model_folder import read_model_weights
    from alexnet_dist.inference.weights import load_weights
    from alexnet_dist.models import AlexNet

    model = AlexNet(card.spec)
    load_weights(model, read_model_weights(folder), str(folder))
    place_model(model, runtime, channels_last)
    return model


def _name_changes(run: Path, config: Config, split: str, index: SampleIndex) -> None:
    """Say that a set is not what it was when the run read it."""
    from alexnet_dist.assembly.sets import find_root
    from alexnet_dist.runs.image_list import list_changes

    changes = list_changes(run, {split: index}, find_root(config.data))
    if changes:
        logger.warning("the %s images changed since the run began: %s", split, changes)


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
    from alexnet_dist.base.run_record import find_run
    from alexnet_dist.inference.model_folder import CONFIG
    from alexnet_dist.runs.folder import read_settings

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


def _draw(
    folder: Path,
    card: ModelCard,
    config: Config,
    runtime: Runtime,
    split: str,
    index: SampleIndex,
    said: Sequence[Predictions],
) -> None:
    """The figures of a run, and of a set that has been evaluated."""
    from alexnet_dist.base.run_record import SUMMARY, find_run
    from alexnet_dist.data.engines.choose import REFERENCE
    from alexnet_dist.runs.held_out import restore_splits
    from alexnet_dist.runs.plots import Judged, Subject, draw_figures
    from alexnet_dist.training.predictions import join_predictions

    run = find_run(folder)
    # The cache of the training set may be on another machine.
    subject = Subject(run or folder, folder, card, config, runtime, REFERENCE)
    judged = Judged(split, index, join_predictions(said))
    find_splits = partial(restore_splits, config.data, config.seed, True, run, card.data_fingerprint)
    draw_figures(subject, judged, lambda: find_splits().train, read_object(subject.run / SUMMARY).get("step"))


def report_bad_files(index: SampleIndex, gate: BatchGate) -> int:
    """Name the files that failed to decode, in all processes; the number of all files that were left out.

    Args:
        index: the set; the scan has warned of the bad files that it found.
        gate: has let the set's batches through.
    """
    met = sorted((bad.path, bad.reason) for bad in gate.gather_bad_files())
    for path, reason in met:
        logger.warning("left out: %s: %s", path, reason)
    return len(index.bad_files) + len(met)


def plan_evaluation(
    data: DataConfig, recipe: Augmentation, index: SampleIndex, batch_size: int, num_replicas: int, ten_crop: bool
) -> Plan:
    """The batches of one pass over a set in its own order.

    Args:
        data: the settings.
        recipe: resize and crop that the model was trained for.
        index: the set.
        batch_size: crops of images per process and forward, rounded up to whole images.
        num_replicas: processes that share a batch.
        ten_crop: ten views of an image instead of the centre crop.

    Raises:
        DataError: an image smaller than the crop, unless bad files are skipped.
    """
    import numpy as np

    from alexnet_dist.assembly.loaders import build_plan
    from alexnet_dist.data.plan import resize_shapes

    recipe = replace(recipe, views=10 if ten_crop else 1)
    images_per_replica = -(-batch_size // recipe.views)
    plan = build_plan(data, index, recipe, images_per_replica * num_replicas, seed=0, shuffle=False)
    sides = resize_shapes(index.sizes.astype(np.int64), recipe.resize).min(axis=1)  # (N,) of the central squares
    num_narrow = int((sides == recipe.crop_size).sum())
    if ten_crop and num_narrow:
        logger.warning(
            "--ten_crop: augment.resize %s leaves no margin around the %d pixels of the crop in %d of %d images: their "
            "five windows are the same",
            "null" if recipe.resize is None else recipe.resize,
            recipe.crop_size,
            num_narrow,
            len(index),
        )
    return plan


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
    from alexnet_dist.assembly.sets import prepare_source
    from alexnet_dist.data.sources.source import has_part
    from alexnet_dist.runs.held_out import restore_splits

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
    check_classes(tuple(source.name_classes(options, split, card.classes)), card, only_known=True)
    index = source.list_split(options, split, card.classes)
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
    from alexnet_dist.data.sources.manifest_read import normalise_name

    found, ours = (tuple(map(normalise_name, names)) for names in (found, card.classes))
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
