from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.tiny import make_runtime, tiny_spec
from torch import Tensor, nn

from alexnet_dist.models import LAYER_NAMES, build_model, named_layers
from alexnet_dist.training.optim import OPTIMIZERS, build_optimizer, load_optimizer_tensors, optimizer_tensors, set_lr

LR, MOMENTUM, DECAY, BIAS_FACTOR = 0.01, 0.9, 0.01, 2.0
IMAGES = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def make_model(channels_last: bool = True) -> nn.Module:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return build_model(tiny_spec(dropout=0.0), seed=0).to(memory_format=layout)  # type: ignore[call-overload, no-any-return]


def make_optimizer(model: nn.Module, name: str, **changes: Any) -> torch.optim.Optimizer:
    lr = changes.pop("lr", LR)
    values: dict[str, Any] = {"momentum": MOMENTUM, "weight_decay": DECAY}
    values |= {"bias_lr_factor": BIAS_FACTOR, "bias_weight_decay": 0.0}
    optimizer = build_optimizer(model, name=name, **(values | changes))
    set_lr(optimizer, lr)
    return optimizer


def update(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    """Some updates towards outputs of 1."""
    for _ in range(steps):
        optimizer.zero_grad()
        images = IMAGES.to(next(model.parameters()).dtype)
        (model(images) - 1).square().mean().backward()
        optimizer.step()


def list_state(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


PLAIN: dict[str, Any] = {
    "flat_sgd": lambda groups: torch.optim.SGD(groups, momentum=MOMENTUM, foreach=False, fused=False),
    "sgd": lambda groups: torch.optim.SGD(groups, momentum=MOMENTUM, foreach=False, fused=False),
    "adam": lambda groups: torch.optim.Adam(groups, betas=(MOMENTUM, 0.999), foreach=False, fused=False),
    "rmsprop": lambda groups: torch.optim.RMSprop(groups, momentum=MOMENTUM, foreach=False),
}


def plain_weights(name: str, bias_factor: float) -> list[Tensor]:
    """Weights after five updates of torch's plain optimizer."""
    model = make_model(channels_last=False).double()
    weights, biases = ([p for n, p in model.named_parameters() if n.endswith(end)] for end in ("weight", "bias"))
    groups = [
        {"params": weights, "lr": LR, "weight_decay": DECAY},
        {"params": biases, "lr": LR * bias_factor, "weight_decay": 0.0},
    ]
    update(model, PLAIN[name](groups), 5)
    return list_state(model)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", PLAIN)
def test_updates_equal_torchs_plain_optimizer(name: str, channels_last: bool) -> None:
    model = make_model(channels_last).double()
    optimizer = make_optimizer(model, name)
    update(model, optimizer, 5)
    torch.testing.assert_close(list_state(model), plain_weights(name, BIAS_FACTOR), atol=1e-9, rtol=0)
    with pytest.raises(AssertionError):  # the biases' own rate is noticed
        torch.testing.assert_close(list_state(model), plain_weights(name, bias_factor=1.0), atol=1e-9, rtol=0)


@pytest.mark.parametrize(("bias_weight_decay", "expected"), [(None, DECAY), (0.0, 0.0), (0.3, 0.3)])
def test_biases_have_their_own_rate_and_decay(bias_weight_decay: float | None, expected: float) -> None:
    model = make_model()
    optimizer = make_optimizer(model, "sgd", bias_weight_decay=bias_weight_decay)
    set_lr(optimizer, 0.25)
    weights, biases = optimizer.param_groups
    assert (weights["lr"], biases["lr"]) == (0.25, 0.5)
    assert (weights["weight_decay"], biases["weight_decay"]) == (DECAY, expected)
    assert all(parameter.dim() == 1 for parameter in biases["params"])
    assert len(weights["params"]) == len(biases["params"]) == 8


def list_rates(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Each weight's and bias's rate by its layer's name: {"conv1.weight": 0.1}."""
    rates = {parameter: group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    return {
        f"{name}.{kind}": rates[parameter]
        for name, layer in named_layers(model).items()
        for kind, parameter in layer.named_parameters()
        if parameter in rates
    }


LAYER_FACTORS = {"conv1": 0.5, "conv5": 0.1, "fc8": 10.0}


@pytest.mark.parametrize(
    ("settings", "lr", "epoch", "expected"),
    [
        ({"lr_factors": LAYER_FACTORS}, 0.1, 0, {"conv1.weight": 0.05, "conv1.bias": 0.1, "conv2.weight": 0.1}),
        ({"lr_factors": LAYER_FACTORS}, 0.2, 9, {"conv5.weight": 0.02, "fc8.weight": 2.0, "fc8.bias": 4.0}),
        ({"bias_lr_constant": True}, 0.1, 0, {"conv1.weight": 0.1, "conv1.bias": 1.6, "fc8.bias": 1.6}),
        ({"bias_lr_constant": True, "lr_factors": LAYER_FACTORS}, 0.1, 0, {"conv1.bias": 0.8, "fc8.weight": 1.0}),
        ({"freeze": ["conv1"], "freeze_from_epoch": 2}, 0.1, 1, {"conv1.weight": 0.1, "conv1.bias": 0.2}),
        ({"freeze": ["conv1"], "freeze_from_epoch": 2}, 0.1, 2, {"conv1.weight": 0.0, "conv1.bias": 0.0}),
        ({"freeze": ["conv1"], "freeze_from_epoch": 2}, 0.1, 7, {"conv1.weight": 0.0, "conv2.weight": 0.1}),
        ({"freeze": ["fc6"], "freeze_from_epoch": 1, "bias_lr_constant": True}, 0.1, 1, {"fc6.bias": 0.0}),
    ],
)
def test_rate_of_each_layer(settings: dict[str, Any], lr: float, epoch: int, expected: dict[str, float]) -> None:
    model = make_model()
    optimizer = make_optimizer(model, "sgd", **settings)
    set_lr(optimizer, lr, constant_lr=0.8, epoch=epoch)
    rates = list_rates(model, optimizer)
    assert len(rates) == 16
    assert {key: rates[key] for key in expected} == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("settings", "num_groups"),
    [
        ({"bias_lr_factor": 1.0, "bias_weight_decay": None}, 1),
        ({}, 2),
        ({"lr_factors": dict.fromkeys(LAYER_NAMES, 1.0)}, 2),
        ({"lr_factors": {"fc8": 10.0}}, 4),
        ({"lr_factors": {"fc7": 10.0, "fc8": 10.0}, "freeze": ["conv1"], "freeze_from_epoch": 3}, 6),
        ({"freeze": ["conv1", "conv2"]}, 2),
    ],
)
def test_equal_settings_share_a_group(settings: dict[str, Any], num_groups: int) -> None:
    assert len(make_optimizer(make_model(), "sgd", **settings).param_groups) == num_groups


def test_the_step_of_lars_grows_with_its_trust_coefficient() -> None:
    changes = []
    for trust in (0.001, 0.004):
        model = make_model()
        before = list_state(model)
        update(model, make_optimizer(model, "lars", trust_coefficient=trust, weight_decay=0.0), 1)
        changes.append([new - old for new, old in zip(list_state(model), before, strict=True) if new.dim() > 1])
    torch.testing.assert_close(changes[1], [4 * change for change in changes[0]], atol=1e-6, rtol=1e-3)


# Triton's interpreter, which runs the kernel here, takes its time.
OPTIMIZER_NAMES = [name if name != "flat_sgd" else pytest.param(name, marks=pytest.mark.heavy) for name in OPTIMIZERS]


@pytest.mark.parametrize("name", OPTIMIZER_NAMES)
def test_without_the_schedules_rate_nothing_is_learned(name: str) -> None:
    model = make_model()
    optimizer = build_optimizer(
        model, name=name, momentum=MOMENTUM, weight_decay=DECAY, bias_lr_factor=1.0, bias_weight_decay=None
    )
    before = list_state(model)
    update(model, optimizer, 2)
    assert all(torch.equal(new, old) for new, old in zip(list_state(model), before, strict=True))


@pytest.mark.parametrize("name", OPTIMIZER_NAMES)
def test_layers_frozen_from_the_start_have_neither_gradients_nor_state(name: str) -> None:
    model = make_model()
    before = list_state(model)
    optimizer = make_optimizer(model, name, freeze=["conv1", "conv2", "fc7"])
    update(model, optimizer, 2)
    frozen = {p for layer in ("conv1", "conv2", "fc7") for p in named_layers(model)[layer].parameters()}
    changed = {p for p, old in zip(model.parameters(), before, strict=True) if not torch.equal(p, old)}
    assert changed == set(model.parameters()) - frozen
    assert all(parameter.grad is None for parameter in frozen)
    assert not frozen & set(optimizer.state)


@pytest.mark.parametrize("name", OPTIMIZER_NAMES)
def test_layers_frozen_later_keep_their_bits_despite_momentum_and_decay(name: str) -> None:
    model = make_model()
    optimizer = make_optimizer(model, name, freeze=["conv1", "fc8"], freeze_from_epoch=1, bias_weight_decay=DECAY)
    frozen = [p for layer in ("conv1", "fc8") for p in named_layers(model)[layer].parameters()]
    start = [parameter.detach().clone() for parameter in frozen]
    set_lr(optimizer, LR, constant_lr=LR, epoch=0)
    update(model, optimizer, 3)
    assert not any(map(torch.equal, frozen, start))  # they learned until then
    before = list_state(model)
    set_lr(optimizer, LR, constant_lr=LR, epoch=1)
    update(model, optimizer, 3)
    kept = {p for p, old in zip(model.parameters(), before, strict=True) if torch.equal(bits_of(p), bits_of(old))}
    assert kept == set(frozen)


def bits_of(tensor: Tensor) -> Tensor:
    return tensor.detach().view(torch.int32)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", OPTIMIZER_NAMES)
def test_optimizer_state_put_back_continues_bit_by_bit(name: str, channels_last: bool) -> None:
    model, other = make_model(channels_last), make_model(channels_last)
    frozen = {"freeze": ["conv2"]}
    optimizer = make_optimizer(model, name, **frozen)
    set_lr(optimizer, LR)
    update(model, optimizer, 3)
    saved = {key: tensor.clone().contiguous() for key, tensor in optimizer_tensors(optimizer, model).items()}
    saved = dict(sorted(saved.items()))  # as a file gives them back
    other.load_state_dict(model.state_dict())
    restored = make_optimizer(other, name, **frozen)
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


@pytest.mark.parametrize("name", OPTIMIZER_NAMES)
def test_a_forgotten_optimizer_state_is_noticed(name: str) -> None:
    model, other = make_model(), make_model()
    optimizer = make_optimizer(model, name)
    update(model, optimizer, 3)
    other.load_state_dict(model.state_dict())
    update(model, optimizer, 1)
    update(other, make_optimizer(other, name), 1)
    assert not all(map(torch.equal, list_state(model), list_state(other)))


# -- an update that must not happen -----------------------------------------------------------------------------------


@pytest.mark.parametrize("gradient", [1.0, math.nan, math.inf])
@pytest.mark.parametrize("warm_steps", [0, 2])
@pytest.mark.parametrize("name", OPTIMIZER_NAMES)
def test_blocked_update_leaves_weights_and_state_bit_for_bit(name: str, warm_steps: int, gradient: float) -> None:
    model = make_model()
    optimizer = make_optimizer(model, name)
    update(model, optimizer, warm_steps)
    weights = list_state(model)
    state = {key: tensor.clone() for key, tensor in optimizer_tensors(optimizer, model).items()}
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, gradient)
    make_runtime().update(optimizer, torch.ones(()))
    assert all(torch.equal(bits_of(new), bits_of(old)) for new, old in zip(list_state(model), weights, strict=True))
    after = optimizer_tensors(optimizer, model)
    assert all(torch.equal(bits_of(after[key]), bits_of(value)) for key, value in state.items())


@pytest.fixture
def _unwritten_memory_is_nan() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("_unwritten_memory_is_nan")
@pytest.mark.parametrize("name", OPTIMIZER_NAMES)
def test_a_first_update_that_is_blocked_leaves_no_trace_in_those_that_follow(name: str) -> None:
    disturbed, model = make_model(), make_model()
    optimizer = make_optimizer(disturbed, name)
    for parameter in disturbed.parameters():
        parameter.grad = torch.full_like(parameter, math.inf)
    make_runtime().update(optimizer, torch.ones(()))
    optimizer.found_inf = torch.zeros(())  # type: ignore[attr-defined]
    update(disturbed, optimizer, 3)
    update(model, make_optimizer(model, name), 3)
    assert all(map(torch.equal, list_state(disturbed), list_state(model)))


@pytest.mark.parametrize("name", OPTIMIZER_NAMES)
def test_update_that_is_not_blocked_happens(name: str) -> None:
    model = make_model()
    optimizer = make_optimizer(model, name)
    weights = list_state(model)
    (model(IMAGES) - 1).square().mean().backward()
    make_runtime().update(optimizer, torch.zeros(()))
    assert not any(map(torch.equal, list_state(model), weights))


@pytest.mark.parametrize("name", OPTIMIZER_NAMES)
@pytest.mark.parametrize("gradient", [1.0, math.nan, math.inf])
def test_fp16_scaler_leaves_an_overflowing_update_out(name: str, gradient: float) -> None:
    model = make_model()
    optimizer = make_optimizer(model, name)
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
