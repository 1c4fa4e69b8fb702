"""What config.json of a model folder may say: its types and ranges, those of the classes that are made of it."""

from __future__ import annotations

from dataclasses import fields
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from alexnet_dist.base.bounds import MAX_PIXELS, describe_bounds, is_within
from alexnet_dist.base.text import shorten
from alexnet_dist.data.plan import Augmentation
from alexnet_dist.models import VARIANTS, AlexNetSpec, check_size, spec_from_dict

FORMAT = 1
MAX_CLASS_NAME = 1_000  # characters
_RECIPE = {item.name: (get_type_hints(Augmentation)[item.name], item.metadata) for item in fields(Augmentation)}
_SCALE_BOUNDS = {"minimum": -1e9, "maximum": 1e9}  # on the scale of bytes, 255 times a setting's
_PIXEL_BOUNDS = {"minimum": 1, "maximum": MAX_PIXELS}


def check_card(values: Any) -> AlexNetSpec:
    """Refuse what no version wrote; the network that is described.

    Args:
        values: of the file.

    Raises:
        ValueError: the key is named.
    """
    card = _take_mapping(values, "the file")
    if not _is_kind(card.get("format"), Literal[1]):
        raise _wrong("format", FORMAT, card.get("format"))
    if card.get("variant") not in tuple(VARIANTS):
        raise _wrong("variant", f"one of {', '.join(VARIANTS)}", card.get("variant"))
    spec = spec_from_dict(_take_mapping(card.get("spec"), "spec"))
    check_size(spec)
    _check_classes(card.get("classes"), spec.num_classes)
    preprocessing = _take_mapping(card.get("preprocessing"), "preprocessing")
    _check_evaluation(_take_mapping(preprocessing.get("evaluation"), "evaluation"), spec.image_size)
    _check_scale(_take_mapping(preprocessing.get("normalization"), "normalization"), spec.in_channels)
    _check_source(_take_mapping(card.get("source"), "source"))
    return spec


def _take_mapping(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(name, "an object", value)
    return value


def _check_classes(classes: Any, num_classes: int) -> None:
    if not isinstance(classes, list) or not classes:
        raise _wrong("classes", "a list of names", classes)
    for name in classes:
        if not isinstance(name, str) or len(name) > MAX_CLASS_NAME:
            raise _wrong("each of classes", f"a name of at most {MAX_CLASS_NAME} characters", name)
    if len(classes) > num_classes:
        raise ValueError(f"classes has {len(classes)} names, and num_classes is {num_classes}")


def _check_evaluation(recipe: dict[str, Any], image_size: int) -> None:
    if not _is_kind(recipe.get("crop_size"), int) or recipe["crop_size"] != image_size:
        raise _wrong("crop_size", f"{image_size} as spec's image_size", recipe.get("crop_size"))
    if not _is_kind(recipe.get("views", 1), Literal[1, 10]):
        raise _wrong("views", "1 or 10", recipe["views"])
    for name, value in recipe.items():
        if name in ("crop_size", "views"):
            continue
        if name not in _RECIPE:
            raise ValueError(f"no such field of evaluation: {shorten(name, 40)}")
        kind, bounds = _RECIPE[name]
        numbers = value if isinstance(value, list) else [value]
        is_right = _is_kind(value, kind) and all(is_within(n, bounds) for n in numbers if isinstance(n, int | float))
        if not is_right:
            raise _wrong(name, f"{_name_kind(kind)} {describe_bounds(bounds)}".strip(), value)


def _check_scale(scale: dict[str, Any], channels: int) -> None:
    if set(scale) != {"mean", "std"}:
        raise ValueError("normalization must have mean and std, and nothing else")
    for name, value in scale.items():
        is_right = (
            _is_kind(value, list[float]) and len(value) == channels and all(is_within(n, _SCALE_BOUNDS) for n in value)
        )
        if not is_right or (name == "std" and min(value) <= 0):
            raise _wrong(name, f"{channels} finite numbers{' above 0' if name == 'std' else ''}", value)


def _check_source(source: dict[str, Any]) -> None:
    if not _is_kind(source.get("data_fingerprint"), str | None):
        raise _wrong("data_fingerprint", "a text", source["data_fingerprint"])
    settings = _take_mapping(source.get("settings", {}), "settings")
    data = _take_mapping(settings.get("data", {}), "data")
    limit = data.get("max_pixels", 1)
    if not _is_kind(limit, int) or not is_within(limit, _PIXEL_BOUNDS):
        raise _wrong("max_pixels", f"a whole number {describe_bounds(_PIXEL_BOUNDS)}", limit)


def _is_kind(value: Any, kind: Any) -> bool:
    """Whether a value as JSON knows it is of a type: true is no number, 1 is a float, and 1.0 is no int."""
    origin = get_origin(kind)
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in get_args(kind))
    if origin in (Union, UnionType):
        return any(_is_kind(value, part) for part in get_args(kind))
    if origin is list:
        return isinstance(value, list) and all(_is_kind(part, get_args(kind)[0]) for part in value)
    if origin is tuple:  # a list in JSON
        kinds = get_args(kind)
        return isinstance(value, list) and len(value) == len(kinds) and all(map(_is_kind, value, kinds))
    if kind in (int, float):
        return isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
    return isinstance(value, kind)


def _name_kind(kind: Any) -> str:
    names = {int: "a whole number", float: "a number", NoneType: "null", tuple[int, int]: "two"}
    parts = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    choices = [", ".join(map(str, get_args(part))) for part in parts if get_origin(part) is Literal]
    others = [names.get(part, "numbers") for part in parts if get_origin(part) is not Literal]
    return " or ".join([*choices, *others])


def _wrong(name: str, wanted: object, value: object) -> ValueError:
    return ValueError(f"{name} must be {wanted}, got {shorten(repr(value), 40)}")
