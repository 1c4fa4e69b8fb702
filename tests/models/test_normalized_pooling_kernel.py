"""Normalization and pooling in one kernel against the two kernels: on a GPU, or else in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.interpreter import rounding_to_nearest
from torch import Tensor

from alexnet_dist.models import LocalResponseNorm

pytest.importorskip("triton")
from alexnet_dist.models import normalized_pooling_kernel as kernel
from alexnet_dist.models.normalization_vectors_kernel import NormalizeVectors
from alexnet_dist.models.normalized_pooling_kernel import NormalizePoolVectors, normalize_pool_vectors
from alexnet_dist.models.pooling_kernel import PoolVectors, pool_vectors

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
WEIGHT, K = 1e-4 / 5, 2.0
SHAPES = {
    "odd": ((1, 16, 5, 7), 2),
    "even": ((1, 24, 6, 8), 1),  # the last row and the last column reach no window
    "one_window": ((1, 48, 3, 4), 2),
    "two_walks": ((1, 8, 19, 5), 1),  # nine pooled rows
    "programs": ((1, 24, 5, 49), 1),  # of two forward, and of two backward, the last is not full
}
RELUS = {"none": (False, False), "before": (True, False), "behind": (False, True)}
STEPS = {"function": NormalizePoolVectors.apply, "operator": lambda *given: normalize_pool_vectors(*given)[0]}


@pytest.fixture(autouse=True)
def _rounding_as_on_a_gpu() -> Iterator[None]:
    with rounding_to_nearest():
        yield


def draw(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Values of the size that conv1 gives on the 0-255 scale, where the normalization does something."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 100
    return values.to(DEVICE, dtype).contiguous(memory_format=torch.channels_last)


def draw_odd(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Ties, zeros of both signs, infinities, and what is no number, several of them in a window."""
    generator = torch.Generator().manual_seed(5)
    values = torch.randint(-2, 3, shape, generator=generator) * 64.0
    chosen = torch.rand(shape, generator=generator)
    for place, value in enumerate((float("nan"), float("inf"), -float("inf"), -0.0)):
        values[(chosen > place * 0.03) & (chosen < (place + 1) * 0.03)] = value
    return values.to(DEVICE, dtype).contiguous(memory_format=torch.channels_last)


def draw_gradient(maps: Tensor) -> Tensor:
    return draw(tuple(F.max_pool2d(maps.float(), 3, 2).shape), 9, maps.dtype)


def run(step: Any, maps: Tensor, grad: Tensor, *settings: Any) -> tuple[Tensor, Tensor]:
    leaf = maps.detach().requires_grad_()
    pooled = step(leaf, *settings)
    (gradient,) = torch.autograd.grad(pooled, leaf, grad)
    return pooled.detach(), gradient


def take_two_steps(maps: Tensor, groups: int, weight: float, k: float, relu_before: bool, relu_behind: bool) -> Tensor:
    pooled: Tensor = PoolVectors.apply(NormalizeVectors.apply(maps, groups, weight, k, relu_before), relu_behind)
    return pooled


def assert_same_bits(one: Tensor, other: Tensor, any_zero: bool) -> None:
    """What is no number has many bits; `any_zero`: a zero of either sign will do."""
    assert one.dtype == other.dtype
    assert torch.equal(one.isnan(), other.isnan())
    whole = torch.int32 if one.element_size() == 4 else torch.int16
    bits = [(values + 0.0 if any_zero else values).masked_fill(one.isnan(), 0).view(whole) for values in (one, other)]
    assert torch.equal(*bits)


