"""What trackers are shown of a validation: each image once, on any number of processes, in a share of the time."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers.dist_helper import run_processes
from helpers.tiny import tiny_config

from alexnet_dist.cli.train import train
from alexnet_dist.runs import validation_pictures
from alexnet_dist.runs.validation_pictures import SHARE, ValidationPictures
from alexnet_dist.tracking.pictures import Pictures
from alexnet_dist.tracking.trackers import Trackers
from alexnet_dist.training.predictions import Predictions

SHOWN = {"val/confusion", "val/worst", "train/inputs"}


class Costly(ValidationPictures):
    """Takes some seconds to draw."""

    clock, drawn = 100.0, 0

    def _draw(self, rows: Predictions, step: int) -> None:
        self.clock += 3.0
        self.drawn += 1


def watch(pictures: Costly) -> int:
    """A validation; how many were drawn."""
    if pictures.begin():
        pictures.observe(Predictions(*(np.zeros(2, np.int64) for _ in range(3)), *(np.zeros(2) for _ in range(2))))
        pictures.show(1)
    return pictures.drawn


def test_pictures_take_their_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = SimpleNamespace(on_main=lambda ask: ask(), gather=lambda value: [value], count_once=int, is_main=True)
    gallery = SimpleNamespace(shows_images=True)
    start: Any = SimpleNamespace(runtime=runtime)
    pictures = Costly(start, gallery, lambda: None)  # type: ignore[arg-type, return-value]
    monkeypatch.setattr(validation_pictures, "time", SimpleNamespace(monotonic=lambda: pictures.clock))
    assert [watch(pictures), watch(pictures)] == [1, 1]
    pictures.clock += 3.0 / SHARE
    assert watch(pictures) == 2
    gallery.shows_images = False
    pictures.clock += 3.0 / SHARE
    assert watch(pictures) == 2


def test_a_failure_costs_the_pictures_alone(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def fail(self: Costly, rows: Predictions, step: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(Costly, "_draw", fail)
    runtime = SimpleNamespace(on_main=lambda ask: ask(), gather=lambda value: [value], count_once=int, is_main=True)
    start: Any = SimpleNamespace(runtime=runtime)
    watch(Costly(start, SimpleNamespace(shows_images=True), lambda: None))  # type: ignore[arg-type, return-value]
    assert "validation at step 1: no pictures (OSError: no space left)" in caplog.text


def train_watched(folder: Path, strategy: str, plots: bool) -> list[tuple[set[str], list[str]]]:
    """The names of pictures, and the files of the worst predictions, of each time that a tracker was shown some."""
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (a child of the test: its messages are not the test's)
    shown: list[Pictures] = []
    Trackers.show = lambda self, pictures: shown.append(pictures)  # type: ignore[method-assign]
    settings = {"parallel__strategy": strategy, "log__plots": plots, "tracking__tensorboard": True}
    train(tiny_config(folder, train__epochs=1, **settings))
    return [({picture.name for picture in one.pictures}, [row.path for row in one.worst]) for one in shown]


@pytest.mark.heavy
@pytest.mark.parametrize("strategy", [pytest.param("ddp", marks=pytest.mark.slow), "towers"])
def test_processes_show_each_image_once_and_train_alike(tmp_path: Path, strategy: str) -> None:
    pytest.importorskip("tensorboard")
    shown, nothing = run_processes(2, train_watched, tmp_path / "shown", strategy, True)
    run_processes(2, train_watched, tmp_path / "plain", strategy, False)
    digests = {
        hashlib.sha256((tmp_path / name / "model" / "model.safetensors").read_bytes()).hexdigest()
        for name in ("shown", "plain")
    }
    ((names, files),) = [one for one in shown if SHOWN & one[0]]
    assert (names, len(digests), nothing) == (SHOWN, 1, [])
    assert len(files) == len(set(files)) > 1
