"""Response normalization: across channels, per tower, and within maps.

Shapes: B images, G groups (towers), C channels of one group, `...` the map. PyTorch's own LRN goes through a padded
3-d average pooling and `pow`, which copies channels-last maps to NCHW and dominates AlexNet's time on a CPU. Here the
window is a sum of shifted slices, and the backward pass recomputes the denominator, so only the input is kept. A GPU
has kernels of its own for LRN, where Triton can build them: one for the network's own shapes
(normalization_vectors_kernel.py), one for any (normalization_kernel.py).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.jit import is_scripting, is_tracing  # type: ignore[attr-defined]

from alexnet_dist.models.vectors import fits_vectors, runs_kernels

# Elements that one thread handles per round on a CPU: small enough for the scratch tensors to stay in its L2 cache.
_ELEMENTS_PER_THREAD = 1 << 17


class LocalResponseNorm(nn.Module):
    """Divides each value by (k + alpha/size * sum of the squares of its `size` neighbor channels) ** beta.

    `alpha` is divided by `size`, which is PyTorch's convention, Caffe's, and that of the 2012 program (cuda-convnet,
    layer.py, `scale /= size`); the paper's formula as printed would be five times this alpha. With `groups=2` each half
    of the channels is normalized on its own, as on the two GPUs of 2012: the window never crosses the seam.

    Input and output: (B, G*C, ...), the same dtype and memory format. 16-bit floats are computed in float32.
    There is no second derivative.

    Args:
        size: channels in the window, odd.
        alpha: weight of the squares, before the division by `size`.
        beta: exponent; 0.75 takes a path without `pow`.
        k: constant term.
        groups: number of towers; must divide the channels.

    Raises:
        ValueError: `size` is not odd and positive, or `groups` is not positive; when called, `groups` does not divide
            the channels.
    """

    def __init__(self, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 2.0, groups: int = 1) -> None:
        super().__init__()
        if size < 1 or size % 2 == 0:
            raise ValueError(f"size must be odd and positive, got {size}")
        if groups < 1:
            raise ValueError(f"groups must be at least 1, got {groups}")
        self.size, self.alpha, self.beta, self.k, self.groups = size, alpha, beta, k, groups
        self.uses_vectors = True  # see `vectors.use_vectors`
        self.takes_relu = False  # see `vectors.take_in_relu`

    def forward(self, maps: Tensor) -> Tensor:
        return self.normalize(maps, self.groups)

    def normalize(self, maps: Tensor, groups: int) -> Tensor:
        """What it computes for maps of so many groups: one tower's has a part of them."""
        reach, weight, ways = self.size // 2, self.alpha / self.size, (self.uses_vectors, self.takes_relu)
        return normalize_channels(maps, groups, reach, weight, self.beta, self.k, *ways)

    def extra_repr(self) -> str:
        return f"{self.size}, alpha={self.alpha}, beta={self.beta}, k={self.k}, groups={self.groups}"


class MapResponseNorm(nn.Module):
    """Divides each value by (1 + alpha * mean of the squares in the size x size window around it) ** beta.

    The window stays within its map; what it holds of the padding counts as zeros, so the mean always divides by
    size ** 2. The defaults are the 2012 program's `cnorm2` (cuda-convnet, layer-params-145.cfg: rnorm, size 5, scale
    0.001, pow 0.75; layer.py, `scale /= size**2`).

    Input and output: (B, C, H, W), the same dtype and memory format. 16-bit floats are computed in float32.

    Args:
        size: side of the window in pixels, odd.
        alpha: weight of the mean.
        beta: exponent.

    Raises:
        ValueError: `size` is not odd and positive.
    """

    def __init__(self, size: int = 5, alpha: float = 1e-3, beta: float = 0.75) -> None:
        super().__init__()
        if size < 1 or size % 2 == 0:
            raise ValueError(f"size must be odd and positive, got {size}")
        self.size, self.alpha, self.beta = size, alpha, beta

    def forward(self, maps: Tensor) -> Tensor:
        return normalize_within_maps(maps, self.size, self.alpha, self.beta)

    def extra_repr(self) -> str:
        return f"{self.size}, alpha={self.alpha}, beta={self.beta}"


