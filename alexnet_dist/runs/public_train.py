"""`train` for programs: settings in the forms that Python has them, and a program that is left as it was found."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from threading import Event
from typing import Any

from alexnet_dist.base.errors import AlexNetDistError, UsageError
from alexnet_dist.base.exhaustion import explain_exhaustion
from alexnet_dist.base.machine import settle_home, tune_allocator
from alexnet_dist.base.progress import level_kept
from alexnet_dist.base.signals import SIGNALS
from alexnet_dist.parallel.runtime import fresh_accelerate
from alexnet_dist.runs import session
from alexnet_dist.settings.reader import settle_config
from alexnet_dist.settings.schema import Config

FEWER_AT_ONCE = "halve train.micro_batch_size: gradients then accumulate and the result stays the same"


def train(
    config: Config | Mapping[str, Any] | str | Path,
    changes: Mapping[str, Any] | None = None,
    *,
    new: bool = False,
    resume_from: str | Path | None = None,
    stop: Event | Callable[[], object] | None = None,
    profile: int | None = None,
) -> dict[str, Any]:
    """Train as the verb `train` does, or go on with the run in `output_dir`; what its summary.json holds.

    It works in a script, in a notebook and in any thread. In the main thread SIGINT, SIGTERM and SIGHUP ask the run to
    stop at its next step, and do afterwards what they did before. In any thread `stop` asks for the same. Under a
    launcher (torchrun, accelerate launch) every process calls it, joins the others and leaves them at the end.

    Args:
        config: a YAML file, a name in configs/, settings as {"train": {"epochs": 2}} or {"train.epochs": 2}, in which
            `base` may name a file that they change, or a `Config`.
        changes: settings that win, in the same form.
        new: keep an earlier run under another name and start afresh.
        resume_from: checkpoint to go on from; None = the newest intact one.
        stop: an event, or a function without arguments that is called before each batch, in this thread. Once the event
            is set, or the function gives something true, in any of the processes, the run is saved and
            InterruptedRunError raised.
        profile: updates whose times are taken, and written to profile/ of the run folder; None = no profile.

    Raises:
        UsageError: a setting that is unknown or cannot be meant, or no output_dir.
        DataError: images that are missing, damaged or other ones than the run began with.
        CheckpointError: a checkpoint that is damaged or another run's.
        MachineError: a device, package, disk or launcher that does not give what was asked for.
        DivergedError: a loss that is not finite.
        MemoryExhaustedError: no memory.
        InterruptedRunError: a signal or `stop` asked to stop. The same call goes on.
    """
    settings = settle_config(config, changes or {}, "train()")
    if settings.output_dir is None:
        raise UsageError("output_dir is missing", where="train()", remedy='give it, as in "output_dir": "runs/name"')
    if profile is not None and profile < 1:
        raise UsageError(f"profile is {profile}", where="train()", remedy="give a number of updates, 1 or more")
    is_wanted = getattr(stop, "is_set", stop)  # multiprocessing has events, too
    if is_wanted is not None and not callable(is_wanted):
        raise TypeError(f"stop is an event or a function; got {type(stop).__name__}")
    tune_allocator()
    settle_home()
    with _program_kept():
        try:
            named = None if resume_from is None else os.fspath(resume_from)
            return session.train(settings, new, named, stop=is_wanted, profile=profile)
        except AlexNetDistError:
            raise
        except Exception as error:
            line = explain_exhaustion(error, FEWER_AT_ONCE)
            if line is None:
                raise
            raise line from error


@contextlib.contextmanager
def _program_kept() -> Iterator[None]:
    """Give back what a run takes of its process: signals, the package's log, and what Accelerate keeps of a run."""
    in_main = threading.current_thread() is threading.main_thread()
    actions = {number: signal.getsignal(number) for number in SIGNALS} if in_main else {}
    logger = logging.getLogger("alexnet_dist")
    level, propagate, handlers = logger.level, logger.propagate, list(logger.handlers)
    for handler in handlers:  # a run closes those that it finds
        logger.removeHandler(handler)
    try:
        with fresh_accelerate(), level_kept():
            yield
    finally:
        for number, action in actions.items():
            signal.signal(number, action if action is not None else signal.SIG_DFL)  # None: it was not set by Python
        for handler in set(logger.handlers) - set(handlers):
            logger.removeHandler(handler)
            handler.close()  # run.log would stay open
        for handler in handlers:
            logger.addHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate
