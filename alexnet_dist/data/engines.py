"""HOW a plan is carried out: the engines by name, and which one a run takes."""

from __future__ import annotations

from alexnet_dist.data import torchvision_engine
from alexnet_dist.data.loader import Engine

ENGINES: dict[str, Engine] = {"torchvision": torchvision_engine.iterate_batches}


def choose_engine(requested: str) -> tuple[str, str]:
    """The engine to use, and the reason."""
    if requested != "auto":
        return requested, "asked for"
    return "torchvision", "the only engine"
