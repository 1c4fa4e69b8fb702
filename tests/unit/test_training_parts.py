from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from alexnet_dist.parallel.runtime import Runtime
from alexnet_dist.training.metrics import Totals, count_correct, cross_entropy
from alexnet_dist.training.optim import build_optimizer, load_optimizer_tensors, optimizer_tensors, set_lr
from alexnet_dist.training.schedule import FACTORS, PlateauState, Schedule

# -- schedules --------------------------------------------------------------------------------------------------------

EPOCH, TOTAL, WARMUP = 10, 100, 5


def make_schedule(name: str, **changes: Any) -> Schedule:
    values: dict[str, Any] = {"warmup_steps": WARMUP, "gamma": 0.1, "step_epochs": 3, "patience": 2}
    values |= {"steps_per_epoch": EPOCH, "total_steps": TOTAL, "base_lr": 0.4}
    return Schedule(name=name, **(values | changes))


@pytest.mark.parametrize("name", FACTORS)
@pytest.mark.parametrize(("step", "expected"), [(0, 0.08), (1, 0.16), (3, 0.32), (4, 0.4)])
def test_warm_up_rises_linearly_to_the_base_rate(name: str, step: int, expected: float) -> None:
    assert make_schedule(name).lr(step, PlateauState()) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "step", "expected"),
    [
        ("constant", 5, 0.4),
        ("constant", 99, 0.4),
        ("step", 29, 0.4),
        ("step", 30, 0.04),
        ("step", 59, 0.04),
        ("step", 60, 0.004),
        ("step", 99, 0.0004),
        ("cosine", 5, 0.4),
        ("cosine", 50, 0.2 * (1 + math.cos(math.pi * 45 / 95))),
        ("cosine", 99, 0.2 * (1 + math.cos(math.pi * 94 / 95))),
        ("cosine", 100, 0.0),
        ("cosine", 250, 0.0),
        ("plateau", 99, 0.4),
    ],
)
def test_rate_at_landmark_steps(name: str, step: int, expected: float) -> None:
    assert make_schedule(name).lr(step, PlateauState()) == pytest.approx(expected, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("name", FACTORS)
def test_without_warm_up_the_first_rate_is_the_base_rate(name: str) -> None:
    assert make_schedule(name, warmup_steps=0).lr(0, PlateauState()) == pytest.approx(0.4, rel=1e-12)


def test_plateau_multiplies_once_a_drop() -> None:
    assert make_schedule("plateau").lr(50, PlateauState(drops=2)) == pytest.approx(0.004, rel=1e-12)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.1], PlateauState(0, 0.1, 0)),
        ([0.1, 0.2, 0.3], PlateauState(0, 0.3, 0)),
        ([0.3, 0.2], PlateauState(0, 0.3, 1)),
        ([0.3, 0.3, 0.3], PlateauState(1, 0.3, 0)),  # as good is not better
        ([0.3, 0.2, 0.4, 0.1], PlateauState(0, 0.4, 1)),  # a better one starts the count anew
        ([0.3, 0.2, 0.2, 0.2, 0.2], PlateauState(2, 0.3, 0)),  # and so does a drop
        ([0.0, 0.0, 0.0], PlateauState(1, 0.0, 0)),
    ],
)
def test_plateau_drops_after_its_patience(values: list[float], expected: PlateauState) -> None:
    state = PlateauState()
    [state.observe(value, patience=2) for value in values]
    assert state == expected


# -- metrics ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("k", "expected"), [(1, [True, False, False]), (2, [True, True, False]), (3, [True] * 3)])
def test_top_k_counts_the_label_among_the_k_largest(k: int, expected: list[bool]) -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0]] * 3)
    assert count_correct(logits, torch.tensor([0, 1, 2]), k).tolist() == expected


def test_with_fewer_classes_than_k_all_are_right() -> None:
    assert count_correct(torch.randn(4, 3), torch.tensor([0, 1, 2, 0]), 5).tolist() == [True] * 4


