from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from alexnet_dist.commands import cli
from alexnet_dist.errors import MachineError
from alexnet_dist.parallel.launch_guard import (
    ORPHAN_EXIT_CODE,
    check_half_set_environment,
    check_process_count,
    rank_from_environment,
    requested_processes,
    was_launched,
    world_size_from_environment,
)

LAUNCH = "/usr/bin/python3 /venv/bin/accelerate launch"


@pytest.fixture
def launched_by(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Sets what the parent's command line looks like."""

    def pretend(command: str, script: str = "launch/train.py") -> None:
        line = "\0".join([*command.split(), ""]).encode()
        monkeypatch.setattr(Path, "read_bytes", lambda path: line)
        monkeypatch.setattr(sys, "argv", [script, "--config", "smoke"])

    return pretend


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (f"{LAUNCH} --cpu --num_processes 2 launch/train.py --config smoke", 2),
        (f"{LAUNCH} --num_processes=4 launch/train.py", 4),
        (f"{LAUNCH} --num-processes 3 launch/train.py", 3),
        ("python -m accelerate.commands.launch --num_processes 2 launch/train.py", 2),
        (f"{LAUNCH} launch/train.py --config smoke", None),
        (f"{LAUNCH} launch/train.py --num_processes 9", None),  # the script's own words are not the launcher's
        (f"{LAUNCH} --num_processes many launch/train.py", None),
        (f"{LAUNCH} --num_processes", None),
        ("bash -c launch/train.py --num_processes 2", None),
        ("", None),
    ],
)
def test_request_is_read_from_the_launchers_words(
    launched_by: Callable[[str], None], command: str, expected: int | None
) -> None:
    launched_by(command)
    assert requested_processes() == expected


@pytest.mark.parametrize(
    ("text", "expected"), [("num_machines: 1\nnum_processes: 2\n", 2), ("num_machines: 1\n", None), (None, None)]
)
def test_request_is_read_from_the_launchers_file(
    launched_by: Callable[[str], None], tmp_path: Path, text: str | None, expected: int | None
) -> None:
    file = tmp_path / "cpu.yaml"
    if text is not None:
        file.write_text(text)
    launched_by(f"{LAUNCH} --config_file {file} launch/train.py")
    assert requested_processes() == expected


@pytest.mark.parametrize("script", ["", "accelerate"])
def test_odd_script_names_ask_for_nothing(launched_by: Callable[[str, str], None], script: str) -> None:
    launched_by("accelerate launch --num_processes 2 launch/train.py", script)
    assert requested_processes() is None


def test_parent_that_cannot_be_read_asks_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert requested_processes() is None


# -- counts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("requested", ["2", "3"])
def test_one_process_instead_of_several_is_refused(launched_by: Callable[[str], None], requested: str) -> None:
    launched_by(f"{LAUNCH} --cpu --num_processes {requested} launch/train.py")
    with pytest.raises(MachineError, match=f"started 1 process instead of {requested}; .*--multi_gpu"):
        check_process_count(1)


def test_strangers_are_refused(launched_by: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    launched_by(f"{LAUNCH} --num_processes 2 launch/train.py")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(MachineError, match="2 processes that do not know each other"):
        check_process_count(1)


@pytest.mark.parametrize(("world_size", "joined"), [(None, 1), ("1", 1), ("2", 2)])
def test_what_was_asked_for_is_fine(
    launched_by: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, world_size: str | None, joined: int
) -> None:
    launched_by(f"{LAUNCH} --num_processes {joined} launch/train.py")
    if world_size is not None:
        monkeypatch.setenv("WORLD_SIZE", world_size)
    check_process_count(joined)


# -- environment ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("present", "missing"), [("RANK", "WORLD_SIZE, MASTER_ADDR, MASTER_PORT"), ("WORLD_SIZE", "RANK, MASTER_ADDR")]
)
def test_half_set_environment_is_refused(monkeypatch: pytest.MonkeyPatch, present: str, missing: str) -> None:
    monkeypatch.setenv(present, "1")
    with pytest.raises(MachineError, match=f"{present} set, {missing}"):
        check_half_set_environment()


@pytest.mark.parametrize("names", [(), ("RANK", "WORLD_SIZE"), ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")])
def test_whole_and_empty_environments_are_fine(monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]) -> None:
    [monkeypatch.setenv(name, "1") for name in names]
    check_half_set_environment()


@pytest.mark.parametrize("name", ["ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID"])
def test_launchers_are_recognised(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    assert not was_launched()
    monkeypatch.setenv(name, "no")
    assert was_launched()


def test_ranks_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (rank_from_environment(), world_size_from_environment()) == (0, 1)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert (rank_from_environment(), world_size_from_environment()) == (1, 2)


@pytest.mark.parametrize(
    ("rank", "launched", "waits"), [("0", True, []), ("1", True, [cli.SPEAK_SECONDS]), ("1", False, [])]
)
def test_rank_0_has_time_to_speak_before_a_launcher_ends_it(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    rank: str,
    launched: bool,
    waits: list[float],
) -> None:
    monkeypatch.setattr(cli, "was_launched", lambda: launched)
    monkeypatch.setattr(cli, "end_with_parent", lambda: None)
    slept: list[float] = []
    monkeypatch.setattr(cli.time, "sleep", slept.append)
    monkeypatch.setenv("RANK", rank)
    assert cli.run("summary", ["--model.variant", "none"]) == 2
    assert slept == waits
    assert capsys.readouterr().err.startswith("error: ") == (rank == "0")


ORPHAN = """
import os, sys, time
from alexnet_dist.parallel.launch_guard import end_with_parent
if os.fork():
    time.sleep(0.3)
    os._exit(0)  # the parent dies; its child must follow
{guard}
time.sleep(2.5)
print("survived", flush=True)
"""


@pytest.mark.parametrize(("guard", "expected"), [("end_with_parent()", ""), ("", "survived\n")])
def test_process_ends_with_its_parent(guard: str, expected: str) -> None:
    """The pipe is held open by the child, so `communicate` returns when the child is gone."""
    command = [sys.executable, "-c", ORPHAN.replace("{guard}", guard)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (done.stdout, done.stderr) == (expected, "")
    assert ORPHAN_EXIT_CODE == 143
