"""Machines without what most have: a home folder, a known user, a compiler."""

from __future__ import annotations

import getpass
import os
import stat
import tempfile
from pathlib import Path

import pytest
from helpers.tiny import tiny_config

from alexnet_dist.base.errors import MachineError
from alexnet_dist.base.machine import check_compiler, settle_home
from alexnet_dist.base.places import find_cache_dir
from alexnet_dist.cli import main
from alexnet_dist.cli.train import train


@pytest.fixture
def stranger(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A user of whom the system knows no more than a number; where its home will be."""
    import pwd

    def refuse(_: int) -> None:
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.setattr(pwd, "getpwuid", refuse)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in ("HOME", "XDG_CACHE_HOME", "LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "")  # so that they are gone afterwards
        monkeypatch.delenv(name)
    with pytest.raises(RuntimeError):
        Path.home()
    return tmp_path / f"alexnet_dist-{os.getuid()}"


def test_a_user_without_a_home_gets_a_private_one(stranger: Path) -> None:
    assert find_cache_dir(None) == stranger / ".cache" / "alexnet_dist"
    assert stat.S_IMODE(stranger.stat().st_mode) == 0o700
    assert getpass.getuser() == f"user-{os.getuid()}"
    settle_home()  # the next start finds it
    assert os.environ["HOME"] == str(stranger)


def test_a_user_without_a_name_keeps_the_home_that_is_set(stranger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    settle_home()
    assert (os.environ["HOME"], getpass.getuser()) == ("/home/somebody", f"user-{os.getuid()}")


@pytest.mark.parametrize("way", ["open", "link", "file"])
def test_a_home_where_others_may_write_is_refused(stranger: Path, tmp_path: Path, way: str) -> None:
    if way == "link":
        stranger.symlink_to(tmp_path)
    elif way == "file":
        stranger.write_text("")
    else:
        stranger.mkdir()
        stranger.chmod(0o777)
    with pytest.raises(MachineError, match=r"no home folder .*; set HOME to a folder that can be written"):
        settle_home()


@pytest.mark.parametrize(
    ("on_gpu", "words"), [(False, r"a C\+\+ compiler \(g\+\+\)"), (True, "Triton with a C compiler")]
)
def test_no_compiler_is_said_before_training(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, on_gpu: bool, words: str
) -> None:
    from alexnet_dist.base import machine

    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    machine.can_build_kernels.cache_clear()
    try:
        with pytest.raises(MachineError, match=f"compile needs {words}: there is none; .*--compile false"):
            check_compiler(on_gpu)
        if not on_gpu:
            with pytest.raises(MachineError, match="compile needs"):
                train(tiny_config(tmp_path / "run", compile=True))
            assert not (tmp_path / "run").exists()
    finally:
        machine.can_build_kernels.cache_clear()


@pytest.mark.heavy  # a second of torch.compile's import
@pytest.mark.parametrize(
    ("output", "why"),
    [
        (
            "In file included from a.cpp\ng++: fatal error: Killed signal terminated program cc1plus\n",
            "g++: fatal error",
        ),
        ("\n  nothing more is said\n", "nothing more is said"),
        ("", "CppCompileError"),
    ],
)
def test_a_compiler_that_fails_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], output: str, why: str
) -> None:
    from torch._inductor.exc import CppCompileError, InductorError

    def fail(*_: object) -> None:
        raise InductorError(CppCompileError(["g++", "a.cpp"], output), None)

    monkeypatch.setattr(main, "_call_verb", fail)
    assert main.run("train", []) == 5
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: torch.compile cannot compile the network: {why}")
    assert line.endswith("; try again with more memory and fewer programs beside it, or set --compile false")
