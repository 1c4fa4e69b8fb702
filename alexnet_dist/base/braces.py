"""Names of many files in one word, as a shell writes them: `train-{000..146}.tar`, `{train,val}.tar`."""

from __future__ import annotations

import itertools
import re

from alexnet_dist.base.errors import DataError

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MOST_NAMES = 1_000_000


def expand_braces(pattern: str) -> list[str]:
    """The names of a pattern with braces, as a shell expands them: `{000..146}` and `{a,b}`.

    Raises:
        DataError: there are too many.
    """
    pieces = _BRACES.split(pattern)
    choices = [[piece] if number % 2 == 0 else _expand_one(piece) for number, piece in enumerate(pieces)]
    count = 1
    for some in choices:
        count *= len(some)
    if count > _MOST_NAMES:
        why, remedy = f"it means {count:,}", "use a shorter range, or name their folder"
        raise DataError("a pattern with too many names", where=pattern, why=why, remedy=remedy)
    return ["".join(parts) for parts in itertools.product(*choices)]


def _expand_one(inside: str) -> list[str]:
    match = _RANGE.fullmatch(inside)
    if match is None:
        return inside.split(",") if "," in inside else ["{" + inside + "}"]
    first, last = int(match[1]), int(match[2])
    if abs(last - first) >= _MOST_NAMES:
        return [inside] * (_MOST_NAMES + 1)  # refused by who counts
    width = max(len(match[1]), len(match[2])) if match[1].startswith("0") or match[2].startswith("0") else 0
    step = 1 if first <= last else -1
    return [f"{number:0{width}d}" for number in range(first, last + step, step)]
