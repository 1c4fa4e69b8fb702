"""Loss, correct images and gradient by kernels, in Triton's interpreter, against PyTorch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.interpreter import rounding_to_nearest
from helpers.tiny import make_runtime, tiny_spec
from torch import Tensor

from alexnet_dist.data.engines.loader import Batch
from alexnet_dist.models import build_model
from alexnet_dist.training.objective import score, score_on_device
from alexnet_dist.training.optim import build_optimizer, set_lr
from alexnet_dist.training.step import DeviceCounters, train_step

pytest.importorskip("triton")

NAN, INF = math.nan, math.inf
MASKS = {"all": [1.0] * 5, "some": [1.0, 0.0, 1.0, 1.0, 0.0], "none": [0.0] * 5}


@pytest.fixture(autouse=True)
def _round_as_a_gpu() -> Iterator[None]:
    with rounding_to_nearest():
        yield


def score_both_ways(logits: Tensor, labels: Tensor, mask: Tensor, scale: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Gradient and sums, by the kernels and by PyTorch; each was preceded by 3 of loss and 2 correct images."""
    ours, theirs = (torch.tensor([3.0, 2.0], dtype=torch.float64) for _ in range(2))
    gradient = score_on_device(logits, labels, mask, scale, ours, torch.zeros(()))
    leaf = logits.clone().requires_grad_()
    score(leaf, labels, mask, scale, theirs).backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None
    return [gradient, ours], [leaf.grad, theirs]


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("classes", [1, 3, 100])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 2**-8)], ids=str
)
def test_kernels_compute_what_pytorch_does(
    dtype: torch.dtype, tolerance: float, classes: int, mask: list[float]
) -> None:
    dice = torch.Generator().manual_seed(classes)
    logits = (torch.randn(5, classes, generator=dice) * 5).to(dtype)
    labels = torch.randint(classes, (5,), generator=dice)
    ours, theirs = score_both_ways(logits, labels, torch.tensor(mask), 0.37)
    torch.testing.assert_close(ours[0], theirs[0], rtol=tolerance, atol=tolerance / 100)
    torch.testing.assert_close(ours[1], theirs[1], rtol=1e-6, atol=0)
    assert ours[0].dtype == dtype


@pytest.mark.parametrize(
    ("logits", "expected"),
    [
        ([2.0, 2.0, 1.0], 0),
        ([1.0, 2.0, 2.0], 1),
        ([-INF, -INF, -INF], 0),
        ([5.0, NAN, INF], 1),
        ([NAN, 1.0, NAN], 0),
        ([1.0, INF, INF], 1),
        ([-0.0, 0.0, -1.0], 0),
    ],
)
def test_the_first_of_equal_logits_is_the_largest_and_nan_is_larger(logits: list[float], expected: int) -> None:
    values = torch.tensor(logits)
    assert values.sort(descending=True, stable=True).indices[0] == expected
    sums, correct = torch.zeros(2, dtype=torch.float64), []
    for label in range(3):
        sums.zero_()
        score_on_device(values[None], torch.tensor([label]), torch.ones(1), 1.0, sums, torch.zeros(()))
        correct.append(sums[1].item())
    assert correct == [float(label == expected) for label in range(3)]


@pytest.mark.parametrize(("value", "is_finite"), [(1.0, True), (NAN, False), (INF, False), (-INF, True)])
@pytest.mark.parametrize("counts", [1.0, 0.0])
def test_a_loss_that_is_not_finite_blocks_the_update(value: float, is_finite: bool, counts: float) -> None:
    """Also that of an image which only fills the batch up, as PyTorch's sum has it."""
    logits, labels = torch.tensor([[1.0, 2.0, 3.0], [0.0, value, 2.0]]), torch.tensor([0, 2])
    sums, diverged = torch.zeros(2, dtype=torch.float64), torch.full((), 7.0)
    score_on_device(logits, labels, torch.tensor([1.0, counts]), 1.0, sums, diverged)
    assert diverged.item() == float(not is_finite)
    score_on_device(logits[:1], labels[:1], torch.ones(1), 1.0, sums, diverged)
    assert diverged.item() == float(not is_finite)  # until a log point has seen it


def test_no_images_change_nothing() -> None:
    (gradient, ours), (_, theirs) = score_both_ways(
        torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), torch.zeros(0), 1.0
    )
    assert gradient.shape == (0, 3)
    assert torch.equal(ours, theirs)


def test_more_images_than_are_added_up_at_a_time() -> None:
    from alexnet_dist.training.loss_kernel import ROWS, count

    rows = torch.stack([torch.arange(ROWS + 5.0), torch.ones(ROWS + 5)])
    sums = torch.ones(2, dtype=torch.float64)
    count(rows, sums, torch.zeros(()))
    assert sums.tolist() == [1 + (ROWS + 5) * (ROWS + 4) / 2, ROWS + 6]


def test_the_scale_may_lie_on_the_device() -> None:
    logits, labels, mask = torch.randn(4, 7), torch.tensor([0, 3, 6, 6]), torch.ones(4)
    number, tensor = (
        score_both_ways(logits, labels, mask, scale)[0][0] for scale in (0.1, torch.tensor(0.1, dtype=torch.float32))
    )
    assert torch.equal(number, tensor)


@pytest.mark.heavy
@pytest.mark.parametrize("micro_batch_size", [6, 4])
@pytest.mark.parametrize("alone", [True, False])
def test_a_step_is_the_same_with_either(micro_batch_size: int, alone: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where sums travel, though here to nobody."""
    mesh = make_runtime().mesh
    runtime = replace(make_runtime(), mesh=mesh if alone else replace(mesh, dp_group=object()))
    monkeypatch.setattr(type(runtime), "begin_sum_over_replicas", lambda _, values: lambda: values)
    found = []
    for fused in (False, True):
        model, counters = build_model(tiny_spec(dropout=0.0), seed=0), DeviceCounters.on(torch.device("cpu"))
        optimizer = build_optimizer(
            model, name="sgd", momentum=0.9, weight_decay=0.01, bias_lr_factor=1.0, bias_weight_decay=None
        )
        for step in range(3):
            dice = torch.Generator().manual_seed(step)
            images, labels = torch.randn(6, 3, 64, 64, generator=dice), torch.randint(3, (6,), generator=dice)
            batch = Batch(images, labels, torch.tensor([1.0, 1, 1, 1, 0, 0]), torch.arange(6), 4, [])
            set_lr(optimizer, 0.1)
            how: dict[str, Any] = {"micro_batch_size": micro_batch_size, "scale": 1 / 4, "fused_loss": fused}
            train_step(runtime, model, optimizer, batch, **how, counters=counters)
        found.append([counters.sums, counters.diverged, *(weight.detach() for weight in model.parameters())])
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)
    assert found[0][0][0] > 1
