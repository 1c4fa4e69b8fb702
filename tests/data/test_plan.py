from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torchvision.transforms import v2

from alexnet_dist.base.errors import DataError
from alexnet_dist.data import plan as data_plan
from alexnet_dist.data.decode import UnreadableImageError
from alexnet_dist.data.draws import CROP, FLIP, Blocks, draw_uniforms, shuffle_order
from alexnet_dist.data.plan import (
    Augmentation,
    Plan,
    StepPlan,
    choose_corners,
    choose_resized_windows,
    resize_shapes,
)

Ints = npt.NDArray[np.int64]

RANDOM = Augmentation(
    crop_size=32,
    resize=40,
    crop="random",
    horizontal_flip=0.5,
    vertical_flip=0.2,
    lighting="source2012",
)
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


def make_sizes(count: int, seed: int = 0, low: int = 33, high: int = 400) -> Ints:
    return np.random.default_rng(seed).integers(low, high, (count, 2))


def make_plan(**changes: Any) -> Plan:
    values: dict[str, Any] = {"sizes": make_sizes(50), "augmentation": RANDOM, "global_batch_size": 12, "seed": 7}
    return Plan(**(values | {"shuffle": True} | changes))


def is_equal(one: StepPlan, other: StepPlan) -> bool:
    (*some, drawn), (*others, other_drawn) = one, other
    return (
        all(np.array_equal(a, b) for a, b in zip(some, others, strict=True))
        and drawn.keys() == other_drawn.keys()
        and all(np.array_equal(drawn[name], other_drawn[name]) for name in drawn)
    )


def join(parts: list[StepPlan]) -> StepPlan:
    *arrays, drawn = zip(*parts, strict=True)
    return StepPlan(*map(np.concatenate, arrays), {name: np.concatenate([d[name] for d in drawn]) for name in drawn[0]})


# -- a pure function --------------------------------------------------------------------------------------------------


def test_equal_inputs_give_equal_plans_in_any_order_of_calls() -> None:
    forwards = [make_plan().at(step) for step in range(15)]
    other = make_plan()
    np.random.seed(3)  # the global generator is neither read ...
    state = str(np.random.get_state())
    backwards = [other.at(step) for step in reversed(range(15))][::-1]
    assert str(np.random.get_state()) == state  # ... nor moved
    assert all(map(is_equal, forwards, backwards))


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 8},
        {"augmentation": dataclasses.replace(RANDOM, crop="centre")},
        {"augmentation": dataclasses.replace(RANDOM, lighting=None)},
        {"augmentation": dataclasses.replace(RANDOM, lighting_epochs=0)},
        {"augmentation": dataclasses.replace(RANDOM, color_jitter=(0.4, 0.0, 0.0, 0.0))},
        {"augmentation": dataclasses.replace(RANDOM, random_erasing=0.9)},
        {"augmentation": dataclasses.replace(RANDOM, horizontal_flip=1.0)},
        {"shuffle": False},
        {"sizes": make_sizes(50, seed=1)},
    ],
)
def test_another_input_gives_another_plan(changes: dict[str, Any]) -> None:
    assert not is_equal(make_plan().at(3), make_plan(**changes).at(3))


def test_another_epoch_has_another_order_and_other_crops() -> None:
    plan = make_plan(global_batch_size=50)
    first, second = plan.at(0), plan.at(1)
    assert not np.array_equal(first.ids, second.ids)
    by_id = [batch.corners[np.argsort(batch.ids)] for batch in (first, second)]
    assert not np.array_equal(*by_id)


def test_augmentation_of_an_image_does_not_depend_on_the_batch_size() -> None:
    small, large = make_plan(global_batch_size=10), make_plan(global_batch_size=25)
    assert is_equal(join([small.at(step) for step in range(5)]), join([large.at(step) for step in range(2)]))


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(("count", "batch"), [(50, 12), (48, 12), (5, 12), (1, 1), (50, 50)])
def test_each_epoch_visits_each_image_once(count: int, batch: int, shuffle: bool) -> None:
    plan = make_plan(sizes=make_sizes(count), global_batch_size=batch, shuffle=shuffle)
    steps = range(plan.steps_per_epoch, 2 * plan.steps_per_epoch)  # the second epoch
    batches = [plan.at(step).ids for step in steps]
    ids = np.concatenate(batches)
    assert {len(part) for part in batches} == {batch}
    assert sorted(ids[ids >= 0]) == list(range(count))
    assert (ids[count:] == -1).all()  # only the end is filled up
    assert [plan.count(step) for step in steps] == [int((part >= 0).sum()) for part in batches]
    assert shuffle or list(ids[:count]) == list(range(count))


