"""The update of all parameters as one kernel, in Triton's interpreter: PyTorch's rule, and autocast's bits."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.interpreter import rounding_to_nearest
from helpers.tiny import make_runtime, tiny_spec
from torch import Tensor, nn
from torch.nn import functional as F

from alexnet_dist.data.engines.loader import Batch
from alexnet_dist.inference.weights import pack_tensors
from alexnet_dist.models import build_model, build_on_meta, make_spec
from alexnet_dist.models.convolutions import take_forms
from alexnet_dist.models.fused_relu import fuse_relu
from alexnet_dist.training.flat_update import FlatSGD, Shadowed, SideStream
from alexnet_dist.training.optim import build_optimizer, optimizer_tensors, set_lr
from alexnet_dist.training.step import DeviceCounters, train_step

pytest.importorskip("triton")

# In a process in which Triton compiles.
BUILD = """
import re, triton
from collections import Counter
from itertools import accumulate
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from alexnet_dist.models import build_on_meta, make_spec
from alexnet_dist.training.flat_update_kernel import BLOCK, WARPS, _update

whole = tuple(weight.numel() for weight in build_on_meta(make_spec("paper")).parameters())
early, late = whole[10:], whole[:10]
arithmetic = []
for sizes, kind, has_shadow in [(part, "*bf16", True) for part in (whole, early, late)] + [(whole, "*fp32", False)]:
    *firsts, _ = accumulate((-(-size // BLOCK) for size in sizes), initial=0)
    values = dict(firsts=tuple(firsts), sizes=sizes, count=len(sizes), block=BLOCK, has_velocity=True)
    values |= dict(has_shadow=has_shadow, can_be_blocked=True, is_scaled=False)
    types = {"shadow_ptr": "*bf16", "term_ptr": "*fp64", "grads": tuple([kind] * len(sizes))}
    names = _update.arg_names
    signature = {name: "constexpr" if name in values else types.get(name, "*fp32") for name in names}
    aligned = [(place,) for place, name in enumerate(names) if name.endswith("_ptr")]
    aligned += [(names.index("grads"), number) for number in range(len(sizes))]
    constants = {(names.index(name),): value for name, value in values.items()}
    attributes = {place: [["tt.divisibility", 16]] for place in aligned}
    source = ASTSource(fn=_update, signature=signature, constexprs=constants, attrs=attributes)
    ptx = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": WARPS}).asm["ptx"]
    moves = Counter(re.findall(r"(?:ld|st)[.]global[.v0-9b]*", ptx))
    arithmetic.append(re.findall(r"(?:add|sub|mul|fma)[.][.a-z]*f64|cvt[.][.a-z0-9]*f(?:16|32|64)", ptx))
    print(".local" in ptx, *(f"{name} {moves[name]}" for name in sorted(moves)))
print(arithmetic[0] == arithmetic[1] == arithmetic[2], arithmetic[0].count("fma.rn.f64"))
"""

SETTINGS: dict[str, Any] = {"momentum": 0.9, "weight_decay": 0.01, "bias_lr_factor": 2.0, "bias_weight_decay": 0.0}


@pytest.fixture(autouse=True)
def _round_as_a_gpu() -> Iterator[None]:
    with rounding_to_nearest():
        yield


@pytest.mark.slow
def test_a_gpu_moves_16_bytes_at_a_time_and_keeps_all_in_registers() -> None:
    """Of eight values: weight and velocity twice, the gradient in one of two places; one rate, decay and momentum.

    The arithmetic is the same for a part of the network, with three products added to something for each value.
    """
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", BUILD], env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    scalars = "ld.global.b32 1 ld.global.b64 3"
    assert done.stdout.splitlines() == [
        *[f"False {scalars} ld.global.v4.b32 6 st.global.v4.b32 5"] * 3,
        f"False {scalars} ld.global.v4.b32 8 st.global.v4.b32 4",
        "True 24",
    ]


def make_model(form: str = "grouped") -> nn.Module:
    model = build_model(tiny_spec(dropout=0.5), seed=0).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    take_forms(model, form, "direct")  # type: ignore[arg-type]
    return model  # type: ignore[no-any-return]


def make_flat(model: nn.Module, **changes: Any) -> FlatSGD:
    optimizer = build_optimizer(model, name="flat_sgd", **(SETTINGS | changes))
    assert isinstance(optimizer, FlatSGD)
    return optimizer


class InFloat64(torch.optim.Optimizer):
    """The rule as PyTorch's kernel for GPUs computes it: in float64, rounded wherever a value is kept."""

    def __init__(self, groups: list[dict[str, Any]], momentum: float) -> None:
        super().__init__(groups, {"momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weight in group["params"]:
                change = (weight.grad.double() + group["weight_decay"] * weight.double()).float()
                if group["momentum"]:
                    kept = self.state[weight].setdefault("momentum_buffer", torch.zeros_like(weight))
                    change = (group["momentum"] * kept.double() + change.double()).float()
                    kept.copy_(change)
                weight.copy_((weight.double() - group["lr"] * change.double()).float())


def train(model: nn.Module, forward: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> list[Tensor]:
    """Updates under autocast, with another rate each; the losses, and the weights at the end."""
    kept = []
    for step in range(steps):
        dice = torch.Generator().manual_seed(step)
        images = torch.randn(6, 3, 64, 64, generator=dice).bfloat16() * 40
        labels = torch.randint(3, (6,), generator=dice)
        set_lr(optimizer, 0.01 / (1 + step // 2))
        torch.manual_seed(step)  # of dropout
        with torch.autocast("cpu", torch.bfloat16):
            logits = forward(images)
        loss = F.cross_entropy(logits.float(), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        kept.append(loss.detach())
    return [*kept, *(weight.detach().clone() for weight in model.parameters())]


@pytest.mark.heavy
@pytest.mark.parametrize("form", ["grouped", "apart", "dense"])
@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_shadows_give_the_bits_of_autocast(momentum: float, form: str) -> None:
    model, other = make_model(form), make_model(form)
    optimizer = make_flat(model, momentum=momentum)
    groups = build_optimizer(other, name="sgd", **(SETTINGS | {"momentum": momentum})).param_groups
    shadows = optimizer.make_shadows(torch.bfloat16)
    found = train(model, Shadowed(model, shadows), optimizer, 4)
    expected = train(other, other, InFloat64(groups, momentum), 4)
    assert all(map(torch.equal, found, expected))
    assert all(torch.equal(shadow, weight.bfloat16()) for weight, shadow in shadows.items())
    assert all(weight.grad is None for pair in shadows.items() for weight in pair)


@pytest.mark.heavy
def test_shadows_that_are_not_renewed_are_noticed() -> None:
    model, other = make_model(), make_model()
    optimizer, stale = make_flat(model), make_flat(other)
    expected = train(model, Shadowed(model, optimizer.make_shadows(torch.bfloat16)), optimizer, 3)
    forward = Shadowed(other, stale.make_shadows(torch.bfloat16))
    stale._shadows = None
    found = train(other, forward, stale, 3)
    assert torch.equal(found[0], expected[0])
    assert not any(map(torch.equal, found[1:], expected[1:]))


def test_parameters_stay_what_they_were_to_everyone_else() -> None:
    model, other = make_model(), make_model()
    names = dict(model.named_parameters())
    shadowed = Shadowed(model, make_flat(model).make_shadows(torch.bfloat16))
    with torch.autocast("cpu", torch.bfloat16):
        shadowed(torch.randn(2, 3, 64, 64))
    for name, parameter in model.named_parameters():
        assert parameter is names[name]
        assert isinstance(parameter, nn.Parameter)
        assert parameter.dtype == torch.float32
        assert parameter.stride() == other.get_parameter(name).stride()
    assert pack_tensors(model.state_dict()) == pack_tensors(other.state_dict())
    assert len({parameter.untyped_storage().data_ptr() for parameter in model.parameters()}) == 1


def test_weights_are_its_own_again_after_a_failure() -> None:
    model = make_model()
    before = list(model.parameters())
    shadowed = Shadowed(model, make_flat(model).make_shadows(torch.bfloat16))
    with pytest.raises(RuntimeError):
        shadowed(torch.randn(2, 5, 64, 64))  # no such images
    assert all(own is kept for own, kept in zip(model.parameters(), before, strict=True))


def test_a_gradient_in_another_memory_layout_is_read_rightly() -> None:
    weights = [nn.Parameter(torch.zeros(5, 3, 2, 2).to(memory_format=torch.channels_last)), nn.Parameter(torch.ones(7))]
    group = {"params": weights, "weight_decay": 0.5}
    optimizer = FlatSGD([group], lr=1.0, momentum=0.0)
    weights[0].grad = torch.arange(60.0).view(5, 3, 2, 2)
    weights[1].grad = torch.arange(7.0)
    optimizer.step()
    assert torch.equal(weights[0], -torch.arange(60.0).view(5, 3, 2, 2))
    assert torch.equal(weights[1], 0.5 - torch.arange(7.0))


def test_weights_fill_any_number_of_blocks() -> None:
    weights = [nn.Parameter(torch.full((size,), float(size))) for size in (2047, 1, 2048, 4097)]
    optimizer = FlatSGD([{"params": weights, "weight_decay": 0.0}], lr=0.5, momentum=0.0)
    for weight in weights:
        weight.grad = torch.arange(float(len(weight)))
    optimizer.step()
    for weight in weights:
        assert torch.equal(weight, len(weight) - 0.5 * torch.arange(float(len(weight))))


def test_an_update_moves_20_bytes_a_parameter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the paper's network: weights and velocities read and written, gradients read, bf16 weights written."""
    model = build_on_meta(make_spec("paper"))
    optimizer, moved = make_flat(model), []

    def note(weights: Tensor, velocities: Tensor, shadows: Tensor, grads: list[Tensor], *_: Any, **__: Any) -> None:
        moved.append(2 * weights.nbytes + 2 * velocities.nbytes + shadows.nbytes + sum(grad.nbytes for grad in grads))

    monkeypatch.setattr(optimizer, "_update", note)
    for shadow in optimizer.make_shadows(torch.bfloat16).values():
        shadow.grad = torch.empty_like(shadow)
    optimizer.step()
    assert 20 <= moved[0] / sum(weight.numel() for weight in model.parameters()) < 20.01


def test_rates_travel_only_when_they_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that is recorded reads them where they are; a new rate is sent before it is made again."""
    weight = nn.Parameter(torch.ones(3))
    optimizer = FlatSGD([{"params": [weight], "weight_decay": 0.0, "lr": 0.25}], lr=0.0, momentum=0.0)
    optimizer.send_terms()
    held = optimizer._terms
    monkeypatch.setattr(optimizer, "_terms", None)
    optimizer.send_terms()  # would fail if it sent anything
    monkeypatch.setattr(optimizer, "_terms", held)
    weight.grad = torch.ones(3)
    optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.5
    optimizer.send_terms()
    assert optimizer._terms is held
    optimizer.step()
    assert weight.tolist() == [0.25] * 3


# -- beside the backward pass -----------------------------------------------------------------------------------------


class LateStream(SideStream):
    """Its work is done as late as it may be: when someone waits for it."""

    def __init__(self) -> None:
        self.work: Callable[[], None] | None = None

    def start(self, work: Callable[[], None]) -> None:
        assert self.work is None
        self.work = work

    def end(self) -> None:
        assert self.work is not None
        self.work()
        self.work = None


class UnawaitedStream(LateStream):
    """The defect: the network's stream goes on, and the work is done while the next update is made."""

    def start(self, work: Callable[[], None]) -> None:
        if self.work is not None:
            self.work()
        self.work = work

    def end(self) -> None:
        pass


class Updates:
    """Updates as the trainer makes them.

    Args:
        side: of the optimizer; None = nothing is announced to it.
        changes: of the recipe.
        spec: of the network.
        is_shadowed: whether the optimizer makes the bf16 weights.
        how: arguments of `train_step`.
    """

    def __init__(
        self,
        side: SideStream | None,
        *,
        changes: dict[str, Any] | None = None,
        spec: dict[str, Any] | None = None,
        is_shadowed: bool = True,
        **how: Any,
    ) -> None:
        model = build_model(tiny_spec(**(spec or {})), seed=0)
        self.model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        fuse_relu(self.model.features, self.model.classifier)
        self.optimizer = make_flat(self.model, **(changes or {}))
        self.forward: nn.Module = self.model
        if is_shadowed:
            self.forward = Shadowed(self.model, self.optimizer.make_shadows(torch.bfloat16))
        if side is None:
            self.optimizer.expect_backward = lambda blocked: None  # type: ignore[method-assign]
        else:
            self.optimizer._side = side
        autocast = partial(torch.autocast, "cpu", torch.bfloat16)
        accelerator: Any = SimpleNamespace(autocast=autocast, scaler=None)
        self.runtime, self.how = replace(make_runtime(), accelerator=accelerator), how
        self.counters = DeviceCounters.on(torch.device("cpu"))
        self.launches: list[tuple[int, int]] = []  # blocks, and gradients that were there
        self._launch, self.optimizer._update = self.optimizer._update, self._note_launch

    def _note_launch(self, weights: Tensor, *others: Any, **how: Any) -> None:
        self.launches.append((len(weights) // 2048, sum(leaf.grad is not None for leaf in self.optimizer._leaves)))
        self._launch(weights, *others, **how)

    def make(self, steps: int, factor: float = 40.0) -> list[Tensor]:
        """Some; all that an update changes."""
        for step in range(steps):
            dice = torch.Generator().manual_seed(step)
            images = torch.randn(6, 3, 64, 64, generator=dice).bfloat16() * factor
            batch = Batch(images, torch.randint(3, (6,), generator=dice), torch.ones(6), torch.arange(6), 6, [])
            set_lr(self.optimizer, 0.01 / (1 + step // 2))
            torch.manual_seed(step)  # of dropout
            how = {"micro_batch_size": 6, "fused_loss": True} | self.how
            train_step(self.runtime, self.forward, self.optimizer, batch, scale=1 / 6, counters=self.counters, **how)
        state = {**dict(self.model.named_parameters()), **optimizer_tensors(self.optimizer, self.model)}
        return [tensor.detach().clone() for tensor in [*state.values(), self.counters.sums]]


CPU = torch.device("cpu")


@pytest.mark.heavy
@pytest.mark.parametrize("is_shadowed", [True, False])
@pytest.mark.parametrize("fc_groups", [1, 2])
def test_fully_connected_layers_are_updated_beside_the_convolutions_backward_pass(
    is_shadowed: bool, fc_groups: int
) -> None:
    """As early and as late as may be: the bits are those of one launch after it."""
    how: dict[str, Any] = {"is_shadowed": is_shadowed, "spec": {"fc_groups": fc_groups}}
    expected = Updates(None, **how).make(3)
    for side in (SideStream(CPU), LateStream()):
        updates = Updates(side, **how)
        assert all(map(torch.equal, updates.make(3), expected))
        # Of 16 parameters six are of fully connected layers. A late launch is made when all have their gradients.
        places = updates.optimizer._early.values
        num_blocks, num_early = len(updates.optimizer._weights) // 2048, (places.stop - places.start) // 2048
        launches = [(num_early, 6 if type(side) is SideStream else 16), (num_blocks - num_early, 16)]
        assert updates.launches == 3 * (launches if type(side) is SideStream else launches[::-1])


@pytest.mark.heavy
def test_a_side_stream_that_is_not_waited_for_is_noticed() -> None:
    found, expected = Updates(UnawaitedStream()).make(3), Updates(None).make(3)
    assert not any(map(torch.equal, found, expected))


@pytest.mark.heavy
def test_weights_that_change_before_the_backward_pass_has_read_them_are_noticed() -> None:
    """The defect: the first early gradient begins the update. Those not there yet are zeros, and weights decay."""
    changes = {"changes": {"weight_decay": 10.0}}
    updates, expected = Updates(SideStream(CPU), **changes), Updates(None, **changes).make(1)
    announce, leaves = updates.optimizer.expect_backward, updates.optimizer._leaves[-6:]

    def announce_too_early(blocked: Tensor) -> None:
        announce(blocked)
        updates.optimizer._num_missing = 1
        for leaf in leaves:
            leaf.grad = torch.zeros_like(leaf)

    updates.optimizer.expect_backward = announce_too_early  # type: ignore[method-assign]
    convolutions = slice(0, 10)
    assert not any(map(torch.equal, updates.make(1)[convolutions], expected[convolutions]))


@pytest.mark.heavy
def test_an_update_that_is_left_out_is_so_in_both_launches() -> None:
    updates = Updates(SideStream(CPU))
    *before, _ = updates.make(1)
    *after, sums = updates.make(1, factor=float("nan"))
    assert sums[0].isnan()
    assert len(updates.launches) == 4
    assert all(map(torch.equal, before, after))


@pytest.mark.heavy
@pytest.mark.parametrize(
    "how",
    [
        {"micro_batch_size": 4},
        {"fused_loss": False},
        {"changes": {"freeze": ("conv1", "conv2", "conv3", "conv4", "conv5")}},
        {"changes": {"freeze": ("fc6", "fc7", "fc8")}},
    ],
    ids=str,
)
def test_what_cannot_be_begun_early_is_one_launch(how: dict[str, Any]) -> None:
    updates = Updates(SideStream(CPU), **({"is_shadowed": False} | how))
    updates.make(2)
    assert [blocks for blocks, _ in updates.launches] == [len(updates.optimizer._weights) // 2048] * 2


@pytest.mark.heavy
def test_an_update_that_was_given_up_halfway_leaves_no_trace() -> None:
    """As that of a CUDA graph whose capture failed: gradients are dropped when the side stream is done with them."""
    side = LateStream()
    updates = Updates(side)
    updates.optimizer.expect_backward(torch.zeros(()))
    updates.forward(torch.randn(2, 3, 64, 64).bfloat16()).sum().backward()
    assert side.work is not None
    updates.optimizer.zero_grad()
    assert side.work is None
    updates.launches.clear()
    updates.make(1)
    assert len(updates.launches) == 2
