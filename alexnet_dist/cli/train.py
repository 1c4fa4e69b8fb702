"""`train`: from settings to a trained network, on any number of processes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from alexnet_dist.base.errors import UsageError
from alexnet_dist.base.streams import writes_unicode
from alexnet_dist.cli.options import add_options
from alexnet_dist.data.engines.workers import start_worker_server
from alexnet_dist.settings.checks import check_fold_is_chosen
from alexnet_dist.settings.reader import dump_config, load_config, new_parser, parse_arguments
from alexnet_dist.settings.schema import Config

EXAMPLES = """Train AlexNet.

examples:
  python launch/train.py --config digits
  accelerate launch launch/train.py --config imagenet_subset.yaml --data.root data/imagenet_subset
  ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2 launch/train.py --config smoke

Starting the same command again goes on where the run stopped. --config names a file or one
of configs/; any setting can be given after it."""

logger = logging.getLogger("alexnet_dist")


def main(argv: Sequence[str]) -> int:
    """Run the verb; its exit code."""
    parser = new_parser("train", EXAMPLES, "--config NAME [options] [--SETTING VALUE ...]")
    add_options(parser, "config")
    parser.add_argument("--new", action="store_true", help="keep an earlier run as NAME.1 and start afresh")
    parser.add_argument("--resume_from", type=str, help="checkpoint to go on from (default: the newest intact one)")
    parser.add_argument("--print_config", action="store_true", help="print the resolved settings and end")
    add_options(parser, "debug")
    arguments = parse_arguments(argv, parser)
    options = arguments.options
    if options.config is None:
        raise UsageError("--config is missing", remedy="try --config digits")
    config = load_config(options.config, arguments.given)
    if options.print_config:
        print(dump_config(config, unicode=writes_unicode()), end="")
        return 0
    train(config, new=options.new, resume_from=options.resume_from)
    return 0


def train(config: Config, new: bool = False, resume_from: str | None = None) -> dict[str, Any]:
    """Train as the settings say; what summary.json holds.

    Args:
        config: the settings; output_dir must be set.
        new: keep an earlier run under another name and start afresh.
        resume_from: checkpoint to go on from; None = the newest intact one.

    Raises:
        AlexNetDistError: whatever a user can mend; see base/errors.py.
    """
    check_fold_is_chosen(config.data)
    if config.data.workers != 0:
        start_worker_server()  # while torch is imported
    from alexnet_dist.runs import session  # torch takes a second and a half; a mistyped key should not wait for it

    return session.train(config, new, resume_from)
