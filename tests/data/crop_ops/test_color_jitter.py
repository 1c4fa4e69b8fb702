from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from alexnet_dist.assembly.loaders import build_augmentation
from alexnet_dist.data import plan as plan_module
from alexnet_dist.data.crop_ops import operations
from alexnet_dist.data.crop_ops.color_jitter import BRIGHTNESS, CONTRAST, HUE, SATURATION, draw_jitter
from alexnet_dist.data.crop_ops.color_jitter_pixels import JITTERS, jitter_batch, jitter_one_by_one
from alexnet_dist.data.draws import JITTER, draw_uniforms
from alexnet_dist.data.engines.torchvision import PixelBatch, PixelBatches
from alexnet_dist.data.plan import Augmentation, Plan, StepPlan
from alexnet_dist.data.sources.synthetic import synthetic_index
from alexnet_dist.settings.schema import AugmentConfig

MANY = 24_000
STRENGTHS = (0.4, 1.5, 0.8, 0.3)
SIDE = 16
RECIPE = Augmentation(SIDE, 24, "random", horizontal_flip=0.5, lighting="source2012", color_jitter=STRENGTHS)

Factors = npt.NDArray[np.float64]


def whole_epoch(strengths: tuple[float, ...] = STRENGTHS, epoch: int = 0, seed: int = 7) -> StepPlan:
    recipe = replace(RECIPE, color_jitter=strengths)
    return Plan(np.full((MANY, 2), 24), recipe, MANY, seed, shuffle=False).at(epoch)


def by_component(rows: StepPlan) -> Factors:
    """(B, K) factors, in the order of the settings."""
    operations_of, factors = split(rows.drawn["color_jitter"])
    return np.take_along_axis(factors, operations_of.argsort(axis=1), axis=1)


def split(drawn: Factors) -> tuple[Factors, Factors]:
    """(B, K) operations and factors."""
    return drawn[:, :, 0], drawn[:, :, 1]


def draw(epoch: int, ids: npt.NDArray[np.int64], strengths: tuple[float, ...], seed: int = 7) -> Factors:
    return draw_jitter(strengths, partial(draw_uniforms, seed, JITTER, epoch, ids), SIDE)


def make_pixels(channels: int = 3, **changes: Any) -> PixelBatch:
    recipe = replace(RECIPE, **changes)
    index = synthetic_index(6, 3, (30, 26), seed=0)
    plan = Plan(index.sizes, recipe, 4, seed=1, shuffle=False)
    return PixelBatches(plan, index, channels, max_pixels=10**6, shard_id=0, num_shards=1)[1]  # two images, two fill


# -- draws ------------------------------------------------------------------------------------------------------------


def test_setting_reaches_the_plan() -> None:
    made = build_augmentation(AugmentConfig(color_jitter=[0.1, 0.2, 0.3, 0.4], lighting_epochs=3), crop_size=8)
    assert (made.color_jitter, made.lighting_epochs) == ((0.1, 0.2, 0.3, 0.4), 3)
    assert made.for_evaluation().color_jitter is None


RANGES = [(BRIGHTNESS, 0.6, 1.4), (CONTRAST, 0.0, 2.5), (SATURATION, 0.2, 1.8), (HUE, -0.3, 0.3)]


@pytest.mark.parametrize(("component", "low", "high"), RANGES)
def test_factors_are_uniform_in_torchvisions_range(component: int, low: float, high: float) -> None:
    factors = by_component(whole_epoch())[:, component]
    counts = np.histogram(factors, bins=40, range=(low, high))[0]
    assert low <= factors.min() < factors.max() <= high
    assert counts.sum() == MANY
    assert abs(counts - MANY / 40).max() < 5 * np.sqrt(MANY / 40)


@pytest.mark.heavy
def test_all_orders_are_as_frequent() -> None:
    counts = Counter(map(tuple, split(whole_epoch().drawn["color_jitter"])[0].tolist()))
    assert counts.keys() == set(itertools.permutations(range(4)))
    assert max(abs(count - MANY / 24) for count in counts.values()) < 5 * np.sqrt(MANY / 24)


