"""From the settings of a network to its spec, without anything that a run needs beside it."""

from __future__ import annotations

from alexnet_dist.config import ModelConfig
from alexnet_dist.errors import UsageError
from alexnet_dist.models import AlexNetSpec, make_spec

SPEC_FIELDS = tuple(AlexNetSpec.__dataclass_fields__)


def build_spec(model: ModelConfig, num_classes: int) -> AlexNetSpec:
    """The network that the settings describe.

    Args:
        model: the settings.
        num_classes: classes of the data; the network's outputs where the settings do not say.

    Raises:
        UsageError: a network that cannot be, or fewer outputs than classes.
    """
    if model.num_classes is not None and model.num_classes < num_classes:
        raise UsageError(
            "model.num_classes is too small", why=f"{model.num_classes} outputs, {num_classes} classes in the data"
        )
    fields = {name: getattr(model, name) for name in SPEC_FIELDS if hasattr(model, name)}
    try:
        return make_spec(model.variant, **{**fields, "num_classes": model.num_classes or num_classes})
    except ValueError as error:
        raise UsageError("model cannot be built", why=str(error)) from None