@pytest.mark.parametrize("num_shards", [1, 2, 3, 4])
@pytest.mark.parametrize("step", [0, 4])
def test_shards_concatenate_to_the_whole_batch(num_shards: int, step: int) -> None:
    whole = make_plan().at(step)  # step 4 is the short one
    shards = [whole.shard(number, num_shards) for number in range(num_shards)]
    assert is_equal(join(shards), whole)
    assert num_shards == 1 or not is_equal(join(shards[::-1]), whole)


@pytest.mark.parametrize(("num_shards", "count"), [(5, 3), (7, 2), (8, 2), (11, 2), (13, 1)])
@pytest.mark.parametrize("step", [0, 4])
def test_uneven_shards_are_filled_up(num_shards: int, count: int, step: int) -> None:
    whole = make_plan().at(step)
    shards = [whole.shard(number, num_shards) for number in range(num_shards)]
    assert {len(shard.ids) for shard in shards} == {count}
    joined = join(shards)
    assert is_equal(joined.take(slice(0, len(whole.ids))), whole)
    assert (joined.ids[len(whole.ids) :] == -1).all()


def pinned_batch(**changes: Any) -> StepPlan:
    sizes = np.array([(33 + 31 * image % 367, 33 + 53 * image % 367) for image in range(50)])
    recipes = [dataclasses.replace(RANDOM, crop=crop, **changes) for crop in ("random", "random_resized")]
    return join([make_plan(sizes=sizes, augmentation=recipe).at(step) for recipe in recipes for step in (0, 4, 9)])


@pytest.mark.parametrize(
    "changes", [{}, {"color_jitter": (0.4, 0.3, 0.2, 0.1)}, {"lighting_epochs": 1}, {"random_erasing": 1.0}]
)
def test_stream_is_the_pinned_one(changes: dict[str, Any]) -> None:
    """Change the numbers only on purpose, with a line in the changelog: every run's batches change with them."""
    batch = pinned_batch(**changes)
    whole = [batch.ids, batch.windows, batch.resized, batch.corners, batch.flips.astype(np.int64)]
    digest = hashlib.sha256(b"".join(part.astype("<i8").tobytes() for part in whole)).hexdigest()
    assert digest == "e69976662ca41cb1d97ac7cf237f994698e712098e2e55c5b5a3d2980e11bf9a"
    np.testing.assert_allclose(
        batch.shifts[0], [3.896065075727291, -4.738679501930017, -14.148575715025384], rtol=1e-12
    )


# -- geometry, against torchvision ------------------------------------------------------------------------------------


