"""What `train --profile` says of the times that it took."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from alexnet_dist.runs.advice import Setup
from alexnet_dist.runs.profile import format_profile, judge, report_profile
from alexnet_dist.training.profile import Profile

SECONDS = {"data wait": 0.0, "forward": 0.01, "forward.LRN": 0.01, "forward.conv1": 0.02, "backward": 0.06}


def make_profile(**seconds: float) -> Profile:
    return Profile(6, 2, 2, SECONDS | {name.replace("_", " "): value for name, value in seconds.items()})


@pytest.mark.parametrize(
    ("seconds", "setup", "expected"),
    [
        ({}, {}, "The network limits the speed (100% of an update, backward 60%): next is a GPU or more cores."),
        ({}, {"on_gpu": True, "computes_bf16": True}, "next is --precision bf16."),
        ({}, {"computes_bf16": True}, "next is --precision bf16."),
        ({}, {"on_gpu": True, "precision": "bf16"}, "next is --compile true."),
        ({}, {"on_gpu": True, "precision": "bf16", "is_compiled": True}, "next is more GPUs."),
        ({"data_wait": 0.02}, {}, "The network limits"),
        ({"data_wait": 0.2, "copies": 0.1}, {}, "The data loader limits the speed (75% of an update): next is --data"),
        ({"data_wait": 0.3}, {}, "next is --data.engine cache."),
        ({"data_wait": 0.3}, {"is_cacheable": False, "cores": 4}, "next is --data.workers 4."),
        ({"data_wait": 0.3}, {"engine": "cache"}, "next is smaller files, resized once, or more cores."),
        (
            {"communication": 0.3, "data_wait": 0.1},
            {},
            "The link between the processes limits the speed (60% of an update waits for the other processes): next is "
            "--parallel.strategy hybrid or --parallel.gradient_compression bf16, which `estimate` compares.",
        ),
        ({"communication": 0.3}, {"is_compressed": True}, "next is --parallel.strategy hybrid, which"),
        ({"communication": 0.3}, {"strategy": "hybrid"}, "next is --parallel.exchange bf16."),
        ({"communication": 0.3}, {"strategy": "towers", "is_compressed": True}, "a larger --train.global_batch_size."),
    ],
)
def test_the_verdict_names_what_limits_and_what_to_change(
    seconds: dict[str, float], setup: dict[str, Any], expected: str
) -> None:
    assert expected in judge(make_profile(**seconds), Setup(**setup))


def test_a_table_fits_a_terminal_and_adds_up() -> None:
    text = format_profile(replace(make_profile(rest=0.1), num_wanted=5), Setup(processes=2))
    assert text.splitlines()[:-1] == [
        "where the time goes in updates 6 to 7, process 0 of 2",
        "5 were asked for: the run had no more",
        "           ms an update   share",
        "data wait          0.00    0.0%",
        "forward           40.00   20.0%",
        "  conv1           20.00   10.0%",
        "  LRN             10.00    5.0%",
        "  other           10.00    5.0%",
        "backward          60.00   30.0%",
        "rest             100.00   50.0%",
        "all              200.00  100.0%",
    ]


def test_a_folder_that_cannot_be_written_costs_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "profile").write_text("in the way")
    with caplog.at_level(logging.INFO, "alexnet_dist"):
        report_profile(tmp_path / "profile", Setup(), make_profile())
        report_profile(tmp_path / "profile", Setup(), None)
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 2
    assert "not written" in warnings[0]
    assert "no update was recorded" in warnings[1]
