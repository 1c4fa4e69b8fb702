"""The options that several verbs share, and the checks of their numbers."""

from __future__ import annotations

import importlib
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alexnet_dist.base.addresses import is_address, parse_address
from alexnet_dist.base.durable import write_file
from alexnet_dist.base.errors import UsageError
from alexnet_dist.base.progress import phase, say
from alexnet_dist.base.ranks import rank_from_environment
from alexnet_dist.base.terminal import fit_text
from alexnet_dist.runs.targets import check_target

if TYPE_CHECKING:
    from alexnet_dist.costs.transfers import ByteSize

ELEMENT_BYTES: dict[str, ByteSize] = {"fp32": 4, "tf32": 4, "bf16": 2, "fp16": 2}
_WIRES = ["fp32", "bf16", "fp16"]
# With `choices` an option has no type: jsonargparse would show a function in its place.
_OPTIONS: dict[str, dict[str, Any]] = {
    "config": {"type": str, "help": "settings: a YAML file, or a name in configs/"},
    "model": {"type": str, "help": "a run folder, its model/, or one of its checkpoints/step-N; or the first word"},
    "weights": {
        "default": "best",
        "choices": ["best", "last"],
        "help": "of a run folder: best = those of model/, last = those of the newest intact checkpoint",
    },
    "device": {"default": "auto", "choices": ["auto", "cpu", "cuda"], "help": "where to run"},
    "exchange": {
        "choices": _WIRES,
        "help": "precision in which activations cross between towers or shards (default: the one they are computed in)",
    },
    "gradient_compression": {
        "default": "fp32",
        "choices": _WIRES,
        "help": "precision in which gradients travel under towers and hybrid; ddp is shown with both",
    },
    "overwrite": {"action": "store_true", "help": "replace a file that is there; never one that a run keeps itself"},
    "print_config": {"action": "store_true", "help": "print the resolved settings and end"},
    "quiet": {"action": "store_true", "help": "show results, warnings and errors alone"},
    "debug": {"action": "store_true", "help": "show tracebacks"},
}


def import_shown(name: str) -> None:
    """Import a module that takes some seconds, because PyTorch comes with it, and show that."""
    with phase("importing PyTorch", rank_from_environment() == 0):
        importlib.import_module(name)


def say_start(verb: str, config: str, folder: str) -> None:
    """Say at once what was understood: libraries are imported for some seconds. The first process speaks."""
    if rank_from_environment() == 0:
        version = importlib.import_module("alexnet_dist").__version__
        say(f"alexnet_dist {version}: {verb}, configuration {config}, folder {folder}")


def add_options(parser: ArgumentParser, *names: str) -> None:
    """Add options of these names, in this order."""
    for name in names:
        parser.add_argument(f"--{name}", **_OPTIONS[name])


def take_model(options: Namespace) -> None:
    """Let the first word of a command line be the model where --model names none; the words are `options.paths`.

    Raises:
        UsageError: neither names one.
    """
    if options.model is None:
        if not options.paths:
            raise UsageError("--model is missing", remedy="give a run folder or its model/")
        options.model, *options.paths = options.paths


def refuse_two_places(folder: str, given: dict[str, Any]) -> None:
    """Refuse settings that say where images are, beside a folder that does.

    Raises:
        UsageError: the first such setting is named.
    """
    doubled = next((key for key in ("data.root", "data.source", "data.train") if given.get(key) is not None), None)
    if doubled is not None:
        what, why = f"a folder and --{doubled} exclude each other", f"{folder} and {given[doubled]}"
        raise UsageError(what, where="command line", why=why, remedy="give one of them")


def find_folder(word: str, cache_dir: str | None) -> Path:
    """The folder that a word of the command line names; what is an address is fetched first.

    Raises:
        UsageError: an address that cannot be meant.
        DataError: nothing is there.
        MachineError: no network, no permission, no space.
    """
    if not is_address(word):
        return Path(word)
    parse_address(word, "the address")
    from alexnet_dist.assembly.sets import fetch_once  # with much that only fetching needs
    from alexnet_dist.base.places import find_cache_dir
    from alexnet_dist.runs.folder import start_logging

    if rank_from_environment() == 0:
        start_logging(None)
    return fetch_once(word, find_cache_dir(cache_dir))


def settle_out(options: Namespace) -> Path | None:
    """The file that --out names; None = the terminal.

    Raises:
        UsageError: as `check_target`.
    """
    return check_target(options.out, options.overwrite) if options.out is not None else None


def show(text: str, joint: str = "") -> None:
    """Print a table or sentences, which a terminal gets between words; see `fit_text`."""
    print(fit_text(text.removesuffix("\n"), sys.stdout, joint), flush=True)


def hand_over(text: str, out: Path | None, is_table: bool, what: str = "") -> None:
    """Print a text, or write it to the file that --out names, and say so.

    Args:
        text: with the end of its last line.
        out: None = the terminal.
        is_table: for people; else a program may read it, and lines stay as they are.
        what: how much is written, as in "3 rows".
    """
    if out is not None:
        write_file(out, text.encode(), "out")
        say(", ".join(filter(None, (f"written: {out}", what))))
    elif is_table:
        show(text)
    else:
        print(text, end="")


def check_above_zero(options: Namespace, *names: str) -> None:
    """Refuse numbers that are not above 0; an option that is not given passes.

    Raises:
        UsageError: the first such option is named.
    """
    for name in names:
        value = getattr(options, name)
        if value is not None and not value > 0:
            raise UsageError(f"--{name} is {value:g}", where="command line", remedy="give a number above 0")


def check_at_least_one(options: Namespace, *names: str) -> None:
    """Refuse whole numbers below 1; an option that is not given passes.

    Raises:
        UsageError: the first such option is named.
    """
    for name in names:
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name} must be 1 or more")
