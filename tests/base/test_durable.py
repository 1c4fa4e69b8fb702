"""Files that are whole or not there, and the names that are there for a moment."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.refusals import refused

from alexnet_dist.base import durable
from alexnet_dist.base.durable import (
    REPLACED,
    TEMPORARY,
    find_damage,
    mark_name,
    remove_written,
    tidy_folder,
    write_file,
    write_folder,
)
from alexnet_dist.base.errors import MachineError


def list_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_write_replaces_the_file(tmp_path: Path) -> None:
    write_file(tmp_path / "a.json", b"old")
    write_file(tmp_path / "a.json", b"new")
    assert (tmp_path / "a.json").read_bytes() == b"new"
    assert list_names(tmp_path) == ["a.json"]


@pytest.mark.usefixtures("full_disk")
def test_full_disk_keeps_the_old_file_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"old")
    with pytest.raises(MachineError, match=r"cannot write a\.json .*No space left.*; free some space"):
        write_file(tmp_path / "a.json", b"new")
    assert (tmp_path / "a.json").read_bytes() == b"old"
    assert list_names(tmp_path) == ["a.json"]


@pytest.mark.usefixtures("full_disk")
def test_full_disk_keeps_the_old_folder_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "a").write_bytes(b"old")
    with pytest.raises(MachineError, match=r"cannot write model .*No space left"):
        write_folder(tmp_path / "model", {"a": b"new"})
    assert (tmp_path / "model" / "a").read_bytes() == b"old"
    assert list_names(tmp_path) == ["model"]


def test_folder_that_cannot_fit_is_refused_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=3)
    monkeypatch.setattr(durable.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(MachineError, match="are free; free some space"):
        write_folder(tmp_path / "model", {"a": b"four"})
    assert list_names(tmp_path) == []


def test_disk_that_gives_back_something_else_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durable, "hash_file", lambda path: "0" * 64)
    with pytest.raises(MachineError, match="read back differs"):
        write_folder(tmp_path / "model", {"a": b"x"})
    assert list_names(tmp_path) == []


@pytest.mark.parametrize("killed_at", ["before the swap", "in the swap", "after the swap"])
def test_tidying_finishes_what_a_kill_interrupted(tmp_path: Path, killed_at: str) -> None:
    model = tmp_path / "model"
    half, old = mark_name(model, TEMPORARY), mark_name(model, REPLACED)
    stages = {"before the swap": [model, half], "in the swap": [old, half]}
    for path in stages.get(killed_at, [model, old]):
        write_folder(path, {"a": b"x"})
    mark_name(tmp_path / "run.json", TEMPORARY).write_bytes(b"half")
    tidy_folder(tmp_path, alone=True)
    assert list_names(tmp_path) == ["model"]
    assert find_damage(model, ["a"]) is None


@pytest.mark.parametrize("name", ["model.old", "model.tmp", "x.123.5e6f7a8b.tmp", "a.alexnet_dist-1-1a2b3c4d.tmp"])
def test_names_of_another_form_are_their_users(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "mine").touch()
    tidy_folder(tmp_path, alone=True)
    write_folder(tmp_path / "model", {"a": b"x"})
    write_folder(tmp_path / "model", {"a": b"y"})
    assert list_names(tmp_path) == sorted(["model", name])
    assert (tmp_path / name / "mine").exists()


@pytest.mark.heavy
def test_what_a_living_process_writes_is_left_alone(tmp_path: Path) -> None:
    ours, old = (mark_name(tmp_path / "a.json", TEMPORARY) for _ in range(2))
    ended = subprocess.Popen(["true"])
    ended.wait()
    killed = tmp_path / ours.name.replace(f"-{os.getpid()}-", f"-{ended.pid}-")
    first, process, _, draw = killed.name.split("-")
    elsewhere = tmp_path / "-".join([first, process, "0" * 8, draw])  # of another machine, where it may live
    for path in (ours, old, elsewhere, killed):
        path.touch()
    os.utime(old, (0, 0))
    write_file(tmp_path / "a.json", b"{}")  # tidies what was to become the same file
    assert list_names(tmp_path) == sorted(["a.json", ours.name, elsewhere.name])


def test_what_a_user_put_into_a_folder_moves_on(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    write_folder(folder, {"a": b"x", "b": b"x"})
    (folder / "README.md").write_text("mine")
    (folder / "notes").mkdir()
    write_folder(folder, {"a": b"y", "b": b"y"})
    assert list_names(tmp_path) == ["model"]
    assert list_names(folder) == ["README.md", "a", "b", "manifest.json", "notes"]
    remove_written(folder, ["a", "b"])
    assert list_names(folder) == ["README.md", "notes"]


@pytest.mark.parametrize("write", [lambda path: write_file(path, b"x"), lambda path: write_folder(path, {"a": b"x"})])
def test_nothing_is_written_through_a_link(tmp_path: Path, write: Callable[[Path], None]) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "other")
    line = refused(lambda: write(tmp_path / "link"), MachineError)
    assert line.startswith(f"link is a symbolic link ({tmp_path}/link): ")
    assert list_names(tmp_path) == ["link", "other"]
    assert list_names(tmp_path / "other") == []


def test_a_swap_that_fails_puts_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "model", {"a": b"old"})
    plain = os.rename

    def fail(source: Path, target: Path) -> None:
        if "tmp" in Path(source).suffix:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        plain(source, target)

    monkeypatch.setattr(durable.os, "rename", fail)
    with pytest.raises(MachineError, match="cannot write model"):
        write_folder(tmp_path / "model", {"a": b"new"})
    assert list_names(tmp_path) == ["model"]
    assert (tmp_path / "model" / "a").read_bytes() == b"old"
