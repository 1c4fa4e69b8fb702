"""A process that DALI ends leaves the names of its files behind."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from helpers.dist_helper import start_processes
from helpers.images import save_jpeg

from alexnet_dist.data.engines.dali.feed import stack_names
from alexnet_dist.data.engines.dali.note import find_suspects, noting, write_names
from alexnet_dist.data.index import SampleIndex
from alexnet_dist.data.sources.folders import scan_folder


def note_and_die(cache: Path, index: SampleIndex, number: int) -> None:
    """Note what is decoded, and end by a signal."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with noting(cache, index) as outer, noting(cache, index) as note:
        write_names(outer, [stack_names([os.fsencode(index.root / index.paths[0])])])
        for given in ([0, 1, 2], [3]):
            names = [os.fsencode(index.root / index.paths[n]) for n in given]
            write_names(note, [stack_names(names) for _ in range(2)])
        if number:
            os.kill(os.getpid(), number)


def end_a_process(tmp_path: Path, index: SampleIndex, number: int) -> None:
    """A process that decodes, and ends by a signal."""
    group = start_processes(1, note_and_die, tmp_path / "cache", index, number)
    assert group.wait() == [-number]
    shutil.rmtree(group.folder)


def make_index(tmp_path: Path) -> SampleIndex:
    for number in range(6):
        save_jpeg(tmp_path / "images" / "ab"[number % 2] / f"{'long' * number}{number}.jpg")
    return scan_folder(tmp_path / "images", classes=None, on_bad_file="fail", cache_dir=tmp_path / "cache")


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("number", "expected"), [(0, set()), (signal.SIGKILL, set()), (signal.SIGSEGV, {3}), (signal.SIGABRT, {3})]
)
def test_the_files_of_a_fault_are_known_at_every_later_start(tmp_path: Path, number: int, expected: set[int]) -> None:
    index = make_index(tmp_path)
    end_a_process(tmp_path, index, number)
    assert find_suspects(tmp_path / "cache", index) == expected
    assert find_suspects(tmp_path / "cache", index) == expected
    assert find_suspects(tmp_path / "cache", index.subset(np.array([5, 3]))) == {1} & {n - 2 for n in expected}
    assert len(list((tmp_path / "cache" / "dali").iterdir())) == len(expected)


def leave_note(tmp_path: Path, index: SampleIndex) -> Path:
    """The note of a process that ended by a fault while it had image 3."""
    end_a_process(tmp_path, index, signal.SIGSEGV)
    (note,) = [path for path in (tmp_path / "cache" / "dali").iterdir() if b"Fatal" in path.read_bytes()]
    return note


@pytest.mark.heavy
def test_a_note_outlives_the_process_id_of_its_writer(tmp_path: Path) -> None:
    """In a container the next start has the same one."""
    index = make_index(tmp_path)
    note = leave_note(tmp_path, index)
    note.rename(note.with_name(re.sub(r"-\d+-", f"-{os.getpid()}-", note.name, count=1)))
    for _ in range(2):
        assert find_suspects(tmp_path / "cache", index) == {3}
        with noting(tmp_path / "cache", index):
            pass


@pytest.mark.heavy
def test_a_note_that_another_process_has_just_renamed_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = make_index(tmp_path)
    leave_note(tmp_path, index)
    found = list((tmp_path / "cache" / "dali").iterdir())
    assert find_suspects(tmp_path / "cache", index) == {3}
    assert not any(path.exists() for path in found)
    monkeypatch.setattr(Path, "glob", lambda *_: iter(found))
    assert find_suspects(tmp_path / "cache", index) == {3}


def test_the_note_of_a_run_on_another_machine_is_left_alone(tmp_path: Path) -> None:
    index = make_index(tmp_path)
    with noting(tmp_path / "cache", index):
        (note,) = (tmp_path / "cache" / "dali").iterdir()
        others = re.sub(r"-[0-9a-f]{8}-", "-00000000-", note.name.replace(f"-{os.getpid()}-", "-4194304-"))
        other = note.rename(note.with_name(others))
        assert find_suspects(tmp_path / "cache", index) == set()
        assert other.exists()


def test_a_cache_that_cannot_be_written_costs_the_note_alone(tmp_path: Path) -> None:
    index = make_index(tmp_path)
    (tmp_path / "file").touch()
    with noting(tmp_path / "file", index) as note:
        assert note is None
    assert find_suspects(tmp_path / "file", index) == set()
