"""A seeded choice among names that depends on nothing but the names."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence

from alexnet_dist.data.sources.manifest_read import normalize_name


def pick_names(names: Sequence[str], count: int, seed: int) -> list[str]:
    """Some of the names, in their order.

    Each name has a number drawn from (seed, name), and those with the smallest are taken. So the order in which they
    are listed does not matter, a smaller choice is part of a larger one, and a name that is added or gone changes the
    choice by at most one.

    Args:
        names: all of them, each once.
        count: how many.
        seed: equal seeds give equal choices.
    """
    taken = set(sorted(names, key=lambda name: (_draw(seed, name), name))[:count])
    return [name for name in names if name in taken]


def _draw(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}\0".encode() + os.fsencode(normalize_name(name))).digest()
