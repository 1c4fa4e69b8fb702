"""Distributed training for AlexNet: exact, resumable, and measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alexnet_dist.inference.hub import AlexNet

__version__ = "0.1.0"
__all__ = ["AlexNet", "__version__"]


def __getattr__(name: str) -> Any:
    """`AlexNet` when it is asked for: with it comes torch, which a mistyped command line should not wait for."""
    if name != "AlexNet":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from alexnet_dist.inference.hub import AlexNet

    return AlexNet
