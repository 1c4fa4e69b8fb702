"""Nested dicts, and the same under dotted names: `{"data": {"root": 1}}` is `{"data.root": 1}`."""

from __future__ import annotations

import dataclasses
from typing import Any


def flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    """A dataclass, or a nested dict, as {dotted name: value}."""
    is_dataclass = dataclasses.is_dataclass(values) and not isinstance(values, type)
    nested = dataclasses.asdict(values) if is_dataclass else values
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def nest(flat: dict[str, Any]) -> dict[str, Any]:
    """The nested dict of {dotted name: value}; undoes `flatten`."""
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *sections, last = key.split(".")
        inner = nested
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[last] = value
    return nested
