"""The network's shapes, variants, towers and initialisations."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from alexnet_dist.models import (
    LAYER_NAMES,
    VARIANTS,
    AlexNet,
    AlexNetSpec,
    LocalResponseNorm,
    build_model,
    feature_size,
    initialise,
    make_spec,
    named_layers,
    spec_from_dict,
    spec_to_dict,
)

SMALL: dict[str, Any] = {"fc_width": 32, "num_classes": 7}


def build_on_meta(spec: AlexNetSpec) -> AlexNet:
    with torch.device("meta"):
        return AlexNet(spec)


def capture_outputs(model: AlexNet, names: list[str]) -> dict[str, Tensor]:
    """Keeps what the named layers give; fill it by calling the model."""
    captured: dict[str, Tensor] = {}

    def keeper(name: str) -> Callable[..., None]:
        def keep(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            captured[name] = output.detach().clone()

        return keep

    layers = named_layers(model)
    for name in names:
        layers[name].register_forward_hook(keeper(name))
    return captured


# Shapes and counts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variant", "image_size", "num_parameters"),
    [("paper", 224, 60_965_224), ("paper", 227, 60_965_224), ("torchvision", 224, 61_100_840)],
)
def test_parameter_counts(variant: str, image_size: int, num_parameters: int) -> None:
    model = build_on_meta(make_spec(variant, image_size=image_size))
    assert sum(parameter.numel() for parameter in model.parameters()) == num_parameters


@pytest.mark.parametrize("image_size", [224, 227])
def test_paper_shapes(image_size: int) -> None:
    model = build_on_meta(make_spec("paper", image_size=image_size))
    captured = capture_outputs(model, list(LAYER_NAMES))
    model(torch.empty(2, 3, image_size, image_size, device="meta"))
    shapes = [tuple(captured[name].shape[1:]) for name in LAYER_NAMES]
    convolutions = [(96, 55, 55), (256, 27, 27), (384, 13, 13), (384, 13, 13), (256, 13, 13)]
    assert shapes == [*convolutions, (4096,), (4096,), (1000,)]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("image_size", [64, 67, 96, 224, 227, 256])
def test_fc6_fits_the_maps_of_every_image_size(variant: str, image_size: int) -> None:
    spec = make_spec(variant, image_size=image_size, **SMALL)
    model = build_on_meta(spec)
    assert model(torch.empty(2, 3, image_size, image_size, device="meta")).shape == (2, 7)
    assert named_layers(model)["fc6"].in_features == 256 * feature_size(spec) ** 2


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("in_channels", "num_classes"), [(1, 1000), (3, 1), (1, 37)])
def test_channels_and_classes(variant: str, in_channels: int, num_classes: int) -> None:
    model = build_on_meta(make_spec(variant, in_channels=in_channels, num_classes=num_classes))
    assert model(torch.empty(2, in_channels, 224, 224, device="meta")).shape == (2, num_classes)


@pytest.mark.parametrize(
    ("image_size", "padding"), [(224, 2), (227, 0), (64, 2), (67, 0)], ids=["224", "227", "64", "67"]
)
def test_conv1_is_padded_where_its_windows_do_not_tile(image_size: int, padding: int) -> None:
    conv1 = named_layers(build_on_meta(make_spec("paper", image_size=image_size, **SMALL)))["conv1"]
    assert conv1.padding == (padding, padding)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_reach_every_weight(variant: str) -> None:
    model = build_model(make_spec(variant, image_size=64, dropout=0.0, **SMALL), seed=0)
    model(torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))).square().sum().backward()
    idle = [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert idle == []


def test_memory_format_does_not_change_the_logits() -> None:
    model = build_model(make_spec("paper", image_size=96, **SMALL), seed=0).eval()
    images = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    expected = model(images)
    logits = model.to(memory_format=torch.channels_last)(images.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-6)


# The order of the layers ----------------------------------------------------------------------------------------------

CONV, RELU, LRN, POOL, FC, DROP = nn.Conv2d, nn.ReLU, LocalResponseNorm, nn.MaxPool2d, nn.Linear, nn.Dropout


@pytest.mark.parametrize(
    ("variant", "features", "classifier"),
    [
        (
            "paper",
            [CONV, RELU, LRN, POOL, CONV, RELU, LRN, POOL, CONV, RELU, CONV, RELU, CONV, RELU, POOL],
            [FC, RELU, DROP, FC, RELU, DROP, FC],
        ),
        (
            "torchvision",
            [CONV, RELU, POOL, CONV, RELU, POOL, CONV, RELU, CONV, RELU, CONV, RELU, POOL],
            [DROP, FC, RELU, DROP, FC, RELU, FC],
        ),
    ],
)
def test_layers_come_in_the_stated_order(variant: str, features: list[type], classifier: list[type]) -> None:
    model = build_on_meta(VARIANTS[variant])
    assert [type(module) for module in model.features] == features
    assert [type(module) for module in model.classifier] == classifier


def test_named_layers_are_in_order() -> None:
    model = build_on_meta(make_spec("paper", **SMALL))
    layers = named_layers(model)
    assert tuple(layers) == LAYER_NAMES
    assert [id(layer) for layer in layers.values()] == [id(m) for m in model.modules() if isinstance(m, (CONV, FC))]


@pytest.mark.parametrize("variant", VARIANTS)
def test_dropout_works_in_training_only(variant: str) -> None:
    model = build_model(make_spec(variant, image_size=64, **SMALL), seed=0)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng():
        assert not torch.equal(model(images), model(images))
    model.eval()
    assert torch.equal(model(images), model(images))


@pytest.mark.parametrize(("field", "value", "attribute"), [("lrn_size", 3, "size"), ("lrn_k", 1.0, "k")])
def test_normalisation_takes_its_settings(field: str, value: float, attribute: str) -> None:
    model = build_on_meta(make_spec("paper", **SMALL, **{field: value}))
    assert [getattr(m, attribute) for m in model.features if isinstance(m, LRN)] == [value, value]


# Towers ---------------------------------------------------------------------------------------------------------------


def conv2_block_outputs(lrn_groups: int) -> tuple[Tensor, Tensor]:
    """What conv2's block gives before and after the second tower's half of its input is changed."""
    model = build_model(make_spec("paper", lrn_groups=lrn_groups, lrn_alpha=10.0, **SMALL), seed=0).eval()
    block = model.features[4:8]  # conv2, ReLU, LRN, pool
    before = torch.randn(2, 96, 27, 27, generator=torch.Generator().manual_seed(0))
    after = before.clone()
    after[:, 48:] += 1
    with torch.no_grad():
        return block(before), block(after)  # (2, 256, 13, 13) each


def test_tower_1_does_not_see_tower_2() -> None:
    before, after = conv2_block_outputs(lrn_groups=2)
    changed = (before != after).flatten(2).any(2).any(0)  # (256,)
    assert not changed[:128].any()
    assert changed[128:].all()


def test_joined_normalisation_lets_tower_1_see_tower_2() -> None:
    before, after = conv2_block_outputs(lrn_groups=1)  # the negative control of the test above
    changed = (before != after).flatten(2).any(2).any(0)  # (256,)
    assert changed[:128].nonzero().flatten().tolist() == [126, 127]


# Initialisation -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def paper_layers() -> dict[str, nn.Module]:
    return named_layers(build_model(make_spec("paper", fc_width=512, num_classes=100), seed=0))


@pytest.mark.parametrize(
    ("layer", "std", "bias"),
    [
        ("conv1", 0.01, 0.0),
        ("conv2", 0.01, 1.0),
        ("conv3", 0.03, 0.0),
        ("conv4", 0.03, 1.0),
        ("conv5", 0.03, 1.0),
        ("fc6", 0.01, 1.0),
        ("fc7", 0.01, 1.0),
        ("fc8", 0.01, 0.0),
    ],
)
def test_source2012_initialisation(paper_layers: dict[str, nn.Module], layer: str, std: float, bias: float) -> None:
    weight = paper_layers[layer].get_parameter("weight")
    assert weight.std().item() == pytest.approx(std, rel=0.03)  # the least of them, conv1's, has 34,848 weights
    assert abs(weight.mean().item()) < 5 * std / weight.numel() ** 0.5
    assert paper_layers[layer].get_parameter("bias").unique().tolist() == [bias]


@pytest.mark.parametrize("index", range(16))
def test_torch_initialisation_is_torchs_own(torch_weights: tuple[list[Tensor], list[Tensor]], index: int) -> None:
    ours, theirs = (weights[index] for weights in torch_weights)
    # Equal seeds draw equal numbers; the bound is computed along another way, hence no equal bits.
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)


@pytest.fixture(scope="module")
def torch_weights() -> tuple[list[Tensor], list[Tensor]]:
    spec = make_spec("torchvision", image_size=64, **SMALL)
    with torch.random.fork_rng():
        torch.manual_seed(8)
        theirs = AlexNet(spec)
    return list(build_model(spec, seed=8).parameters()), list(theirs.parameters())


def test_equal_seeds_give_equal_bits() -> None:
    spec = make_spec("paper", image_size=64, **SMALL)
    first, again, other = (build_model(spec, seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["features.0.weight"], other["features.0.weight"])


@pytest.mark.parametrize("variant", VARIANTS)
def test_global_random_state_is_neither_read_nor_changed(variant: str) -> None:
    spec = make_spec(variant, image_size=64, **SMALL)
    first = build_model(spec, seed=0).state_dict()
    with torch.random.fork_rng():
        torch.manual_seed(123)
        before = torch.get_rng_state()
        second = build_model(spec, seed=0).state_dict()
        assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_layers_are_drawn_in_order() -> None:
    # Only fc8 differs in shape, so all that is drawn before them must be the same.
    few, many = (build_model(make_spec("paper", fc_width=32, num_classes=n), seed=0) for n in (3, 5))
    same = [torch.equal(a, b) for a, b in zip(few.parameters(), many.parameters(), strict=True)]
    assert same == [True] * 14 + [False] * 2


def test_initialise_draws_in_float32_whatever_the_type() -> None:
    spec = make_spec("paper", image_size=64, **SMALL)
    expected = build_model(spec, seed=5)
    model = build_model(spec, seed=6).to(torch.bfloat16)
    initialise(model, seed=5)
    pairs = zip(model.parameters(), expected.parameters(), strict=True)
    assert all(torch.equal(ours, theirs.to(torch.bfloat16)) for ours, theirs in pairs)


# The spec -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_spec_survives_json(variant: str) -> None:
    spec = make_spec(variant, in_channels=1, image_size=96, dropout=0.25)
    assert spec_from_dict(json.loads(json.dumps(spec_to_dict(spec)))) == spec


def test_overrides_replace_fields_and_none_is_ignored() -> None:
    spec = make_spec("torchvision", conv_channels=[8, 8, 8, 8, 8], dropout=None, adaptive_pool=None, lrn=None)
    assert spec.conv_channels == (8, 8, 8, 8, 8)
    assert (spec.dropout, spec.adaptive_pool, spec.lrn) == (0.5, 6, False)


def test_falsy_overrides_are_not_ignored() -> None:
    spec = make_spec("paper", dropout=0.0, lrn=False, conv1_padding=0)
    assert (spec.dropout, spec.lrn, spec.conv1_padding) == (0.0, False, 0)


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ({"in_channels": 2}, "in_channels must be one of 1, 3"),
        ({"num_classes": 0}, "num_classes must be a whole number of at least 1"),
        ({"num_classes": 2.5}, "num_classes must be a whole number"),
        ({"fc_width": "wide"}, "fc_width must be a whole number"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1"),
        ({"dropout": -0.1}, "dropout must be at least 0 and below 1"),
        ({"dropout": float("nan")}, "dropout must be a finite number"),
        ({"conv_channels": (96, 256, 384)}, "conv_channels needs 5 numbers"),
        ({"conv_groups": (1,) * 6}, "conv_groups needs 5 numbers"),
        ({"conv_groups": (1, 0, 1, 1, 1)}, "each of conv_groups"),
        ({"conv_groups": (2, 1, 1, 1, 1)}, "conv1 cannot split 3 -> 96 channels into 2 groups"),
        ({"conv_groups": (1, 5, 1, 1, 1)}, "conv2 cannot split 96 -> 256 channels into 5 groups"),
        ({"lrn_groups": 5}, "the 96 channels of conv1 do not divide into 5 lrn_groups"),
        ({"lrn_groups": 3}, "the 256 channels of conv2 do not divide into 3 lrn_groups"),
        ({"lrn_size": 4}, "lrn_size must be odd"),
        ({"lrn_k": 0.0}, "lrn_k must be above 0"),
        ({"conv1_padding": -1}, "conv1_padding must be a whole number of at least 0"),
        ({"adaptive_pool": 0}, "adaptive_pool must be a whole number of at least 1"),
        ({"dropout_position": "nowhere"}, "dropout_position must be one of after_fc, before_fc"),
        ({"init": "zeros"}, "init must be one of source2012, torch"),
        ({"image_size": 48}, "the smallest is 64"),
        ({"image_size": 63}, "the smallest is 64"),
        ({"image_size": 1}, "the smallest is 64"),
        ({"image_size": 66, "conv1_padding": 0}, "the smallest is 67"),
        ({"image_size": 62, "conv1_padding": 2}, "the smallest is 63"),
        ({"pool_kernel": 10**6}, "leaves no map"),
        ({"widht": 3}, "no such field of the network: widht"),
    ],
)
def test_impossible_networks_are_refused(overrides: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        make_spec("paper", **overrides)


@pytest.mark.parametrize(("smallest", "padding"), [(64, None), (67, 0), (63, 2)])
def test_the_smallest_size_works(smallest: int, padding: int | None) -> None:
    assert feature_size(make_spec("paper", image_size=smallest, conv1_padding=padding)) == 1


def test_unknown_variant_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="paper, torchvision"):
        make_spec("alexnet3")


def test_lrn_groups_do_not_matter_without_lrn() -> None:
    assert not make_spec("paper", lrn=False, lrn_groups=5).lrn


def test_unknown_keys_are_refused() -> None:
    with pytest.raises(ValueError, match="no such field of the network: bogus"):
        spec_from_dict(spec_to_dict(VARIANTS["paper"]) | {"bogus": 1})