@torch.fx.wrap  # one step in a graph of torch.fx: a tracer has no answer to what is asked of the maps here
def normalize_channels(
    maps: Tensor,
    groups: int,
    reach: int,
    weight: float,
    beta: float,
    k: float,
    uses_vectors: bool = True,
    takes_relu: bool = False,
) -> Tensor:
    """What `LocalResponseNorm` computes, by the means that the device has and a recorder can follow.

    Args:
        maps: (B, G*C, ...).
        groups: G.
        reach: channels of the window to either side.
        weight: of the squares.
        beta: exponent.
        k: constant term.
        uses_vectors: take the kernel for eight channels at a time, where the maps fit.
        takes_relu: the ReLU before the normalization is left to it.

    Raises:
        ValueError: `groups` does not divide the channels.
    """
    if is_scripting():  # TorchScript reads nothing behind this line
        return _normalize_plainly(F.relu(maps) if takes_relu else maps, groups, reach, weight, beta, k)
    if uses_vectors and runs_kernels(maps) and has_vectors(maps, groups, reach, beta):
        return _normalize_vectors(maps, groups, weight, k, takes_relu)
    maps = F.relu(maps) if takes_relu else maps
    if _is_recorded():
        return _normalize_plainly(maps, groups, reach, weight, beta, k)
    if maps.shape[1] % groups:
        raise ValueError(f"{maps.shape[1]} channels cannot be normalized in {groups} equal groups")
    if maps.dtype != torch.float64 and runs_kernels(maps):
        return _normalize_on_device(maps, groups, reach, weight, beta, k)
    towers = torch.unflatten(maps, 1, (groups, -1))  # (B, G, C, ...)
    normalized: Tensor = _Normalize.apply(towers, reach, weight, beta, k)
    return normalized.flatten(1, 2)  # (B, G*C, ...)


