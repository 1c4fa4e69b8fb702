"""What is shown of a training that goes on."""

from __future__ import annotations

import mmap
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from alexnet_dist.base.machine import measure_memory
from alexnet_dist.training.loop import Trainer, list_facts


@pytest.mark.parametrize(
    ("step", "evaluated", "name", "done", "total"),
    [
        (0, -1, "epoch 1/3", 0, 4),
        (4, -1, "epoch 1/3", 4, 4),  # its evaluation and its line are still to come
        (4, 4, "epoch 2/3", 0, 4),
        (5, 4, "epoch 2/3", 1, 4),
        (10, 8, "epoch 3/3", 2, 2),  # the last one is shorter
        (10, 10, "epoch 3/3", 2, 2),
    ],
)
def test_an_epoch_lasts_until_it_is_evaluated(step: int, evaluated: int, name: str, done: int, total: int) -> None:
    trainer: Any = SimpleNamespace(
        state=SimpleNamespace(step=step, evaluated_step=evaluated),
        schedule=SimpleNamespace(steps_per_epoch=4),
        cadence=SimpleNamespace(total_steps=10),
        _progress=SimpleNamespace(rate=2.0),
        _last_row={},
    )
    view = Trainer._describe(trainer)
    assert (view.name, view.done, view.total) == (name, done, total)
    assert view.facts[0][0] == f"0:0{(total - done) // 2}/0:0{(10 - step) // 2} left"


def test_the_memory_of_a_gpu_is_shown_where_there_is_one() -> None:
    row = {"loss": 1.0, "top1": 0.5, "lr": 0.1, "images_per_second": 9.0, "data_wait_fraction": 0.5}
    facts = list_facts({**row, "gpu_memory_mib": 2560.0}, ("0:01 left", "0:01 left"))
    assert facts[-1] == ("2.5 GiB", "GPU memory 2.5 GiB")
    assert list_facts({**row, "resident_memory_mib": 2560.0}, ("0:01 left", "0:01 left")) == facts[:-1]


def test_memory_of_a_process_without_a_gpu_is_what_is_resident() -> None:
    (key, before), *more = measure_memory(torch.device("cpu")).items()
    with mmap.mmap(-1, 64 * 2**20) as kept:
        kept.write(bytes(len(kept)))
        after = measure_memory(torch.device("cpu"))[key]
    assert (key, more) == ("resident_memory_mib", [])
    assert after - before > 50
