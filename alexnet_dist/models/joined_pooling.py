"""Max pooling in one pass with what stands beside it: the normalization before it, and a ReLU.

One after the other, these layers move the large maps of conv1 and conv2 some thirty times through a CPU's memory, which
costs an update of the paper's network a third of its time where the cores have matrix units. Here each row of the maps
is read once and stays in a core's cache until it is pooled. The functions are in C (joined_pooling.c), since PyTorch's
operators pass over whole tensors. A GPU has a kernel of its own each way (normalized_pooling_kernel.py).

Shapes: B images, C channels of all groups.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.jit import is_tracing  # type: ignore[attr-defined]

from alexnet_dist.base.c_library import load_c_library
from alexnet_dist.models.normalization import LocalResponseNorm, has_vectors
from alexnet_dist.models.pooling import MaxPooling, is_poolable
from alexnet_dist.models.vectors import runs_kernels

SOURCE = Path(__file__).with_suffix(".c")
PARTS = 4  # of a batch for each thread: one that was held up leaves its last ones to the others
_TYPES = (torch.bfloat16, torch.float32)


class JoinedPooling(nn.Module):
    """A normalization, if there is one, and the max pooling behind it, each with the ReLU that it has taken.

    Input: (B, C, H, W). Output: what both layers give, one after the other, rounded where they would round it; those of
    a GPU to the bit. The maps that do not fit are theirs to compute. There is no second derivative.

    Args:
        norm: None = there is none.
        pool: its `takes_relu` stands for a ReLU beside it, as `vectors.take_in_relu` leaves it.
    """

    def __init__(self, norm: LocalResponseNorm | None, pool: MaxPooling) -> None:
        super().__init__()
        self.norm, self.pool = norm, pool

    def forward(self, maps: Tensor) -> Tensor:
        if runs_kernels(maps):
            return _join_on_device(maps, self.norm, self.pool)
        if torch.compiler.is_compiling() or is_tracing() or not self._fits(maps):
            return _call_layers(maps, self.norm, self.pool)
        joined: Tensor = _Join.apply(maps, self._describe(maps))
        return joined

    def _fits(self, maps: Tensor) -> bool:
        norm, pool = self.norm, self.pool
        if type(maps) is not Tensor or maps.device.type != "cpu":  # a tensor of another kind may have no memory
            return False
        if maps.dtype not in _TYPES or maps.dim() != 4 or not maps.numel():
            return False
        if norm is not None and ((norm.size, norm.beta) != (5, 0.75) or maps.shape[1] % norm.groups):
            return False
        is_last = maps.is_contiguous(memory_format=torch.channels_last)
        return is_last and (pool.kernel, pool.step) == (3, 2) and min(maps.shape[2:]) >= pool.kernel

    def _describe(self, maps: Tensor) -> _Layers:
        norm, (_, channels, height, width) = self.norm, maps.shape
        return _Layers(
            height=height,
            width=width,
            channels=channels,
            groups=0 if norm is None else norm.groups,
            weight=0.0 if norm is None else norm.alpha / norm.size,
            k=1.0 if norm is None else norm.k,
            relu_before=norm is not None and norm.takes_relu,
            relu_behind=self.pool.takes_relu,
            is_bf16=maps.dtype == torch.bfloat16,
        )


def join_poolings(features: nn.Sequential) -> None:
    """Put each pooling, and a normalization before it, into one module, in place; no layer changes its number."""
    for place, pool in enumerate(features):
        if not isinstance(pool, MaxPooling):
            continue
        norm = features[place - 1]
        if isinstance(norm, LocalResponseNorm):
            features[place - 1], features[place] = JoinedPooling(norm, pool), nn.Identity()
        else:
            features[place] = JoinedPooling(None, pool)


def load_functions() -> ctypes.CDLL:
    """The functions in C, built if they are not there.

    Raises:
        MachineError: they cannot be.
    """
    return load_c_library(SOURCE)


def _call_layers(maps: Tensor, norm: LocalResponseNorm | None, pool: MaxPooling) -> Tensor:
    return pool(maps if norm is None else norm(maps))  # type: ignore[no-any-return]


def _join_on_device(maps: Tensor, norm: LocalResponseNorm | None, pool: MaxPooling) -> Tensor:
    if norm is None or not has_vectors(maps, norm.groups, norm.size // 2, norm.beta):
        return _call_layers(maps, norm, pool)
    if not is_poolable(maps, pool.kernel, pool.step):
        return _call_layers(maps, norm, pool)
    from alexnet_dist.models.normalized_pooling_kernel import NormalizePoolVectors, normalize_pool_vectors

    settings = (norm.groups, norm.alpha / norm.size, norm.k, norm.takes_relu, pool.takes_relu)
    if torch.compiler.is_compiling():
        recorded: Tensor = normalize_pool_vectors(maps, *settings)[0]
        return recorded
    joined: Tensor = NormalizePoolVectors.apply(maps, *settings)
    return joined


class _Layers(ctypes.Structure):
    """As in joined_pooling.c."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("height", "width", "channels", "groups")),
        *((name, ctypes.c_float) for name in ("weight", "k")),
        *((name, ctypes.c_int32) for name in ("relu_before", "relu_behind", "is_bf16")),
    ]


class _Join(torch.autograd.Function):
    """(B, C, H, W) to (B, C, (H - 3) // 2 + 1, (W - 3) // 2 + 1), both channels last."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, layers: _Layers) -> Tensor:
        images, channels, height, width = maps.shape
        shape = (images, (height - 3) // 2 + 1, (width - 3) // 2 + 1, channels)
        pooled = torch.empty(shape, dtype=maps.dtype).permute(0, 3, 1, 2)
        positions = torch.empty_like(pooled, dtype=torch.uint8)  # of the maxima in their windows
        _run("join_forward", images, layers, maps, pooled, positions)
        ctx.save_for_backward(positions, *([maps] if layers.groups else []))
        ctx.layers, ctx.shape, ctx.dtype = layers, maps.shape, maps.dtype
        return pooled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        positions, *maps = ctx.saved_tensors
        grad_maps = torch.empty(ctx.shape, dtype=ctx.dtype, memory_format=torch.channels_last)
        grad = grad.to(ctx.dtype, memory_format=torch.channels_last)  # (B, C, h, w)
        _run("join_backward", len(grad), ctx.layers, maps[0] if maps else grad_maps, grad_maps, grad, positions)
        return grad_maps, None


def _run(name: str, images: int, layers: _Layers, *tensors: Tensor) -> None:
    """Call a function for all images, in as many threads as PyTorch has.

    Raises:
        MemoryError: there is none for a few rows.
    """
    threads = torch.get_num_threads()
    function = getattr(load_functions(), name)
    places = [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]
    step = -(-images // (PARTS * threads)) if threads > 1 else images

    def call(begin: int) -> int:
        end = min(begin + step, images)
        failed: int = function(*places, ctypes.byref(layers), ctypes.c_int64(begin), ctypes.c_int64(end))
        return failed

    apply: Callable[..., Any] = map if threads == 1 else _workers(threads).map
    if any(list(apply(call, range(0, images, step)))):
        raise MemoryError(f"no memory for {name}")


@functools.cache
def _workers(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="join")


os.register_at_fork(after_in_child=_workers.cache_clear)  # a child has none of its parent's threads
