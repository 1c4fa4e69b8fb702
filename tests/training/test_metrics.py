from __future__ import annotations

import math

import pytest
import torch

from alexnet_dist.training.metrics import Totals, count_correct, cross_entropy


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
