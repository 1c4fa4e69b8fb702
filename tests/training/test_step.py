"""One update: what it does in which order."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.tiny import make_runtime, tiny_spec
from torch import Tensor

from alexnet_dist.data.engines.loader import Batch
from alexnet_dist.models import build_model
from alexnet_dist.parallel import runtime as processes
from alexnet_dist.training.optim import build_optimizer, set_lr
from alexnet_dist.training.step import DeviceCounters, train_step


class TwoReplicas:
    """A group of this process and another one that has the same numbers; its sums are there when waited for."""

    def __init__(self) -> None:
        self.order: list[str] = []

    def all_reduce(self, values: Tensor, group: object, async_op: bool) -> TwoReplicas:
        assert group is self
        assert async_op
        self.order.append("sum begins")
        self._values = values
        return self

    def wait(self) -> None:
        self.order.append("sum ends")
        self._values.mul_(2)


@pytest.mark.heavy
@pytest.mark.parametrize("micro_batch_size", [6, 4])
@pytest.mark.parametrize("is_broken", [False, True])
def test_sums_travel_beside_the_last_backward_pass(
    monkeypatch: pytest.MonkeyPatch, micro_batch_size: int, is_broken: bool
) -> None:
    """The verdict over all replicas is there before the update."""
    pair = TwoReplicas()
    monkeypatch.setattr(processes.dist, "all_reduce", pair.all_reduce)
    runtime = make_runtime()
    runtime = replace(runtime, mesh=replace(runtime.mesh, dp_group=pair))  # type: ignore[arg-type]
    model, counters = build_model(tiny_spec(dropout=0.0), seed=0), DeviceCounters.on(runtime.device)
    model.classifier[-1].register_full_backward_pre_hook(lambda *_: pair.order.append("backward"))  # type: ignore[operator]
    optimizer = build_optimizer(
        model, name="sgd", momentum=0.0, weight_decay=0.0, bias_lr_factor=1.0, bias_weight_decay=None
    )
    set_lr(optimizer, 0.1)
    optimizer.register_step_pre_hook(lambda *_: pair.order.append(f"update, blocked {int(counters.diverged)}"))
    images = torch.randn(6, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    batch = Batch(
        images * (float("nan") if is_broken else 1), torch.arange(6) % 3, torch.ones(6), torch.arange(6), 6, []
    )
    how: dict[str, Any] = {"micro_batch_size": micro_batch_size, "scale": 1 / 6, "counters": counters}
    train_step(runtime, model, optimizer, batch, **how)
    begin = ["backward"] if micro_batch_size < 6 else []
    expected = [*begin, "sum begins", "backward", "sum ends", f"update, blocked {int(is_broken)}"]
    assert pair.order == expected
    alone = DeviceCounters.on(runtime.device)
    train_step(
        make_runtime(), build_model(tiny_spec(dropout=0.0), seed=0), optimizer, batch, **(how | {"counters": alone})
    )
    torch.testing.assert_close(counters.sums, 2 * alone.sums, rtol=0, atol=0, equal_nan=True)
