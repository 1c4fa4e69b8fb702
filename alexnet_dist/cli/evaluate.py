"""`evaluate`: loss, top-1 and top-5 of a trained network on a set of images."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alexnet_dist.base.addresses import is_address
from alexnet_dist.base.durable import format_json, read_object, write_json
from alexnet_dist.base.errors import UsageError
from alexnet_dist.base.text import join_names
from alexnet_dist.cli.options import (
    add_options,
    check_at_least_one,
    find_folder,
    import_shown,
    refuse_two_places,
    settle_out,
    take_model,
)
from alexnet_dist.data.engines.workers import start_worker_server
from alexnet_dist.figures.canvas import check_matplotlib
from alexnet_dist.settings.reader import new_parser, parse_arguments
from alexnet_dist.settings.schema import Config, EvaluationConfig

if TYPE_CHECKING:
    from alexnet_dist.data.index import SampleIndex
    from alexnet_dist.inference.model_folder import ModelCard
    from alexnet_dist.parallel.runtime import Runtime
    from alexnet_dist.training.gate import BatchGate
    from alexnet_dist.training.predictions import Predictions

logger = logging.getLogger("alexnet_dist")

EXAMPLES = """Evaluate a trained network; each image is counted once on any number of processes.

examples:
  python launch/evaluate.py runs/digits
  python launch/evaluate.py runs/flowers data/more_flowers
  python launch/evaluate.py --model runs/imagenet_subset/model --split val --data.root data/imagenet_subset
  python launch/evaluate.py --model runs/imagenet_subset --ten_crop
  python launch/evaluate.py --model runs/digits --plots
  accelerate launch launch/evaluate.py --model runs/imagenet_subset --out result.json

Settings that are given replace those the network was trained with."""


def main(argv: Sequence[str]) -> int:
    """Run the verb; its exit code."""
    parser = new_parser("evaluate", EXAMPLES, "MODEL [FOLDER] [options] [--SETTING VALUE ...]")
    parser.add_argument("paths", type=str, nargs="*", help="the model, then a folder of images in the place of its own")
    add_options(parser, "model", "weights")
    parser.add_argument("--split", default="val", choices=["val", "test"], help="which set")
    parser.add_argument(
        "--ten_crop", action="store_true", help="average the probabilities of corners, center and their mirrors"
    )
    parser.add_argument("--batch_size", type=int, default=128, help="crops of images per process and forward")
    parser.add_argument("--plots", action="store_true", help="draw the figures of the run's plots/ again, of this set")
    parser.add_argument("--out", type=str, help="also write the JSON to this file")
    add_options(parser, "overwrite", "quiet", "debug")
    arguments = parse_arguments(argv, parser, EvaluationConfig)
    options = arguments.options
    take_model(options)
    given = {**name_images(options.paths, options.split, arguments.given), **arguments.given}
    check_at_least_one(options, "batch_size")
    out = settle_out(options)
    result = evaluate_model(
        Path(options.model),
        options.split,
        given,
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


def name_images(folders: Sequence[str], split: str, given: dict[str, Any]) -> dict[str, Any]:
    """The settings that read a set from a folder or an archive, {dotted name: value}: its part of that name, or all.

    Args:
        folders: the words of the command line: one, or none where the model's own images are meant.
        split: val or test.
        given: settings of the command line.

    Raises:
        UsageError: more than one folder, or settings that name another one.
        DataError: there is no such folder.
    """
    if not folders:
        return {}
    if len(folders) > 1:
        raise UsageError("more than one folder", where="command line", why=join_names(folders), remedy="give one")
    refuse_two_places(folders[0], given)
    from alexnet_dist.data.sources.given_folder import name_set  # numpy; --help should not wait for it

    place = given.get("data.cache_dir")
    found = name_set(find_folder(folders[0], place), split)
    # What is fetched lies in one place: not in that of the run, too.
    return {**found, "data.root": folders[0], **({"data.cache_dir": place} if is_address(folders[0]) else {})}


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
        ten_crop: ten views of an image, their probabilities averaged, instead of the center crop.
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
    import_shown("alexnet_dist.training.evaluate")
    from alexnet_dist.assembly.evaluation import load_network, open_set, plan_evaluation
    from alexnet_dist.base.run_record import find_run
    from alexnet_dist.inference.model_folder import find_model_folder, read_fitting_card
    from alexnet_dist.parallel.runtime import lost_peers_named, start_runtime
    from alexnet_dist.runs.evaluation import find_together, name_changes, settle_settings
    from alexnet_dist.runs.folder import silence_logging, start_logging
    from alexnet_dist.training.evaluate import evaluate

    folder = find_model_folder(path, weights)
    config = settle_settings(folder, card := read_fitting_card(folder), given)
    runtime = start_runtime(config.device, config.precision)
    with lost_peers_named(), contextlib.closing(runtime):
        start_logging(None) if runtime.is_main else silence_logging()
        run = find_run(folder)
        index = find_together(runtime, config, card, split, run)
        if run is not None and f"data.{split}" not in given and runtime.is_main:
            name_changes(run, config, split, index)
        model = load_network(folder, card, runtime, config.channels_last)
        plan = plan_evaluation(config.data, card.evaluation, index, batch_size, runtime.dp_size, ten_crop)
        loader, gate = open_set(runtime, config, card, index, plan, is_engine_given="data.engine" in given)
        said: list[Predictions] = []
        result = asdict(evaluate(runtime, model, loader, gate.admit, said.append if plots else None, where=str(path)))
        num_bad_files = report_bad_files(index, gate)
        said = [part for parts in runtime.gather(said) for part in parts]
    if not runtime.is_main:
        return None
    if plots:
        _draw(folder, card, config, runtime.alone(), split, index, said)
    facts = {"model": str(path), "step": card.source.get("step"), "split": split, "images": index.place or None}
    return {**facts, "crops_per_image": plan.augmentation.views, **result, "num_bad_files": num_bad_files}


def _draw(
    folder: Path,
    card: ModelCard,
    config: Config,
    runtime: Runtime,
    split: str,
    index: SampleIndex,
    said: Sequence[Predictions],
) -> None:
    """The figures of a run, and of a set that has been evaluated; in the run's page, too, if it has one."""
    from alexnet_dist.base.run_record import SUMMARY, find_run
    from alexnet_dist.data.engines.choose import REFERENCE
    from alexnet_dist.runs.held_out import restore_splits
    from alexnet_dist.runs.plots import Judged, Subject, draw_figures
    from alexnet_dist.runs.report_tracker import refresh_report
    from alexnet_dist.training.predictions import join_predictions

    run = find_run(folder)
    # The cache of the training set may be on another machine.
    subject = Subject(run or folder, folder, card, config, runtime, REFERENCE)
    judged = Judged(split, index, join_predictions(said))
    find_splits = partial(restore_splits, config.data, config.seed, True, run, card.data_fingerprint)
    draw_figures(subject, judged, lambda: find_splits().train, read_object(subject.run / SUMMARY).get("step"))
    if run is not None:
        refresh_report(run)


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