def draw_columns() -> dict[str, Factors]:
    """Numbers of an epoch that have nothing to do with each other."""
    rows, later, other = whole_epoch(), whole_epoch(epoch=1), whole_epoch(seed=8)
    named = {f"factor {component}": column for component, column in enumerate(by_component(rows).T)}
    places = {
        f"place of {component}": column
        for component, column in enumerate(split(rows.drawn["color_jitter"])[0].argsort(axis=1).T[:3])
    }
    others = {"next image": by_component(rows)[:, 0].take(range(1, MANY + 1), mode="wrap")}
    others |= {"next epoch": by_component(later)[:, 0], "other seed": by_component(other)[:, 0]}
    others |= {"corner": rows.corners[:, 0], "flip": rows.flips[:, 0], "lighting": rows.shifts[:, 0]}
    return named | places | others


def test_draws_are_uncorrelated() -> None:
    columns = draw_columns()
    is_place = np.array([name.startswith("place") for name in columns])
    # Places in an order of four exclude each other: their correlation is -1/3.
    expected = np.where(np.outer(is_place, is_place), -1 / 3, 0.0)
    np.fill_diagonal(expected, 1)
    found = np.corrcoef(np.array([column.astype(np.float64) for column in columns.values()]))
    np.testing.assert_allclose(found, expected, atol=5 / np.sqrt(MANY))


LEFT_OUT = [(BRIGHTNESS,), (HUE,), (CONTRAST, SATURATION), (BRIGHTNESS, CONTRAST, SATURATION)]


@pytest.mark.parametrize("left_out", LEFT_OUT)
def test_a_strength_of_zero_leaves_its_operation_out_and_the_others_as_they_are(left_out: tuple[int, ...]) -> None:
    ids = np.arange(50)
    some = tuple(0.0 if component in left_out else strength for component, strength in enumerate(STRENGTHS))
    all_jitters, all_factors = split(draw(3, ids, STRENGTHS))
    jitters, factors = split(draw(3, ids, some))
    kept = ~np.isin(all_jitters, left_out)
    assert jitters.shape == factors.shape == (50, 4 - len(left_out))
    assert np.array_equal(jitters.ravel(), all_jitters[kept])
    assert np.array_equal(factors.ravel(), all_factors[kept])


@pytest.mark.parametrize("strengths", [None, (0.0, 0.0, 0.0, 0.0)])
def test_without_jitter_nothing_is_drawn(monkeypatch: pytest.MonkeyPatch, strengths: tuple[float, ...] | None) -> None:
    purposes = []

    def watch(seed: int, purpose: int, *where: Any) -> Factors:
        purposes.append(purpose)
        return draw_uniforms(seed, purpose, *where)

    for module in (plan_module, operations):
        monkeypatch.setattr(module, "draw_uniforms", watch)
    plan = Plan(np.full((9, 2), 24), replace(RECIPE, color_jitter=strengths), 4, seed=7, shuffle=True)
    rows = plan.at(2)
    assert rows.drawn == {}
    assert purposes
    assert JITTER not in purposes


def test_draws_do_not_depend_on_the_place_in_the_batch() -> None:
    plans = [Plan(np.full((30, 2), 24), RECIPE, batch, seed=7, shuffle=True) for batch in (30, 7)]
    drawn = [
        {
            sample: drawn.tolist()
            for step in range(plan.steps_per_epoch)
            for sample, drawn in zip(plan.at(step).ids, plan.at(step).drawn["color_jitter"], strict=True)
            if sample >= 0
        }
        for plan in plans
    ]
    assert len(drawn[0]) == 30
    assert drawn[0] == drawn[1]
    assert len({str(values) for values in drawn[0].values()}) == 30


