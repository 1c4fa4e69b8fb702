"""N processes make the same updates as one, evaluate the same images, and stop together; N need not divide a batch."""

from __future__ import annotations

import math
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.dist_helper import run_processes
from helpers.tiny import tiny_loader, tiny_spec, worst_difference
from torch import nn

from alexnet_dist.base.errors import DataError, DivergedError, InterruptedRunError
from alexnet_dist.data.engines.loader import Batch
from alexnet_dist.data.index import BadFile
from alexnet_dist.data.plan import Plan
from alexnet_dist.models import build_model
from alexnet_dist.parallel.replicas import average_over_replicas
from alexnet_dist.parallel.runtime import start_runtime
from alexnet_dist.training import evaluate as evaluation
from alexnet_dist.training.evaluate import evaluate
from alexnet_dist.training.gate import BatchGate
from alexnet_dist.training.optim import build_optimizer, set_lr
from alexnet_dist.training.step import DeviceCounters, train_step

NUM_STEPS = 12
BATCH_SIZE = 12
NUM_IMAGES = 37  # the fourth batch of an epoch holds a single image: some replicas have none
LR = 0.02
SGD = {
    "name": "sgd",
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "bias_lr_factor": 2.0,
    "bias_weight_decay": 0.0,
}


def train_three_epochs(dtype: torch.dtype, micro_batch_size: int | None, defect: str | None) -> dict[str, torch.Tensor]:
    runtime = start_runtime("cpu", "fp32")
    loader = tiny_loader(runtime, NUM_IMAGES, BATCH_SIZE, training=True)
    model = build_model(tiny_spec(dropout=0.0), seed=0).to(dtype=dtype, memory_format=torch.channels_last)
    optimizer = build_optimizer(model, **SGD)  # type: ignore[arg-type]
    set_lr(optimizer, LR)
    forward = average_over_replicas(model, runtime.mesh, runtime.device)
    counters = DeviceCounters.on(runtime.device)
    gate = BatchGate(runtime, skip_bad_files=False)
    for batch in loader.batches(0, NUM_STEPS):
        num_images = gate.admit(batch)
        if defect == "mean of means":  # what most scripts do: right only while every replica has as many images
            num_images = max(batch.num_images, 1) * runtime.dp_size
        train_step(
            runtime,
            forward,
            optimizer,
            batch._replace(images=batch.images.to(dtype)),
            micro_batch_size=micro_batch_size or len(batch.images),
            scale=runtime.dp_size / num_images,
            counters=counters,
        )
    assert int(counters.diverged) == 0
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-12}


def train_in_each_type(micro_batch_size: int | None) -> dict[torch.dtype, dict[str, torch.Tensor]]:
    return {dtype: train_three_epochs(dtype, micro_batch_size, None) for dtype in TOLERANCES}


@pytest.fixture(scope="module")
def alone() -> dict[torch.dtype, dict[str, torch.Tensor]]:
    (found,) = run_processes(1, train_in_each_type, None)
    return found  # type: ignore[no-any-return]


OFTEN, SELDOM = [(1, 1), (2, None), (2, 3), (5, 2)], [(1, 4), (3, 2)]


@pytest.mark.parametrize(
    ("world_size", "micro_batch_size"), [*OFTEN, *(pytest.param(*one, marks=pytest.mark.slow) for one in SELDOM)]
)
def test_processes_and_accumulation_do_not_change_the_weights(
    alone: dict[torch.dtype, dict[str, torch.Tensor]], world_size: int, micro_batch_size: int | None
) -> None:
    results = run_processes(world_size, train_in_each_type, micro_batch_size)
    for dtype, tolerance in TOLERANCES.items():
        assert all(worst_difference(result[dtype], results[0][dtype]) == 0 for result in results)
        assert worst_difference(results[0][dtype], alone[dtype]) <= tolerance, dtype


def test_comparison_notices_a_mean_of_means(alone: dict[torch.dtype, dict[str, torch.Tensor]]) -> None:
    defective = run_processes(2, train_three_epochs, torch.float32, None, "mean of means")[0]
    assert worst_difference(defective, alone[torch.float32]) > 1e-3


def evaluate_tiny(num_images: int, batch_size: int, defect: bool) -> tuple[float, ...]:
    runtime = start_runtime("cpu", "fp32")
    loader = tiny_loader(runtime, num_images, batch_size, training=False)
    if defect:
        loader = replace(loader, plan=_RepeatingPlan(loader.plan.sizes, loader.plan.augmentation, batch_size, 3, False))
    model = build_model(tiny_spec(), seed=0).to(memory_format=torch.channels_last)
    result = evaluate(runtime, model, loader, BatchGate(runtime, skip_bad_files=False).admit)
    return (result.num_examples, result.top1, result.top5, result.loss)


