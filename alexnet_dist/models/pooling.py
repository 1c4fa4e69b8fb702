"""Max pooling, by the means that the device has: a GPU has a kernel of its own for the network's windows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.jit import is_scripting  # type: ignore[attr-defined]

from alexnet_dist.models.vectors import fits_vectors, runs_kernels


class MaxPooling(nn.MaxPool2d):
    """Takes the maximum of square windows, as `nn.MaxPool2d` does, to the bit.

    Input: (B, C, H, W). Output: (B, C, (H - kernel) // stride + 1, (W - kernel) // stride + 1). On a GPU, windows of 3
    with stride 2 have no second derivative, unless `uses_vectors` is False.

    Args:
        kernel: side of the windows in pixels.
        stride: pixels between them.
    """

    def __init__(self, kernel: int, stride: int) -> None:
        super().__init__(kernel, stride)
        self.kernel, self.step = kernel, stride
        self.uses_vectors = True  # see `vectors.use_vectors`
        self.takes_relu = False  # see `vectors.take_in_relu`

    def forward(self, maps: Tensor) -> Tensor:
        return pool_maps(maps, self.kernel, self.step, self.uses_vectors, self.takes_relu)


@torch.fx.wrap  # one step in a graph of torch.fx: a tracer has no answer to what is asked of the maps here
def pool_maps(maps: Tensor, kernel: int, stride: int, uses_vectors: bool = True, takes_relu: bool = False) -> Tensor:
    """What `MaxPooling` computes, by the means that the device has and a recorder can follow.

    Args:
        maps: (B, C, H, W).
        kernel: side of the windows in pixels.
        stride: pixels between them.
        uses_vectors: take the kernel for eight channels at a time, where the maps fit.
        takes_relu: the ReLU beside the pooling is left to it. Before or behind it, the function is the same.
    """
    if is_scripting():  # TorchScript reads nothing behind this line
        pooled = F.max_pool2d(maps, kernel, stride)
        return F.relu(pooled) if takes_relu else pooled
    if uses_vectors and runs_kernels(maps) and is_poolable(maps, kernel, stride):
        return _pool_on_device(maps, takes_relu)
    pooled = F.max_pool2d(maps, kernel, stride)
    return F.relu(pooled) if takes_relu else pooled


def is_poolable(maps: Tensor, kernel: int, stride: int) -> bool:
    """Whether the kernel for eight channels at a time pools such maps."""
    return (kernel, stride) == (3, 2) and fits_vectors(maps, maps.shape[1]) and min(maps.shape[2:]) >= kernel


def _pool_on_device(maps: Tensor, takes_relu: bool) -> Tensor:
    from alexnet_dist.models.pooling_kernel import PoolVectors, pool_vectors  # Triton is not everywhere

    if torch.compiler.is_compiling():
        recorded: Tensor = pool_vectors(maps, takes_relu)[0]
        return recorded
    pooled: Tensor = PoolVectors.apply(maps, takes_relu)
    return pooled
