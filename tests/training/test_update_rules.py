"""RMSprop and LARS: their arithmetic, updates that are left out, and fp16's scaler."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from alexnet_dist.training import update_rules
from alexnet_dist.training.update_rules import LARS, RMSprop, own_norms

LR, TRUST = 0.05, 0.01
SHAPES = ((6, 3, 3, 3), (6,), (7, 24), (7,))

RULES: dict[str, Any] = {
    "rmsprop": lambda groups, momentum=0.9: RMSprop(groups, lr=LR, momentum=momentum),
    "lars": lambda groups, momentum=0.9: LARS(groups, lr=LR, momentum=momentum, trust_coefficient=TRUST),
}


@pytest.fixture(params=[50, 1 << 17], ids=["many slices", "one slice"])
def _slice_size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(update_rules, "ELEMENTS_PER_THREAD", request.param)


def make_parameters(dtype: torch.dtype = torch.float32, channels_last: bool = False) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(3)
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in SHAPES]
    if channels_last:
        tensors[0] = tensors[0].to(memory_format=torch.channels_last)
    return [nn.Parameter(tensor) for tensor in tensors]


def draw_gradients(steps: int) -> Iterator[list[Tensor]]:
    generator = torch.Generator().manual_seed(4)
    for _ in range(steps):
        yield [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]


def set_gradients(parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor], factor: float = 1.0) -> None:
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = torch.empty_like(parameter).copy_(gradient * factor)


def run(optimizer: Optimizer, parameters: Sequence[nn.Parameter], steps: int) -> list[Tensor]:
    for step, gradients in enumerate(draw_gradients(steps)):
        for group in optimizer.param_groups:
            group["lr"] = LR / (1 + step)  # the rate changes, as schedules do
        set_gradients(parameters, gradients)
        optimizer.step()
    return [parameter.detach().clone() for parameter in parameters]


def two_groups(parameters: Sequence[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    return [
        {"params": parameters[::2], "weight_decay": weight_decay},
        {"params": parameters[1::2], "weight_decay": 0.0},
    ]


# -- arithmetic -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_slice_size")
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_rmsprop_equals_torchs(momentum: float, weight_decay: float, channels_last: bool) -> None:
    ours, theirs = make_parameters(torch.float64, channels_last), make_parameters(torch.float64)
    reference = torch.optim.RMSprop(two_groups(theirs, weight_decay), lr=LR, momentum=momentum, foreach=False)
    result = run(RULES["rmsprop"](two_groups(ours, weight_decay), momentum), ours, 20)
    torch.testing.assert_close(result, run(reference, theirs, 20), atol=1e-12, rtol=0)


def reference_lars(momentum: float, weight_decay: float, steps: int) -> list[list[float]]:
    """LARS on lists of Python's floats, as algorithm 1 of the paper has it."""
    weights = [parameter.detach().flatten().tolist() for parameter in make_parameters(torch.float64)]
    velocities = [[0.0] * len(weight) for weight in weights]
    for step, gradients in enumerate(draw_gradients(steps)):
        for index, gradient in enumerate(tensor.flatten().tolist() for tensor in gradients):
            is_bias = len(SHAPES[index]) == 1
            decay = 0.0 if is_bias else weight_decay
            w, v = weights[index], velocities[index]
            w_norm, g_norm = math.hypot(*w), math.hypot(*gradient)
            ratio = 1.0 if is_bias else TRUST * w_norm / (g_norm + decay * w_norm)
            rate = LR / (1 + step) * ratio
            velocities[index] = [momentum * b + rate * (g + decay * x) for b, g, x in zip(v, gradient, w, strict=True)]
            weights[index] = [x - b for x, b in zip(w, velocities[index], strict=True)]
    return weights