class _RepeatingPlan(Plan):
    """Fills the last batch up with the first images, as DistributedSampler does."""

    def at(self, step: int) -> Any:
        rows = super().at(step)
        return rows._replace(ids=np.maximum(rows.ids, 0))


def evaluate_each(sizes: list[tuple[int, int]]) -> list[tuple[float, ...]]:
    return [evaluate_tiny(num_images, batch_size, False) for num_images, batch_size in sizes]


@pytest.mark.parametrize("world_size", [2, 3])
def test_evaluation_counts_each_image_once(world_size: int) -> None:
    sizes = [(1, 1), (2, 4), (7, 2), (12, 2), (13, 3), (16, 4), (19, 1)]  # images, and those of a process in a batch
    (alone,) = run_processes(1, evaluate_each, [(num_images, num_images) for num_images, _ in sizes])
    results = run_processes(world_size, evaluate_each, [(number, each * world_size) for number, each in sizes])
    for (num_images, _), expected, *found in zip(sizes, alone, *results, strict=True):
        assert all(result[:3] == expected[:3] for result in found), num_images
        assert found[0][0] == num_images
        assert found[0][3] == pytest.approx(expected[3], rel=1e-6)


def test_evaluation_refuses_to_count_an_image_twice() -> None:
    with pytest.raises(AssertionError, match="exactly once"):
        run_processes(2, evaluate_tiny, 7, 4, True)


class _Breaking(nn.Module):
    """A network whose logits of the images with a bright corner, and of what fills a batch up, are broken.

    Args:
        network: the network.
        value: NaN, an infinity, or a number so large that the loss is infinite although the logits are not.
    """

    def __init__(self, network: nn.Module, value: float) -> None:
        super().__init__()
        self.network, self.value = network, value

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = self.network(images)
        broken = is_bright(images) | (images == 0).all(dim=(1, 2, 3))
        logits[broken] = torch.tensor([0.0, self.value, -self.value])
        return logits


def is_bright(images: torch.Tensor) -> torch.Tensor:
    return images[:, 0, 0, 0] > 0.2


def evaluate_broken(num_images: int, batch_size: int, value: float, defect: bool = False) -> tuple[int, str]:
    """How many images are bright, and the message; no message where the evaluation was taken for good."""
    if defect:
        evaluation.is_finite = lambda logits, losses: logits.isfinite().all(dim=1)
    runtime = start_runtime("cpu", "fp32")
    loader = tiny_loader(runtime, num_images, batch_size, training=False)
    network = build_model(tiny_spec(), seed=0).to(memory_format=torch.channels_last)
    batches = loader.batches(0, loader.plan.steps_per_epoch)
    (bright,) = runtime.agree(sum(int((is_bright(batch.images) & batch.mask.bool()).sum()) for batch in batches))
    gate = BatchGate(runtime, skip_bad_files=False)
    try:
        evaluate(runtime, _Breaking(network, value), loader, gate.admit, where="here")
    except DivergedError as error:
        return bright, str(error)
    return bright, ""


def evaluate_each_broken(values: list[float], batch_size: int) -> list[tuple[int, str]]:
    return [evaluate_broken(13, batch_size, value) for value in values]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_images_whose_outputs_are_not_finite_are_counted(world_size: int) -> None:
    results = run_processes(world_size, evaluate_each_broken, [math.nan, math.inf, 3e38], 2 * world_size)
    assert results == [results[0]] * world_size  # every process ends alike
    for bright, message in results[0]:
        assert 0 < bright < 13
        assert message.startswith(f"the network's outputs are not finite (here): {bright} of 13 images")


def test_a_loss_that_is_not_looked_at_is_noticed() -> None:
    assert run_processes(2, evaluate_broken, 13, 4, 3e38, True)[0][1] == ""


def test_large_logits_with_a_finite_loss_are_let_pass() -> None:
    assert run_processes(2, evaluate_broken, 13, 4, 1e37)[0][1] == ""


def empty_batch(num_images: int = 1, bad_files: list[BadFile] | None = None) -> Batch:
    nothing = torch.zeros(1)
    return Batch(nothing, nothing.long(), nothing, nothing.long(), num_images, bad_files or [])


