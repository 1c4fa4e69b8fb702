"""LayerCAM, held against a computation by hand, finite differences, and where a network's values look."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from helpers.refusals import refused
from torch import Tensor

from alexnet_dist.base.errors import UsageError
from alexnet_dist.inference.explain import _differentiate, _interpolation, explain_classes, find_filter_answers
from alexnet_dist.models import VARIANTS, AlexNet, build_model, make_spec, named_layers, split_behind

Floats = npt.NDArray[np.float64]
POOL, STEP = 3, 2  # of the max pooling behind conv5


def make_network(variant: str = "paper", size: int = 96, **overrides: object) -> AlexNet:
    """A small network in float64."""
    narrow = {"conv_channels": [8, 16, 16, 16, 16], "fc_width": 16, "num_classes": 3, "init": "kaiming"}
    spec = make_spec(variant, image_size=size, **{**narrow, **overrides})
    return build_model(spec, seed=1).double().eval()


def make_images(size: int = 96, count: int = 3) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def differentiate_by_hand(model: AlexNet, maps: Floats, label: int) -> Floats:
    """The gradient of a logit by conv5's output (K, h, w), rule by rule, of the network of the paper."""
    positive = np.maximum(maps, 0)
    channels, side = len(maps), (maps.shape[1] - POOL) // STEP + 1
    pooled, winners = np.zeros((channels, side, side)), {}
    for k, i, j in np.ndindex(pooled.shape):
        window = positive[k, STEP * i : STEP * i + POOL, STEP * j : STEP * j + POOL]
        row, column = np.unravel_index(window.argmax(), window.shape)
        pooled[k, i, j], winners[k, i, j] = window.max(), (k, STEP * i + row, STEP * j + column)
    layers = [named_layers(model)[name] for name in ("fc6", "fc7", "fc8")]
    weights = [layer.weight.detach().numpy() for layer in layers]
    biases = [layer.bias.detach().numpy() for layer in layers]
    fc6 = weights[0] @ pooled.ravel() + biases[0]
    fc7 = weights[1] @ np.maximum(fc6, 0) + biases[1]
    slopes = (weights[2][label] * (fc7 > 0)) @ weights[1] * (fc6 > 0) @ weights[0]
    gradient = np.zeros_like(maps)
    for place, slope in zip(np.ndindex(pooled.shape), slopes, strict=True):
        gradient[winners[place]] += slope
    return gradient


