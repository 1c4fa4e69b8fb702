"""The options that several verbs share, and the checks of their numbers."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING, Any

from alexnet_dist.base.errors import UsageError

if TYPE_CHECKING:
    from alexnet_dist.costs.transfers import ByteSize

ELEMENT_BYTES: dict[str, ByteSize] = {"fp32": 4, "tf32": 4, "bf16": 2, "fp16": 2}
_WIRES = ["fp32", "bf16", "fp16"]
# With `choices` an option has no type: jsonargparse would show a function in its place.
_OPTIONS: dict[str, dict[str, Any]] = {
    "config": {"type": str, "help": "settings: a YAML file, or a name in configs/"},
    "model": {"type": str, "help": "a run folder, its model/, or one of its checkpoints/step-N"},
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
    "debug": {"action": "store_true", "help": "show tracebacks"},
}


def add_options(parser: ArgumentParser, *names: str) -> None:
    """Add options of these names, in this order."""
    for name in names:
        parser.add_argument(f"--{name}", **_OPTIONS[name])


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
