"""Distributed training for AlexNet: exact, resumable, and measured.

The names below are what programs may use; docs/python-api.md shows each at work. Each comes with its module when it is
first asked for: with them comes torch, which a mistyped command line should not wait for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alexnet_dist.assembly.public_loader import BatchLoader, make_index, make_loader
    from alexnet_dist.inference.explain import explain_classes
    from alexnet_dist.inference.hub import AlexNet, from_pretrained
    from alexnet_dist.inference.predict import Prediction, predict
    from alexnet_dist.models import build_model, make_spec
    from alexnet_dist.runs.public_train import train

__version__ = "0.1.0"
__all__ = [
    "AlexNet",
    "BatchLoader",
    "Prediction",
    "__version__",
    "build_model",
    "explain_classes",
    "from_pretrained",
    "make_index",
    "make_loader",
    "make_spec",
    "predict",
    "train",
]

_MODULES = {
    "AlexNet": "inference.hub",
    "BatchLoader": "assembly.public_loader",
    "Prediction": "inference.predict",
    "build_model": "models",
    "explain_classes": "inference.explain",
    "from_pretrained": "inference.hub",
    "make_index": "assembly.public_loader",
    "make_loader": "assembly.public_loader",
    "make_spec": "models",
    "predict": "inference.predict",
    "train": "runs.public_train",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
