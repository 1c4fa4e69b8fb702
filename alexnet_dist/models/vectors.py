"""Which maps the kernels of a GPU can read eight channels at a time: 16 bytes of bf16, the most that a thread loads."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.jit import is_tracing  # type: ignore[attr-defined]

from alexnet_dist.base.machine import can_build_kernels

CHANNELS = 8
_TYPES = (torch.bfloat16, torch.float16, torch.float32)
_MOST_VALUES = CHANNELS * 2**31 - CHANNELS * 2**10  # the kernels count vectors in 32 bits
_CAN_BUILD = can_build_kernels()  # a constant: torch.compile cannot look for programs on the disk


def fits_vectors(maps: Tensor, group: int) -> bool:
    """Whether maps lie in memory as vectors of eight channels of one group.

    Args:
        maps: (B, C, H, W).
        group: channels that belong together.
    """
    if maps.dim() != 4 or maps.dtype not in _TYPES or group % CHANNELS:
        return False
    return maps.is_contiguous(memory_format=torch.channels_last) and maps.numel() <= _MOST_VALUES


def runs_kernels(maps: Tensor) -> bool:
    """Whether kernels of ours can be started on the maps: on a GPU, where Triton can build them, and not in a trace."""
    return maps.device.type == "cuda" and not is_tracing() and _CAN_BUILD


def use_vectors(model: nn.Module, wanted: bool) -> None:
    """Let a network's normalizations and poolings take these kernels where they can, or keep them from it."""
    for module in model.modules():
        if hasattr(module, "uses_vectors"):
            module.uses_vectors = wanted  # type: ignore[assignment]


def take_in_relu(features: nn.Sequential) -> None:
    """Leave each ReLU beside such a normalization or pooling to its kernel, in place; no layer changes its number.

    A ReLU goes before a normalization, or before or behind a pooling, which give the same.
    """
    for place, module in enumerate(features):
        if not isinstance(module, nn.ReLU):
            continue
        beside = [
            *features[place + 1 : place + 2],
            *(features[place - 1 : place] if _pools(features[place - 1]) else ()),
        ]
        taker = next((found for found in map(_find_taker, beside) if found is not None), None)
        if taker is not None:
            taker.takes_relu = True  # type: ignore[assignment]
            features[place] = nn.Identity()


def _pools(module: nn.Module) -> bool:
    return isinstance(module, nn.MaxPool2d)


def _find_taker(module: nn.Module) -> nn.Module | None:
    first = module[0] if isinstance(module, nn.Sequential) else module  # two normalizations under one number
    return first if hasattr(first, "takes_relu") else None
