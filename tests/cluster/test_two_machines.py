"""The commands of docs/several-machines.md for two machines, typed at two machines in small, word for word."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.machines import Machine, Typed, start_machines
from helpers.one_run import has_checkpoint, list_starts, settings, take_digest
from helpers.pages import COMMANDS
from helpers.waiting import wait_until

from alexnet_dist.settings.reader import dump_config

PAGE = "docs/several-machines.md"
LINES = [command.line for command in COMMANDS if command.page == PAGE and "192.0.2.1" in command.line]
WITHOUT_GPU = "ACCELERATE_USE_CPU=true"
FIXED, ELASTIC, DOCTOR = "--nnodes 2", "--nnodes 1:4", "launch/doctor.py"
SECONDS = 200


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Machine]]:
    try:
        with start_machines(tmp_path_factory.mktemp("machines")) as started:
            yield started
    except PermissionError as error:
        pytest.skip(str(error))


@pytest.fixture
def folder(machines: list[Machine], tmp_path: Path) -> Iterator[Path]:
    """A run folder on a disk that both see; what the page calls imagenet_subset trains into it, in seconds."""
    for machine in machines:
        recipe = machine.folder / "configs" / "imagenet_subset.yaml"
        recipe.write_text(dump_config(settings(tmp_path / "run")), encoding="utf-8")
    yield tmp_path / "run"
    for machine in machines:
        machine.cut_power()  # where a test failed


def find_lines(part: str) -> list[str]:
    """The lines of the page with these words, for a machine without a GPU: one for each machine, or one for all."""
    return [f"{WITHOUT_GPU} {line}" for line in LINES if part in line]


def type_at_both(machines: list[Machine], lines: list[str], late: float = 0) -> list[Typed]:
    """Type at each machine its line; at the second some seconds late."""
    first = machines[0].type(lines[0])
    time.sleep(late)
    return [first, machines[1].type(lines[-1])]


def wait_for_save(folder: Path, step: int, typed: list[Typed]) -> None:
    """Wait until a run has saved this step."""
    wait_until(lambda: has_checkpoint(folder, step) or any(t.process.poll() is not None for t in typed), SECONDS)
    assert has_checkpoint(folder, step), "\n".join(each.read() for each in typed)


def test_each_line_of_the_page_is_typed_here() -> None:
    assert sorted(LINES) == sorted(line for line in LINES if any(part in line for part in (FIXED, ELASTIC, DOCTOR)))
    assert [len(find_lines(part)) for part in (FIXED, ELASTIC, DOCTOR)] == [2, 1, 2]


def test_doctor_sees_both_machines_and_finds_the_interface_itself(machines: list[Machine]) -> None:
    typed = type_at_both(machines, find_lines(DOCTOR))
    assert [each.wait() for each in typed] == [0, 0], typed[0].read()
    assert "processes 2 on 2 machines, all here" in typed[0].read()
    for machine, each in zip(machines, typed, strict=True):
        assert f"({machine.name}), cpu" in typed[0].read()
        assert "interface eth0: set as GLOO_SOCKET_IFNAME here" in each.read()
    assert "over 2 machines: " in typed[0].read()


def test_a_machine_that_loses_power_changes_no_bit(machines: list[Machine], folder: Path, undisturbed: str) -> None:
    lines = [line.replace(DOCTOR, "launch/train.py --config imagenet_subset") for line in find_lines(DOCTOR)]
    typed = type_at_both(machines, lines, late=5)
    wait_for_save(folder, 6, typed)
    machines[1].cut_power()
    assert typed[0].wait() == 1  # Accelerate's own
    assert "error: lost contact with rank 1 on node-b: it ended or was killed" in typed[0].read()
    go_on(machines, lines, folder, undisturbed)


def go_on(machines: list[Machine], lines: list[str], folder: Path, undisturbed: str) -> None:
    """Type the same lines again, and look at what the run ends with."""
    typed = type_at_both(machines, lines)
    assert [each.wait() for each in typed] == [0, 0], typed[0].read() + typed[1].read()
    first, second = list_starts(folder)
    assert first == 0 < second
    assert take_digest(folder) == undisturbed


def test_ctrl_c_at_one_machine_saves_and_ends_both(machines: list[Machine], folder: Path, undisturbed: str) -> None:
    lines = find_lines(FIXED)
    typed = type_at_both(machines, lines)
    wait_for_save(folder, 6, typed)
    typed[1].press_ctrl_c()
    assert [each.wait() for each in typed] == [130, 130], typed[0].read() + typed[1].read()
    assert typed[0].read_last().startswith("Stopped. Saved at step "), typed[0].read()
    go_on(machines, lines, folder, undisturbed)


def test_a_machine_that_falls_silent_is_named(machines: list[Machine], folder: Path, undisturbed: str) -> None:
    lines = find_lines(FIXED)
    typed = type_at_both(machines, lines)
    wait_for_save(folder, 6, typed)
    machines[1].pull_cable()
    began = time.monotonic()
    try:
        assert [each.wait() for each in typed] == [5, 5], typed[0].read() + typed[1].read()
    finally:
        machines[1].plug_in_cable()
    assert time.monotonic() - began < 60
    assert typed[0].read_last().startswith("error: lost contact with rank 1: no sign of life for 25 s")
    go_on(machines, lines, folder, undisturbed)


def test_machines_come_and_go(machines: list[Machine], folder: Path) -> None:
    (line,) = find_lines(ELASTIC)
    recipe = dump_config(settings(folder, epochs=100_000))
    for machine in machines:
        (machine.folder / "configs" / "imagenet_subset.yaml").write_text(recipe, encoding="utf-8")
    first = machines[0].type(line)
    wait_for_save(folder, 6, [first])
    second = machines[1].type(line)
    first.wait_for("processes 2 instead of 1; each update has as many images as before")
    machines[1].cut_power()
    first.wait_for("processes 1 instead of 2; each update has as many images as before")
    assert second.wait() != 0
    first.press_ctrl_c()
    assert first.wait() == 130
    assert first.read_last().startswith("Stopped. Saved at step "), first.read()
    processes = [start["processes"] for start in json.loads((folder / "run.json").read_text())["starts"]]
    assert processes == [1, 2, 1]
