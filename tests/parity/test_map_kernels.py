"""The GPU's kernels of the network's maps against PyTorch's: on a GPU where there is one, else in Triton's interpreter.

The interpreter rounds to bf16 by cutting, so what is rounded there is held to a whole unit in the last place.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alexnet_dist.models import LocalResponseNorm
from alexnet_dist.models.normalization import has_vectors
from alexnet_dist.models.pooling import is_poolable

pytest.importorskip("triton")
from alexnet_dist.models import normalization_vectors_kernel, pooling_kernel
from alexnet_dist.models.normalization_kernel import NormalizeOnDevice, lay_dense
from alexnet_dist.models.normalization_vectors_kernel import NormalizeVectors, normalize_vectors
from alexnet_dist.models.pooling_kernel import PoolVectors, pool_vectors

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
FORMATS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}


def draw_maps(shape: tuple[int, ...], seed: int, *, last: bool = False) -> Tensor:
    """Values of the size that conv1 gives on the 0-255 scale, where the normalization does something."""
    maps = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 100
    return maps.contiguous(memory_format=torch.channels_last) if last else maps


def run_both_ways(layer: nn.Module, maps: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    leaf = maps.detach().requires_grad_()
    output = layer(leaf)
    (gradient,) = torch.autograd.grad(output, leaf, grad)
    return output.detach(), gradient


# -- normalization across channels, any shape -------------------------------------------------------------------------


class Kernel(nn.Module):
    """The kernel with the settings of a layer, whatever that would choose."""

    def __init__(self, layer: LocalResponseNorm) -> None:
        super().__init__()
        self.settings = (layer.groups, layer.size // 2, layer.alpha / layer.size, layer.beta, layer.k)

    def forward(self, maps: Tensor) -> Tensor:
        made: Tensor = NormalizeOnDevice.apply(lay_dense(maps), *self.settings)
        return made


@pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    "settings",
    [{"k": 2.0}, {"beta": 0.6}, {"size": 3, "alpha": 5e-4}, {"size": 1}, {"size": 9, "k": 1.0, "beta": 1.0}],
    ids=["2012", "beta", "size3", "size1", "size9"],
)
def test_lrn_is_the_eager_one(settings: dict[str, Any], groups: int, memory_format: torch.memory_format) -> None:
    layer = LocalResponseNorm(**settings, groups=groups)
    maps, grad = (draw_maps((2, 16, 3, 7), seed).contiguous(memory_format=memory_format) for seed in (0, 1))
    expected = run_both_ways(layer, maps.double(), grad.double())
    output, gradient = run_both_ways(Kernel(layer), maps.to(DEVICE), grad.to(DEVICE))
    assert output.stride() == maps.stride()
    torch.testing.assert_close(output.cpu().double(), expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient.cpu().double(), expected[1], rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_lrn_rounds_once(dtype: torch.dtype) -> None:
    """Half precision goes in and out; in between it is float32."""
    layer = LocalResponseNorm(groups=2)
    maps, grad = draw_maps((2, 16, 5, 5), 0).to(dtype), draw_maps((2, 16, 5, 5), 1).to(dtype)
    expected = run_both_ways(layer, maps.double(), grad.double())
    made = run_both_ways(Kernel(layer), maps.to(DEVICE), grad.to(DEVICE))
    for one, other in zip(made, expected, strict=True):
        assert one.dtype == dtype
        torch.testing.assert_close(one.cpu().double(), other, rtol=torch.finfo(dtype).eps, atol=1e-3)


def test_lrn_of_a_gradient_in_another_format() -> None:
    layer, maps = LocalResponseNorm(groups=2), draw_maps((2, 16, 5, 7), 0).contiguous(memory_format=torch.channels_last)
    grad = draw_maps((2, 16, 5, 7), 1)
    expected = run_both_ways(layer, maps, grad)
    made = run_both_ways(Kernel(layer), maps.to(DEVICE), grad.to(DEVICE))
    torch.testing.assert_close(made[1].cpu(), expected[1], rtol=1e-5, atol=1e-3)


def test_lrn_joined_over_the_towers_is_noticed() -> None:
    maps, grad = draw_maps((2, 16, 5, 5), 0), draw_maps((2, 16, 5, 5), 1)
    expected = run_both_ways(LocalResponseNorm(groups=2), maps, grad)
    joined = run_both_ways(Kernel(LocalResponseNorm(groups=1)), maps.to(DEVICE), grad.to(DEVICE))
    assert all(not torch.allclose(one.cpu(), other, rtol=1e-3) for one, other in zip(joined, expected, strict=True))


@pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS)
def test_lrn_of_no_images_is_none(memory_format: torch.memory_format) -> None:
    maps = torch.empty(0, 8, 3, 3, device=DEVICE).contiguous(memory_format=memory_format).requires_grad_()
    made = NormalizeOnDevice.apply(lay_dense(maps), 2, 2, 1e-4, 0.75, 2.0)
    made.sum().backward()
    assert made.shape == maps.grad.shape == (0, 8, 3, 3)  # type: ignore[union-attr]


# -- normalization across channels, eight at a time -------------------------------------------------------------------


class Vectors(nn.Module):
    """The kernel for eight channels at a time, as one function or as one operator."""

    def __init__(self, groups: int, k: float = 2.0, is_recorded: bool = False, relu: bool = False) -> None:
        super().__init__()
        self.settings, self.normalize = (groups, 1e-4 / 5, k, relu), normalize_vectors if is_recorded else None

    def forward(self, maps: Tensor) -> Tensor:
        made: Tensor = (self.normalize or NormalizeVectors.apply)(maps, *self.settings)
        return made


@pytest.mark.parametrize("is_recorded", [False, True], ids=["function", "operator"])
@pytest.mark.parametrize(
    ("shape", "groups", "k"),
    [((2, 48, 3, 5), 2, 2.0), ((1, 16, 2, 3), 2, 1.0), ((3, 24, 7, 9), 1, 2.0), ((1, 8, 1, 1), 1, 2.0)],
    ids=["three_vectors", "one_each", "two_programs", "pixel"],
)
def test_vectors_are_the_eager_one(shape: tuple[int, ...], groups: int, k: float, is_recorded: bool) -> None:
    layer = LocalResponseNorm(k=k, groups=groups)
    maps, grad = (draw_maps(shape, seed, last=True) for seed in (0, 1))
    expected = run_both_ways(layer, maps.double(), grad.double())
    made = run_both_ways(Vectors(groups, k, is_recorded), maps.to(DEVICE), grad.to(DEVICE))
    for one, other in zip(made, expected, strict=True):
        assert one.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(one.cpu().double(), other, rtol=2e-6, atol=float(other.abs().max()) * 3e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_vectors_round_once(dtype: torch.dtype) -> None:
    maps, grad = (draw_maps((1, 16, 3, 3), seed, last=True).to(dtype) for seed in (0, 1))
    expected = run_both_ways(LocalResponseNorm(groups=2), maps.double(), grad.double())
    made = run_both_ways(Vectors(2), maps.to(DEVICE), grad.to(DEVICE))
    tolerance = torch.finfo(dtype).eps * (0.5001 if DEVICE.type == "cuda" else 1)
    for one, other in zip(made, expected, strict=True):
        assert one.dtype == dtype
        torch.testing.assert_close(one.cpu().double(), other, rtol=tolerance, atol=1e-3)


@pytest.mark.parametrize("is_recorded", [False, True], ids=["function", "operator"])
def test_vectors_of_a_gradient_in_another_format(is_recorded: bool) -> None:
    maps, grad = draw_maps((2, 16, 3, 5), 0, last=True), draw_maps((2, 16, 3, 5), 1)
    expected = run_both_ways(LocalResponseNorm(groups=2), maps, grad)
    made = run_both_ways(Vectors(2, is_recorded=is_recorded), maps.to(DEVICE), grad.to(DEVICE))
    torch.testing.assert_close(made[1].cpu(), expected[1], rtol=1e-5, atol=1e-3)


def test_vectors_of_what_is_no_number() -> None:
    """Where the eager one has no number, and nowhere else."""
    maps, grad = draw_maps((1, 32, 2, 2), 0, last=True), draw_maps((1, 32, 2, 2), 1, last=True)
    maps[0, 3, 0, 0], maps[0, 9, 1, 1], maps[0, 20, 0, 1] = float("nan"), float("inf"), -float("inf")
    expected = run_both_ways(LocalResponseNorm(groups=2), maps, grad)
    made = run_both_ways(Vectors(2), maps.to(DEVICE), grad.to(DEVICE))
    for one, other in zip(made, expected, strict=True):
        assert torch.equal(one.cpu().isnan(), other.isnan())
        assert 0 < other.isnan().sum() < other.numel()
        torch.testing.assert_close(one.cpu(), other, rtol=1e-5, atol=1e-3, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_vectors_with_a_relu_are_both_layers_to_the_bit(dtype: torch.dtype) -> None:
    maps, grad = (draw_maps((1, 32, 2, 3), seed, last=True).to(DEVICE, dtype) for seed in (0, 1))
    maps[0, 3, 0, 0], maps[0, 9, 1, 1], maps[0, 20, 0, 1], maps[0, 21] = float("nan"), -float("inf"), -0.0, 0.0
    expected = run_both_ways(nn.Sequential(nn.ReLU(), Vectors(2)), maps, grad)
    made = run_both_ways(Vectors(2, relu=True), maps, grad)
    for one, other in zip(made, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
        assert (one == 0).any()
    assert not torch.equal(run_both_ways(Vectors(2), maps, grad)[0], expected[0])


def test_vectors_joined_over_the_towers_are_noticed() -> None:
    maps, grad = draw_maps((1, 16, 2, 2), 0, last=True), draw_maps((1, 16, 2, 2), 1, last=True)
    expected = run_both_ways(LocalResponseNorm(groups=2), maps, grad)
    joined = run_both_ways(Vectors(1), maps.to(DEVICE), grad.to(DEVICE))
    assert all(not torch.allclose(one.cpu(), other, rtol=1e-3) for one, other in zip(joined, expected, strict=True))


@pytest.mark.parametrize(
    ("shape", "fits"),
    [
        ({}, True),
        ({"dtype": torch.float16}, True),
        ({"dtype": torch.float64}, False),
        ({"channels": 24}, False),  # of which a group has 12
        ({"channels": 15}, False),
        ({"last": False}, False),
        ({"reach": 1}, False),
        ({"beta": 0.5}, False),
        ({"images": 2**22}, False),  # more than the kernels can count
    ],
    ids=str,
)
def test_other_shapes_keep_the_kernel_for_any(shape: dict[str, Any], fits: bool) -> None:
    given = {"channels": 96, "last": True, "dtype": torch.bfloat16, "images": 4, "reach": 2, "beta": 0.75} | shape
    layout = torch.channels_last if given["last"] else torch.contiguous_format
    maps = torch.empty(given["images"], given["channels"], 5, 7, dtype=given["dtype"], device="meta")
    if given["images"] == 2**22:
        maps = torch.empty(2**22, 96, 9, 9, dtype=given["dtype"], device="meta")
    assert has_vectors(maps.contiguous(memory_format=layout), 2, given["reach"], given["beta"]) is fits


def test_slices_have_no_vectors() -> None:
    maps = torch.empty(2, 96, 5, 5, device="meta").contiguous(memory_format=torch.channels_last)
    assert has_vectors(maps, 2, 2, 0.75)
    assert not has_vectors(maps[:, :48], 1, 2, 0.75)
    assert not has_vectors(maps[..., 1:], 2, 2, 0.75)
    assert not has_vectors(maps.flatten(2), 2, 2, 0.75)


# -- max pooling ------------------------------------------------------------------------------------------------------


def pool(maps: Tensor, is_recorded: bool = False, relu: bool = False) -> Tensor:
    made: Tensor = pool_vectors(maps, relu)[0] if is_recorded else PoolVectors.apply(maps, relu)
    return made


def pool_with_torch(maps: Tensor, grad: Tensor, *, relu: str = "") -> tuple[Tensor, Tensor]:
    """In float32, where sums of these gradients are the GPU's; rounded once."""
    leaf = maps.float().requires_grad_()
    pooled = F.max_pool2d(F.relu(leaf) if relu == "before" else leaf, 3, 2)
    pooled = F.relu(pooled) if relu == "behind" else pooled
    (gradient,) = torch.autograd.grad(pooled, leaf, grad.float())
    return pooled.detach().to(maps.dtype), gradient.to(maps.dtype)


