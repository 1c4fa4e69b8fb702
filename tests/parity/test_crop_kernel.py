"""The GPU's kernel for crops against the eager code: on a GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from alexnet_dist.data.engines.finish import Places, cut_crops

pytest.importorskip("triton")
from alexnet_dist.data.engines import crop_kernel

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SIDE = 9

# -- crops ------------------------------------------------------------------------------------------------------------


def draw_crops(channels: int) -> tuple[Tensor, Places, Tensor, Tensor]:
    """Six rows among bytes: pictures of several widths, every flip, one row without an image."""
    dice = np.random.default_rng(channels)
    pixels = torch.from_numpy(dice.integers(0, 256, 9000, dtype=np.uint8)).to(DEVICE)
    starts, widths = np.array([0, 7, -1, 4000, 8000, 311]), np.array([9, 12, 20, 31, 15, 10])
    flips = np.array([(0, 0), (1, 0), (1, 1), (0, 1), (1, 1), (0, 0)], np.bool_)
    crops = Places(*(torch.from_numpy(array).to(DEVICE) for array in (starts, widths * channels, flips)))
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
