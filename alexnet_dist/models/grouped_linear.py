"""A fully connected layer in groups, which PyTorch has for convolutions only."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class GroupedLinear(nn.Linear):
    """A fully connected layer whose outputs each read one group of the inputs.

    Input: (B, in_features). Output: (B, out_features). The weight is (out_features, in_features / groups).

    Args:
        in_features: inputs of all groups.
        out_features: outputs of all groups.
        groups: how many groups; must divide both.
    """

    def __init__(self, in_features: int, out_features: int, groups: int) -> None:
        super().__init__(in_features // groups, out_features)
        self.groups = groups

    def forward(self, values: Tensor) -> Tensor:
        parts, weights = values.chunk(self.groups, 1), self.weight.chunk(self.groups)
        biases = self.bias.chunk(self.groups)
        made = [F.linear(parts[group], weights[group], biases[group]) for group in range(self.groups)]
        return torch.cat(made, 1)  # (B, out_features)
