"""Layers with the ReLU behind them, as a GPU computes them in fewer passes: bias and ReLU, ReLU and dropout.

The bits are those of the layers one by one on a GPU, where PyTorch adds the bias to the rounded output of cuDNN. Only a
zero of a gradient can have the other sign. Elsewhere than on a GPU, the layers are what is computed.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from alexnet_dist.models.vectors import runs_kernels


class ReluConv2d(nn.Conv2d):
    """relu(convolution(maps)); bias and ReLU in one pass. There is no second derivative."""

    def forward(self, maps: Tensor) -> Tensor:
        assert self.bias is not None
        if not _can_be_fused(maps) or not maps.is_contiguous(memory_format=torch.channels_last):
            return F.relu(super().forward(maps))
        made = F.conv2d(maps, self.weight, None, self.stride, self.padding, self.dilation, self.groups)
        biased: Tensor = _AddBiasRelu.apply(_lay_out(made), self.bias.to(made.dtype))
        return biased


class ReluLinear(nn.Linear):
    """dropout(relu(linear(values))); one pass back through dropout and ReLU. There is no second derivative."""

    dropout = 0.0

    def forward(self, values: Tensor) -> Tensor:
        made, rate = super().forward(values), self.dropout if self.training else 0.0  # (B, out_features)
        if not rate or not _can_be_fused(made):
            return F.dropout(F.relu(made), rate, training=rate > 0)
        kept: Tensor = _ReluDropout.apply(made, rate)
        return kept


def fuse_relu(features: nn.Sequential, classifier: nn.Sequential) -> None:
    """Leave ReLUs, and dropout behind them, to the layers before them, in place; no layer changes its number.

    A ReLU that a normalization or pooling has taken is not there any more, see `vectors.take_in_relu`. The dropout in
    front of fc7 stands behind fc6, too.
    """
    for place, (layer, behind) in enumerate(pairwise(features)):
        if type(layer) is nn.Conv2d and isinstance(behind, nn.ReLU):
            layer.__class__ = ReluConv2d
            features[place + 1] = nn.Identity()
    for place in range(len(classifier) - 2):
        layer, relu, dropout = classifier[place : place + 3]
        if type(layer) is nn.Linear and isinstance(relu, nn.ReLU) and isinstance(dropout, nn.Dropout):
            layer.__class__ = ReluLinear
            layer.dropout = dropout.p  # type: ignore[assignment]
            classifier[place + 1], classifier[place + 2] = nn.Identity(), nn.Identity()


def _can_be_fused(values: Tensor) -> bool:
    return not torch.compiler.is_compiling() and runs_kernels(values) and values.dtype != torch.float64


def _lay_out(maps: Tensor) -> Tensor:
    return maps.contiguous(memory_format=torch.channels_last)


class _AddBiasRelu(torch.autograd.Function):
    """(B, C, H, W) maps, used up, and (C,) bias to (B, C, H, W)."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, bias: Tensor) -> Tensor:
        from alexnet_dist.models.fused_relu_kernel import add_bias_relu  # Triton is not everywhere

        add_bias_relu(maps, bias)
        ctx.mark_dirty(maps)
        ctx.save_for_backward(maps)
        return maps

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        (made,) = ctx.saved_tensors
        masked = torch.ops.aten.threshold_backward(grad, made, 0)  # (B, C, H, W)
        return masked, masked.sum((0, 2, 3)) if ctx.needs_input_grad[1] else None


class _ReluDropout(torch.autograd.Function):
    """(B, C) to (B, C)."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, rate: float) -> Tensor:
        made: Tensor = torch.native_dropout(F.relu(values), rate, True)[0]
        ctx.save_for_backward(made)
        ctx.scale = 1 / (1 - rate)
        return made

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        from alexnet_dist.models.fused_relu_kernel import mask_gradient

        (made,) = ctx.saved_tensors
        return mask_gradient(grad, made, ctx.scale), None
