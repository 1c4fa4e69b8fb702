"""What `ray_train` refuses before there is a cluster; what the cluster itself does stands in tests/cluster."""

from __future__ import annotations

import pytest

from alexnet_dist.base.errors import MachineError, UsageError
from alexnet_dist.cli.main import run
from alexnet_dist.cli.ray_train import read_range
from alexnet_dist.parallel.processes.guard import is_elastic
from alexnet_dist.runs.on_ray import Desk, Workers, _check_room, announce_range


@pytest.mark.parametrize(("text", "expected"), [("2", (2, 2)), ("2:8", (2, 8))])
def test_one_number_of_workers_or_two(text: str, expected: tuple[int, int]) -> None:
    assert read_range(text) == expected


@pytest.mark.parametrize("text", ["0", "8:2", "1:2:3", "two", ":", "-1", ""])
def test_other_words_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--workers is "):
        read_range(text)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--cpus_per_worker", "0"], "error: --cpus_per_worker must be 1 or more"),
        (["--max_failures", "-2"], "error: --max_failures is -2"),
        (["--worker", "2"], "error: unknown option --worker (command line); did you mean --workers?"),
        (["--optimizer.lrr", "2"], "error: unknown option --optimizer.lrr"),
    ],
)
def test_a_mistake_needs_no_cluster(words: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("ray_train", ["--config", "smoke", *words]) == 2
    assert capsys.readouterr().err.startswith(line)


def test_what_a_cluster_lacks_is_counted() -> None:
    _check_room({"CPU": 4, "GPU": 2}, Workers(2, 8, cpus=2, on_gpu=True))
    with pytest.raises(MachineError, match="lacks 4 CPUs: 4 workers need 8, and it has 4"):
        _check_room({"CPU": 4}, Workers(4, 4, cpus=2))
    with pytest.raises(MachineError, match="lacks 1 GPU: 1 workers need 1, and it has 0"):
        _check_room({"CPU": 4}, Workers(1, 1, on_gpu=True))


def test_workers_that_come_and_go_share_any_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PET_NNODES", "")
    announce_range(Workers(2, 2))
    assert not is_elastic([])
    announce_range(Workers(2, 8))
    assert is_elastic([])


def test_the_first_error_that_stays_counts() -> None:
    desk = Desk()
    desk.tell_error(MachineError("lost"), is_final=False)
    assert desk.find_final_error() is None
    for name in ("first", "second"):
        desk.tell_error(UsageError(name), is_final=True)
    assert str(desk.find_final_error()) == "first"
    assert str(desk.find_last_error()) == "second"