@pytest.mark.parametrize("label", [None, 0, 2])
def test_maps_are_those_of_a_computation_by_hand(label: int | None) -> None:
    model, images = make_network(), make_images()
    labels = None if label is None else torch.full((3,), label)
    found = explain_classes(model, images, labels)
    with torch.no_grad():
        maps, likeliest = model.features[:13](images).numpy(), model(images).argmax(dim=1).tolist()
    centers = 15 + 16 * np.arange(5)  # of the windows that conv5 sees: 2 pixels of padding, strides 4, 2 and 2
    for number in range(3):
        slopes = differentiate_by_hand(model, maps[number], likeliest[number] if label is None else label)
        evidence = (np.maximum(slopes, 0) * np.maximum(maps[number], 0)).sum(axis=0)
        across = np.array([np.interp(np.arange(96), centers, line) for line in evidence])
        wanted = np.array([np.interp(np.arange(96), centers, line) for line in across.T]).T
        assert wanted.max() > 0
        np.testing.assert_allclose(found[number].numpy(), wanted / wanted.max(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("layer", ["conv1", "conv2", "conv3", "conv5"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_and_layer_has_the_gradient_of_its_logit(variant: str, layer: str) -> None:
    model, images = make_network(variant, 80), make_images(80, count=1)
    rest = split_behind(model, layer)[1]
    maps, slopes = _differentiate(model, images, torch.tensor([1]), layer)
    points = slopes.flatten().abs().topk(5).indices.tolist()
    step = 1e-6 * maps.abs().max().item()

    def finish(shift: Tensor) -> float:
        with torch.no_grad():
            return float(rest(maps + shift)[0, 1])

    for point in points:
        shift = torch.zeros_like(maps)
        shift.view(-1)[point] = step
        slope = (finish(shift) - finish(-shift)) / (2 * step)
        assert slopes.flatten()[point].item() == pytest.approx(slope, rel=1e-4)
    found = explain_classes(model, images, torch.tensor([1]), layer)
    assert found.shape == (1, 80, 80)
    assert 0 <= found.min() < found.max() == 1


@pytest.mark.parametrize("variant", VARIANTS)
def test_evidence_lies_where_its_value_looks(variant: str) -> None:
    model = make_network(variant, 224, lrn=False, map_norm=False)
    modules = split_behind(model, "conv5")[0]
    images = make_images(224, count=1).requires_grad_()
    maps = torch.nn.Sequential(*(m for m in modules if not isinstance(m, torch.nn.ReLU)))(images)
    count = maps.shape[-1]
    weights = _interpolation(modules, count, 224)
    for place in (5, 6):  # windows that lie inside of the image
        (seen,) = torch.autograd.grad(maps[0, :, place, place].sum(), images, retain_graph=True)
        rows = seen[0].abs().sum(dim=(0, 2)).nonzero()[:, 0]
        assert abs((weights[:, place].argmax() - (rows.min() + rows.max()) / 2).item()) <= 4  # pooling takes one of 9
    assert torch.allclose(weights.sum(dim=1), torch.ones(224, dtype=torch.float64))


def test_16_bits_channels_last_inference_mode_and_frozen_weights_change_little_or_nothing() -> None:
    model, images = make_network(), make_images()
    wanted = explain_classes(model, images)
    model.requires_grad_(False)
    with torch.inference_mode():
        assert torch.equal(explain_classes(model, images.clone()), wanted)
    model.requires_grad_(True)
    explain_classes(model, images)
    assert all(weight.grad is None for weight in model.parameters())
    layout = model.to(memory_format=torch.channels_last)
    last = explain_classes(layout, images.contiguous(memory_format=torch.channels_last))
    assert torch.allclose(last, wanted, rtol=1e-9)
    half = explain_classes(model.bfloat16(), images.bfloat16())
    assert half.dtype == torch.float32
    assert (half - wanted).abs().max() < 0.2
    assert (half - wanted).abs().mean() < 0.02


def test_dropout_is_off_and_the_mode_stays() -> None:
    model, images = make_network(), make_images()
    wanted = explain_classes(model, images)
    assert torch.equal(explain_classes(model.train(), images), wanted)
    assert model.training


def test_what_nothing_speaks_for_is_zero_and_what_is_not_finite_is_nan() -> None:
    model, images = make_network(), make_images()
    with torch.no_grad():
        named_layers(model)["fc8"].weight[0] = 0
    assert explain_classes(model, images, torch.zeros(3)).abs().max() == 0
    images[1, 0, 0, 0] = torch.nan
    found = explain_classes(model, images)
    assert found[1].isnan().any()
    assert found[[0, 2]].isfinite().all()
    assert explain_classes(model, images[:0]).shape == (0, 96, 96)


def test_a_map_of_one_value_is_everywhere() -> None:
    model = make_network(size=12, pool_kernel=1)
    found = explain_classes(model, make_images(12))
    assert all(len(heat.unique()) == 1 for heat in found)
    assert found.max() == 1


def test_what_cannot_be_meant_is_refused() -> None:
    model, images = make_network(), make_images()
    line = refused(lambda: explain_classes(model, images, layer="fc6"), UsageError)
    assert "give one of conv1, conv2, conv3, conv4, conv5" in line
    with pytest.raises(ValueError, match="labels must be from 0 to 2"):
        explain_classes(model, images, torch.tensor([0, 1, 3]))


@pytest.mark.parametrize("variant", ["paper", "torchvision"])
def test_the_filters_with_the_largest_values_answer_where_these_lie(variant: str) -> None:
    model, (image, *_) = make_network(variant), make_images()
    with torch.no_grad():
        maps = split_behind(model, "conv1")[0](image[None])[0].relu()
    found = find_filter_answers(model, image, 3)
    assert found.filters.tolist() == maps.amax(dim=(1, 2)).argsort(descending=True)[:3].tolist()
    first = named_layers(model)["conv1"]
    for number, strength, places in zip(*found, strict=True):
        assert float(strength) == pytest.approx(float(maps[number].max()))
        row, column = np.unravel_index(int(maps[number].argmax()), maps.shape[1:])
        left, above = (4 * int(value) + 5 - first.padding[0] for value in (column, row))  # the middle of its window
        above, left = (min(max(value, 0), 95) for value in (above, left))
        assert float(places[above, left]) == pytest.approx(1)
        assert float(places.min()) >= 0
    assert len(find_filter_answers(model, image, 1000).filters) == len(maps)
