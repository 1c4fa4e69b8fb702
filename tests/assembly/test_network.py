"""The settings of a network against the network's own description: neither room may read the other."""

from __future__ import annotations

from dataclasses import fields
from types import NoneType
from typing import Literal, get_args, get_origin, get_type_hints

from alexnet_dist.models import VARIANTS, AlexNetSpec
from alexnet_dist.settings.schema import ModelConfig

OF_A_RUN = {"variant", "pretrained"}


def test_settings_and_network_have_the_same_fields_and_bounds() -> None:
    settings = {item.name: dict(item.metadata) for item in fields(ModelConfig) if item.name not in OF_A_RUN}
    assert settings == {item.name: dict(item.metadata) for item in fields(AlexNetSpec)}


def test_settings_and_network_have_the_same_choices() -> None:
    settings, network = get_type_hints(ModelConfig), get_type_hints(AlexNetSpec)
    assert get_args(settings["variant"]) == tuple(VARIANTS)
    choices = {name: hint for name, hint in network.items() if get_origin(hint) is Literal}
    assert len(choices) == 2
    for name, hint in choices.items():
        (given,) = (part for part in get_args(settings[name]) if part is not NoneType)
        assert get_args(given) == get_args(hint), name