@pytest.mark.parametrize(
    ("given", "computed"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_loss_is_computed_in_float32_at_least(given: torch.dtype, computed: torch.dtype) -> None:
    logits, labels = torch.tensor([[2.0, 0.0], [0.0, 2.0]]).to(given), torch.tensor([0, 0])
    losses = cross_entropy(logits, labels)
    assert losses.dtype == computed
    expected = [math.log(1 + math.exp(-2)), math.log(1 + math.exp(2))]
    assert losses.tolist() == pytest.approx(expected, rel=1e-6)


def test_totals_divide_their_sums_once() -> None:
    totals = Totals()
    totals.add(Totals(loss_sum=6.0, num_correct=1, num_images=3, num_steps=1, wait_seconds=0.5, seconds=2.0))
    totals.add(Totals(loss_sum=2.0, num_correct=1, num_images=1, num_steps=1, wait_seconds=0.5, seconds=2.0))
    assert (totals.loss, totals.top1, totals.images_per_second) == (2.0, 0.5, 1.0)  # means of means would differ
    assert (totals.num_steps, totals.wait_seconds) == (2, 1.0)


def test_empty_totals_are_zero() -> None:
    assert (Totals().loss, Totals().top1, Totals().images_per_second) == (0.0, 0.0, 0.0)


# -- optimizers -------------------------------------------------------------------------------------------------------

LR, MOMENTUM, DECAY, BIAS_FACTOR = 0.05, 0.9, 0.01, 2.0
IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def make_model(channels_last: bool) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 5))
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return model.to(memory_format=layout)  # type: ignore[call-overload, no-any-return]


def make_optimizer(model: nn.Module, name: str, **changes: Any) -> torch.optim.Optimizer:
    values: dict[str, Any] = {"lr": LR, "momentum": MOMENTUM, "weight_decay": DECAY}
    values |= {"bias_lr_factor": BIAS_FACTOR, "bias_weight_decay": 0.0}
    return build_optimizer(model, name=name, **(values | changes))