@torch.fx.wrap
def normalize_within_maps(maps: Tensor, size: int, alpha: float, beta: float) -> Tensor:
    """What `MapResponseNorm` computes for (B, C, H, W)."""
    wide = _widen(maps)
    mean = F.avg_pool2d(wide * wide, size, stride=1, padding=size // 2)  # (B, C, H, W)
    return (wide * (1 + alpha * mean).pow(-beta)).to(maps.dtype)  # (B, C, H, W)


def _is_recorded() -> bool:
    """Whether a compiler or a tracer writes the steps down, which wants none that compute in place or in rounds.

    A graph of torch 2.11 loses the gradient of a function that computes in place, a trace would keep the number of
    rounds, and a compiler fuses by itself.
    """
    return torch.compiler.is_compiling() or is_tracing()


def has_vectors(maps: Tensor, groups: int, reach: int, beta: float) -> bool:
    """Whether the kernel for eight channels at a time normalizes such maps, in such windows."""
    channels = maps.shape[1]
    return (reach, beta) == (2, 0.75) and channels % groups == 0 and fits_vectors(maps, channels // groups)


def _normalize_vectors(maps: Tensor, groups: int, weight: float, k: float, takes_relu: bool) -> Tensor:
    from alexnet_dist.models.normalization_vectors_kernel import NormalizeVectors, normalize_vectors

    if torch.compiler.is_compiling():
        recorded: Tensor = normalize_vectors(maps, groups, weight, k, takes_relu)
        return recorded
    normalized: Tensor = NormalizeVectors.apply(maps, groups, weight, k, takes_relu)
    return normalized


def _normalize_on_device(maps: Tensor, groups: int, reach: int, weight: float, beta: float, k: float) -> Tensor:
    from alexnet_dist.models.normalization_kernel import NormalizeOnDevice, lay_dense  # Triton is not everywhere

    normalized: Tensor = NormalizeOnDevice.apply(lay_dense(maps), groups, reach, weight, beta, k)
    return normalized


def _normalize_plainly(maps: Tensor, groups: int, reach: int, weight: float, beta: float, k: float) -> Tensor:
    """The definition, for those who record it."""
    x = torch.unflatten(maps, 1, (groups, -1))  # (B, G, C, ...), a view in every memory format
    wide = _widen(x)  # (B, G, C, ...)
    padded = F.pad(wide.square(), [0] * (2 * (x.dim() - 3)) + [reach, reach])  # (B, G, C + 2 * reach, ...)
    window = padded.narrow(2, 0, x.shape[2])  # (B, G, C, ...)
    for start in range(1, 2 * reach + 1):
        window = window + padded.narrow(2, start, x.shape[2])
    return (wide * (k + weight * window) ** -beta).to(x.dtype).flatten(1, 2)  # (B, G*C, ...)


class _Normalize(torch.autograd.Function):
    """y = x * s**-beta with s = k + weight * window(x**2); window() adds `reach` channels to either side."""

    # Elementwise arithmetic on float32 and float64 is none of autocast's business, so it needs no switching off here.

    @staticmethod
    def forward(ctx: Any, x: Tensor, reach: int, weight: float, beta: float, k: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.settings = (reach, weight, beta, k)
        y = torch.empty_like(x)  # (B, G, C, ...)
        for x_part, y_part in zip(_rounds(x), _rounds(y), strict=True):
            x_wide = _widen(x_part)  # (n, G, C, ...)
            _, factor = _denominator(x_wide, *ctx.settings)
            y_part.copy_(factor.mul_(x_wide))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        reach, weight, beta, _ = ctx.settings
        grad_x = torch.empty_like(x)  # (B, G, C, ...)
        for x_part, grad_y_part, grad_x_part in zip(_rounds(x), _rounds(grad_y), _rounds(grad_x), strict=True):
            x_wide, g_wide = _widen(x_part), _widen(grad_y_part)  # (n, G, C, ...)
            scale, factor = _denominator(x_wide, *ctx.settings)
            # dx = g s^-b - 2 b weight x window(g x s^(-b-1))
            terms = (factor / scale).mul_(x_wide).mul_(g_wide)  # (n, G, C, ...)
            crossed = _add_window(torch.zeros_like(terms), terms, reach, -2 * beta * weight)  # (n, G, C, ...)
            grad_x_part.copy_(crossed.mul_(x_wide).addcmul_(g_wide, factor))
        return grad_x, None, None, None, None


def _rounds(x: Tensor) -> tuple[Tensor, ...]:
    """Splits the images so that a round's scratch fits a CPU's caches; elsewhere more rounds only cost launches."""
    if x.device.type != "cpu":
        return (x,)
    per_image = max(1, x[:1].numel())
    return torch.split(x, max(1, _ELEMENTS_PER_THREAD * torch.get_num_threads() // per_image))


def _widen(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _denominator(x: Tensor, reach: int, weight: float, beta: float, k: float) -> tuple[Tensor, Tensor]:
    """Returns s = k + weight * window(x**2) and s**-beta, both (n, G, C, ...)."""
    scale = _add_window(torch.full_like(x, k), x * x, reach, weight)
    # Two roots and a cube (two products) cost less than a general power.
    factor = scale.rsqrt().sqrt_().pow_(3) if beta == 0.75 else scale.pow(-beta)
    return scale, factor


def _add_window(out: Tensor, terms: Tensor, reach: int, weight: float) -> Tensor:
    """Adds to `out` (n, G, C, ...) `weight` times the sum of `terms` over the channels at most `reach` away."""
    out.add_(terms, alpha=weight)
    for shift in range(1, min(reach, terms.shape[2] - 1) + 1):
        out[:, :, shift:].add_(terms[:, :, :-shift], alpha=weight)
        out[:, :, :-shift].add_(terms[:, :, shift:], alpha=weight)
    return out
