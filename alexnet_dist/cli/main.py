"""The frame around every verb: one line for an error, and its exit code."""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import sys
import time
import traceback
from collections.abc import Sequence

from alexnet_dist.base.errors import AlexNetDistError
from alexnet_dist.base.exhaustion import explain_exhaustion
from alexnet_dist.base.extras import explain_import_error
from alexnet_dist.base.machine import settle_home, tune_allocator
from alexnet_dist.base.ranks import rank_from_environment
from alexnet_dist.base.signals import Stopped, ending_at_once
from alexnet_dist.base.streams import usable_streams, write_output
from alexnet_dist.parallel.processes.environment import check_environment
from alexnet_dist.parallel.processes.guard import end_with_parent, was_launched

VERBS = ("launch", "train", "evaluate", "predict", "summary", "prepare", "crossval", "export", "estimate", "doctor")
JOINING_VERBS = ("train", "evaluate", "predict", "crossval", "doctor")
DEBUG = "--debug"
FEWER_AT_ONCE = "halve --train.micro_batch_size: gradients then accumulate and the result stays the same"
LESS_MEMORY = {  # what each verb can be told to take less of
    "train": FEWER_AT_ONCE,
    "crossval": FEWER_AT_ONCE,
    "evaluate": "halve --batch_size: the result stays the same",
    "predict": "name fewer pictures at a time, or free some memory",
    "doctor": "lower --images_per_process, or free some memory",
}
SPEAK_SECONDS = 5.0  # for rank 0, which speaks for all: launchers end every process as soon as one has ended


def main(argv: Sequence[str] | None = None) -> None:
    """`alexnet-dist VERB ...`."""
    words = list(sys.argv[1:] if argv is None else argv)
    with ending_at_once():
        if not words or words[0] not in VERBS:
            sys.exit(_print_usage(0 if words and words[0] in ("-h", "--help") else 2))
        sys.exit(run(words[0], words[1:]))


def _print_usage(code: int) -> int:
    text = f"usage: alexnet-dist VERB ...\n\nverbs: {', '.join(VERBS)}; each has its --help"
    with usable_streams():
        try:
            return write_output(lambda: print(text) or code)
        except AlexNetDistError as error:
            print(f"error: {error}", file=sys.stderr)
            return error.exit_code


def run(verb: str, argv: Sequence[str]) -> int:
    """Run a verb and turn its errors into one line and an exit code.

    Args:
        verb: its name.
        argv: the words after it. `--debug` shows tracebacks.
    """
    with usable_streams():
        return _run(verb, argv)


def _run(verb: str, argv: Sequence[str]) -> int:
    if was_launched():
        end_with_parent()
    tune_allocator()
    atexit.register(gc.freeze)  # else Python's last collection walks every object of every library: a second or two
    try:
        settle_home()
        if verb in JOINING_VERBS and not {"-h", "--help"} & set(argv):
            check_environment()  # before anything slow is imported
        return write_output(lambda: _call_verb(verb, argv))
    except AlexNetDistError as error:
        if DEBUG in argv:
            traceback.print_exc()
        return _say(error)
    except Stopped as stopped:
        stopped.ending.say(stopped.number)
        return 128 + stopped.number
    except KeyboardInterrupt:
        print("error: stopped by SIGINT; start the same command again to go on", file=sys.stderr)
        return 130
    except Exception as error:
        line = explain_exhaustion(error, LESS_MEMORY.get(verb, "free some memory"))
        if line is None:
            raise
        if DEBUG in argv:
            traceback.print_exc()
        line.is_local, line.is_said = True, getattr(error, "is_said", False)
        return _say(line)


def _call_verb(verb: str, argv: Sequence[str]) -> int:
    try:
        module = importlib.import_module(f"alexnet_dist.cli.{verb}")
        return int(module.main(argv))
    except AlexNetDistError:
        raise
    except Exception as error:
        broken = None if explain_exhaustion(error) else explain_import_error(error)
        if broken is None:
            raise
        raise broken from error


def _say(error: AlexNetDistError) -> int:
    """Print an error, once however many processes have it; its exit code."""
    if not error.is_said and (rank_from_environment() == 0 or error.is_local):
        print(f"error: {error}", file=sys.stderr, flush=True)
    elif was_launched():
        with contextlib.suppress(KeyboardInterrupt):  # the launcher ends this process as soon as rank 0 has ended
            time.sleep(SPEAK_SECONDS)
    return error.exit_code
