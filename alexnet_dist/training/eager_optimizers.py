"""Optimizers that bring no compiler: torch's own import torch.compile, whatever they do, which is a second of a start.

Torch keeps its compiler out of an optimizer's methods by a wrapper around each, and the wrapper imports it. No update
is compiled here, so these have the methods without it. Their arithmetic is torch's.
"""

from __future__ import annotations

import inspect

import torch
from torch.optim import Optimizer


class EagerOptimizer(Optimizer):
    """What a rule of its own, or one of torch's, begins with."""

    add_param_group = inspect.unwrap(Optimizer.add_param_group)
    state_dict = inspect.unwrap(Optimizer.state_dict)
    load_state_dict = inspect.unwrap(Optimizer.load_state_dict)
    zero_grad = inspect.unwrap(Optimizer.zero_grad)


class SGD(EagerOptimizer, torch.optim.SGD):
    """torch.optim.SGD."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.SGD.step))


class Adam(EagerOptimizer, torch.optim.Adam):
    """torch.optim.Adam."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.Adam.step))
