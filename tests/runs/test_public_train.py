"""`train` of the Python API: every form of settings, any thread, and a program that is left as it was."""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from helpers.tiny import tiny_config

from alexnet_dist import train
from alexnet_dist.base.errors import InterruptedRunError, MemoryExhaustedError, UsageError
from alexnet_dist.base.nested import flatten
from alexnet_dist.runs import session
from alexnet_dist.settings.reader import dump_config, load_config, settle_config
from alexnet_dist.settings.schema import Config

pytestmark = pytest.mark.heavy

CHANGES = {"optimizer.lr": 0.25, "augment": {"resize": (70, 80)}, "data.cache_dir": Path("cache")}


def in_a_thread(action: Callable[[], Any]) -> Any:
    made: list[Any] = []
    thread = threading.Thread(target=lambda: made.append(action()))
    thread.start()
    thread.join()
    return made[0]


def in_this_thread(action: Callable[[], Any]) -> Any:
    return action()


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return tiny_config(tmp_path / "run", train__epochs=1, device="cpu", precision="fp32")


@pytest.mark.parametrize("form", ["config", "dict", "dotted", "file", "base"])
def test_settings_in_every_form_mean_the_same(config: Config, tmp_path: Path, form: str) -> None:
    (tmp_path / "run.yaml").write_text(dump_config(config))
    nested = settle_config(config, {}, "")
    forms: dict[str, Config | Mapping[str, Any] | Path] = {
        "config": config,
        "dict": json.loads(json.dumps(nested, default=vars)),
        "dotted": flatten(config),
        "file": tmp_path / "run.yaml",
        "base": {"base": str(tmp_path / "run.yaml"), "output_dir": config.output_dir},
    }
    assert settle_config(forms[form], {}, "train()") == nested
    changed = settle_config(forms[form], CHANGES, "train()")
    assert (changed.optimizer.lr, changed.augment.resize, changed.data.cache_dir) == (0.25, [70, 80], "cache")
    assert settle_config(forms[form], {"train.max_steps": 3}, "train()").train.epochs is None


def test_a_shipped_configuration_goes_by_its_name() -> None:
    assert settle_config("smoke", {"seed": 3}, "train()") == load_config("smoke", {"seed": 3})
    assert settle_config({"base": "smoke", "seed": 3}, {}, "train()").output_dir == "runs/smoke"


@pytest.mark.heavy  # a run asks git for its commit
@pytest.mark.parametrize("run_in", [in_this_thread, in_a_thread])
def test_the_summary_is_returned_and_the_program_left_as_it_was(
    config: Config, tmp_path: Path, run_in: Callable[[Callable[[], Any]], Any]
) -> None:
    logger = logging.getLogger("alexnet_dist")
    own = logging.FileHandler(tmp_path / "own.log", "w")
    logger.addHandler(own)
    state = [signal.getsignal(signal.SIGINT), logger.level, logger.propagate, list(logger.handlers)]
    kept = dict(AcceleratorState._shared_state), dict(PartialState._shared_state)
    try:
        first = run_in(lambda: train(config))
        assert first == json.loads((tmp_path / "run" / "summary.json").read_text())
        assert first["status"] == "finished"
        changes = {"precision": "bf16", "output_dir": tmp_path / "other"}
        assert run_in(lambda: train(config, changes))["precision"] == "bf16"  # Accelerate knows one for a process
        assert run_in(lambda: train(config))["step"] == first["step"]  # it goes on with a run that has ended
        assert [signal.getsignal(signal.SIGINT), logger.level, logger.propagate, list(logger.handlers)] == state
        logger.warning("after")
        assert (tmp_path / "own.log").read_text() == "after\n"  # a handler that was closed would write nothing
        assert (dict(AcceleratorState._shared_state), dict(PartialState._shared_state)) == kept
    finally:
        logger.removeHandler(own)


@pytest.mark.heavy
def test_a_signal_stops_the_run_and_leaves_the_program_its_own(tmp_path: Path) -> None:
    metrics, received = tmp_path / "run" / "metrics.jsonl", []

    def interrupt() -> None:
        while not (metrics.exists() and metrics.read_text()):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, lambda number, _frame: received.append(number))
    try:
        threading.Thread(target=interrupt).start()
        with pytest.raises(InterruptedRunError, match=r"^Stopped\. Saved at step"):
            train(tiny_config(tmp_path / "run", train__epochs=5000, device="cpu"))
        assert received == []
        os.kill(os.getpid(), signal.SIGINT)
        assert received == [signal.SIGINT]
        assert train(tiny_config(tmp_path / "run", train__epochs=2, device="cpu"))["status"] == "finished"  # it goes on
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.heavy
@pytest.mark.parametrize("run_in", [in_this_thread, in_a_thread])
@pytest.mark.parametrize("form", ["event", "function"])
def test_a_program_stops_its_run_in_any_thread(
    config: Config, run_in: Callable[[Callable[[], Any]], Any], form: str
) -> None:
    asked, event = [], threading.Event()

    def is_wanted() -> bool:
        asked.append(True)
        return len(asked) > 2

    def train_to_the_stop() -> tuple[str, int]:
        with pytest.raises(InterruptedRunError) as stopped:
            train(config, stop=event if form == "event" else is_wanted)
        return str(stopped.value), stopped.value.exit_code

    event.set()
    step = 0 if form == "event" else 2
    line = f"Stopped by the program. Saved at step {step}. Run the same command again to continue."
    assert run_in(train_to_the_stop) == (line, 143)
    event.clear()
    summary = run_in(lambda: train(config, stop=event))
    assert (summary["status"], summary["step"]) == ("finished", 4)


def test_a_stop_that_cannot_be_asked_is_refused(config: Config) -> None:
    with pytest.raises(TypeError, match="stop is an event or a function; got bool"):
        train(config, stop=True)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "kind", "words"),
    [
        ({"train.epochs": 1, "data.source": "synthetic"}, UsageError, r"output_dir is missing \(train\(\)\)"),
        (
            {"optimizer": {"lrr": 1}},
            UsageError,
            r"unknown key optimizer.lrr \(train\(\)\); did you mean optimizer.lr\?$",
        ),
        (
            {"output_dir": "x", "data.source": "synthetic"},
            UsageError,
            "exactly one of train.epochs and train.max_steps",
        ),
        ({"seed": -1}, UsageError, r"seed is out of range \(train\(\)\): got -1"),
        ("nosuch", UsageError, "no configuration 'nosuch'"),
        (7, TypeError, "a name, a path, a mapping or a Config; got int"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings: Any, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        train(settings)


def test_a_lack_of_memory_is_one_line(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **_more: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    monkeypatch.setattr(session, "train", fail)
    with pytest.raises(MemoryExhaustedError, match=r"halve train\.micro_batch_size"):
        train(config)
