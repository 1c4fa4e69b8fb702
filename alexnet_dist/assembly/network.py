"""From the settings of a network to its spec, without anything that a run needs beside it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from alexnet_dist.base.errors import UsageError
from alexnet_dist.models import AlexNetSpec, check_size, make_spec
from alexnet_dist.settings.schema import ModelConfig


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
    try:
        spec = make_spec(
            model.variant,
            num_classes=model.num_classes or num_classes,
            in_channels=model.in_channels,
            image_size=model.image_size,
            dropout=model.dropout,
            conv_channels=model.conv_channels,
            conv_groups=model.conv_groups,
            conv1_padding=model.conv1_padding,
            conv1_end_padding=model.conv1_end_padding,
            relu_after_pool=model.relu_after_pool,
            fc_width=model.fc_width,
            fc_groups=model.fc_groups,
            lrn=model.lrn,
            lrn_groups=model.lrn_groups,
            lrn_size=model.lrn_size,
            lrn_alpha=model.lrn_alpha,
            lrn_beta=model.lrn_beta,
            lrn_k=model.lrn_k,
            map_norm=model.map_norm,
            pool_kernel=model.pool_kernel,
            pool_stride=model.pool_stride,
            adaptive_pool=model.adaptive_pool,
            dropout_position=model.dropout_position,
            init=model.init,
        )
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
