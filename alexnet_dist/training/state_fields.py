"""Dataclasses of numbers from JSON that nobody vouches for."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection
from types import NoneType
from typing import Any, TypeVar, cast, get_args, get_type_hints

T = TypeVar("T")


def read_fields(kind: type[T], values: Any, name: str, required: Collection[str] = ()) -> T:
    """What `dataclasses.asdict` gave, back as the dataclass; fields that are not there keep their defaults.

    Args:
        kind: a dataclass whose fields are int, float, either of them or None, or such dataclasses.
        values: from a JSON file.
        name: of the whole, for the message.
        required: fields without which the rest is of no use.

    Raises:
        ValueError: a field is unknown, missing, or of another type, or a number is not finite; the text says which.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{name} is no object")
    hints = get_type_hints(kind)
    for key in values:
        if key not in hints:
            raise ValueError(f"{name}.{key} is unknown here, a newer version may know it")
    for key in required:
        if key not in values:
            raise ValueError(f"{name}.{key} is missing")
    return kind(**{key: _read_field(hints[key], value, f"{name}.{key}") for key, value in values.items()})


def _read_field(hint: Any, value: Any, name: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return read_fields(cast(type[Any], hint), value, name)
    allowed = get_args(hint) or (hint,)
    if value is None and NoneType in allowed:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{name} is {str(value)[:40]!r}, which is no number")
    if int in allowed and not isinstance(value, int):
        raise ValueError(f"{name} is {value}, which is no whole number")
    if float in allowed and not (abs(value) < 1e300 and math.isfinite(value)):
        raise ValueError(f"{name} is not finite")
    return float(value) if float in allowed else value
