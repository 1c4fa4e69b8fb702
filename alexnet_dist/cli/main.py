"""The frame around every verb: one line for an error, and its exit code."""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import signal
import sys
import time
import traceback
from collections.abc import Sequence

from alexnet_dist.base.ending import leave_line, print_last
from alexnet_dist.base.errors import AlexNetDistError, InterruptedRunError, UsageError, describe_stop
from alexnet_dist.base.exhaustion import explain_exhaustion
from alexnet_dist.base.extras import explain_import_error
from alexnet_dist.base.machine import explain_failed_compiler, settle_home, tune_allocator
from alexnet_dist.base.progress import set_level
from alexnet_dist.base.ranks import is_first_here, is_of_several_machines, rank_from_environment
from alexnet_dist.base.signals import Stopped, ending_at_once
from alexnet_dist.base.streams import usable_streams, write_output
from alexnet_dist.parallel.processes.environment import check_environment
from alexnet_dist.parallel.processes.guard import end_with_parent, was_launched
from alexnet_dist.settings.help import HELP, format_description
from alexnet_dist.settings.nearest import find_nearest

VERBS = {  # in the order of use
    "train": "train a network on your images, or go on with a run",
    "evaluate": "loss and accuracy of a trained network on a set of images",
    "predict": "name what is on pictures",
    "serve": "a web page and an HTTP API that name what is on a picture",
    "export": "write a trained network as one file for other programs (ONNX)",
    "summary": "show shapes, parameters and arithmetic of a network",
    "prepare": "find damaged images, build a cache, compare engines, write lists",
    "runs": "list your runs: how they ended, how good they are, what they take",
    "compare": "put runs beside each other: settings, results, curves",
    "report": "write a page about a run, or about several",
    "crossval": "train once for each fold of the images, with a table of all",
    "doctor": "look at machines, links and images before a long training",
    "estimate": "predict speed and memory of each strategy on other machines",
    "launch": "start one of these on several processes",
    "ray_train": "train on the machines of a Ray cluster",
}
JOINING_VERBS = ("train", "evaluate", "predict", "crossval", "doctor")
DEBUG = "--debug"
QUIET = "--quiet"
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
        if words[:1] == ["help"] and words[1:]:
            words = [words[1], "--help", *words[2:]]
        if not words or words[0] not in VERBS:
            sys.exit(_answer(words[0] if words else ""))
        sys.exit(run(words[0], words[1:]))


def _answer(word: str) -> int:
    """Say what there is to call, where the first word is no verb; the exit code."""
    with usable_streams():
        try:
            if word in ("--version", "version"):
                number = importlib.import_module("alexnet_dist").__version__
                return write_output(lambda: print(f"alexnet-dist {number}") or 0)
            if word in ("", "help", *HELP):
                return write_output(lambda: print(_list_verbs()) or (0 if word else 2))
            near = find_nearest(word, VERBS)
            remedy = f"did you mean {near}?" if near else f"give one of {', '.join(VERBS)}"
            raise UsageError(f"unknown verb {word!r}", where="command line", remedy=remedy)
        except AlexNetDistError as error:
            print(f"error: {error}", file=sys.stderr)
            return error.exit_code


def _list_verbs() -> str:
    rows = "\n".join(f"{verb:<10}{what}" for verb, what in VERBS.items())
    return format_description(
        "AlexNet on your images: trained on one or many processes, measured, and ready for use.\n\n"
        "examples:\n"
        "  alexnet-dist train data/flowers\n"
        "  alexnet-dist evaluate runs/flowers\n"
        "  alexnet-dist predict runs/flowers picture.jpg\n\n"
        f"usage: alexnet-dist VERB ...\n\n{rows}\n\n"
        "`alexnet-dist VERB --help` tells more of a verb; `alexnet-dist --version` tells the version."
    )


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
    set_level("quiet" if QUIET in argv else "normal")
    tune_allocator()
    atexit.register(gc.freeze)  # else Python's last collection walks every object of every library: a second or two
    try:
        settle_home()
        if verb in JOINING_VERBS and not set(HELP) & set(argv):
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
        print_last(describe_stop(signal.SIGINT))
        return 130
    except Exception as error:
        line = explain_exhaustion(error, LESS_MEMORY.get(verb, "free some memory")) or explain_failed_compiler(error)
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
    line = f"{error}" if isinstance(error, InterruptedRunError) else f"error: {error}"
    if not error.is_said and (rank_from_environment() == 0 or error.is_local):
        print_last(line)
    elif was_launched():
        if is_first_here() and is_of_several_machines():
            leave_line(line)  # somebody may sit at this machine, too, and see its launcher alone
        with contextlib.suppress(KeyboardInterrupt):  # the launcher ends this process as soon as rank 0 has ended
            time.sleep(SPEAK_SECONDS)
    return error.exit_code
