"""Checkpoints that are written while training goes on."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import pytest
import torch
from helpers.dist_helper import run_processes
from helpers.tiny import tiny_config

from alexnet_dist.base.errors import MachineError
from alexnet_dist.training.saver import Saver


def test_a_copy_is_the_state_of_that_moment_and_its_memory_serves_again() -> None:
    saver, weights = Saver(in_background=True), {"a": torch.ones(3), "b": torch.zeros(2, 2, dtype=torch.bfloat16)}
    first = saver.copy(weights, "weights")
    weights["a"].fill_(7)
    assert first["a"].tolist() == [1, 1, 1]
    places = [tensor.data_ptr() for tensor in first.values()]
    again = saver.copy(weights, "weights")
    assert [tensor.data_ptr() for tensor in again.values()] == places
    assert saver.copy(weights, "optimizer")["a"].data_ptr() not in places
    assert again["a"].tolist() == [7, 7, 7]
    assert again["b"].dtype == torch.bfloat16


def test_at_once_nothing_is_copied_and_errors_come_at_once() -> None:
    saver, weights = Saver(in_background=False), {"a": torch.ones(3)}
    assert saver.copy(weights, "weights") is weights
    with pytest.raises(MachineError):
        saver.begin(fail)
    assert saver.find_failure() is None


def fail() -> None:
    raise MachineError("the disk is full")


def test_in_the_background_training_goes_on_and_the_end_waits() -> None:
    saver, may_end, written = Saver(in_background=True), threading.Event(), []

    def write() -> None:
        may_end.wait(10)
        written.append(threading.current_thread() is threading.main_thread())

    saver.begin(write)
    assert written == []
    may_end.set()
    saver.finish()
    assert written == [False]


def test_an_error_in_the_background_is_found_and_raised_where_it_is_waited_for() -> None:
    saver = Saver(in_background=True)
    saver.begin(fail)
    saver.wait()
    assert str(saver.find_failure()) == str(MachineError("the disk is full"))
    with pytest.raises(MachineError, match="the disk is full"):
        saver.finish()


def train_on_a_full_disk(folder: Path) -> tuple[str, int]:
    """The error of a run whose first checkpoint cannot be written, and the step at which it ended."""
    from alexnet_dist.runs.session import train
    from alexnet_dist.training import loop

    trainers, original = [], loop.Trainer.train

    def remember(trainer: loop.Trainer) -> None:
        trainers.append(trainer)
        original(trainer)

    loop.Trainer.train = remember  # type: ignore[method-assign]
    loop.save_checkpoint = lambda *_: fail()  # type: ignore[assignment]
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (a child of the test: its messages are not the test's)
    try:
        train(tiny_config(folder, checkpoint__background=True, checkpoint__every_steps=3))
    except MachineError as error:
        return str(error), trainers[0].state.step
    return "", trainers[0].state.step


@pytest.mark.heavy
def test_an_error_in_the_background_ends_all_processes_alike(tmp_path: Path) -> None:
    (message, step), other = run_processes(2, train_on_a_full_disk, tmp_path / "run")
    assert "the disk is full" in message
    assert other == (message, step)
    assert 3 <= step <= 6  # at the latest by the next save
