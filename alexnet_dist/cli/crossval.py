"""`crossval`: trains once per fold of the training images, each time validated on the fold that was held out."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from alexnet_dist.base.errors import DivergedError, UsageError
from alexnet_dist.base.progress import set_level
from alexnet_dist.base.streams import writes_unicode
from alexnet_dist.base.text import escape_text
from alexnet_dist.cli.options import add_options, import_shown, say_start, show
from alexnet_dist.data.engines.workers import start_worker_server
from alexnet_dist.settings.reader import (
    dump_config,
    find_config,
    load_config,
    names_output_dir,
    new_parser,
    parse_arguments,
    read_layers,
)
from alexnet_dist.settings.schema import Config

if TYPE_CHECKING:
    from alexnet_dist.base.signals import StopRequest
    from alexnet_dist.parallel.runtime import Runtime
    from alexnet_dist.runs.crossval_table import FoldResult

EXAMPLES = """Cross-validate: cut the training images into folds, train from the start without each, validate on it.

examples:
  python launch/crossval.py --config digits --folds 5
  python launch/crossval.py --config rmsprop_kfold --data.root data/imagenet_subset --folds 10
  accelerate launch launch/crossval.py --config digits --output_dir runs/digits_folds --optimizer.lr 0.001

Folds are stratified by class, shuffled, and the same for the same images and seed, whatever else is set. Only the
images of data.train take part. Each fold is an ordinary run in OUTPUT_DIR/fold-1, fold-2, ...: `train` with
--data.folds K --data.fold N gives the same. The accuracy of a fold is that of its last weights, because its best
weights are chosen by the fold itself; theirs stands beside it. OUTPUT_DIR/crossval.json and crossval.csv hold the
table, mean and sample standard deviation (n - 1) included, after every fold. Running the same command again goes on
where it stopped."""

DEFAULT_FOLDS = 5


def main(argv: Sequence[str]) -> int:
    """Run the verb; its exit code."""
    parser = new_parser("crossval", EXAMPLES, "--config NAME [options] [--SETTING VALUE ...]")
    add_options(parser, "config")
    parser.add_argument("--folds", type=int, help=f"how many (default: data.folds, or {DEFAULT_FOLDS})")
    parser.add_argument("--new", action="store_true", help="keep an earlier run as NAME.1 and start afresh")
    add_options(parser, "print_config", "quiet", "debug")
    arguments = parse_arguments(argv, parser)
    config = _read_settings(arguments.options, arguments.given)
    if arguments.options.print_config:
        print(dump_config(config, unicode=writes_unicode()), end="")
        return 0
    set_level(config.log.level)
    say_start("crossval", arguments.options.config, str(config.output_dir))
    may_move = not names_output_dir(arguments.options.config, arguments.given)
    cross_validate(config, new=arguments.options.new, may_move=may_move)
    return 0


def cross_validate(config: Config, new: bool = False, may_move: bool = False) -> list[FoldResult]:
    """Train and validate every fold that is not finished yet; the results of all.

    Args:
        config: the settings of every fold; data.folds and output_dir must be set.
        new: keep an earlier cross-validation under another name and start afresh.
        may_move: nobody chose output_dir: where it has folds with other settings, take the next free name.

    Raises:
        AlexNetDistError: whatever a user can mend; see base/errors.py. The folds before it are kept.
    """
    if config.data.workers != 0:
        start_worker_server()
    import_shown("alexnet_dist.runs.session")
    from alexnet_dist.assembly.loaders import join_processes
    from alexnet_dist.base.signals import StopRequest
    from alexnet_dist.parallel.peers import check_same_code
    from alexnet_dist.parallel.runtime import lost_peers_named
    from alexnet_dist.runs.crossval_table import format_table, read_result, track_table, write_table
    from alexnet_dist.runs.own_folder import find_own_folder, settle_folder
    from alexnet_dist.runs.resume import keep_precision

    stop = StopRequest()  # one for all folds: a signal between two of them counts
    note = ""
    if may_move and not new:
        config, note = find_own_folder(config, _explain_taken)
    runs = configure_folds(config)
    # All folds compute alike, although some may be trained after a restart on another machine.
    precision = None if new else keep_precision(Path(str(runs[0].output_dir)), config.precision)
    with lost_peers_named(), contextlib.ExitStack() as held:
        runtime = held.enter_context(contextlib.closing(join_processes(config, precision)))
        check_same_code(runtime)
        config = dataclasses.replace(config, output_dir=runtime.on_main(partial(settle_folder, config, note)))
        runs = configure_folds(config)
        results = runtime.on_main(partial(_open, config, runs, new, held))
        was_finished = None not in results
        for position, run in enumerate(runs):
            if results[position] is None:
                _train_fold(run, len(runs), runtime, stop)
                results[position] = runtime.on_main(partial(read_result, run))
            finished = [result for result in results if result is not None]
            runtime.on_main(partial(write_table, config, finished, runtime.world_size, runtime.precision))
        if runtime.is_main:
            if not was_finished:
                track_table(config, finished)
            show(format_table(config, finished))
    return finished


def configure_folds(config: Config) -> list[Config]:
    """The settings of each fold's run."""
    return [configure_fold(config, fold) for fold in range(1, (config.data.folds or 0) + 1)]