@pytest.mark.parametrize("relu", RELUS)
@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, torch.bfloat16) for name in SHAPES), ("odd", torch.float32), ("odd", torch.float16)],
    ids=str,
)
def test_one_kernel_has_the_bits_of_two(name: str, dtype: torch.dtype, relu: str) -> None:
    (shape, groups), (before, behind) = SHAPES[name], RELUS[relu]
    maps = torch.cat([draw(shape, 0, dtype), draw_odd(shape, dtype)])
    grad, settings = draw_gradient(maps), (groups, WEIGHT, K, before, behind)
    leaf = maps.detach().requires_grad_()
    pooled, positions = normalize_pool_vectors(leaf, *settings)
    found = pooled.detach(), *torch.autograd.grad(pooled, leaf, grad)
    for one, other in zip(found, run(take_two_steps, maps, grad, *settings), strict=True):
        assert one.is_contiguous(memory_format=torch.channels_last)
        # In the interpreter the larger of two zeros is the first. On a GPU it is +0, as behind a ReLU.
        assert_same_bits(one, other, any_zero=relu != "none" and DEVICE.type == "cpu")
    assert torch.equal(positions, pool_vectors(NormalizeVectors.apply(maps, groups, WEIGHT, K, before), behind)[1])


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("layout", ["nchw", "expanded", "slice"])
def test_a_gradient_may_lie_in_any_way(layout: str, step: Any) -> None:
    maps, settings = draw((2, 16, 5, 5), 0), (2, WEIGHT, K, True, False)
    grad = draw_gradient(maps).contiguous()
    grad = {"nchw": grad, "expanded": grad[:1, :, :1, :1].expand_as(grad), "slice": grad.repeat(1, 2, 1, 1)[:, 8:24]}[
        layout
    ]
    expected = run(take_two_steps, maps, grad.contiguous(memory_format=torch.channels_last), *settings)
    for one, other in zip(run(step, maps, grad, *settings), expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("relu", RELUS)
@pytest.mark.parametrize("name", ["odd", "two_walks"])
def test_one_kernel_is_the_definition(name: str, relu: str) -> None:
    (shape, groups), (before, behind) = SHAPES[name], RELUS[relu]
    maps = draw(shape, 3)
    grad, layer = draw_gradient(maps), LocalResponseNorm(groups=groups)

    def define(wide: Tensor) -> Tensor:
        pooled = F.max_pool2d(layer(F.relu(wide) if before else wide), 3, 2)
        return F.relu(pooled) if behind else pooled

    expected = run(define, maps.cpu().double(), grad.cpu().double())
    found = run(NormalizePoolVectors.apply, maps, grad, groups, WEIGHT, K, before, behind)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.cpu().double(), other, rtol=0, atol=float(other.abs().max()) * 3e-7)


def test_a_maximum_of_what_is_not_rounded_is_noticed() -> None:
    """Rounded, neighbors are equal, and the first of them wins."""
    maps = draw((2, 16, 5, 33), 0, torch.bfloat16)
    positions = normalize_pool_vectors(maps, 2, WEIGHT, K, False, False)[1]
    unrounded = normalize_pool_vectors(maps.float(), 2, WEIGHT, K, False, False)[1]
    assert 0 < (positions != unrounded).sum() < positions.numel() / 10


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_no_images_are_fine(step: Any) -> None:
    maps = draw((0, 16, 5, 5), 0)
    pooled, gradient = run(step, maps, torch.empty(0, 16, 2, 2, device=DEVICE), 2, WEIGHT, K, True, False)
    assert (pooled.shape, gradient.shape) == ((0, 16, 2, 2), maps.shape)


def test_any_number_of_programs_fits_the_grid() -> None:
    """CUDA starts at most 65,535 programs along all axes but the first."""
    maps = torch.empty(23_000, 96, 55, 55, device="meta")
    assert kernel._grid_forward(torch.empty(23_000, 96, 27, 27, device="meta"))[0] == 23_000 * 4 * 27 * 12 // 128
    assert kernel._grid_backward(maps)[0] == 23_000 * 28 * 28 * 12 // 128
    assert kernel._grid_backward(maps)[0] > 65_535


def test_the_second_derivative_is_refused() -> None:
    maps = draw((1, 16, 3, 3), 0).requires_grad_()
    pooled = NormalizePoolVectors.apply(maps, 2, WEIGHT, K, True, False)
    (gradient,) = torch.autograd.grad(pooled.square().sum(), maps, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