def draw_ties(shape: tuple[int, ...], seed: int) -> Tensor:
    """Small whole numbers: every window has equal maxima, and no sum of three rounds in 16 bits."""
    return torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(seed)).float()


def put_in(maps: Tensor, value: float, seed: int) -> Tensor:
    where = torch.rand(maps.shape, generator=torch.Generator().manual_seed(seed)) < 0.2
    return maps.masked_fill(where, value)


MAPS = {
    "numbers": draw_maps((2, 16, 5, 7), 0),
    "ties": draw_ties((2, 8, 6, 5), 0),
    "nan": put_in(draw_ties((1, 8, 7, 8), 0), float("nan"), 1),
    "infinite": put_in(put_in(draw_ties((1, 8, 8, 7), 0), float("inf"), 1), -float("inf"), 2),
    "nothing_larger": torch.full((1, 8, 5, 5), -float("inf")),
    "one_window": draw_maps((1, 24, 3, 4), 3),
    "two_programs": draw_maps((2, 24, 15, 17), 4),
}


@pytest.mark.parametrize("is_recorded", [False, True], ids=["function", "operator"])
@pytest.mark.parametrize("name", MAPS)
def test_pooling_is_torchs_to_the_bit(name: str, is_recorded: bool) -> None:
    maps = MAPS[name].contiguous(memory_format=torch.channels_last)
    grad = draw_maps(tuple(F.max_pool2d(maps, 3, 2).shape), 9, last=True)
    leaf = maps.to(DEVICE).requires_grad_()
    pooled = pool(leaf, is_recorded)
    (gradient,) = torch.autograd.grad(pooled, leaf, grad.to(DEVICE))
    for one, other in zip((pooled.detach(), gradient), pool_with_torch(maps, grad), strict=True):
        assert one.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(one.cpu(), other, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("relu", ["before", "behind"])
@pytest.mark.parametrize("name", [name for name in MAPS if name != "two_programs"])
def test_pooling_with_a_relu_is_both_layers_to_the_bit(name: str, relu: str) -> None:
    maps = MAPS[name].contiguous(memory_format=torch.channels_last)
    grad = draw_maps(tuple(F.max_pool2d(maps, 3, 2).shape), 9, last=True)
    leaf = maps.to(DEVICE).requires_grad_()
    pooled = pool(leaf, relu=True)
    (gradient,) = torch.autograd.grad(pooled, leaf, grad.to(DEVICE))
    expected = pool_with_torch(maps, grad, relu=relu)
    for one, other in zip((pooled.detach(), gradient), expected, strict=True):
        torch.testing.assert_close(one.cpu(), other, rtol=0, atol=0, equal_nan=True)
    if name == "nothing_larger":
        assert not torch.equal(pool_with_torch(maps, grad)[0], expected[0])


@pytest.mark.parametrize("name", MAPS)
def test_positions_are_torchs(name: str) -> None:
    maps = MAPS[name].contiguous(memory_format=torch.channels_last)
    _, positions = pool_vectors(maps.to(DEVICE), False)
    width, rows, columns = maps.shape[3], *positions.shape[2:]
    down, right = positions.cpu().long() // 3, positions.cpu().long() % 3
    y, x = 2 * torch.arange(rows)[:, None] + down, 2 * torch.arange(columns) + right
    assert torch.equal(y * width + x, F.max_pool2d(maps, 3, 2, return_indices=True)[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_pooling_of_16_bits(dtype: torch.dtype) -> None:
    maps = draw_ties((2, 8, 7, 5), 0).to(dtype).contiguous(memory_format=torch.channels_last)
    grad = draw_ties((2, 8, 3, 2), 1).to(dtype)  # of another format, too
    leaf = maps.to(DEVICE).requires_grad_()
    pooled = pool(leaf)
    (gradient,) = torch.autograd.grad(pooled, leaf, grad.to(DEVICE))
    for one, other in zip((pooled.detach(), gradient), pool_with_torch(maps, grad), strict=True):
        assert one.dtype == dtype
        assert torch.equal(one.cpu(), other)


def test_a_wrong_position_is_noticed() -> None:
    """The last of equal maxima in place of the first."""
    maps, grad = draw_ties((1, 8, 5, 5), 0), draw_maps((1, 8, 2, 2), 1)
    (turned,) = torch.autograd.grad(F.max_pool2d(leaf := maps.flip(2, 3).requires_grad_(), 3, 2), leaf, grad.flip(2, 3))
    assert not torch.equal(turned.flip(2, 3), pool_with_torch(maps, grad)[1])


@pytest.mark.parametrize(
    ("maps", "window", "fits"),
    [
        (torch.empty(2, 16, 5, 5), (3, 2), True),
        (torch.empty(2, 12, 5, 5), (3, 2), False),
        (torch.empty(2, 16, 5, 5), (2, 2), False),
        (torch.empty(2, 16, 5, 5), (3, 3), False),
        (torch.empty(2, 16, 2, 5), (3, 2), False),  # PyTorch's own words on it
        (torch.empty(2, 16, 5, 5, dtype=torch.float64), (3, 2), False),
    ],
)
def test_other_windows_keep_torchs_pooling(maps: Tensor, window: tuple[int, int], fits: bool) -> None:
    assert is_poolable(maps.contiguous(memory_format=torch.channels_last), *window) is fits
    assert not is_poolable(maps.contiguous(), *window)


# -- both -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_recorded", [False, True], ids=["function", "operator"])
@pytest.mark.parametrize("kernel", ["normalize", "pool"])
def test_vectors_of_no_images_are_none(kernel: str, is_recorded: bool) -> None:
    maps = torch.empty(0, 16, 5, 5, device=DEVICE).contiguous(memory_format=torch.channels_last).requires_grad_()
    made = pool(maps, is_recorded) if kernel == "pool" else Vectors(2, is_recorded=is_recorded)(maps)
    made.sum().backward()
    assert made.shape == ((0, 16, 2, 2) if kernel == "pool" else maps.shape)
    assert maps.grad.shape == maps.shape  # type: ignore[union-attr]


@pytest.mark.parametrize("module", [normalization_vectors_kernel, pooling_kernel], ids=["normalize", "pool"])
def test_any_number_of_programs_fits_the_grid(module: Any) -> None:
    """CUDA starts at most 65,535 programs along all axes but the first."""
    maps = torch.empty(70_000, 96, 55, 55, device="meta")[:23_000]
    (programs,) = module._grid(maps)
    assert programs > 65_535
    assert 0 <= programs * 8 * module.BLOCK - maps.numel() < 8 * module.BLOCK


def test_second_derivatives_are_refused() -> None:
    for compute in (Vectors(2), pool):
        maps = draw_maps((1, 16, 3, 3), 0, last=True).to(DEVICE).requires_grad_()
        (gradient,) = torch.autograd.grad(compute(maps).square().sum(), maps, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            gradient.sum().backward()
