"""The resize of every engine: bilinear with antialias, as torchvision does it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate

_FAST = ("AVX2", "AVX512")  # where torch resizes bytes by itself


def resize_planes(planes: Tensor, height: int, width: int) -> Tensor:
    """Resize (N, C, H, W) uint8 to (N, C, height, width), to the bit as torchvision's `resize`.

    On most CPUs torchvision hands its task to PyTorch, and so it is not imported there: that takes a second of a start.
    """
    if planes.device.type == "cpu" and torch.backends.cpu.get_cpu_capability() in _FAST:
        return interpolate(planes, (height, width), mode="bilinear", antialias=True)
    from torchvision.transforms.v2 import functional as transforms

    resized: Tensor = transforms.resize(planes, [height, width], antialias=True)
    return resized
