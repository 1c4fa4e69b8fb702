"""From the settings of a network to its spec, without anything that a run needs beside it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from alexnet_dist.base.errors import UsageError
from alexnet_dist.models import AlexNetSpec, check_size, make_spec
from alexnet_dist.settings.schema import ModelConfig

SPEC_FIELDS = tuple(AlexNetSpec.__dataclass_fields__)


def build_spec(model: ModelConfig, num_classes: int, exchange_at: str = "all") -> AlexNetSpec:
    """The network that the settings describe.

    Args:
        model: the settings.
        num_classes: classes of the data; the network's outputs where the settings do not say.
        exchange_at: all, fc_only or none: the layers at which two towers meet, see `ParallelConfig`.

    Raises:
        UsageError: a network that cannot be, or fewer outputs than classes.
    """
    if model.num_classes is not None and model.num_classes < num_classes:
        raise UsageError(
            "model.num_classes is too small", why=f"{model.num_classes} outputs, {num_classes} classes in the data"
        )
    fields = {name: getattr(model, name) for name in SPEC_FIELDS if hasattr(model, name)}
    try:
        spec = make_spec(model.variant, **{**fields, "num_classes": model.num_classes or num_classes})
        return part_towers(spec, exchange_at)
    except ValueError as error:
        raise UsageError("model cannot be built", why=str(error)) from None


def check_can_be_built(spec: AlexNetSpec) -> None:
    """Refuse a network that can be described and is too large for any machine.

    Raises:
        UsageError: it has too many weights.
    """
    try:
        check_size(spec)
    except ValueError as error:
        raise UsageError("model cannot be built", why=str(error), remedy="set smaller widths or images") from None


def part_towers(spec: AlexNetSpec, exchange_at: str) -> AlexNetSpec:
    """Part the towers where they shall not meet: conv3 (fc_only), and fc6 and fc7 as well (none).

    Raises:
        ValueError: a network that cannot be.
    """
    conv_groups = (*spec.conv_groups[:2], 2, *spec.conv_groups[3:])
    changes: dict[str, dict[str, Any]] = {
        "all": {},
        "fc_only": {"conv_groups": conv_groups},
        "none": {"conv_groups": conv_groups, "fc_groups": 2},
    }
    return replace(spec, **changes[exchange_at])
