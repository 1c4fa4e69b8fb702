"""The network's shapes, variants, towers and initializations."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alexnet_dist.models import (
    LAYER_NAMES,
    VARIANTS,
    AlexNet,
    GroupedLinear,
    LocalResponseNorm,
    MapResponseNorm,
    build_model,
    build_on_meta,
    check_size,
    feature_size,
    initialize,
    make_spec,
    named_layers,
    spec_from_dict,
    spec_to_dict,
    split_behind,
)
from alexnet_dist.models.pooling import MaxPooling

SMALL: dict[str, Any] = {"fc_width": 32, "num_classes": 7}


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
    [
        ("paper", 224, 60_965_224),
        ("paper", 227, 60_965_224),
        ("source2012", 224, 60_965_224),
        ("torchvision", 224, 61_100_840),
    ],
)
def test_parameter_counts(variant: str, image_size: int, num_parameters: int) -> None:
    model = build_on_meta(make_spec(variant, image_size=image_size))
    assert sum(parameter.numel() for parameter in model.parameters()) == num_parameters


def test_one_gray_column_has_the_published_parameters_layer_by_layer() -> None:
    model = build_on_meta(make_spec("ungrouped", in_channels=1, image_size=227, num_classes=10))
    counts = [sum(p.numel() for p in layer.parameters()) for layer in named_layers(model).values()]
    assert counts == [11_712, 614_656, 885_120, 1_327_488, 884_992, 37_752_832, 16_781_312, 40_970]
    assert sum(parameter.numel() for parameter in model.parameters()) == 58_299_082


def test_one_column_with_conv1_padding_1_has_smaller_maps() -> None:
    model = build_on_meta(make_spec("ungrouped", conv1_padding=1, num_classes=10))
    sides: list[int] = []
    for module in model.features:
        if isinstance(module, (nn.Conv2d, nn.MaxPool2d)):
            module.register_forward_hook(lambda _module, _inputs, output: sides.append(output.shape[-1]))
    model(torch.empty(2, 3, 224, 224, device="meta"))
    assert sides == [54, 26, 26, 12, 12, 12, 12, 5]
    assert named_layers(model)["fc6"].in_features == 6400


@pytest.mark.parametrize(
    ("variant", "image_size"), [("paper", 224), ("paper", 227), ("source2012", 224), ("ungrouped", 227)]
)
def test_shapes_are_those_of_2012(variant: str, image_size: int) -> None:
    model = build_on_meta(make_spec(variant, image_size=image_size))
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


@pytest.mark.parametrize(
    ("overrides", "padding"),
    [({}, 0), ({"conv1_padding": 1}, 1), ({"conv1_end_padding": 0, "conv1_padding": 0}, 0)],
    ids=["hangs_over", "both", "neither"],
)
def test_conv1_that_hangs_over_needs_no_other_padding(overrides: dict[str, int], padding: int) -> None:
    conv1 = named_layers(build_on_meta(make_spec("paper", **{"conv1_end_padding": 3, **overrides}, **SMALL)))["conv1"]
    assert conv1.padding == (padding, padding)


@pytest.mark.parametrize("image_size", [64, 65, 66, 67, 224, 225, 226, 227])
def test_source2012_counts_windows_as_the_program_did(image_size: int) -> None:
    model = build_on_meta(make_spec("source2012", image_size=image_size, **SMALL))
    captured = capture_outputs(model, ["conv1"])
    model(torch.empty(1, 3, image_size, image_size, device="meta"))
    assert captured["conv1"].shape[2:] == (1 + math.ceil((image_size - 11) / 4),) * 2


def test_end_padding_adds_zeros_to_the_right_and_below_only() -> None:
    pad = build_on_meta(make_spec("source2012", **SMALL)).pad
    padded = pad(torch.ones(1, 1, 2, 2))
    assert padded[0, 0].tolist() == [[1, 1, 0, 0, 0], [1, 1, 0, 0, 0], *[[0] * 5] * 3]


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_reach_every_weight(variant: str) -> None:
    model = build_model(make_spec(variant, image_size=64, dropout=0.0, **SMALL), seed=0)
    model(torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))).square().sum().backward()
    idle = [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert idle == []


@pytest.mark.parametrize("variant", ["paper", "source2012"])
def test_memory_format_does_not_change_the_logits(variant: str) -> None:
    model = build_model(make_spec(variant, image_size=96, **SMALL), seed=0).eval()
    images = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    expected = model(images)
    logits = model.to(memory_format=torch.channels_last)(images.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-6)


# The order of the layers ----------------------------------------------------------------------------------------------

CONV, RELU, LRN, POOL, FC, DROP = nn.Conv2d, nn.ReLU, LocalResponseNorm, MaxPooling, nn.Linear, nn.Dropout
BOTH = nn.Sequential  # LRN, then the normalization within maps


@pytest.mark.parametrize(
    ("variant", "features", "classifier"),
    [
        (
            "paper",
            [CONV, RELU, LRN, POOL, CONV, RELU, LRN, POOL, CONV, RELU, CONV, RELU, CONV, RELU, POOL],
            [FC, RELU, DROP, FC, RELU, DROP, FC],
        ),
        (
            "source2012",
            [CONV, LRN, POOL, RELU, CONV, RELU, BOTH, POOL, CONV, RELU, CONV, RELU, CONV, POOL, RELU],
            [FC, RELU, DROP, FC, RELU, DROP, FC],
        ),
        (
            "ungrouped",
            [CONV, RELU, POOL, CONV, RELU, POOL, CONV, RELU, CONV, RELU, CONV, RELU, POOL],
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


def test_both_normalizations_of_conv2_come_in_the_order_of_2012() -> None:
    both = build_on_meta(VARIANTS["source2012"]).features[6]
    assert [type(module) for module in both.children()] == [LRN, MapResponseNorm]


@pytest.mark.parametrize("lrn", [True, False])
@pytest.mark.parametrize("map_norm", [True, False])
def test_normalizations_can_be_left_out_apart(lrn: bool, map_norm: bool) -> None:
    model = build_on_meta(make_spec("paper", lrn=lrn, map_norm=map_norm, **SMALL))
    norms = [type(module) for module in model.modules() if isinstance(module, (LRN, MapResponseNorm))]
    assert norms == [LRN, LRN] * lrn + [MapResponseNorm] * map_norm


def numbered_keys(features: tuple[int, ...], classifier: tuple[int, ...]) -> list[str]:
    layers = [f"features.{number}" for number in features] + [f"classifier.{number}" for number in classifier]
    return [f"{layer}.{part}" for layer in layers for part in ("weight", "bias")]


@pytest.mark.parametrize(
    ("variant", "features", "classifier"),
    [
        ("paper", (0, 4, 8, 10, 12), (0, 3, 6)),
        ("source2012", (0, 4, 8, 10, 12), (0, 3, 6)),
        ("ungrouped", (0, 3, 6, 8, 10), (0, 3, 6)),
        ("torchvision", (0, 3, 6, 8, 10), (1, 4, 6)),
    ],
)
def test_keys_stay_as_checkpoints_have_them(
    variant: str, features: tuple[int, ...], classifier: tuple[int, ...]
) -> None:
    assert list(build_on_meta(VARIANTS[variant]).state_dict()) == numbered_keys(features, classifier)


@pytest.mark.parametrize("variant", VARIANTS)
def test_named_layers_are_in_order(variant: str) -> None:
    model = build_on_meta(make_spec(variant, **SMALL))
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
def test_normalization_takes_its_settings(field: str, value: float, attribute: str) -> None:
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


def test_joined_normalization_lets_tower_1_see_tower_2() -> None:
    before, after = conv2_block_outputs(lrn_groups=1)  # the negative control of the test above
    changed = (before != after).flatten(2).any(2).any(0)  # (256,)
    assert changed[:128].nonzero().flatten().tolist() == [126, 127]


# The 2012 program -----------------------------------------------------------------------------------------------------

HALF = {"conv_channels": (16, 32, 48, 48, 32), "fc_width": 64, "num_classes": 7, "dropout": 0.0}


def build_randomized(**overrides: Any) -> AlexNet:
    """The 2012 network in float64 with the same random weights whatever the overrides; large enough that all count."""
    model = build_model(make_spec("source2012", **{**HALF, **overrides}), seed=0).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.05, generator=generator)
    return model


def normalize_within_maps(x: Tensor) -> Tensor:
    patches = F.unfold(x.square(), kernel_size=5, padding=2)  # (B, C*25, H*W)
    total = patches.unflatten(1, (x.shape[1], 25)).sum(2).view_as(x)  # (B, C, H, W)
    return x / (1 + 0.001 / 25 * total) ** 0.75


def run_layers145(model: AlexNet, images: Tensor) -> Tensor:
    """Tower by tower with PyTorch's functions, as layers-145.cfg says; only the weights are the model's."""
    halves = {
        name: list(zip(layer.get_parameter("weight").chunk(2), layer.get_parameter("bias").chunk(2), strict=True))
        for name, layer in named_layers(model).items()
        if name != "fc8"
    }
    image = F.pad(images, (0, 3, 0, 3))  # (B, 3, 227, 227)
    towers = []
    for tower in range(2):
        x = F.conv2d(image, *halves["conv1"][tower], stride=4)
        x = F.relu(F.max_pool2d(F.local_response_norm(x, 5, alpha=1e-4, beta=0.75, k=2.0), 3, 2))
        x = F.relu(F.conv2d(x, *halves["conv2"][tower], padding=2))
        x = normalize_within_maps(F.local_response_norm(x, 5, alpha=1e-4, beta=0.75, k=2.0))
        towers.append(F.max_pool2d(x, 3, 2))
    joined = torch.cat(towers, 1)  # (B, 32, 13, 13)
    for tower in range(2):
        x = F.relu(F.conv2d(joined, *halves["conv3"][tower], padding=1))
        x = F.relu(F.conv2d(x, *halves["conv4"][tower], padding=1))
        towers[tower] = F.relu(F.max_pool2d(F.conv2d(x, *halves["conv5"][tower], padding=1), 3, 2)).flatten(1)
    for layer in ("fc6", "fc7"):
        joined = torch.cat(towers, 1)
        towers = [F.relu(F.linear(joined, *half)) for half in halves[layer]]
    fc8 = named_layers(model)["fc8"]
    return F.linear(torch.cat(towers, 1), fc8.get_parameter("weight"), fc8.get_parameter("bias"))


@pytest.fixture(scope="module")
def images_2012() -> Tensor:
    return torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 60


@pytest.fixture(scope="module")
def logits_2012(images_2012: Tensor) -> Tensor:
    with torch.no_grad():
        return run_layers145(build_randomized(), images_2012)


@pytest.mark.parametrize("training", [True, False])
def test_source2012_is_the_2012_program(images_2012: Tensor, logits_2012: Tensor, training: bool) -> None:
    with torch.no_grad():
        logits = build_randomized().train(training)(images_2012)
    torch.testing.assert_close(logits, logits_2012, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "overrides",
    [
        {"lrn_groups": 1},
        {"lrn_k": 1.0},
        {"lrn": False},
        {"map_norm": False},
        {"relu_after_pool": (False, False, True)},
        {"relu_after_pool": (True, True, True)},
        {"conv1_end_padding": 0, "conv1_padding": 2},
    ],
    ids=["joined_lrn", "k", "no_lrn", "no_map_norm", "relu1_before", "relu2_after", "padding_all_round"],
)
def test_each_trait_of_the_2012_program_counts(
    images_2012: Tensor, logits_2012: Tensor, overrides: dict[str, Any]
) -> None:
    with torch.no_grad():
        logits = build_randomized(**overrides)(images_2012)
    assert (logits - logits_2012).abs().max() > 1e-5 * logits_2012.abs().max()


def test_relu_and_pooling_of_conv5_commute(images_2012: Tensor, logits_2012: Tensor) -> None:
    with torch.no_grad():
        logits = build_randomized(relu_after_pool=(True, False, False))(images_2012)
    torch.testing.assert_close(logits, logits_2012, rtol=1e-10, atol=1e-10)


def test_weights_of_the_paper_fit_the_2012_program() -> None:
    paper = build_model(make_spec("paper", image_size=64, **SMALL), seed=0)
    source = build_model(make_spec("source2012", image_size=64, **SMALL), seed=1)
    source.load_state_dict(paper.state_dict(), strict=True)
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), paper.parameters(), strict=True))


# Initialization -------------------------------------------------------------------------------------------------------


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
def test_source2012_initialization(paper_layers: dict[str, nn.Module], layer: str, std: float, bias: float) -> None:
    weight = paper_layers[layer].get_parameter("weight")
    assert weight.std().item() == pytest.approx(std, rel=0.03)  # the least of them, conv1's, has 34,848 weights
    assert abs(weight.mean().item()) < 5 * std / weight.numel() ** 0.5
    assert paper_layers[layer].get_parameter("bias").unique().tolist() == [bias]


@pytest.mark.parametrize("layer", LAYER_NAMES)
def test_kaiming_initialization(kaiming_layers: dict[str, nn.Module], layer: str) -> None:
    weight = kaiming_layers[layer].get_parameter("weight")
    gain = 1 if layer == "fc8" else 2
    std = math.sqrt(gain / weight[0].numel())  # grouped convolutions read the channels of their group only
    assert weight.std().item() == pytest.approx(std, rel=0.03)
    assert abs(weight.mean().item()) < 5 * std / weight.numel() ** 0.5
    assert weight.abs().max() > 3.3 * std  # a normal distribution, not a uniform one
    assert not kaiming_layers[layer].get_parameter("bias").any()


@pytest.fixture(scope="module")
def kaiming_layers() -> dict[str, nn.Module]:
    spec = make_spec("paper", conv_channels=(96, 96, 96, 96, 96), fc_width=512, num_classes=100, init="kaiming")
    return named_layers(build_model(spec, seed=0))


@pytest.mark.parametrize(("init", "least", "most"), [("kaiming", 0.3, 3.0), ("torch", 0.0, 0.1)])
def test_kaiming_keeps_the_signals_size(init: str, least: float, most: float) -> None:
    model = build_model(make_spec("ungrouped", image_size=67, fc_width=512, num_classes=50, init=init), seed=0).eval()
    with torch.no_grad():
        logits = model(torch.randn(16, 3, 67, 67, generator=torch.Generator().manual_seed(0)))
    assert least < logits.std(0).mean().item() < most  # between images; the images' own is 1


@pytest.mark.parametrize("index", range(16))
def test_torch_initialization_is_torchs_own(torch_weights: tuple[list[Tensor], list[Tensor]], index: int) -> None:
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


def test_initialize_draws_in_float32_whatever_the_type() -> None:
    spec = make_spec("paper", image_size=64, **SMALL)
    expected = build_model(spec, seed=5)
    model = build_model(spec, seed=6).to(torch.bfloat16)
    initialize(model, seed=5)
    pairs = zip(model.parameters(), expected.parameters(), strict=True)
    assert all(torch.equal(ours, theirs.to(torch.bfloat16)) for ours, theirs in pairs)


# The spec -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_spec_survives_json(variant: str) -> None:
    spec = make_spec(variant, in_channels=1, image_size=96, dropout=0.25)
    assert spec_from_dict(json.loads(json.dumps(spec_to_dict(spec)))) == spec


@pytest.mark.parametrize("variant", ["paper", "torchvision"])
def test_specs_written_before_these_fields_existed_mean_the_same(variant: str) -> None:
    later = ("conv1_end_padding", "relu_after_pool", "map_norm")
    values = {name: value for name, value in spec_to_dict(VARIANTS[variant]).items() if name not in later}
    assert spec_from_dict(values) == VARIANTS[variant]


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
        ({"dropout": 1.0}, "dropout must be a finite number of at least 0 and below 1"),
        ({"dropout": -0.1}, "dropout must be a finite number of at least 0 and below 1"),
        ({"dropout": float("nan")}, "dropout must be a finite number"),
        ({"conv_channels": (96, 256, 384)}, "conv_channels needs 5 numbers"),
        ({"conv_groups": (1,) * 6}, "conv_groups needs 5 numbers"),
        ({"conv_groups": (1, 0, 1, 1, 1)}, "each of conv_groups"),
        ({"conv_groups": (2, 1, 1, 1, 1)}, "conv1 cannot split 3 -> 96 channels into 2 groups"),
        ({"conv_groups": (1, 5, 1, 1, 1)}, "conv2 cannot split 96 -> 256 channels into 5 groups"),
        ({"fc_groups": 3}, "the 4096 outputs of fc6 do not divide into 3 fc_groups"),
        ({"fc_groups": 512}, "the 256 channels of conv5 do not divide into 512 fc_groups"),
        ({"lrn_groups": 5}, "the 96 channels of conv1 do not divide into 5 lrn_groups"),
        ({"lrn_groups": 3}, "the 256 channels of conv2 do not divide into 3 lrn_groups"),
        ({"lrn_size": 4}, "lrn_size must be odd"),
        ({"lrn_k": 0.0}, "lrn_k must be a finite number above 0"),
        ({"conv1_padding": -1}, "conv1_padding must be a whole number of at least 0"),
        ({"conv1_end_padding": -1}, "conv1_end_padding must be a whole number of at least 0"),
        ({"conv1_end_padding": 1.5}, "conv1_end_padding must be a whole number"),
        ({"relu_after_pool": (True, False)}, "relu_after_pool needs 3 times true or false"),
        ({"relu_after_pool": (True, False, 2)}, "relu_after_pool needs 3 times true or false"),
        ({"relu_after_pool": True}, "relu_after_pool needs 3 times true or false"),
        ({"map_norm": "yes"}, "map_norm must be one of True, False"),
        ({"adaptive_pool": 0}, "adaptive_pool must be a whole number of at least 1"),
        ({"dropout_position": "nowhere"}, "dropout_position must be one of after_fc, before_fc"),
        ({"init": "zeros"}, "init must be one of source2012, paper_text, torch, kaiming"),
        ({"image_size": 48}, "the smallest is 64"),
        ({"image_size": 63}, "the smallest is 64"),
        ({"image_size": 1}, "the smallest is 64"),
        ({"image_size": 66, "conv1_padding": 0}, "the smallest is 67"),
        ({"image_size": 62, "conv1_padding": 2}, "the smallest is 63"),
        ({"image_size": 63, "conv1_end_padding": 3}, "the smallest is 64"),
        ({"image_size": 60, "conv1_padding": 2, "conv1_end_padding": 2}, "the smallest is 61"),
        ({"pool_kernel": 1000}, "leaves no map"),
        ({"pool_kernel": 10**6}, "pool_kernel must be a whole number of at least 1 and of at most 1024"),
        ({"in_channels": True}, "in_channels must be one of 1, 3"),
        ({"image_size": 10**30}, "image_size must be a whole number of at least 1 and of at most 8192"),
        ({"conv_channels": (10**6,) * 5}, "each of conv_channels must be a whole number"),
        ({"widht": 3}, "no such field of the network: widht"),
    ],
)
def test_impossible_networks_are_refused(overrides: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        make_spec("paper", **overrides)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("changes", [{}, {"fc_groups": 2}, {"image_size": 300}, {"in_channels": 1}])
def test_the_limit_counts_the_weights_that_there_are(variant: str, changes: dict[str, Any]) -> None:
    spec = make_spec(variant, **changes)
    count = sum(tensor.numel() for tensor in build_on_meta(spec).parameters())
    check_size(spec, most=count)
    with pytest.raises(ValueError, match=f"would have {count:,} weights; it may have {count - 1:,}$"):
        check_size(spec, most=count - 1)


@pytest.mark.parametrize(
    ("smallest", "padding", "end_padding"), [(64, None, 0), (67, 0, 0), (63, 2, 0), (64, None, 3), (61, 2, 2)]
)
def test_the_smallest_size_works(smallest: int, padding: int | None, end_padding: int) -> None:
    spec = make_spec("paper", image_size=smallest, conv1_padding=padding, conv1_end_padding=end_padding)
    assert feature_size(spec) == 1


def test_unknown_variant_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="paper, source2012, ungrouped, torchvision"):
        make_spec("alexnet3")


def test_lrn_groups_do_not_matter_without_lrn() -> None:
    assert not make_spec("paper", lrn=False, lrn_groups=5).lrn


def test_unknown_keys_are_refused() -> None:
    with pytest.raises(ValueError, match="no such field of the network: bogus"):
        spec_from_dict(spec_to_dict(VARIANTS["paper"]) | {"bogus": 1})


def test_grouped_layer_is_a_layer_whose_weight_is_zero_outside_the_groups() -> None:
    layer, whole = GroupedLinear(6, 4, groups=2), nn.Linear(6, 4)
    with torch.no_grad():
        whole.weight.copy_(torch.block_diag(*layer.weight.chunk(2)))
        whole.bias.copy_(layer.bias)
    values = torch.randn(5, 6)
    torch.testing.assert_close(layer(values), whole(values))


def test_towers_that_never_meet_before_fc8_do_not_feel_each_other() -> None:
    spec = make_spec("paper", conv_groups=(1, 2, 2, 2, 2), fc_groups=2, dropout=0.0, image_size=64, **SMALL)
    model = build_model(spec, seed=0).eval()
    outputs = capture_outputs(model, ["fc7"])
    images = torch.randn(2, 3, 64, 64)
    model(images)
    before = outputs["fc7"].clone()
    with torch.no_grad():
        for name in ("conv1", "conv3", "fc6"):  # the first tower's half
            named_layers(model)[name].get_parameter("weight").chunk(2)[0].add_(1.0)
    model(images)
    first, second = ((outputs["fc7"] - before).chunk(2, 1)[tower] for tower in (0, 1))
    assert first.abs().max() > 0
    assert second.abs().max() == 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_both_parts_behind_a_layer_are_the_network(variant: str) -> None:
    model = build_model(make_spec(variant, image_size=64, **{**SMALL, "init": "torch"}), seed=0).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        for layer, module in named_layers(model).items():
            first, rest = split_behind(model, layer)
            assert list(first)[-1] is module
            assert torch.equal(rest(first(images)), model(images))
    with pytest.raises(ValueError, match="no layer 'fc9'; there are conv1, "):
        split_behind(model, "fc9")
