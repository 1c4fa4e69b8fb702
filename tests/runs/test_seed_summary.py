"""What trackers are given of runs that differ in their seed alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.past_runs import make_run

from alexnet_dist.base.errors import UsageError
from alexnet_dist.cli import compare
from alexnet_dist.runs import seed_summary
from alexnet_dist.runs.past_runs import find_runs

TRACKED = {"tracking__tensorboard": True, "tracking__group": "toys"}


def test_trackers_get_a_row_a_seed_and_what_they_come_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[dict[str, Any]] = []
    opened: list[tuple[Any, ...]] = []

    class Listener:
        names = ("a tracker",)

        def log(self, row: dict[str, Any]) -> None:
            rows.append(row)

        def finish(self, summary: dict[str, Any]) -> None:
            rows.append(summary)

    monkeypatch.setattr(seed_summary, "open_set_trackers", lambda *words: opened.append(words) or Listener())
    for seed, (best, test) in {7: (0.5, 0.4), 9: (0.7, 0.8)}.items():
        make_run(tmp_path / f"seed-{seed}", top1=(best,), test=test, settings={"seed": seed, **TRACKED})
    assert compare.main([*map(str, sorted(tmp_path.glob("seed-*"))), "--track", str(tmp_path / "all")]) == 0
    (_, folder, set_id, name) = opened[0]
    assert (folder, name, len(set_id)) == (tmp_path / "all", "toys", 8)
    *seeds, summary = rows
    assert [(row["step"], row["seed"], row["best_top1"], row["test_top1"]) for row in seeds] == [
        (1, 7, 0.5, 0.4),
        (2, 9, 0.7, 0.8),
    ]
    found = [summary[f"best_top1_{word}"] for word in ("mean", "std", "least", "most")]
    assert found == pytest.approx([0.6, 0.02**0.5, 0.5, 0.7])
    assert (summary["seeds"], summary["test_top1_mean"]) == (2, pytest.approx(0.6))


def test_a_tracker_of_the_runs_writes_into_the_folder(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for seed in (1, 2):
        make_run(tmp_path / f"seed-{seed}", top1=(seed / 4,), settings={"seed": seed, **TRACKED})
    seed_summary.track_seeds(find_runs(tmp_path), tmp_path / "all")
    events = EventAccumulator(str(tmp_path / "all" / "tensorboard")).Reload()
    assert [(point.step, point.value) for point in events.Scalars("seed/best_top1")] == [(1, 0.25), (2, 0.5)]
    (settings,) = events.Tensors("settings/text_summary")
    assert f"output_dir: {tmp_path / 'all'}\n" in settings.tensor_proto.string_val[0].decode()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"optimizer__lr": 0.5, **TRACKED}, "differ in more than their seed"),
        ({}, "differ in more than their seed"),
        ({"seed": 2}, "no tracker"),
    ],
)
def test_what_cannot_be_summarized_is_refused(tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    make_run(tmp_path / "a", settings={"seed": 1, **({} if words == "no tracker" else TRACKED)})
    make_run(tmp_path / "b", settings={"seed": 1, **settings})
    with pytest.raises(UsageError, match=words):
        seed_summary.track_seeds(find_runs(tmp_path), tmp_path / "all")
