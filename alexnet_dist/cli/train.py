"""`train`: from settings to a trained network, on any number of processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from alexnet_dist.base.addresses import is_address
from alexnet_dist.base.errors import UsageError
from alexnet_dist.base.places import find_place
from alexnet_dist.base.progress import say, set_level
from alexnet_dist.base.ranks import rank_from_environment
from alexnet_dist.base.streams import writes_unicode
from alexnet_dist.base.text import join_names
from alexnet_dist.cli.options import (
    add_options,
    check_at_least_one,
    find_folder,
    import_shown,
    refuse_two_places,
    say_start,
)
from alexnet_dist.data.engines.workers import start_worker_server
from alexnet_dist.settings.checks import check_fold_is_chosen
from alexnet_dist.settings.reader import (
    Arguments,
    dump_config,
    load_config,
    names_output_dir,
    new_parser,
    parse_arguments,
)
from alexnet_dist.settings.schema import Config
from alexnet_dist.settings.shipped import list_shipped, shipped_folder
from alexnet_dist.tracking.wandb_sweep import place_trial

EXAMPLES = """Train AlexNet.

examples:
  python launch/train.py --config digits
  python launch/train.py data/flowers
  accelerate launch launch/train.py --config imagenet_subset
  ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2 launch/train.py --config smoke

A folder alone is trained with the recipe imagenet_subset, into runs/FOLDER; --config names another recipe, a file or
one of configs/. Running the same command again resumes the run."""

GENERAL_RECIPE = "imagenet_subset"  # of a folder of images without a configuration


def main(argv: Sequence[str]) -> int:
    """Run the verb; its exit code."""
    parser = new_parser("train", EXAMPLES, "[DATA_FOLDER] [--config NAME] [options] [--SETTING VALUE ...]")
    add_images(parser)
    parser.add_argument("--new", action="store_true", help="keep an earlier run as NAME.1 and start afresh")
    parser.add_argument("--resume_from", type=str, help="checkpoint to go on from (default: the newest)")
    parser.add_argument("--profile", metavar="N", type=int, help="show where the time of N updates goes")
    add_options(parser, "print_config", "quiet", "debug")
    arguments = parse_arguments(argv, parser)
    check_at_least_one(arguments.options, "profile")
    options, config = arguments.options, begin_run("train", arguments)
    if config is None:
        return 0
    may_move = not names_output_dir(options.config, arguments.given)
    train(config, options.new, options.resume_from, may_move, options.profile)
    return 0


def add_images(parser: ArgumentParser) -> None:
    """Add what says on which images, and by which recipe."""
    what = "your images: class folders, or train/ and val/"
    parser.add_argument("folders", metavar="DATA_FOLDER", type=str, nargs="*", help=what)
    add_options(parser, "config")


def begin_run(verb: str, arguments: Arguments) -> Config | None:
    """The settings of a run, which is said to begin; None where they were to be printed.

    Raises:
        UsageError, DataError: see `settle_settings`.
    """
    options = arguments.options
    quiet = {"log.level": "quiet"} if options.quiet else {}
    config = settle_settings(options.folders, options.config, {**arguments.given, **quiet})
    config = replace(config, output_dir=place_trial(config.output_dir))
    if options.print_config:
        print(dump_config(config, unicode=writes_unicode()), end="")
        return None
    set_level(config.log.level)
    say_start(verb, options.config or GENERAL_RECIPE, str(config.output_dir))
    return config


def settle_settings(folders: Sequence[str], name: str | None, given: dict[str, Any]) -> Config:
    """The settings of a run on a folder of images, or of a configuration; what is seen in the folder is said.

    Args:
        folders: the words of the command line: one folder, or none.
        name: the configuration; None = the general one.
        given: settings of the command line.

    Raises:
        UsageError: neither, more than one folder, or settings that name another one.
        DataError: there is no such folder, or nothing to train on in it.
    """
    if not folders:
        if name is None:
            remedy = "try --config digits, or give the folder of your images"
            raise UsageError("--config is missing", remedy=remedy)
        return load_config(name, given)
    if len(folders) > 1:
        raise UsageError("more than one folder", where="command line", why=join_names(folders), remedy="give one")
    folder = Path(folders[0])
    if not folder.exists() and folders[0] in list_shipped(shipped_folder("configs")):
        raise UsageError(f"no folder {folders[0]!r}", where="command line", remedy=f"did you mean --config {folder}?")
    refuse_two_places(folders[0], given)
    from alexnet_dist.data.sources.given_folder import recognize_folder  # numpy; --help should not wait for it

    root = {"data.root": folders[0]} if is_address(folders[0]) else {}  # it stays one, wherever it is fetched to
    if root:
        folder = find_folder(folders[0], load_config(name or GENERAL_RECIPE, {**given, **root}).data.cache_dir)
    found = recognize_folder(folder)
    own = {} if name is not None else {"output_dir": str(Path("runs") / _name_run(find_place(folders[0])))}
    config = load_config(name or GENERAL_RECIPE, {**found.settings, **root, **own, **given})
    set_level(config.log.level)
    if rank_from_environment() == 0:
        say(f"images    {folders[0]}: {found.layout}")
        if name is None:
            say(f"recipe    {GENERAL_RECIPE}; --config names another")
    return config


def _name_run(place: Path) -> str:
    return place.stem if place.is_file() else place.name


def train(
    config: Config,
    new: bool = False,
    resume_from: str | None = None,
    may_move: bool = False,
    profile: int | None = None,
) -> dict[str, Any]:
    """As `runs.session.train`, whose import is shown: it takes a second and a half."""
    check_fold_is_chosen(config.data)
    if config.data.workers != 0:
        start_worker_server()  # while torch is imported
    import_shown("alexnet_dist.runs.session")
    from alexnet_dist.runs import session  # a mistyped key should not wait for it

    return session.train(config, new, resume_from, may_move, profile=profile)
