"""The last stage of every engine: crops of bytes and the step's plan become the network's input.

To a row with an image it does, in this order:

1. the operations of crop_ops that act on bytes (color jitter);
2. (pixel + color shift - mean) / std for each channel, on the 0-255 scale and in float32;
3. the loader's type and memory layout;
4. the operations of crop_ops that act on the network's input.

A row without an image is a black one: 2 and 3 of pixels that are 0.

An engine ends with crops in one of four forms, and says with which: `finish` chooses by that. All forms give the same
input, but for the last bits of float32: a product with 1 / std where the reference divides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from alexnet_dist.base.machine import can_build_kernels
from alexnet_dist.data.crop_ops.operations import change_crop, change_rows, changes_bytes
from alexnet_dist.data.engines.loader import Factors, Loader, Normalization
from alexnet_dist.data.engines.to_device import send
from alexnet_dist.data.plan import StepPlan

Mask: TypeAlias = npt.NDArray[np.bool_]

# Below torch's grain size of 32,768 elements an operation stays in its thread. Above, it would be spread over threads
# that the network is using: with busy cores that was seen to cost five times what it gains.
_PIECE_ELEMENTS = 32_767


class CutCrops(NamedTuple):
    """Crops that only the normalization is left to do for."""

    pixels: Tensor  # (B, S, S, C) uint8 on the loader's device, flipped, operations on bytes done; 0 without an image
    factors: Factors | None = None  # on the same device, where they are there already


class HostCrops(NamedTuple):
    """Crops that lie in host memory, each in its picture, in parts of a batch."""

    # The row, and (S, S, C) uint8 that is not flipped; of the rows with an image.
    parts: Sequence[Iterable[tuple[int, Tensor]]]
    # What goes through the parts, one of them in a thread: `map`, or that of a pool of threads.
    run: Callable[[Callable[[Any], None], Iterable[Any]], Iterable[None]] = map


class DeviceCrops(NamedTuple):
    """Crops that lie among bytes on the loader's device."""

    pixels: Tensor  # (bytes,) uint8
    places: Places
    factors: Factors


class ScaledCrops(NamedTuple):
    """Crops that were normalized as they were cut."""

    images: Tensor  # (m, C, S, S) float32 on the loader's device, in its layout; of the rows with an image


class Places(NamedTuple):
    """Where the crops of B rows lie among bytes, on the device of these. A pixel's channels lie side by side."""

    starts: Tensor  # (B,) int64 first byte; -1 = there is no image
    strides: Tensor  # (B,) int64 bytes from one line to the next
    flips: Tensor  # (B, 2) bool left-right, top-bottom


Crops: TypeAlias = CutCrops | HostCrops | DeviceCrops | ScaledCrops


def find_targets(loader: Loader, rows: StepPlan, mask: Mask) -> list[Tensor]:
    """Labels (B,) int64, 0 without an image, and weights (B,) float32, 1 with one; on the host."""
    labels = np.where(mask, loader.index.labels[rows.ids], 0)
    return [torch.from_numpy(labels), torch.from_numpy(mask.astype(np.float32))]


def find_images(loader: Loader, mask: Mask) -> list[int]:
    """The first row of each image in a mask (B,); with several views an image has as many rows, one after the other."""
    views = loader.plan.augmentation.views
    firsts: list[int] = (np.flatnonzero(mask[::views]) * views).tolist()
    return firsts


def find_factors(loader: Loader, rows: StepPlan) -> Factors:
    """Of B rows with their color shifts, on the host."""
    return loader.normalization.fold(torch.from_numpy(rows.shifts))


def finish(loader: Loader, crops: Crops, rows: StepPlan, mask: Mask) -> Tensor:
    """The network's input.

    Args:
        loader: recipe, input scale, type, layout and device.
        crops: what the engine has made.
        rows: the plan of the B rows.
        mask: (B,) which rows have an image.

    Returns:
        (B, C, S, S).
    """
    images = _SCALERS[type(crops)](loader, crops, rows, mask)
    return change_rows("input", images, rows.drawn, mask)


# -- crops that are cut -----------------------------------------------------------------------------------------------


def _scale_cut(loader: Loader, crops: CutCrops, rows: StepPlan, mask: Mask) -> Tensor:
    if crops.pixels.device.type == "cpu":
        shifts = torch.from_numpy(rows.shifts.astype(np.float32))
        return scale_pixels(loader.normalization, crops.pixels, shifts, loader.channels_last, loader.dtype)
    factors = crops.factors or Factors(*send(find_factors(loader, rows), crops.pixels.device))
    images = scale_on_device(crops.pixels, factors, loader.dtype)
    return images if loader.channels_last else images.contiguous()