def _explain_taken(config: Config) -> str:
    from alexnet_dist.runs.own_folder import explain_taken

    return next(filter(None, (explain_taken(run, is_whole=True) for run in configure_folds(config))), "")


def configure_fold(config: Config, fold: int) -> Config:
    """The settings of the run that leaves one fold out, counted from 1."""
    out = Path(config.output_dir or "crossval")
    tracking = config.tracking
    name = f"{tracking.name or out.name}-fold-{fold}"
    group, job_type = tracking.group or escape_text(out.name), tracking.job_type or "fold"
    return dataclasses.replace(
        config,
        output_dir=str(out / f"fold-{fold}"),
        data=dataclasses.replace(config.data, fold=fold),
        tracking=dataclasses.replace(tracking, name=name, group=group, job_type=job_type),
    )


def _read_settings(options: Namespace, given: dict[str, Any]) -> Config:
    if options.config is None:
        raise UsageError("--config is missing", remedy="try --config digits")
    if options.folds is not None and options.folds < 2:
        raise UsageError("--folds must be 2 or more", why=f"got {options.folds}")
    named = given.get("data.folds")
    if options.folds is not None and named is not None and named != options.folds:
        why = f"{options.folds} and {named}"
        raise UsageError("--folds and --data.folds differ", where="command line", why=why, remedy="give one of them")
    in_file = read_layers(find_config(options.config))[0].get("data.folds")
    quiet = {"log.level": "quiet"} if options.quiet else {}
    config = load_config(
        options.config, {**given, "data.folds": options.folds or named or in_file or DEFAULT_FOLDS, **quiet}
    )
    if config.data.fold is not None:
        remedy = "leave it out, or use train for this fold alone"
        raise UsageError("data.fold has no effect", why="crossval trains every fold", remedy=remedy)
    return config


def _open(config: Config, runs: Sequence[Config], new: bool, held: contextlib.ExitStack) -> list[FoldResult | None]:
    """Take the folder, look at the images and at the folds that are finished. For the main process.

    Raises:
        UsageError: a finished fold was trained with other settings, or the folder is no cross-validation of ours.
        DataError: no images, bad ones, other ones than before, or too few of a class.
    """
    from alexnet_dist.assembly.sets import cut_splits, find_root, find_sets
    from alexnet_dist.base.durable import tidy_folder
    from alexnet_dist.data.folds import check_classes_fill_folds
    from alexnet_dist.data.index import BadFilesError
    from alexnet_dist.runs.crossval_table import read_result
    from alexnet_dist.runs.folder import list_bad_files, open_folder, start_logging
    from alexnet_dist.runs.resume import check_fold
    from alexnet_dist.runs.targets import check_output_dir

    out = Path(str(runs[0].output_dir)).parent
    check_output_dir(str(out), config.data)
    held.callback(open_folder(out, new, "crossval").release)
    for folder in (out, *(Path(str(run.output_dir)) for run in runs)):
        tidy_folder(folder, alone=folder == out)
    start_logging(None)
    try:
        sets = find_sets(config.data, config.seed, progress=True)
    except BadFilesError as error:
        list_bad_files(out, error, find_root(config.data))
        raise
    check_classes_fill_folds(sets[0], len(runs))
    results = [read_result(run) for run in runs]
    for run, result in zip(runs, results, strict=True):
        check_fold(run, result is not None, partial(cut_splits, sets, run.data, run.seed))
        if result is not None:
            show(f"fold {result.fold} of {len(runs)} is finished: top-1 {result.top1:.2%}")
    return results


def _train_fold(run: Config, num_folds: int, runtime: Runtime, stop: StopRequest) -> None:
    from alexnet_dist.runs.announce import say_result
    from alexnet_dist.runs.session import run_session

    if runtime.is_main:
        show(f"fold {run.data.fold} of {num_folds}: {escape_text(str(run.output_dir))}")
    with _folds_alike():
        end = run_session(run, runtime.renew(), stop)
    end.trackers.finish(end.summary)
    if runtime.is_main:
        say_result(end.summary)
    gc.collect()  # the parts of a run refer to one another; the next fold needs the device's memory


@contextlib.contextmanager
def _folds_alike() -> Iterator[None]:
    """Say what a remedy that a run by itself would accept takes here, where folds are compared with one another."""
    from alexnet_dist.data.index import BadFilesError

    try:
        yield
    except DivergedError as error:
        error.set_remedy(f"{error.parts[-1]}; and use --new, as all folds train alike")
        raise
    except BadFilesError as error:
        error.set_remedy(f"{error.parts[-1]}; when it is mended or removed, use --new, as all folds are cut anew")
        raise
