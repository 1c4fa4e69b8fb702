"""A whole update that is recorded once: the bits of an eager one, and what becomes of one that cannot be recorded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import Any

import pytest
import torch
from helpers.graphs import PlainRecorder, TapeRecorder
from helpers.interpreter import rounding_to_nearest
from helpers.tiny import make_runtime, tiny_loader, tiny_spec
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from alexnet_dist.data.engines.loader import Batch
from alexnet_dist.models import build_model, build_on_meta
from alexnet_dist.training import graph
from alexnet_dist.training.flat_update import FlatSGD, Shadowed
from alexnet_dist.training.graph import StepGraph
from alexnet_dist.training.optim import build_optimizer, load_optimizer_tensors, optimizer_tensors, place_rates, set_lr
from alexnet_dist.training.step import DeviceCounters, train_step

CPU = torch.device("cpu")
SEED, BATCH_SIZE, NUM_IMAGES, NUM_STEPS = 5, 6, 16, 20  # the third batch of a pass has four images, and is filled up


class Training:
    """A network, and updates of it as the trainer makes them, on no place of their own unless a recorder is given."""

    def __init__(
        self,
        recorder: PlainRecorder | None = None,
        *,
        rule: str = "sgd",
        micro: int = BATCH_SIZE,
        is_placed: bool = True,
        device: torch.device = CPU,
    ) -> None:
        self.runtime, self.micro, self.failures = replace(make_runtime(), device=device), micro, list[str]()
        self.scales: list[float | Tensor] = []
        model = build_model(tiny_spec(), seed=0) if device == CPU else build_on_meta(tiny_spec())
        self.model = model.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        self.optimizer = build_optimizer(
            self.model,
            name=rule,
            momentum=0.9,
            weight_decay=0.01,
            bias_lr_factor=2.0,
            bias_weight_decay=0.0,
            freeze=("conv1",),
            freeze_from_epoch=1,
        )
        if is_placed:
            place_rates(self.optimizer, self.runtime.device)
        self.forward: nn.Module = self.model
        if isinstance(self.optimizer, FlatSGD):
            self.forward = Shadowed(self.model, self.optimizer.make_shadows(torch.bfloat16))
            self.runtime.accelerator.autocast = partial(torch.autocast, "cpu", torch.bfloat16)
        self.counters = DeviceCounters.on(self.runtime.device)
        self.graph = None if recorder is None else self.build_graph(recorder)

    def build_graph(self, recorder: PlainRecorder) -> StepGraph:
        return StepGraph(
            self.runtime, recorder, self.model, self.optimizer, self.counters, self.step, self.failures.append
        )

    def step(self, batch: Batch, scale: float | Tensor) -> None:
        self.scales.append(scale)
        train_step(
            self.runtime,
            self.forward,
            self.optimizer,
            batch,
            micro_batch_size=self.micro,
            scale=scale,
            counters=self.counters,
            fused_loss=isinstance(self.optimizer, FlatSGD),
        )

    def update(self, number: int, batch: Batch, freeze_at: int = NUM_STEPS) -> None:
        """One update; the rate is another one each time, and conv1 is frozen at some moment."""
        set_lr(self.optimizer, 0.02 / (1 + number), epoch=int(number >= freeze_at))
        seed, scale = partial(self.runtime.seed_dropout, SEED, number), 1 / batch.num_images
        if self.graph is not None:
            self.graph.update(batch, scale, seed)
        else:
            seed()
            self.step(batch, scale)

    def list_bits(self) -> dict[str, Tensor]:
        state = {**self.model.state_dict(), **optimizer_tensors(self.optimizer, self.model), **vars(self.counters)}
        return {name: tensor.clone() for name, tensor in state.items()}


def draw_batches(num_steps: int = NUM_STEPS) -> Iterator[Batch]:
    """Batches of a loader; that of update 9 is shorter than its shape says, as no loader of ours gives one."""
    for number, batch in enumerate(tiny_loader(make_runtime(), NUM_IMAGES, BATCH_SIZE, True).batches(0, num_steps)):
        batch = batch._replace(images=batch.images.to(memory_format=torch.channels_last))
        if number == 9:
            batch = batch._replace(images=batch.images[:4], labels=batch.labels[:4], mask=batch.mask[:4], num_images=4)
        yield batch


def train(training: Training, freeze_at: int = NUM_STEPS, num_steps: int = NUM_STEPS) -> list[dict[str, Tensor]]:
    bits = []
    for number, batch in enumerate(draw_batches(num_steps)):
        training.update(number, batch, freeze_at)
        bits.append(training.list_bits())
    return bits


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


@pytest.fixture(autouse=True)
def _short_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph, "WARM_UP", 3)


@pytest.mark.parametrize(
    ("rule", "micro"), [("sgd", BATCH_SIZE), ("sgd", 4), ("adam", BATCH_SIZE), ("rmsprop", BATCH_SIZE), ("lars", 4)]
)
def test_replays_have_the_bits_of_eager_updates(rule: str, micro: int) -> None:
    """Over rates that change, filled batches, a shorter one, parts of batches, dropout, and a layer that is frozen."""
    recorder = TapeRecorder()
    recorded = Training(recorder, rule=rule, micro=micro)
    eager = train(Training(rule=rule, micro=micro), freeze_at=12)
    for found, expected in zip(train(recorded, freeze_at=12), eager, strict=True):
        assert_same(found, expected)
    assert recorded.failures == []
    # From update 3 on, and again three updates after a layer was frozen; the one of another shape is eager.
    assert (recorder.num_recorded, recorder.num_replayed) == (2, 8 + 5)
    # Before the first recording, an eager update takes its scale as a tensor: a kernel for that is there by then.
    assert [isinstance(scale, Tensor) for scale in recorded.scales[:5]] == [False, False, False, True, True]
    assert recorded.graph is not None
    recorded.graph.release()
    assert not recorded.graph.is_replayed


def test_a_run_that_goes_on_has_the_bits_of_one_that_was_not_stopped() -> None:
    expected = train(Training())[-1]
    first, second = Training(TapeRecorder()), Training(TapeRecorder())
    for number, batch in enumerate(draw_batches()):
        if number == 10:
            assert first.graph is not None
            assert first.graph.is_replayed
            second.model.load_state_dict(first.model.state_dict())
            load_optimizer_tensors(second.optimizer, second.model, optimizer_tensors(first.optimizer, first.model))
            second.counters.sums.copy_(first.counters.sums)
        (first if number < 10 else second).update(number, batch)
    assert second.graph is not None
    assert second.graph.is_replayed
    assert_same(second.list_bits(), expected)


def test_rates_on_the_host_are_no_part_of_a_graph() -> None:
    """Here each update has another one: none would be right for the next."""
    recorder = TapeRecorder()
    recorded = Training(recorder, is_placed=False)
    assert_same(train(recorded)[-1], train(Training(is_placed=False))[-1])
    assert recorder.num_recorded == 0


@pytest.mark.heavy
@pytest.mark.parametrize("has_defect", [False, True])
def test_a_flat_update_its_copies_and_the_fused_loss_are_part_of_it(
    monkeypatch: pytest.MonkeyPatch, has_defect: bool
) -> None:
    """A tape does not see the kernel. The defect: an update is made again with the copies that it has renewed."""
    pytest.importorskip("triton")
    recorder = PlainRecorder()
    with rounding_to_nearest():
        expected = train(Training(rule="flat_sgd"), freeze_at=6, num_steps=8)
        if has_defect:
            monkeypatch.setattr(FlatSGD, "shadows", None)
        recorded = Training(recorder, rule="flat_sgd")
        found = train(recorded, freeze_at=6, num_steps=8)
    if has_defect:
        assert recorded.failures == ["a replay and an eager update differ in features.0.weight"]
        return
    assert_same(found[-1], expected[-1])
    assert (recorder.num_recorded, recorder.num_replayed) == (1, 5)  # a frozen layer's rate is on the device, too


# -- updates that cannot be recorded ----------------------------------------------------------------------------------


def wait(training: Training, batch: Batch, scale: float | Tensor) -> None:
    """The defect: the host looks at a loss."""
    train_step_of(training, batch, scale)
    assert training.counters.sums[0].item() >= 0


def draw(training: Training, batch: Batch, scale: float | Tensor) -> None:
    """The defect: each call adds other noise, which follows from no seed."""
    train_step_of(training, batch, scale)
    if training.graph is not None:
        noise = torch.randn((), generator=training.__dict__.setdefault("dice", torch.Generator().manual_seed(1)))
        with torch.no_grad():
            training.model.get_parameter("classifier.6.bias").add_(noise)


train_step_of: Callable[[Training, Batch, float | Tensor], None] = Training.step


@pytest.mark.parametrize(
    ("defect", "failure"),
    [
        (wait, "RuntimeError: aten._local_scalar_dense.default waits for the device"),
        (draw, "a replay and an eager update differ in classifier.6.bias"),
    ],
)
def test_an_update_that_cannot_be_recorded_stays_eager_and_says_why(
    monkeypatch: pytest.MonkeyPatch, defect: Any, failure: str
) -> None:
    monkeypatch.setattr(Training, "step", defect)
    recorder = TapeRecorder()
    recorded = Training(recorder)
    recorded_bits = train(recorded)
    assert recorded.failures == [failure]
    assert recorder.num_replayed <= 1
    if defect is wait:
        assert_same(recorded_bits[-1], train(Training())[-1])


def test_memory_that_is_short_costs_the_graph_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(state: dict[str, Tensor]) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    monkeypatch.setattr(graph, "_copy", fail)
    recorded = Training(TapeRecorder())
    assert_same(train(recorded)[-1], train(Training())[-1])
    assert recorded.failures == ["OutOfMemoryError: CUDA out of memory."]


# -- what a capture on a GPU would refuse -----------------------------------------------------------------------------


class Watch(TorchDispatchMode):
    """Notes operations that see a tensor which is not on the device."""

    def __init__(self) -> None:
        super().__init__()
        self.crossings: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        tensors = [part for part in tree_leaves((args, kwargs, made)) if isinstance(part, Tensor)]
        if any(tensor.device.type != "meta" for tensor in tensors):
            self.crossings.append(str(func))
        return made


@pytest.mark.parametrize("rule", ["sgd", "adam", "rmsprop", "lars"])
def test_nothing_goes_between_host_and_device_within_an_update(monkeypatch: pytest.MonkeyPatch, rule: str) -> None:
    """On a device without values a look at one fails; a number that Python sends there, or fetches, is a crossing."""
    for module in ("sgd", "adam"):  # they know that nobody trains there
        monkeypatch.setattr(import_module(f"torch.optim.{module}"), "_device_dtype_check_for_fused", lambda *_: None)
        monkeypatch.setattr(torch, f"_fused_{module}_", lambda *_, **__: None)  # a GPU's reads the rate there
    training = Training(rule=rule, micro=4, device=torch.device("meta"))
    images = torch.empty(BATCH_SIZE, 3, 64, 64, device="meta")
    labels, mask = (torch.empty(BATCH_SIZE, dtype=kind, device="meta") for kind in (torch.int64, torch.float32))
    batch = Batch(images, labels, mask, torch.arange(BATCH_SIZE), BATCH_SIZE, [])
    training.step(batch, torch.empty((), device="meta"))  # Adam makes its state
    with Watch() as watch:
        training.step(batch, torch.empty((), device="meta"))
    assert watch.crossings == []
    with Watch() as watch:
        training.step(batch, torch.tensor(0.5).to("meta"))
    assert watch.crossings != []
    with pytest.raises(RuntimeError, match="meta tensors"):
        wait(training, batch, torch.empty((), device="meta"))