def torchvision_corner(width: int, height: int, side: int) -> tuple[int, int]:
    """Where torchvision's center crop of a picture begins, read from a picture that holds its own coordinates."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    crop = v2.CenterCrop(side)(torch.stack([columns, rows]))
    return int(crop[0, 0, 0]), int(crop[1, 0, 0])


def test_centre_crop_lies_where_torchvision_puts_it() -> None:
    sides = np.array([(width, 524 - width) for width in range(224, 301)])
    ours = choose_corners(sides - 224, None)
    assert ours.tolist() == [list(torchvision_corner(int(w), int(h), 224)) for w, h in sides]
    floored = (sides - 224) // 2  # halves must be rounded to even, not down
    assert not np.array_equal(ours, floored)


@pytest.mark.parametrize("side", [32, 225, 256])
def test_resize_gives_torchvisions_size(side: int) -> None:
    sizes = np.concatenate([make_sizes(60, low=1, high=700), [(side, side), (side, 2 * side + 1), (500, 333)]])
    theirs = [v2.Resize(side)(torch.zeros(1, int(h), int(w), dtype=torch.uint8)).shape[:0:-1] for w, h in sizes]
    assert resize_shapes(sizes, side).tolist() == [list(shape) for shape in theirs]


@pytest.mark.parametrize(("resize", "expected"), [(None, (50, 70)), ((30, 40), (40, 30)), (25, (25, 35))])
def test_resize_settings(resize: int | tuple[int, int] | None, expected: tuple[int, int]) -> None:
    assert resize_shapes(np.array([[50, 70]]), resize).tolist() == [list(expected)]


@pytest.mark.parametrize("recipe", [RANDOM, dataclasses.replace(RANDOM, crop="centre", resize=None)])
def test_crops_lie_within_the_image(recipe: Augmentation) -> None:
    batch = make_plan(sizes=make_sizes(2000), augmentation=recipe, global_batch_size=2000).at(1)
    assert (batch.corners >= 0).all()
    assert (batch.corners + recipe.crop_size <= batch.resized).all()


def test_random_crops_reach_every_offset_equally() -> None:
    corners = choose_corners(np.full((9000, 2), 8), draw_uniforms(1, CROP, 0, np.arange(9000), 2))
    counts = np.stack([np.bincount(corners[:, axis], minlength=9) for axis in (0, 1)])
    assert counts.shape == (2, 9)
    assert abs(counts - 1000).max() < 5 * np.sqrt(1000)


def test_crop_larger_than_an_image_is_refused() -> None:
    with pytest.raises(DataError, match=r"does not fit .*image 1\): smaller than .* 32: 31 x 80 after augment.resize"):
        make_plan(sizes=np.array([[32, 32], [31, 80]]), augmentation=Augmentation(crop_size=32, resize=None))


def test_crop_as_large_as_the_image_is_fine() -> None:
    plan = make_plan(sizes=np.array([[32, 32]]), augmentation=Augmentation(crop_size=32, resize=None))
    assert plan.at(0).corners[0].tolist() == [0, 0]


# -- random resized crops, against torchvision ------------------------------------------------------------------------

DRAWS = 3000
MEAN_TOLERANCE = 4.0  # pixels; five standard errors of the widest mean (about 45 / sqrt(3000))


def our_windows(width: int, height: int, scale: tuple[float, float] = SCALE) -> Ints:
    uniforms = draw_uniforms(5, CROP, 0, np.arange(DRAWS), 22)
    return choose_resized_windows(np.tile([width, height], (DRAWS, 1)), uniforms, scale, RATIO)


def torchvision_windows(width: int, height: int) -> Ints:
    crop, picture = v2.RandomResizedCrop(8, SCALE, RATIO), torch.empty(1, height, width)
    torch.manual_seed(0)
    drawn = [crop.make_params([picture]) for _ in range(DRAWS)]
    return np.array([[params[key] for key in ("left", "top", "width", "height")] for params in drawn])


@pytest.mark.parametrize(("width", "height"), [(300, 200), (180, 240), (900, 100)])
def test_resized_windows_are_distributed_as_torchvisions(width: int, height: int) -> None:
    ours, theirs = our_windows(width, height), torchvision_windows(width, height)
    tolerance = MEAN_TOLERANCE * max(1, width / 200)
    np.testing.assert_allclose(ours.mean(axis=0), theirs.mean(axis=0), atol=tolerance)
    np.testing.assert_allclose(ours.std(axis=0), theirs.std(axis=0), atol=tolerance)


def test_another_scale_is_noticed_by_that_comparison() -> None:
    theirs = torchvision_windows(300, 200).mean(axis=0)
    assert abs(our_windows(300, 200, scale=(0.25, 1.0)).mean(axis=0) - theirs).max() > MEAN_TOLERANCE


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 500), (500, 1), (3, 4000), (4000, 3), (17, 17)])
def test_resized_windows_lie_within_the_image(width: int, height: int) -> None:
    x, y, window_width, window_height = our_windows(width, height).T
    assert min(x.min(), y.min()) >= 0
    assert min(window_width.min(), window_height.min()) >= 1
    assert (x + window_width).max() <= width
    assert (y + window_height).max() <= height


@pytest.mark.parametrize(("width", "height", "expected"), [(3, 4000, (0, 1998, 3, 4)), (4000, 3, (1998, 0, 4, 3))])
def test_extreme_shapes_fall_back_to_the_largest_centered_window(
    width: int, height: int, expected: tuple[int, int, int, int]
) -> None:
    windows = choose_resized_windows(np.array([[width, height]]), np.full((1, 22), 0.999), (1.0, 1.0), RATIO)
    assert windows[0].tolist() == list(expected)


# -- draws ------------------------------------------------------------------------------------------------------------

MANY = 40_000


def whole_epoch(**recipe: Any) -> StepPlan:
    augmentation = Augmentation(crop_size=8, resize=None, **recipe)
    return make_plan(sizes=np.full((MANY, 2), 8), augmentation=augmentation, global_batch_size=MANY).at(0)


@pytest.mark.parametrize(("horizontal", "vertical"), [(0.5, 0.2), (0.0, 1.0), (1.0, 0.0)])
def test_flip_rates(horizontal: float, vertical: float) -> None:
    rates = whole_epoch(horizontal_flip=horizontal, vertical_flip=vertical).flips.mean(axis=0)
    np.testing.assert_allclose(rates, [horizontal, vertical], atol=5 * 0.5 / np.sqrt(MANY))


@pytest.mark.parametrize(
    ("strength", "expected"), [("source2012", (7.4, 7.2, 7.7)), ("common", (3.2, 3.2, 3.2)), (None, (0.0, 0.0, 0.0))]
)
def test_lighting_has_its_sources_strength(strength: Any, expected: tuple[float, float, float]) -> None:
    shifts = whole_epoch(lighting=strength).shifts
    np.testing.assert_allclose(shifts.std(axis=0), expected, atol=0.15)
    np.testing.assert_allclose(shifts.mean(axis=0), 0, atol=5 * 7.7 / np.sqrt(MANY))


@pytest.mark.parametrize(
    ("lighting_epochs", "lit"), [(None, [True] * 4), (0, [False] * 4), (2, [True] * 2 + [False] * 2)]
)
def test_color_noise_ends_with_its_last_epoch(lighting_epochs: int | None, lit: list[bool]) -> None:
    always = make_plan(global_batch_size=50)
    plan = make_plan(global_batch_size=50, augmentation=dataclasses.replace(RANDOM, lighting_epochs=lighting_epochs))
    pairs = [(plan.at(epoch), always.at(epoch)) for epoch in range(4)]  # an epoch is one step
    assert [bool(ours.shifts.all()) for ours, _ in pairs] == lit
    assert [bool(ours.shifts.any()) for ours, _ in pairs] == lit
    assert all(np.array_equal(ours.shifts, full.shifts) for (ours, full), on in zip(pairs, lit, strict=True) if on)
    assert all(is_equal(ours._replace(shifts=full.shifts), full) for ours, full in pairs)


UNIFORMS: dict[str, Callable[[], npt.NDArray[np.float64]]] = {
    "ids": lambda: draw_uniforms(0, CROP, 0, np.arange(MANY), 1)[:, 0],
    "next ids": lambda: draw_uniforms(0, CROP, 0, np.arange(1, MANY + 1), 1)[:, 0],
    "second draw": lambda: draw_uniforms(0, CROP, 0, np.arange(MANY), 2)[:, 1],
    "other epoch": lambda: draw_uniforms(0, CROP, 1, np.arange(MANY), 1)[:, 0],
    "other purpose": lambda: draw_uniforms(0, FLIP, 0, np.arange(MANY), 1)[:, 0],
    "other seed": lambda: draw_uniforms(1, CROP, 0, np.arange(MANY), 1)[:, 0],
    "one image": lambda: draw_uniforms(0, CROP, 0, np.array([3]), MANY)[0],
    "large seed": lambda: draw_uniforms(2**63 - 1, CROP, 0, np.arange(MANY), 1)[:, 0],
}


@pytest.mark.parametrize("name", UNIFORMS)
def test_draws_are_uniform(name: str) -> None:
    draws = UNIFORMS[name]()
    counts = np.histogram(draws, bins=50, range=(0, 1))[0]
    assert 0 <= draws.min() < draws.max() < 1
    assert abs(counts - MANY / 50).max() < 5 * np.sqrt(MANY / 50)


@pytest.mark.parametrize("name", [name for name in UNIFORMS if name != "ids"])
def test_draws_for_different_purposes_are_uncorrelated(name: str) -> None:
    one, other = UNIFORMS["ids"](), UNIFORMS[name]()
    assert abs(np.corrcoef(one, other)[0, 1]) < 5 / np.sqrt(MANY)
    assert np.corrcoef(one, one + other)[0, 1] > 0.5  # the measure sees what is there


def test_order_mixes_the_images() -> None:
    order = shuffle_order(0, 0, MANY)
    assert abs(np.corrcoef(order, np.arange(MANY))[0, 1]) < 5 / np.sqrt(MANY)
    assert abs(np.corrcoef(order, shuffle_order(0, 1, MANY))[0, 1]) < 5 / np.sqrt(MANY)


def test_images_that_do_not_fit_can_be_skipped_and_change_nothing_for_the_others() -> None:
    sizes = np.array([[300, 200], [1, 40_000], [100, 90], [30, 31], [64, 64]])
    recipe = Augmentation(crop_size=60, resize=None, crop="random", horizontal_flip=0.5)
    plan = Plan(sizes, recipe, 5, seed=7, shuffle=True, skips_unfit=True)
    assert [*plan.unfit] == [1, 3]
    assert plan.unfit[3] == "smaller than the crop of 60: 30 x 31 after augment.resize"
    fitting = Plan(np.where(np.isin(np.arange(5), [1, 3])[:, None], 60, sizes), recipe, 5, seed=7, shuffle=True)
    for step in range(3):
        assert all(np.array_equal(a, b) for a, b in zip(plan.at(step), fitting.at(step), strict=True))
    for sample, fits in enumerate([True, False, True, False, True]):
        with contextlib.nullcontext() if fits else pytest.raises(UnreadableImageError, match="smaller than the crop"):
            plan.check_fits(sample)


def test_filling_is_drawn_though_the_first_image_does_not_fit() -> None:
    sizes = np.array([[30, 31], [100, 90], [64, 64]])
    recipe = Augmentation(crop_size=60, resize=None, crop="random")
    rows = Plan(sizes, recipe, 5, seed=7, shuffle=False, skips_unfit=True).at(0)
    assert rows.ids.tolist() == [0, 1, 2, -1, -1]
    assert rows.windows[:, 2:].tolist() == [[60, 60], [100, 90], [64, 64], [60, 60], [60, 60]]


def test_a_plan_holds_the_sizes_once_also_where_it_travels(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    resize_all = data_plan.resize_shapes
    monkeypatch.setattr(data_plan, "resize_shapes", lambda *words: calls.append(len(words[0])) or resize_all(*words))
    plan = make_plan(sizes=make_sizes(20_000).astype(np.int32))
    assert plan.at(0).windows.dtype == np.int64
    assert calls.count(20_000) == 1
    assert len(pickle.dumps(plan)) < 1.1 * plan.sizes.nbytes


def test_a_line_of_pixels_is_not_blown_up() -> None:
    """1 x 40,000 pixels with the shorter side at 256 would be 2.6 thousand million pixels."""
    sizes = np.array([[300, 200], [1, 40_000]])
    with pytest.raises(DataError, match=r"fit .*\(image 1\): it would become too large: 256 x 10240000 after"):
        Plan(sizes, Augmentation(crop_size=224, resize=256), 1, seed=0, shuffle=False)
    Plan(sizes, Augmentation(crop_size=224, resize=(256, 256)), 1, seed=0, shuffle=False)


# -- blocks -----------------------------------------------------------------------------------------------------------


def make_blocks(window: int) -> Blocks:
    """A hundred images in ten archives of unequal size, which lie in no order."""
    numbers = np.repeat(np.arange(10), [1, 19, 10, 10, 5, 15, 10, 10, 2, 18])
    return Blocks(np.random.default_rng(1).permutation(numbers), window)


def read_order(plan: Plan, epoch: int) -> Ints:
    steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
    return np.concatenate([plan.at(step).ids[: plan.count(step)] for step in steps])


@pytest.mark.parametrize("window", [1, 3, 10, 50])
def test_blocks_are_mixed_within_a_window_and_with_no_other(window: int) -> None:
    blocks = make_blocks(window)
    plan = make_plan(sizes=make_sizes(100), blocks=blocks)
    seen = set()
    for epoch in range(3):
        order = read_order(plan, epoch)
        assert np.array_equal(np.sort(order), np.arange(100))
        numbers = blocks.numbers[order]
        first, last = (np.array([np.flatnonzero(numbers == block)[end] for block in range(10)]) for end in (0, -1))
        by_first = np.argsort(first)
        for start in range(0, 10, window):
            inside, later = by_first[start : start + window], by_first[start + window :]
            assert last[inside].max() < first[later].min(initial=100)  # the archives of a window, and then the next
        if window > 1:
            assert np.count_nonzero(np.diff(numbers)) > 9  # archives of a window are mixed
        seen.add(tuple(order))
    assert len(seen) == 3
    other = make_plan(sizes=make_sizes(100), blocks=make_blocks(window))
    assert np.array_equal(read_order(other, 1), read_order(plan, 1))


def test_one_window_for_all_archives_is_the_global_order() -> None:
    plain = make_plan(sizes=make_sizes(100))
    assert is_equal(make_plan(sizes=make_sizes(100), blocks=make_blocks(10)).at(9), plain.at(9))
    assert not is_equal(make_plan(sizes=make_sizes(100), blocks=make_blocks(9)).at(9), plain.at(9))


def test_an_evaluation_reads_in_the_order_of_the_index() -> None:
    plan = make_plan(sizes=make_sizes(100), blocks=make_blocks(2), shuffle=False)
    assert np.array_equal(read_order(plan, 0), np.arange(100))
