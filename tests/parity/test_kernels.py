"""The GPU's kernels against the eager code: on a GPU where there is one, else in Triton's interpreter on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from alexnet_dist.data.engines.finish import Places, cut_crops, locate_crops
from alexnet_dist.models import LocalResponseNorm

pytest.importorskip("triton")
from alexnet_dist.data.engines import crop_kernel
from alexnet_dist.models.normalization_kernel import NormalizeOnDevice, lay_dense

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SIDE = 9

# -- crops ------------------------------------------------------------------------------------------------------------


def draw_crops(channels: int) -> tuple[Tensor, Places, Tensor, Tensor]:
    """Six rows among bytes: pictures of several widths, every flip, one row without an image."""
    dice = np.random.default_rng(channels)
    pixels = torch.from_numpy(dice.integers(0, 256, 9000, dtype=np.uint8)).to(DEVICE)
    starts, widths = np.array([0, 7, -1, 4000, 8000, 311]), np.array([9, 12, 20, 31, 15, 10])
    flips = np.array([(0, 0), (1, 0), (1, 1), (0, 1), (1, 1), (0, 0)], np.bool_)
    crops = locate_crops(starts, widths * channels, flips, DEVICE)
    scale = torch.from_numpy(dice.uniform(0.01, 1, channels).astype(np.float32)).to(DEVICE)
    bias = torch.from_numpy(dice.normal(0, 2, (6, channels)).astype(np.float32)).to(DEVICE)
    return pixels, crops, scale, bias


def cut_by_hand(pixels: Tensor, crops: Places, scale: Tensor, bias: Tensor) -> Tensor:
    """The definition, image by image."""
    rows = []
    for start, stride, flips, offset in zip(*(part.tolist() for part in crops), bias.cpu(), strict=True):
        crop = torch.zeros(SIDE, SIDE, len(offset))
        if start >= 0:
            lines = [pixels[start + y * stride :][: SIDE * len(offset)] for y in range(SIDE)]
            crop = torch.stack(lines).view(SIDE, SIDE, -1).cpu().float()
        axes = [axis for axis, turned in ((1, flips[0]), (0, flips[1])) if turned]
        rows.append(crop.flip(axes) * scale.cpu() + offset)
    return torch.stack(rows)  # (6, SIDE, SIDE, C)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("cut", [crop_kernel.cut_crops, cut_crops], ids=["kernel", "chosen"])
def test_crops_are_the_definition(cut: Callable[..., Tensor], channels: int, dtype: torch.dtype) -> None:
    pixels, crops, scale, bias = draw_crops(channels)
    made = cut(pixels, crops, SIDE, scale, bias, dtype)
    assert (made.shape, made.dtype) == ((6, SIDE, SIDE, channels), dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(
        made.cpu().float(), cut_by_hand(pixels, crops, scale, bias), rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize("cut", [crop_kernel.cut_crops, cut_crops], ids=["kernel", "chosen"])
def test_bytes_stay_bytes(cut: Callable[..., Tensor]) -> None:
    """As jitter wants them."""
    pixels, crops, scale, bias = draw_crops(3)
    ones, zeros = torch.ones_like(scale), torch.zeros_like(bias)
    made = cut(pixels, crops, SIDE, ones, zeros, torch.uint8)
    assert made.dtype == torch.uint8
    assert torch.equal(made.cpu().float(), cut_by_hand(pixels, crops, ones, zeros))


def spread(tensor: Tensor) -> Tensor:
    """The same values with gaps between them."""
    return torch.stack([tensor, torch.zeros_like(tensor)], dim=-1)[..., 0]


def test_numbers_may_lie_apart() -> None:
    """A column of a table, a slice of a batch: what is no dense tensor is read as what it holds."""
    pixels, crops, scale, bias = draw_crops(3)
    apart = Places(*(spread(part) for part in crops))
    assert not any(part.is_contiguous() for part in apart)
    made = crop_kernel.cut_crops(spread(pixels), apart, SIDE, spread(scale), spread(bias), torch.float32)
    assert torch.equal(made, crop_kernel.cut_crops(pixels, crops, SIDE, scale, bias, torch.float32))


@pytest.mark.parametrize("rows", [70_000, 0])
def test_any_number_of_rows_fits_the_grid(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA starts at most 65,535 programs along all axes but the first."""
    grids: list[tuple[int, ...]] = []
    monkeypatch.setattr(crop_kernel, "_cut", Recorder(grids))
    numbers = torch.zeros(rows, dtype=torch.int64)
    crops = Places(numbers, numbers, torch.zeros(rows, 2, dtype=torch.bool))
    made = crop_kernel.cut_crops(torch.zeros(9), crops, 2, torch.ones(1), torch.zeros(rows, 1), torch.uint8)
    assert made.shape == (rows, 2, 2, 1)
    assert grids == ([(rows,)] if rows else [])


class Recorder:
    """In place of a kernel: keeps the grids that it is started with."""

    def __init__(self, grids: list[tuple[int, ...]]) -> None:
        self.grids = grids

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        self.grids.append(grid)
        return lambda *_: None


@pytest.mark.parametrize("defect", ["starts", "strides", "flips"])
def test_a_wrong_number_is_noticed(defect: str) -> None:
    pixels, crops, scale, bias = draw_crops(3)
    part = getattr(crops, defect)
    wrong = crops._replace(**{defect: ~part if defect == "flips" else part + 3})
    made = crop_kernel.cut_crops(pixels, wrong, SIDE, scale, bias, torch.float32)
    assert not torch.allclose(made.cpu(), cut_by_hand(pixels, crops, scale, bias), atol=1e-2)


# -- normalization across channels ------------------------------------------------------------------------------------


class Kernel(nn.Module):
    """The kernel with the settings of a layer, whatever that would choose."""

    def __init__(self, layer: LocalResponseNorm) -> None:
        super().__init__()
        self.settings = (layer.groups, layer.size // 2, layer.alpha / layer.size, layer.beta, layer.k)

    def forward(self, maps: Tensor) -> Tensor:
        made: Tensor = NormalizeOnDevice.apply(lay_dense(maps), *self.settings)
        return made


def draw_maps(shape: tuple[int, ...], seed: int) -> Tensor:
    """Values of the size that conv1 gives on the 0-255 scale, where the normalization does something."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 100


def run_both_ways(layer: nn.Module, maps: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    leaf = maps.detach().requires_grad_()
    output = layer(leaf)
    (gradient,) = torch.autograd.grad(output, leaf, grad)
    return output.detach(), gradient


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    "settings",
    [{"k": 2.0}, {"beta": 0.6}, {"size": 3, "alpha": 5e-4}, {"size": 1}, {"size": 9, "k": 1.0, "beta": 1.0}],
    ids=["2012", "beta", "size3", "size1", "size9"],
)
def test_lrn_is_the_eager_one(settings: dict[str, Any], groups: int, memory_format: torch.memory_format) -> None:
    layer = LocalResponseNorm(**settings, groups=groups)
    maps, grad = (draw_maps((2, 16, 7, 11), seed).contiguous(memory_format=memory_format) for seed in (0, 1))
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


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_lrn_of_no_images_is_none(memory_format: torch.memory_format) -> None:
    maps = torch.empty(0, 8, 3, 3, device=DEVICE).contiguous(memory_format=memory_format).requires_grad_()
    made = NormalizeOnDevice.apply(lay_dense(maps), 2, 2, 1e-4, 0.75, 2.0)
    made.sum().backward()
    assert made.shape == maps.grad.shape == (0, 8, 3, 3)  # type: ignore[union-attr]
