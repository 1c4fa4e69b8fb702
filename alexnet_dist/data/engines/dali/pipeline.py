"""The DALI graph of a plan. It draws nothing and keeps nothing.

On a GPU: read, decode, cut, resize, flip, crop, normalize. On a CPU it ends with the windows that it has decoded:
PyTorch resizes bytes in a quarter of the time, and to the bit as the reference does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import nvidia.dali as dali_package
import torch
from torch import Tensor

from alexnet_dist.data.crop_ops.operations import changes_bytes
from alexnet_dist.data.decode import Pixels
from alexnet_dist.data.engines.dali.scaling import Scaling
from alexnet_dist.data.engines.loader import Loader
from alexnet_dist.data.plan import share_rows

# Half of DALI has types, and they disagree with what it takes.
dali: Any = dali_package
fn, types = dali.fn, dali.types

NUM_FOR_WINDOWS = 3  # file, start, shape
# Pillow's rule for gray, in 65536ths.
LUMA_PARTS = (19595, 38470, 7471)


@dataclass(frozen=True)
class Recipe:
    """What is the same for all images.

    Args:
        side: of the crops in pixels.
        views: crops of an image.
        channels: 3, or 1 for gray.
        std: what pixels are divided by, per channel.
        layout: of the crops, HWC or CHW.
        decoder: cpu, or mixed for a GPU.
        hw_decoder_load: part of the JPEGs for a GPU's hardware decoder.
        has_names: files come by their names, and not as what is in them.
        scales: it goes on behind the windows.
    """

    side: int
    views: int
    channels: int
    std: tuple[float, ...]
    layout: str
    decoder: str
    hw_decoder_load: float
    has_names: bool
    scales: bool


def build_pipeline(loader: Loader, source: Iterator[tuple[object, ...]], scales: bool) -> Any:
    """A pipeline for `take_windows`, or one for `take_crops`.

    Args:
        loader: plan, layout, device and settings.
        source: `Inputs.flatten` of each batch.
        scales: it resizes, crops and normalizes.

    Raises:
        RuntimeError: DALI cannot use the device.
    """
    recipe, on_gpu = loader.plan.augmentation, loader.device.type == "cuda"
    graph = Recipe(
        side=recipe.crop_size,
        views=recipe.views,
        channels=loader.channels,
        std=(1.0,) * loader.channels if changes_bytes(recipe) else loader.normalization.std,
        layout="HWC" if loader.channels_last else "CHW",
        decoder="mixed" if on_gpu else "cpu",
        hw_decoder_load=loader.hw_decoder_load,
        has_names=loader.index.containers is None,
        scales=scales,
    )
    pipeline = dali.pipeline_def(_define_graph)(
        source,
        graph,
        batch_size=share_rows(loader.plan.global_batch_size, loader.num_shards),
        num_threads=max(1, loader.workers),
        device_id=_device_id(loader.device) if on_gpu else None,
        prefetch_queue_depth=loader.prefetch,
        exec_dynamic=True,  # a batch that was taken keeps its memory, and one that failed leaves the others as they are
    )
    pipeline.build()
    return pipeline


def take_windows(pipeline: Any) -> list[Pixels]:
    """The next batch as windows (H, W, C) in host memory that DALI does not write to again.

    Raises:
        RuntimeError: an image of the batch cannot be decoded.
    """
    (windows,) = pipeline.share_outputs()
    pipeline.release_outputs()
    return [np.asarray(window) for window in windows]  # a view, which keeps the memory of them all


def take_crops(pipeline: Any, device: torch.device) -> list[Tensor]:
    """The next batch as crops of each view, in memory that DALI does not write to again.

    Returns:
        For each view (n, S, S, C) or (n, C, S, S) float32 on the device: pixels on the 0-255 scale where operations on
        bytes follow, else the network's input.

    Raises:
        RuntimeError: an image of the batch cannot be decoded.
    """
    # On a GPU they are bound to torch's stream: what torch does with them waits until they are made, and their memory
    # is used again behind that.
    stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
    shared = pipeline.share_outputs(cuda_stream=stream)
    outputs = [torch.utils.dlpack.from_dlpack(output.as_tensor()) for output in shared]
    pipeline.release_outputs()
    return outputs


def _device_id(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


def _define_graph(source: Iterator[tuple[object, ...]], recipe: Recipe) -> tuple[Any, ...]:
    num_numbers = len(Scaling._fields) - 1
    num_inputs = NUM_FOR_WINDOWS + (num_numbers + 3 * recipe.views if recipe.scales else 0)
    file, start, shape, *rest = fn.external_source(source=source, num_outputs=num_inputs, batch=True)
    picture = _decode_window(file, start, shape, recipe)
    if not recipe.scales:
        return (picture,)
    given: Any = Scaling._make([*rest[:num_numbers], rest[num_numbers:]])
    # Not by multi_paste, which reads beyond its memory on a GPU.
    padded = fn.slice(
        picture,
        start=fn.reshape(-given.margins, shape=[2]),
        shape=given.padded,
        axes=[0, 1],
        out_of_bounds_policy="pad",
        fill_values=[0] * recipe.channels,  # a value for each channel: with one for all DALI takes three times as long
    )
    picture = fn.resize(
        padded, size=given.resized, roi_start=given.inner_start, roi_end=given.inner_end, antialias=True
    )
    return tuple(_cut_view(picture, given, recipe, view) for view in range(recipe.views))


def _decode_window(file: Any, start: Any, shape: Any, recipe: Recipe) -> Any:
    # Read, not mapped: a mapped file that is cut short while it is decoded kills the process.
    encoded = fn.io.file.read(file, dont_use_mmap=True) if recipe.has_names else file
    picture = fn.decoders.image_slice(
        encoded,
        start=start,
        shape=shape,
        axis_names="WH",
        device=recipe.decoder,
        output_type=types.RGB,
        adjust_orientation=False,
        jpeg_fancy_upsampling=True,
        hw_decoder_load=recipe.hw_decoder_load,
    )
    return picture if recipe.channels == 3 else _convert_to_luma(picture)


def _convert_to_luma(picture: Any) -> Any:
    """(H, W, 3) to (H, W, 1) uint8, to the bit as `decode.convert_to_luma`."""
    parts = [fn.cast(picture[:, :, c : c + 1], dtype=types.INT32) * LUMA_PARTS[c] for c in range(3)]
    return fn.cast((parts[0] + parts[1] + parts[2] + 32768) // 65536, dtype=types.UINT8)


def _cut_view(picture: Any, given: Any, recipe: Recipe, view: int) -> Any:
    x, y, mirror = given.crops[3 * view : 3 * view + 3]
    return fn.crop_mirror_normalize(
        picture,
        crop=[recipe.side, recipe.side],
        crop_pos_x=x,
        crop_pos_y=y,
        mirror=mirror,
        mean=given.mean,
        std=list(recipe.std),
        dtype=types.FLOAT,
        output_layout=recipe.layout,
    )