def test_stream_is_the_pinned_one() -> None:
    """Change the numbers only on purpose, with a line in the changelog: every run's batches change with them."""
    jitters, factors = split(draw(3, np.array([0, 1, 41]), STRENGTHS))
    assert jitters.tolist() == [[1, 2, 3, 0], [3, 2, 1, 0], [2, 1, 3, 0]]
    expected = [0.3291991579, 0.9292328790, -0.0059296150, 0.8529176716]
    np.testing.assert_allclose(factors[2], expected, atol=1e-10)


# -- pixels -----------------------------------------------------------------------------------------------------------


def test_jitter_changes_the_picture_and_not_the_filling() -> None:
    plain, jittered = make_pixels(color_jitter=None), make_pixels()
    assert plain.mask.tolist() == [True, True, False, False]
    assert ((plain.pixels != jittered.pixels).sum(dim=(1, 2, 3))[:2] > SIDE).all()
    assert torch.equal(jittered.pixels[2:], torch.zeros_like(jittered.pixels[2:]))
    assert np.array_equal(plain.rows.shifts, jittered.rows.shifts)


@pytest.mark.parametrize(
    ("component", "changes"), [(BRIGHTNESS, True), (CONTRAST, True), (SATURATION, False), (HUE, False)]
)
def test_gray_pictures_have_brightness_and_contrast_alone(component: int, changes: bool) -> None:
    strengths = tuple(0.5 * (component == number) for number in range(4))
    plain, jittered = (make_pixels(1, color_jitter=choice).pixels for choice in (None, strengths))
    assert plain.shape == (4, SIDE, SIDE, 1)
    assert torch.equal(plain, jittered) == (not changes)
    assert not torch.equal(make_pixels(color_jitter=strengths).pixels, make_pixels(color_jitter=None).pixels)


def test_brightness_multiplies_the_pixels() -> None:
    strengths = (0.5, 0.0, 0.0, 0.0)
    plain, jittered = make_pixels(color_jitter=None), make_pixels(color_jitter=strengths)
    factors = split(draw(0, np.array([4, 5]), strengths, seed=1))[1].astype(np.float32)  # (2, 1)
    expected = np.clip(plain.pixels[:2].numpy() * factors[:, :, None, None], 0, 255).astype(np.uint8)
    assert np.array_equal(jittered.pixels[:2].numpy(), expected)


def test_threads_do_not_change_a_picture_of_256_pixels() -> None:
    """The mean gray of contrast is a sum that several threads share."""
    crop = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    crops, drawn = torch.from_numpy(crop).expand(4, -1, -1, -1), draw(0, np.arange(4), STRENGTHS)
    before = torch.get_num_threads()
    try:
        made = [jitter_one_by_one(crops, drawn) for _ in map(torch.set_num_threads, (1, 4))]
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*made)
    assert not torch.equal(made[0][0], made[0][1])


@pytest.mark.parametrize("operation", [BRIGHTNESS, CONTRAST, SATURATION, HUE])
@pytest.mark.parametrize("channels", [3, 1])
def test_jitter_of_a_batch_is_the_references(operation: int, channels: int) -> None:
    """Within 1, and nearly everywhere equal: the hue takes another way through the same colors."""
    pixels = torch.randint(0, 256, (16, 20, 20, channels), generator=torch.manual_seed(1), dtype=torch.uint8)
    pixels[0] = pixels[0, :, :, :1]  # gray
    low, high = (-0.5, 0.5) if operation == HUE else (0.0, 2.0)
    factors = np.linspace(low, high, 16)[:, None]
    made = jitter_batch(pixels, np.stack([np.full((16, 1), operation), factors], axis=2)).int()
    rows = zip(pixels.permute(0, 3, 1, 2), factors[:, 0], strict=True)
    expected = torch.stack([JITTERS[operation](planes, float(factor)) for planes, factor in rows]).permute(0, 2, 3, 1)
    assert (made - expected).abs().max() <= 1
    assert (made == expected).float().mean() > 0.99
    does_nothing = channels == 1 and operation in (SATURATION, HUE)
    assert torch.equal(made, pixels.int()) == does_nothing