@pytest.mark.usefixtures("_slice_size")
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_lars_equals_the_papers_algorithm(momentum: float, weight_decay: float, channels_last: bool) -> None:
    parameters = make_parameters(torch.float64, channels_last)
    result = run(RULES["lars"](two_groups(parameters, weight_decay), momentum), parameters, 20)
    for ours, theirs in zip(result, reference_lars(momentum, weight_decay, 20), strict=True):
        torch.testing.assert_close(ours.flatten(), torch.tensor(theirs, dtype=torch.float64), atol=1e-12, rtol=0)


def change_of_one_step(name: str, factor: float) -> list[Tensor]:
    parameters = make_parameters(torch.float64)
    optimizer = RULES[name](two_groups(parameters, 0.0))
    set_gradients(parameters, next(draw_gradients(1)), factor)
    optimizer.step()
    return [new.detach() - old.detach() for new, old in zip(parameters, make_parameters(torch.float64), strict=True)]


def test_size_of_a_layers_gradient_does_not_change_the_step_of_lars() -> None:
    plain, scaled = change_of_one_step("lars", 1.0), change_of_one_step("lars", 1000.0)
    torch.testing.assert_close(scaled[::2], plain[::2], atol=1e-12, rtol=1e-9)
    torch.testing.assert_close(scaled[1::2], [1000 * change for change in plain[1::2]], atol=0, rtol=1e-9)  # biases


@pytest.mark.parametrize(("weight", "gradient", "expected"), [(0.0, 2.0, -2 * LR), (3.0, 0.0, 3.0), (0.0, 0.0, 0.0)])
def test_a_norm_of_0_gives_the_plain_rate(weight: float, gradient: float, expected: float) -> None:
    parameter = nn.Parameter(torch.full((1, 1), weight))
    parameter.grad = torch.full((1, 1), gradient)
    RULES["lars"]([{"params": [parameter]}]).step()
    assert parameter.item() == pytest.approx(expected, rel=1e-6)


def test_norms_of_a_large_layer_are_exact_to_float32() -> None:
    weight = nn.Parameter(torch.rand(2048, 4096, generator=torch.Generator().manual_seed(0)))
    weight.grad = weight.detach() / 7
    ((norm, gradient_norm),) = own_norms([weight])
    assert norm.item() == pytest.approx(weight.detach().double().norm().item(), rel=1e-5)
    assert gradient_norm.item() == pytest.approx(norm.item() / 7, rel=1e-5)


