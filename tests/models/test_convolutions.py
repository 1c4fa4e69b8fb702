"""Every form of the convolutions against the layers as they are: one function, one set of parameters."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alexnet_dist.models import AlexNet, build_model, make_spec, named_layers
from alexnet_dist.models.convolutions import (
    CONV1_FORMS,
    GROUPS_FORMS,
    Conv1Form,
    GroupsForm,
    TowersApart,
    has_groups,
    spread_groups,
    take_forms,
)

TINY: dict[str, Any] = {"conv_channels": (16, 32, 48, 48, 32), "fc_width": 16, "num_classes": 5, "dropout": 0.0}
FORMS = [forms for forms in product(GROUPS_FORMS, CONV1_FORMS) if forms != ("grouped", "direct")]
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "padded": ("paper", {"image_size": 64}),
    "tiled": ("paper", {"image_size": 99}),
    "gray": ("paper", {"image_size": 67, "in_channels": 1, "conv1_padding": 3}),
    "hanging_over": ("source2012", {"image_size": 66}),
    "normalized_jointly": ("paper", {"image_size": 64, "lrn_groups": 1}),
    "never_meeting": ("source2012", {"image_size": 64, "conv_groups": (1, 2, 2, 2, 2), "fc_groups": 2}),
    "four_towers": ("paper", {"image_size": 64, "conv_groups": (1, 4, 1, 2, 4), "lrn_groups": 4}),
    "channels_apart": (
        "paper",
        {"image_size": 64, "conv_channels": (48, 24, 48, 48, 32), "conv_groups": (3, 1, 1, 2, 2)},
    ),
    "one_column": ("torchvision", {"image_size": 64}),
}


def make_model(name: str, dtype: torch.dtype = torch.float64) -> AlexNet:
    """Small, with weights large enough for its normalizations to do something."""
    variant, overrides = NETWORKS[name]
    model = build_model(make_spec(variant, **(TINY | overrides)), seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3, generator=generator)
    return model.to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def make_images(model: AlexNet, count: int = 2) -> Tensor:
    spec, generator = model.spec, torch.Generator().manual_seed(2)
    shape = (count, spec.in_channels, spec.image_size, spec.image_size)
    return torch.randn(shape, generator=generator).mul_(30).contiguous(memory_format=torch.channels_last)


def compute(model: AlexNet, images: Tensor, call: Callable[[Tensor], Tensor] | None = None) -> list[Tensor]:
    model.zero_grad()
    logits = model(images) if call is None else call(images)
    F.cross_entropy(logits.double(), torch.arange(len(images)) % 5).backward()
    return [logits.detach(), *(parameter.grad.clone() for parameter in model.parameters())]  # type: ignore[union-attr]


def distance(one: list[Tensor], other: list[Tensor]) -> float:
    """The largest difference of a tensor, relative to its size."""
    pairs = zip(one, other, strict=True)
    return max(float((a - b).norm() / b.norm()) for a, b in pairs if b.norm() > 0)


@pytest.mark.parametrize(("groups", "conv1"), FORMS)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_form_is_the_same_function(name: str, groups: GroupsForm, conv1: Conv1Form) -> None:
    model = make_model(name)
    images = make_images(model).double()
    expected = compute(model, images)
    take_forms(model, groups, conv1)
    assert distance(compute(model, images), expected) < 1e-12


@pytest.mark.parametrize(("groups", "conv1"), FORMS)
def test_no_form_touches_the_tensors(groups: GroupsForm, conv1: Conv1Form) -> None:
    model = make_model("padded")
    before, layers = {name: (id(t), t.shape) for name, t in model.named_parameters()}, named_layers(model)
    take_forms(model, groups, conv1)
    assert {name: (id(t), t.shape) for name, t in model.named_parameters()} == before
    assert named_layers(model) == layers
    assert type(model.features) is (TowersApart if groups == "apart" else nn.Sequential)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize(("groups", "conv1"), FORMS)
def test_forms_keep_the_memory_format(groups: GroupsForm, conv1: Conv1Form, layout: torch.memory_format) -> None:
    model = make_model("padded", torch.float32).to(memory_format=layout)  # type: ignore[call-overload]
    take_forms(model, groups, conv1)
    maps = model.features(make_images(model).contiguous(memory_format=layout))
    assert maps.is_contiguous(memory_format=layout)


@pytest.mark.parametrize(("groups", "conv1"), FORMS)
def test_bf16_is_as_near_as_ever(groups: GroupsForm, conv1: Conv1Form) -> None:
    """Autocast reaches every form: it is bf16's distance from float64, and not another one."""
    model = make_model("padded", torch.float32)
    images = make_images(model, 4)
    exact = compute(copy.deepcopy(model).double(), images.double())

    def call(images: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            logits: Tensor = model(images)
        return logits

    usual = distance([t.double() for t in compute(model, images, call)], exact)
    take_forms(model, groups, conv1)
    found = distance([t.double() for t in compute(model, images, call)], exact)
    assert 0 < found < 2 * usual


@pytest.mark.heavy
@pytest.mark.parametrize(("groups", "conv1"), FORMS)
def test_forms_give_one_graph(groups: GroupsForm, conv1: Conv1Form) -> None:
    torch.compiler.reset()
    model = make_model("padded")
    images = make_images(model).double()
    expected = compute(model, images)
    take_forms(model, groups, conv1)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert distance(compute(model, images, compiled), expected) < 1e-12


def test_no_images_are_fine() -> None:
    for groups, conv1 in FORMS:
        model = make_model("padded", torch.float32)
        take_forms(model, groups, conv1)
        assert model(make_images(model, 0)).shape == (0, 5)


def test_towers_that_change_places_are_noticed() -> None:
    model = make_model("padded")
    images = make_images(model).double()
    expected = compute(model, images)
    with torch.no_grad():
        weight = named_layers(model)["conv4"].get_parameter("weight")
        weight.copy_(weight.roll(len(weight) // 2, 0))
    take_forms(model, "apart", "space_to_depth")
    assert distance(compute(model, images), expected) > 1e-2


def test_zeros_stand_between_the_towers() -> None:
    weight = torch.arange(1.0, 17).view(4, 2, 1, 2)
    made = spread_groups(weight, 2)
    assert made.shape == (4, 4, 1, 2)
    assert torch.equal(made[:2, :2], weight[:2])
    assert torch.equal(made[2:, 2:], weight[2:])
    assert not made[:2, 2:].any()
    assert not made[2:, :2].any()


def test_a_network_without_groups_is_left_alone() -> None:
    model = make_model("one_column")
    assert not has_groups(model)
    take_forms(model, "apart", "direct")
    assert type(model.features) is nn.Sequential
    assert has_groups(make_model("padded"))
