"""Optimizers without torch's compiler make torch's updates, to the bit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from alexnet_dist.training import eager_optimizers

RULES = {"SGD": {"momentum": 0.9}, "Adam": {"betas": (0.9, 0.99)}}


def train(build: Callable[..., Optimizer], rule: str, resumes: bool) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    weights = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((5, 7), (5,))]

    def begin() -> Optimizer:
        optimizer = build(weights[:1], lr=0.1, weight_decay=0.01, fused=True, **RULES[rule])
        optimizer.add_param_group({"params": weights[1:], "weight_decay": 0.0})
        return optimizer

    optimizer = begin()
    for step in range(6):
        if resumes and step == 3:
            state, optimizer = optimizer.state_dict(), begin()
            optimizer.load_state_dict(state)
        for weight in weights:
            weight.grad = torch.randn(weight.shape, generator=generator)
        optimizer.step()
        optimizer.zero_grad()
        assert all(weight.grad is None for weight in weights)
    return [*weights, *(value for state in optimizer.state.values() for value in state.values())]


@pytest.mark.parametrize("resumes", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_updates_are_torchs(rule: str, resumes: bool) -> None:
    found = train(getattr(eager_optimizers, rule), rule, resumes)
    expected = train(getattr(torch.optim, rule), rule, resumes=False)
    assert len(found) == len(expected) > 2
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))
