"""The settings that say which images, for the kinds of `prepare` that take no others."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from alexnet_dist.settings.reader import build_config, load_config
from alexnet_dist.settings.schema import Config, DataConfig


@dataclass(frozen=True)
class DataSettings:
    """The settings that say which images."""

    data: DataConfig = field(default_factory=DataConfig)


def read_config(name: str | None, given: dict[str, Any]) -> Config:
    """The settings of a file and of the command line; without a file those of the images alone count.

    Args:
        name: a configuration file; None without one.
        given: settings from the command line, {dotted name: value}.

    Raises:
        UsageError: settings that cannot be meant.
    """
    return load_config(name, given) if name is not None else build_config({"train.epochs": 1, **given})
