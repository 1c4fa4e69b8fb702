"""`train`: from settings to a trained network, on any number of processes."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alexnet_dist.base.errors import UsageError
from alexnet_dist.base.streams import writes_unicode
from alexnet_dist.data.engines.workers import start_worker_server
from alexnet_dist.settings.checks import check_fold_is_chosen
from alexnet_dist.settings.reader import dump_config, load_config, new_parser, parse_arguments
from alexnet_dist.settings.schema import Config

if TYPE_CHECKING:  # torch takes a second and a half to import; a mistyped key should not wait for it
    from alexnet_dist.runs.session import Session

EXAMPLES = """Train AlexNet.

examples:
  python launch/train.py --config digits
  accelerate launch launch/train.py --config imagenet_subset.yaml --data.root data/imagenet_subset
  ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2 launch/train.py --config smoke

Starting the same command again goes on where the run stopped. Any setting below can be given; --config names a file or
one of configs/."""

logger = logging.getLogger("alexnet_dist")


def main(argv: Sequence[str]) -> int:
    """Run the verb; its exit code."""
    parser = new_parser("train", EXAMPLES)
    parser.add_argument("--config", type=str, help="settings: a YAML file, or a name in configs/")
    parser.add_argument("--new", action="store_true", help="keep an earlier run as NAME.1 and start afresh")
    parser.add_argument("--resume_from", type=str, help="checkpoint to go on from (default: the newest intact one)")
    parser.add_argument("--print_config", action="store_true", help="print the resolved settings and end")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
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
    if new and resume_from is not None:
        from alexnet_dist.runs.resume import check_beginning

        check_beginning(Path(config.output_dir or "run"), resume_from)
    if config.data.workers != 0:
        start_worker_server()
    from alexnet_dist.parallel.runtime import lost_peers_named
    from alexnet_dist.runs.session import Session

    with lost_peers_named(), contextlib.closing(Session(config, new, resume_from)) as session:
        summary = run_session(session)
    if config.log.plots and session.runtime.is_main:
        from alexnet_dist.runs.plots import draw_after_training

        draw_after_training(session, summary["step"], session.resumption.ended_at)
    return summary


def run_session(session: Session) -> dict[str, Any]:
    """Resume or start, train, evaluate on the test set, write the summary."""
    from alexnet_dist.runs.announce import announce, say_goodbye

    trainer = session.build_trainer()
    announce(session, trainer)
    session.stop.listen()  # from here on there is something to save
    with _status_written(session, trainer):
        trainer.train()
        session.test(trainer)
    summary = session.summarise(trainer, "finished")
    say_goodbye(session, summary)
    return summary


@contextlib.contextmanager
def _status_written(session: Session, trainer: Any) -> Iterator[None]:
    from alexnet_dist.base.errors import AlexNetDistError, InterruptedRunError
    from alexnet_dist.data.index import BadFilesError

    try:
        yield
    except InterruptedRunError:
        session.summarise(trainer, "interrupted")
        raise
    except AlexNetDistError as error:
        if isinstance(error, BadFilesError):
            session.list_bad_files(error)
        session.summarise(trainer, "failed")
        raise