def whole_norms(parts: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """The norms of the layer that the parts make up, for each of them."""
    weight_norms, gradient_norms = (torch.stack(norms) for norms in zip(*own_norms(parts), strict=True))
    return [(weight_norms.norm(), gradient_norms.norm())] * len(parts)


@pytest.mark.parametrize(("norms", "is_equal"), [(whole_norms, True), (own_norms, False)])
def test_parts_of_a_layer_move_as_the_whole_if_they_know_its_norms(norms: Any, is_equal: bool) -> None:
    whole = make_parameters(torch.float64)[0]
    parts = [nn.Parameter(part.clone()) for part in whole.detach().chunk(2)]
    settings = {"lr": LR, "momentum": 0.9, "trust_coefficient": TRUST}
    optimizers = LARS([{"params": [whole]}], **settings), LARS([{"params": parts}], **settings, layer_norms=norms)
    for gradient, *_ in draw_gradients(3):
        set_gradients([whole], [gradient])
        set_gradients(parts, gradient.chunk(2))
        [optimizer.step() for optimizer in optimizers]
    assert torch.allclose(torch.cat([*parts]), whole, atol=1e-12, rtol=0) == is_equal


# -- updates that are left out ----------------------------------------------------------------------------------------


def list_bits(parameters: Sequence[nn.Parameter], optimizer: Optimizer) -> list[Tensor]:
    tensors = [parameter.detach() for parameter in parameters]
    tensors += [value for parameter in parameters for _, value in sorted(optimizer.state[parameter].items())]
    return [tensor.clone().view(torch.int32) for tensor in tensors]


@pytest.mark.usefixtures("_slice_size")
@pytest.mark.parametrize("gradient", [1.0, -0.0, math.nan, math.inf, -math.inf, 1e38])
@pytest.mark.parametrize("name", RULES)
def test_an_update_left_out_changes_no_bit(name: str, gradient: float) -> None:
    parameters = make_parameters(channels_last=True)
    optimizer = RULES[name](two_groups(parameters, 0.01))
    run(optimizer, parameters, 3)
    with torch.no_grad():
        for tensor in [parameters[0], *optimizer.state[parameters[0]].values()]:
            tensor[0] = -0.0  # adding 0 to it would lose the sign
    before = list_bits(parameters, optimizer)
    set_gradients(parameters, [torch.full(shape, gradient) for shape in SHAPES])
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    assert all(map(torch.equal, list_bits(parameters, optimizer), before))
    set_gradients(parameters, next(draw_gradients(1)))
    optimizer.found_inf = torch.zeros(())
    optimizer.step()
    assert not any(map(torch.equal, list_bits(parameters, optimizer), before))


@pytest.mark.parametrize("name", RULES)
def test_a_rate_of_0_changes_no_bit(name: str) -> None:
    parameters = make_parameters()
    optimizer = RULES[name](two_groups(parameters, 0.01))
    run(optimizer, parameters, 3)
    before = list_bits(parameters, optimizer)
    optimizer.param_groups[0]["lr"] = 0.0
    set_gradients(parameters, next(draw_gradients(1)))
    optimizer.step()
    same = [torch.equal(new, old) for new, old in zip(list_bits(parameters, optimizer), before, strict=True)]
    assert same[:4] == [True, False, True, False]


@pytest.mark.parametrize("is_blocked", [None, 0.0, 1.0])
@pytest.mark.parametrize("name", RULES)
def test_no_value_is_read_from_the_device(name: str, is_blocked: float | None) -> None:
    parameters = [nn.Parameter(torch.empty(shape, device="meta")) for shape in SHAPES]  # there are no values to read
    optimizer = RULES[name](two_groups(parameters, 0.01))
    for parameter in parameters:
        parameter.grad = torch.empty_like(parameter)
    if is_blocked is not None:
        optimizer.found_inf = torch.full((), is_blocked, device="meta")
    optimizer.step()
    with pytest.raises(RuntimeError):
        bool(parameters[0].sum() > 0)


# -- fp16 -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unscale_first", [False, True])
@pytest.mark.parametrize("name", RULES)
def test_scaled_gradients_give_the_unscaled_update(name: str, unscale_first: bool) -> None:
    plain, scaled = make_parameters(), make_parameters()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.ones(()))  # what a backward does first: the scaler then knows its device
    optimizers = [RULES[name](two_groups(parameters, 0.01)) for parameters in (plain, scaled)]
    for gradients in draw_gradients(3):
        set_gradients(plain, gradients)
        set_gradients(scaled, gradients, 1024.0)
        optimizers[0].step()
        if unscale_first:
            scaler.unscale_(optimizers[1])
        scaler.step(optimizers[1])
        scaler.update()
    assert all(map(torch.equal, plain, scaled))
    assert not hasattr(optimizers[1], "found_inf")


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("name", RULES)
def test_scaler_leaves_an_overflowing_update_out_without_asking(
    name: str, bad: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    parameters = make_parameters()
    optimizer = RULES[name](two_groups(parameters, 0.01))
    run(optimizer, parameters, 2)
    before = list_bits(parameters, optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.ones(()))
    set_gradients(parameters, next(draw_gradients(1)), 1024.0)
    parameters[2].grad[3, 5] = bad  # type: ignore[index]
    with monkeypatch.context() as patch:
        patch.setattr(Tensor, "item", None)  # what the scaler calls where an optimizer cannot take its verdict
        scaler.step(optimizer)
    scaler.update()
    assert all(map(torch.equal, list_bits(parameters, optimizer), before))
    assert scaler.get_scale() == 512.0
