"""Where the time of an update goes: what counts in which span, and that nothing else changes."""

from __future__ import annotations

import gzip
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.dist_helper import run_processes
from helpers.one_run import take_digest
from helpers.tiny import tiny_config, tiny_spec

from alexnet_dist.base.spans import BACKWARD, COMMUNICATION, DATA_WAIT, FORWARD, REST, UPDATE, record_spans, span
from alexnet_dist.models import build_model, make_spec
from alexnet_dist.models.joined_pooling import join_poolings
from alexnet_dist.training.profile import Profile, Profiler, Timeline, name_modules


@pytest.fixture(autouse=True)
def _nothing_recorded() -> Iterator[None]:
    yield
    record_spans(None)


def walk_update(timeline: Timeline) -> None:
    """An update of two parameters; the timeline looks at its clock once at each step of it."""
    timeline.begin()
    with span(DATA_WAIT):
        pass
    with span(FORWARD), span(f"{FORWARD}.conv1"):
        pass
    with span(BACKWARD):
        timeline.note_gradient(torch.empty(0))
        with span(COMMUNICATION):
            pass
        timeline.note_gradient(torch.empty(0))
    with span(UPDATE):
        pass
    timeline.end()


@pytest.mark.parametrize(("averages", "waits", "computes"), [(True, 2, 3), (False, 1, 4)])
def test_spans_add_up_to_the_updates(averages: bool, waits: int, computes: int) -> None:
    moments = iter(range(1000))
    timeline = Timeline(torch.device("cpu"), averages, clock=lambda: next(moments))
    for _ in range(2):
        walk_update(timeline)
        with span(UPDATE):  # between two updates nothing counts
            next(moments)
    timeline.begin()  # nor does one that does not end
    with span(DATA_WAIT):
        pass
    assert timeline.measure() == {
        REST: 2 * 5,
        DATA_WAIT: 2,
        FORWARD: 2 * 2,
        f"{FORWARD}.conv1": 2,
        BACKWARD: 2 * computes,
        COMMUNICATION: 2 * waits,
        UPDATE: 2,
    }


def test_without_a_recorder_a_span_is_nothing() -> None:
    assert span("a") is span("b")


@pytest.mark.parametrize(
    ("step", "total", "wanted", "timed", "traced"),
    [
        (0, 100, 10, (5, 15), (15, 25)),
        (40, 100, 10, (45, 55), (55, 65)),
        (0, 20, 10, (5, 13), (13, 20)),
        (0, 3, 10, (1, 2), (2, 3)),
        (9, 10, 10, (9, 10), (10, 10)),
    ],
)
def test_the_first_updates_are_left_out(
    step: int, total: int, wanted: int, timed: tuple[int, int], traced: tuple[int, int]
) -> None:
    found: list[Profile | None] = []
    profiler = build_profiler(found, wanted)
    profiler.choose_updates(step, total)
    assert profiler._timed == range(*timed)
    assert profiler._traced == range(*traced)


def build_profiler(found: list[Profile | None], wanted: int) -> Profiler:
    model, device = build_model(tiny_spec(), 0), torch.device("cpu")
    return Profiler(wanted, model, by_layer=True, averages=False, device=device, report=found.append)


def test_where_no_update_is_left_the_report_says_so() -> None:
    found: list[Profile | None] = []
    with build_profiler(found, 3) as profiler:
        profiler.choose_updates(7, 7)
    assert found == [None]


def test_an_error_ends_the_recording_without_a_report() -> None:
    found: list[Profile | None] = []
    profiler = build_profiler(found, 3)
    with pytest.raises(ValueError, match="broken"):
        fail_within(profiler)
    assert found == []
    assert span("a") is span("b")
    assert not any(module._forward_pre_hooks for module in profiler._model.modules())


def fail_within(profiler: Profiler) -> None:
    with profiler:
        profiler.choose_updates(0, 10)
        for step in range(10):
            profiler.begin_update(step)
            if step == 7:
                raise ValueError("broken")
            profiler.end_update()


@pytest.mark.parametrize(
    ("variant", "kinds"),
    [("paper", {"LRN", "pooling", "ReLU", "dropout"}), ("source2012", {"LRN", "pooling", "ReLU", "dropout"})],
)
def test_every_part_of_a_network_has_a_row(variant: str, kinds: set[str]) -> None:
    model = build_model(make_spec(variant, num_classes=3, fc_width=16), 0)
    names = [name for name, _ in name_modules(model)]
    layers = [name for name in names if name not in kinds]
    assert layers == ["conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8"]
    assert set(names) - set(layers) == kinds
    join_poolings(model.features)
    assert set(dict(name_modules(model))) == {*layers, *kinds, "LRN and pooling"}


def train_here(folder: Path, steps: int, profile: int | None, settings: dict[str, Any]) -> None:
    from alexnet_dist.runs.session import train

    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (a child of the test: its messages are not the test's)
    train(tiny_config(folder, train__max_steps=steps, train__epochs=None, **settings), profile=profile)


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("world_size", "before", "settings"),
    [
        (1, 4, {"train__micro_batch_size": 6}),
        (2, 0, {}),
        pytest.param(2, 0, {"parallel__strategy": "towers"}, marks=pytest.mark.slow),
        pytest.param(2, 0, {"parallel__strategy": "hybrid"}, marks=pytest.mark.slow),
    ],
    ids=["resumed", "ddp", "towers", "hybrid"],
)
def test_a_profile_changes_no_bit(tmp_path: Path, world_size: int, before: int, settings: dict[str, Any]) -> None:
    if before:
        run_processes(world_size, train_here, tmp_path / "profiled", before, None, settings)
    for name, profile in (("plain", None), ("profiled", 2)):
        run_processes(world_size, train_here, tmp_path / name, before + 8, profile, settings)
    assert take_digest(tmp_path / "plain") == take_digest(tmp_path / "profiled")
    text = (tmp_path / "profiled" / "profile" / "profile.txt").read_text()
    assert text.startswith(f"where the time goes in updates {before + 3} to {before + 4}")
    for name in (
        "data wait",
        "copies",
        "forward",
        "  conv1",
        "  LRN and pooling",
        "  pooling",
        "  fc8",
        "loss",
        "backward",
        "update",
        "all",
    ):
        assert f"\n{name} " in text, name
    assert ("\ncommunication " in text) == (world_size > 1)
    trace = json.loads(gzip.decompress((tmp_path / "profiled" / "profile" / "trace.json.gz").read_bytes()))
    names = [event.get("name") for event in trace["traceEvents"] if event.get("cat") == "user_annotation"]
    num_parts = 2 if "train__micro_batch_size" in settings else 1
    assert names.count("update") == 2
    assert names.count("forward.conv1") == 2 * num_parts
    assert not (tmp_path / "plain" / "profile").exists()