def update(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    """Some updates towards small outputs."""
    for _ in range(steps):
        optimizer.zero_grad()
        model(IMAGES).square().mean().backward()
        optimizer.step()


def list_state(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


PLAIN: dict[str, Any] = {
    "sgd": lambda groups: torch.optim.SGD(groups, momentum=MOMENTUM, foreach=False, fused=False),
    "adam": lambda groups: torch.optim.Adam(groups, betas=(MOMENTUM, 0.999), foreach=False, fused=False),
}


def plain_weights(name: str, bias_factor: float) -> list[Tensor]:
    """Weights after five updates of torch's plain optimizer."""
    model = make_model(channels_last=False)
    weights, biases = ([p for n, p in model.named_parameters() if n.endswith(end)] for end in ("weight", "bias"))
    groups = [
        {"params": weights, "lr": LR, "weight_decay": DECAY},
        {"params": biases, "lr": LR * bias_factor, "weight_decay": 0.0},
    ]
    update(model, PLAIN[name](groups), 5)
    return list_state(model)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_updates_equal_torchs_plain_optimizer(name: str, channels_last: bool) -> None:
    model = make_model(channels_last)
    optimizer = make_optimizer(model, name)
    set_lr(optimizer, LR)
    update(model, optimizer, 5)
    torch.testing.assert_close(list_state(model), plain_weights(name, BIAS_FACTOR), atol=1e-6, rtol=0)
    with pytest.raises(AssertionError):  # the biases' own rate is noticed
        torch.testing.assert_close(list_state(model), plain_weights(name, bias_factor=1.0), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("bias_weight_decay", "expected"), [(None, DECAY), (0.0, 0.0), (0.3, 0.3)])
def test_biases_have_their_own_rate_and_decay(bias_weight_decay: float | None, expected: float) -> None:
    model = make_model(channels_last=False)
    optimizer = make_optimizer(model, "sgd", bias_weight_decay=bias_weight_decay)
    set_lr(optimizer, 0.25)
    weights, biases = optimizer.param_groups
    assert (weights["lr"], biases["lr"]) == (0.25, 0.5)
    assert (weights["weight_decay"], biases["weight_decay"]) == (DECAY, expected)
    assert all(parameter.dim() == 1 for parameter in biases["params"])
    assert len(weights["params"]) == len(biases["params"]) == 2


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_optimizer_state_put_back_continues_bit_by_bit(name: str, channels_last: bool) -> None:
    model, other = make_model(channels_last), make_model(channels_last)
    optimizer = make_optimizer(model, name)
    set_lr(optimizer, LR)
    update(model, optimizer, 3)
    saved = {key: tensor.clone().contiguous() for key, tensor in optimizer_tensors(optimizer, model).items()}
    other.load_state_dict(model.state_dict())
    restored = make_optimizer(other, name)
    set_lr(restored, LR)
    load_optimizer_tensors(restored, other, saved)
    put_back = optimizer_tensors(restored, other)
    assert saved.keys() == put_back.keys()
    assert all(torch.equal(put_back[key], saved[key]) for key in saved)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert all(value.is_contiguous(memory_format=layout) for value in put_back.values() if value.dim() == 4)
    update(model, optimizer, 2)
    update(other, restored, 2)
    assert all(map(torch.equal, list_state(model), list_state(other)))


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_a_forgotten_optimizer_state_is_noticed(name: str) -> None:
    model, other = make_model(channels_last=True), make_model(channels_last=True)
    optimizer = make_optimizer(model, name)
    update(model, optimizer, 3)
    other.load_state_dict(model.state_dict())
    update(model, optimizer, 1)
    update(other, make_optimizer(other, name), 1)
    assert not all(map(torch.equal, list_state(model), list_state(other)))


# -- an update that must not happen -----------------------------------------------------------------------------------


def make_runtime() -> Runtime:
    """One process without an Accelerator."""
    return Runtime(
        accelerator=SimpleNamespace(scaler=None),
        device=torch.device("cpu"),
        rank=0,
        world_size=1,
        dp_rank=0,
        dp_size=1,
        processes_here=1,
        precision="fp32",
        precision_reason="test",
        host_group=None,
    )


@pytest.mark.parametrize("gradient", [1.0, math.nan, math.inf])
@pytest.mark.parametrize("warm_steps", [0, 2])
@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_blocked_update_leaves_weights_and_state_bit_for_bit(name: str, warm_steps: int, gradient: float) -> None:
    model = make_model(channels_last=True)
    optimizer = make_optimizer(model, name)
    update(model, optimizer, warm_steps)
    weights = list_state(model)
    state = {key: tensor.clone() for key, tensor in optimizer_tensors(optimizer, model).items()}
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, gradient)
    make_runtime().update(optimizer, torch.ones(()))
    assert all(map(torch.equal, list_state(model), weights))
    after = optimizer_tensors(optimizer, model)
    assert all(torch.equal(after[key], value) for key, value in state.items())


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_update_that_is_not_blocked_happens(name: str) -> None:
    model = make_model(channels_last=True)
    optimizer = make_optimizer(model, name)
    weights = list_state(model)
    model(IMAGES).square().mean().backward()
    make_runtime().update(optimizer, torch.zeros(()))
    assert not any(map(torch.equal, list_state(model), weights))


@pytest.mark.parametrize("gradient", [1.0, math.nan, math.inf])
def test_fp16_scaler_leaves_an_overflowing_update_out(gradient: float) -> None:
    model = make_model(channels_last=True)
    optimizer = make_optimizer(model, "sgd")
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=1)
    runtime = replace(make_runtime(), accelerator=SimpleNamespace(scaler=scaler))
    weights = list_state(model)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, gradient)
    scaler.scale(torch.ones(()))  # what a backward does first: the scaler then knows its device
    runtime.update(optimizer, torch.zeros(()))
    finite = math.isfinite(gradient)
    assert all(map(torch.equal, list_state(model), weights)) == (not finite)
    assert scaler.get_scale() == (16.0 if finite else 4.0)
