from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from alexnet_dist.assembly.loaders import build_augmentation
from alexnet_dist.data.crop_ops.operations import change_rows
from alexnet_dist.data.crop_ops.random_erasing import draw_rectangles, erase_at_once, erase_one_by_one
from alexnet_dist.data.draws import ERASE, draw_uniforms
from alexnet_dist.data.plan import Augmentation, Plan, StepPlan
from alexnet_dist.settings.schema import AugmentConfig

MANY = 4000
Numbers = npt.NDArray[np.float64]


def draw(probability: float = 1.0, side: int = 224, count: int = MANY, **ranges: tuple[float, float]) -> Numbers:
    return draw_rectangles(probability, partial(draw_uniforms, 7, ERASE, 0, np.arange(count)), side, **ranges)


def draw_as_torchvision(side: int, count: int = MANY, **ranges: tuple[float, float]) -> Numbers:
    """(count, 4) x, y, width, height; zeros where its ten attempts fail."""
    torch.manual_seed(0)
    erasing, image = v2.RandomErasing(p=1.0, **ranges), torch.empty(3, side, side)
    drawn = [erasing.make_params([image]) for _ in range(count)]
    return np.array([[p["j"], p["i"], p["w"], p["h"]] if p["v"] is not None else [0] * 4 for p in drawn], np.float64)


# -- draws ------------------------------------------------------------------------------------------------------------


def test_setting_reaches_the_plan_and_not_the_evaluation() -> None:
    made = build_augmentation(AugmentConfig(random_erasing=0.3), crop_size=8)
    assert made.random_erasing == 0.3
    assert made.for_evaluation().random_erasing == 0


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("side", "ranges"),
    [(224, {}), (9, {}), (64, {"scale": (0.8, 1.0), "ratio": (0.3, 3.3)})],
    ids=["usual", "tiny", "mostly too large"],
)
def test_rectangles_are_distributed_as_torchvisions(side: int, ranges: dict[str, tuple[float, float]]) -> None:
    from scipy import stats  # takes half a second

    ours, theirs = draw(side=side, **ranges), draw_as_torchvision(side, **ranges)
    assert ((ours[:, :2] >= 0) & (ours[:, :2] + ours[:, 2:] <= side)).all()
    is_ours, is_theirs = ours[:, 2] > 0, theirs[:, 2] > 0
    spread = np.sqrt(is_theirs.mean() * (1 - is_theirs.mean()) * 2 / MANY)
    assert abs(is_ours.mean() - is_theirs.mean()) <= 5 * spread
    ours, theirs = ours[is_ours], theirs[is_theirs]
    for one, other in (
        *zip(ours.T, theirs.T, strict=True),
        (ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3]),
        (ours[:, 3] / ours[:, 2], theirs[:, 3] / theirs[:, 2]),
    ):
        assert stats.ks_2samp(one, other).pvalue > 1e-4
    wrong = draw(side=side, **{**ranges, "scale": (0.02, 0.25)})
    assert stats.ks_2samp(wrong[:, 2] * wrong[:, 3], theirs[:, 2] * theirs[:, 3]).pvalue < 1e-4


@pytest.mark.parametrize("probability", [0.1, 0.5])
def test_a_probability_erases_as_many_and_moves_no_rectangle(probability: float) -> None:
    always, some = draw(), draw(probability)
    is_erased = some.any(axis=1)
    assert abs(is_erased.mean() - probability) < 5 * np.sqrt(probability * (1 - probability) / MANY)
    assert np.array_equal(some[is_erased], always[is_erased])


def whole_epoch(epoch: int = 0, batch: int = 50, **changes: float) -> StepPlan:
    recipe = Augmentation(16, 24, "random", 0.5, lighting="common", color_jitter=(0.4, 0.4, 0.4, 0.1), **changes)
    plan = Plan(np.full((50, 2), 24), recipe, batch, seed=7, shuffle=False)
    steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
    *parts, drawn = zip(*map(plan.at, steps), strict=True)
    return StepPlan(*map(np.concatenate, parts), {name: np.concatenate([d[name] for d in drawn]) for name in drawn[0]})


def test_rectangles_are_drawn_beside_everything_else() -> None:
    off, on = whole_epoch(), whole_epoch(random_erasing=0.5)
    assert all(np.array_equal(one, other) for one, other in zip(off[:-1], on[:-1], strict=True))
    assert on.drawn.keys() - off.drawn.keys() == {"random_erasing"}
    assert np.array_equal(off.drawn["color_jitter"], on.drawn["color_jitter"])


def test_rectangles_depend_on_the_image_and_the_epoch_alone() -> None:
    first = whole_epoch(random_erasing=0.5).drawn["random_erasing"]
    assert np.array_equal(first, whole_epoch(batch=10, random_erasing=0.5).drawn["random_erasing"])
    assert not np.array_equal(first, whole_epoch(epoch=1, random_erasing=0.5).drawn["random_erasing"])
    assert len(np.unique(first[first.any(axis=1)], axis=0)) > 15


def test_stream_is_the_pinned_one() -> None:
    """Change the numbers only on purpose, with a line in the changelog: every run's batches change with them."""
    assert draw(0.5, count=4).tolist() == [[56, 72, 118, 122], [0, 0, 0, 0], [11, 52, 107, 84], [34, 11, 21, 58]]


# -- pixels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("erase", [erase_one_by_one, erase_at_once])
def test_erased_input_equals_torchvisions(
    erase: Callable[[Tensor, Numbers], Tensor], layout: torch.memory_format, dtype: torch.dtype
) -> None:
    images = torch.randn(40, 3, 16, 16, generator=torch.manual_seed(1)).to(dtype).contiguous(memory_format=layout)
    rectangles = draw(0.7, side=16, count=40)
    expected = torch.stack(
        [
            v2.functional.erase(image, int(y), int(x), int(height), int(width), torch.zeros(3, 1, 1))
            for image, (x, y, width, height) in zip(images, rectangles, strict=True)
        ]
    )
    assert not torch.equal(expected, images)
    made = erase(images, rectangles)
    assert torch.equal(made, expected)
    assert (made.dtype, made.stride()) == (dtype, images.stride())


def test_rows_without_an_image_stay_black() -> None:
    images, mask = torch.ones(4, 3, 8, 8), np.array([True, False, True, False])
    made = change_rows("input", images, {"random_erasing": np.tile([1.0, 2.0, 3.0, 4.0], (4, 1))}, mask)
    assert (made == 0).flatten(1).sum(dim=1).tolist() == [36, 0, 36, 0]