def scale_pixels(
    scale: Normalization,
    pixels: Tensor,
    shifts: Tensor,
    channels_last: bool,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """(B, S, S, C) uint8 and (B, 3) color shifts to (B, C, S, S), computed in float32; all on the host."""
    images = _scale_on_host(scale, pixels, shifts).to(dtype)
    return images if channels_last else images.contiguous()


def show_images(images: Tensor, scale: Normalization) -> npt.NDArray[np.uint8]:
    """The network's input as pictures, the input scale undone: (B, C, S, S) to (B, S, S, C) bytes.

    What color noise moved out of 0..255 is cut off.
    """
    pixels = images.float().cpu().permute(0, 2, 3, 1)  # (B, S, S, C)
    pixels = pixels * torch.tensor(scale.std) + torch.tensor(scale.mean)
    shown: npt.NDArray[np.uint8] = pixels.round().clamp(0, 255).to(torch.uint8).numpy()
    return shown


def scale_on_device(pixels: Tensor, factors: Factors, dtype: torch.dtype) -> Tensor:
    """(B, S, S, C) uint8 to (B, C, S, S) in one kernel, which reads bytes and writes `dtype`."""
    planes = pixels.permute(0, 3, 1, 2)  # (B, C, S, S); operations on bytes may have left planes in memory
    images = torch.empty_like(planes, dtype=dtype, memory_format=torch.channels_last)
    return torch.addcmul(factors.bias[:, :, None, None], planes, factors.scale[:, None, None], out=images)


def _scale_on_host(scale: Normalization, pixels: Tensor, shifts: Tensor) -> Tensor:
    """The sum as it is written, image by image while it lies in the core's cache, and a row of pixels at a time.

    In numpy: torch would share each image out over threads, which wait for each other while workers use the cores.
    """
    rows, height, width, channels = pixels.shape
    made = np.empty((rows, height, width * channels), np.float32)
    tiled = np.tile(scale.find_offsets(shifts).numpy(), width)  # (B, S * C)
    std = np.tile(np.array(scale.std, np.float32), width)
    for image, source, offset in zip(made, pixels.reshape(made.shape).numpy(), tiled, strict=True):
        image[...] = source
        image += offset
        image /= std
    return torch.from_numpy(made).view(pixels.shape).permute(0, 3, 1, 2)  # (B, C, S, S), channels last in memory


# -- crops in host memory: from there to the batch in one pass --------------------------------------------------------


def _scale_from_host(loader: Loader, crops: HostCrops, rows: StepPlan, mask: Mask) -> Tensor:
    """As pixel * scale + bias, cut, flipped and converted in pieces that fit a core's cache."""
    recipe = loader.plan.augmentation
    side, channels, count = recipe.crop_size, loader.channels, len(rows.ids)
    scale, bias = find_factors(loader, rows)  # (C,) and (B, C)
    scale, bias = scale.repeat(side), bias.repeat(1, side)  # (S * C,), (B, S * C): a line has its channels side by side
    shape = (count, side, side, channels) if loader.channels_last else (count, channels, side, side)
    # numpy asks the system for large pages, torch does not: a fresh batch costs a fifth of the time.
    size = math.prod(shape) * loader.dtype.itemsize
    made = torch.from_numpy(np.empty(size, np.uint8)).view(loader.dtype).view(shape)
    images = made.permute(0, 3, 1, 2) if loader.channels_last else made  # (B, C, S, S)
    without = torch.from_numpy(~mask)
    images[without] = bias[without, :channels, None, None].to(loader.dtype)
    is_changed, turns = changes_bytes(recipe), rows.flips.tolist()

    def scale_part(part: Iterable[tuple[int, Tensor]]) -> None:
        scratch = torch.empty(side, side * channels)
        for row, uncut in part:  # a few microseconds a row are a few percent of the engine's time
            crop, flips, offset = uncut, turns[row], bias[row]
            if is_changed:
                crop, flips = change_crop(_flip(crop, *flips), rows.drawn, row), (False, False)
            lines = made[row].flatten(1) if loader.channels_last else scratch  # (S, S * C), a view
            for where, piece in _cut_pieces(crop, *flips):
                torch.addcmul(offset, piece.flatten(1), scale, out=lines[where])
                if not loader.channels_last:
                    images[row, :, where] = lines[where].view(-1, side, channels).permute(2, 0, 1)

    for _ in crops.run(scale_part, crops.parts):
        pass
    return images


def _cut_pieces(crop: Tensor, left_right: bool, top_bottom: bool) -> Iterator[tuple[slice, Tensor]]:
    """A crop (S, S, C) flipped, in pieces: which lines of the result, and (lines, S, C)."""
    side, axes = len(crop), _find_axes(left_right, top_bottom)
    step = max(1, _PIECE_ELEMENTS // crop[0].numel())
    for start in range(0, side, step):
        stop = min(start + step, side)
        piece = crop[side - stop : side - start] if top_bottom else crop[start:stop]
        yield slice(start, stop), piece.flip(axes) if axes else piece


def _flip(crop: Tensor, left_right: bool, top_bottom: bool) -> Tensor:
    axes = _find_axes(left_right, top_bottom)
    return crop.flip(axes) if axes else crop


def _find_axes(left_right: bool, top_bottom: bool) -> list[int]:
    return [axis for axis, turned in ((0, top_bottom), (1, left_right)) if turned]


# -- crops on the device: cut, flipped and normalized by one kernel ---------------------------------------------------


def _scale_from_device(loader: Loader, crops: DeviceCrops, rows: StepPlan, mask: Mask) -> Tensor:
    recipe, channels = loader.plan.augmentation, loader.channels
    if changes_bytes(recipe):
        ones = torch.ones(channels, device=loader.device)
        zeros = torch.zeros(len(mask), channels, device=loader.device)
        cut = cut_crops(crops.pixels, crops.places, recipe.crop_size, ones, zeros, torch.uint8)  # (B, S, S, C)
        return _scale_cut(loader, CutCrops(change_rows("bytes", cut, rows.drawn, mask), crops.factors), rows, mask)
    made = cut_crops(crops.pixels, crops.places, recipe.crop_size, *crops.factors, loader.dtype)  # (B, S, S, C)
    images = made.permute(0, 3, 1, 2)  # (B, C, S, S), channels last in memory
    return images if loader.channels_last else images.contiguous()


def cut_crops(pixels: Tensor, places: Places, side: int, scale: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
    """Cut and flip crops, and make pixel * scale + bias of them; a row without image has pixels of 0.

    Args:
        pixels: (bytes,) uint8.
        places: of the crops.
        side: of the crops in pixels.
        scale: (C,) float32.
        bias: (B, C) float32.
        dtype: of the result.

    Returns:
        (B, side, side, C).
    """
    if pixels.device.type == "cuda" and can_build_kernels():
        from alexnet_dist.data.engines import crop_kernel

        return crop_kernel.cut_crops(pixels, places, side, scale, bias, dtype)
    steps = torch.arange(side, device=pixels.device)
    columns, lines = (torch.where(places.flips[:, [axis]], side - 1 - steps, steps) for axis in (0, 1))  # (B, side)
    channels = torch.arange(bias.shape[1], device=pixels.device)
    sources = (places.starts[:, None] + lines * places.strides[:, None])[:, :, None, None]  # (B, side, 1, 1)
    sources = sources + columns[:, None, :, None] * bias.shape[1] + channels  # (B, side, side, C)
    is_image = (places.starts >= 0)[:, None, None, None]
    cut = pixels[sources * is_image] * is_image  # (B, side, side, C) uint8
    return torch.addcmul(bias[:, None, None], cut, scale).to(dtype)


# -- crops that are normalized ----------------------------------------------------------------------------------------


def _place_scaled(loader: Loader, crops: ScaledCrops, rows: StepPlan, mask: Mask) -> Tensor:
    """Among the B rows, with black ones where there is no image."""
    images = crops.images.to(loader.dtype)
    if mask.all():
        return images
    std = torch.tensor(loader.normalization.std)
    black = loader.normalization.find_offsets(torch.from_numpy(rows.shifts.astype(np.float32))) / std  # (B, C)
    side, layout = loader.plan.augmentation.crop_size, torch.contiguous_format
    made = torch.empty(
        (*black.shape, side, side),
        dtype=loader.dtype,
        device=loader.device,
        memory_format=torch.channels_last if loader.channels_last else layout,
    )
    made.copy_(black.to(loader.device, non_blocking=True)[:, :, None, None])
    if mask.any():
        made[torch.from_numpy(np.flatnonzero(mask)).to(loader.device, non_blocking=True)] = images
    return made


# How 2 and 3 are done for each form, and why not in one way for all:
_SCALERS: dict[type[Crops], Callable[[Loader, Any, StepPlan, Mask], Tensor]] = {
    # torchvision: its processes send bytes, a quarter of what float32 would be. On a device one kernel; on a host
    # numpy, and the very sum, for this is the reference. Whatever changes bytes on a device ends here, too.
    CutCrops: _scale_cut,
    # cache and DALI, on a CPU: a batch of cut bytes between would be written and read once more, for nothing.
    HostCrops: _scale_from_host,
    # cache, on a GPU: one kernel reads a byte once and writes a value once; cutting apart doubles the traffic.
    DeviceCrops: _scale_from_device,
    # DALI, on a GPU: crop_mirror_normalize cuts, and normalizes on the way, in DALI's own kernels.
    ScaledCrops: _place_scaled,
}