def stop_one_rank(number: int) -> str:
    runtime = start_runtime("cpu", "fp32")
    gate = BatchGate(runtime, skip_bad_files=False)
    gate.stop.listen()
    if runtime.rank == 1:
        os.kill(os.getpid(), number)
    try:
        gate.admit(empty_batch())
    except InterruptedRunError as error:
        return f"{error.exit_code}"
    return "went on"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, "143"), (signal.SIGINT, "130")])
def test_a_signal_to_one_process_stops_all(number: int, code: str) -> None:
    assert run_processes(3, stop_one_rank, number) == [code] * 3


def meet_bad_file(skip: bool) -> str:
    runtime = start_runtime("cpu", "fp32")
    gate = BatchGate(runtime, skip_bad_files=skip, root=Path(f"/machine{runtime.rank}"))
    bad_files = [BadFile("/machine1/a/b.jpg", "truncated")] if runtime.rank == 1 else []
    try:
        num_images = gate.admit(empty_batch(2 - len(bad_files), bad_files))
    except DataError as error:
        return str(error)
    return f"{num_images} {sorted(bad.path for bad in gate.gather_bad_files())}"


def test_a_bad_file_ends_all_processes_with_one_message() -> None:
    messages = run_processes(2, meet_bad_file, False)
    assert messages[0] == messages[1]
    assert "/machine1/a/b.jpg" in messages[0]


def test_a_skipped_bad_file_is_known_to_all_processes() -> None:
    own = [f"/machine{rank}/a/b.jpg" for rank in range(2)]  # as each has it below its own root
    assert run_processes(2, meet_bad_file, True) == [f"3 ['{path}']" for path in own]


def diverge_on_one_rank() -> tuple[bool, bool, int]:
    runtime = start_runtime("cpu", "fp32")
    loader = tiny_loader(runtime, NUM_IMAGES, BATCH_SIZE, training=True)
    model = build_model(tiny_spec(), seed=0)
    optimizer = build_optimizer(model, **SGD)  # type: ignore[arg-type]
    set_lr(optimizer, LR)
    forward, counters = average_over_replicas(model, runtime.mesh, runtime.device), DeviceCounters.on(runtime.device)
    weights = []
    for step, batch in enumerate(loader.batches(0, 3)):
        broken = step == 1 and runtime.rank == 1
        batch = batch._replace(images=batch.images * (float("nan") if broken else 1.0))
        train_step(
            runtime, forward, optimizer, batch, micro_batch_size=2, scale=runtime.dp_size / 12, counters=counters
        )
        weights.append([parameter.detach().clone() for parameter in model.parameters()])
    first, second, third = weights
    unchanged = all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    stays = all(torch.equal(a, b) for a, b in zip(first, third, strict=True))
    return unchanged, stays, int(counters.diverged)


def test_a_nan_in_one_process_blocks_the_update_in_all() -> None:
    assert run_processes(2, diverge_on_one_rank) == [(True, True, 1)] * 2


def fail_on_one_rank() -> tuple[str, float]:
    """The first line of the error, and the seconds until the process group is left."""
    runtime = start_runtime("cpu", "fp32")
    batch = next(tiny_loader(runtime, NUM_IMAGES, BATCH_SIZE, training=True).batches(0, 1))
    model = build_model(tiny_spec(), seed=0)
    optimizer = build_optimizer(model, **SGD)  # type: ignore[arg-type]
    forward, counters = average_over_replicas(model, runtime.mesh, runtime.device), DeviceCounters.on(runtime.device)
    if runtime.rank == 0:
        model.get_parameter("features.0.weight").register_hook(_fail)
    else:
        time.sleep(1)  # the other one has given up when this one begins its sum
    began = time.monotonic()
    try:
        train_step(runtime, forward, optimizer, batch, micro_batch_size=6, scale=1.0, counters=counters)
    except RuntimeError as error:
        runtime.close()
        return str(error).splitlines()[0], time.monotonic() - began
    raise AssertionError("an update was made")


def _fail(_: torch.Tensor) -> None:
    raise RuntimeError("no memory for a gradient")


def test_a_failure_while_sums_travel_ends_all_processes() -> None:
    """They are begun before the backward pass, and nobody waits for them any more."""
    (failed, seconds), (lost, other_seconds) = run_processes(2, fail_on_one_rank)
    assert failed == "no memory for a gradient"
    assert "gloo" in lost  # see lost_peers_named
    assert max(seconds, other_seconds) < 20
