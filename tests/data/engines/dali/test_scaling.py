"""What a GPU gets of DALI, here on a CPU: resized, cropped and normalized in its pipeline, against the reference.

What is equal without a resize is in test_engine.py, for both ways.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers.dali_pictures import CUT, RESIZED, SIDE, check_equal, make_both, make_index, make_loader, make_zoo

from alexnet_dist.data.engines.dali import engine as dali_engine
from alexnet_dist.data.engines.dali import scaling as dali_scaling
from alexnet_dist.data.engines.dali.engine import find_dali
from alexnet_dist.data.index import SampleIndex
from alexnet_dist.data.plan import Plan

if find_dali():
    pytest.skip("DALI is not installed", allow_module_level=True)
os.environ.update(dali_engine.SETTINGS)

from alexnet_dist.data.engines.dali import pipeline as dali_pipeline

# After a resize: DALI rounds once, torchvision after each axis. A gray level is 1.
LARGEST, MEAN = 2.0, 0.2


@pytest.fixture(autouse=True)
def _as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dali_engine, "lets_dali_scale", lambda _: True)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> SampleIndex:
    return make_index(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> SampleIndex:
    return make_zoo(tmp_path_factory.mktemp("zoo"))


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("name", RESIZED)
def test_resized_pictures_differ_by_rounding_alone(index: SampleIndex, name: str, channels: int) -> None:
    check_equal(*make_both(make_loader(index, RESIZED[name], channels=channels), 0, 3), largest=LARGEST, mean=MEAN)


def test_jitter_follows_the_weighing_of_edges(index: SampleIndex) -> None:
    brightness = replace(RESIZED["random resized"], color_jitter=(0.4, 0.0, 0.0, 0.0))  # multiplies by 1.4 at most
    check_equal(*make_both(make_loader(index, brightness), 0, 3), largest=1.4 * LARGEST + 1, mean=1.4 * MEAN)


def test_that_comparison_notices_edges_that_are_not_weighed(
    index: SampleIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = make_loader(index, RESIZED["shorter side"])
    monkeypatch.setattr(dali_scaling, "find_edge_gains", lambda rows, _: np.ones((len(rows.ids), 4), np.float32))
    with pytest.raises(AssertionError):
        check_equal(*make_both(loader, 0, 3), largest=LARGEST, mean=MEAN)


def place_at(corners: Any, resized: Any) -> tuple[Any, ...]:
    """x and y of these corners (n, 2) in pictures of these widths and heights (n, 2)."""
    rows = Plan(np.full((len(corners), 2), 30), CUT, len(corners), 0, False).at(0)
    rows = rows._replace(corners=corners, resized=resized, flips=np.zeros_like(rows.flips))
    return dali_scaling.place_crops(rows, 1, SIDE)[:2]


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("margin", [0, 1, 2, 3, 19, 76, 255, 299])
def test_dali_maps_every_corner_back(margin: int, axis: int) -> None:
    corners = np.zeros((margin + 1, 2), np.int64)
    corners[:, axis] = np.arange(margin + 1)
    places = place_at(corners, np.full_like(corners, SIDE) + margin * (np.arange(2) == axis))

    def define() -> Any:
        picture, x, y = (dali_pipeline.fn.external_source(name=name) for name in "pxy")
        picture = dali_pipeline.fn.reshape(picture, layout="HWC")
        return dali_pipeline.fn.crop_mirror_normalize(
            picture, crop=[SIDE, SIDE], crop_pos_x=x, crop_pos_y=y, output_layout="HWC"
        )

    line = np.arange(margin + SIDE, dtype=np.float32).reshape((1, -1, 1) if axis == 0 else (-1, 1, 1))
    picture = np.ascontiguousarray(np.repeat(line, SIDE, axis=axis))  # its own x, or y
    options = {"batch_size": margin + 1, "num_threads": 1, "device_id": None, "prefetch_queue_depth": 1}
    pipeline = dali_pipeline.dali.pipeline_def(define)(**options)
    for name, data in zip("pxy", ([picture] * (margin + 1), *map(np.ascontiguousarray, places)), strict=True):
        pipeline.feed_input(name, data)
    found = [int(np.array(crop)[0, 0, 0]) for crop in pipeline.run()[0]]
    assert found == list(range(margin + 1))


@pytest.mark.parametrize("margins", [np.arange(600), np.array([4095, 19_999, 65_535])])
def test_corners_survive_single_precision(margins: Any) -> None:
    corners = np.concatenate([np.arange(margin + 1) for margin in margins])
    spans = np.repeat(margins, margins + 1)
    both = np.stack([corners, spans - corners], axis=1)
    x, y = place_at(both, np.stack([spans, spans], axis=1) + SIDE)
    back = np.floor(np.stack([x, y], axis=1) * spans.astype(np.float32)[:, None] + np.float32(0.5))
    np.testing.assert_array_equal(back, both)


def test_pictures_that_dali_was_not_given_join_its_crops(zoo: SampleIndex) -> None:
    """Pixels of pictures that have the size of the plan already are equal to the bit, whoever decodes them."""
    is_good = zoo.labels == zoo.classes.index("good")  # a JPEG that was cut short shows in a window alone
    fitting = zoo.subset(np.flatnonzero(is_good & (zoo.sizes == (40, 24)).all(axis=1)))
    assert len(fitting) > 40
    assert 0 < fitting.is_plain.sum() < len(fitting)
    for jitter in (None, (0.4, 0.0, 0.0, 0.0)):
        recipe = replace(CUT, resize=(24, 40), color_jitter=jitter)
        loader = make_loader(fitting, recipe, global_batch_size=16)
        check_equal(*make_both(loader, 0, loader.plan.steps_per_epoch))
