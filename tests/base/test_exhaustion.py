"""What the machine has no more of is one line with its own remedy, at whatever place it is noticed."""

from __future__ import annotations

import errno
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.verbs import NOTHING_DRAWN

from alexnet_dist.base.errors import MachineError
from alexnet_dist.base.exhaustion import explain_exhaustion
from alexnet_dist.data.engines import workers
from alexnet_dist.settings import reader
from alexnet_dist.settings.reader import new_parser, parse_arguments

ROOT = Path(__file__).resolve().parents[2]


class OutOfMemoryError(RuntimeError):
    """As torch's."""


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (MemoryError(), 7, "out of memory: MemoryError; less"),
        (OutOfMemoryError("CUDA out of memory. Tried"), 7, "less"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), 7, "less"),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), 7, "libtorch_cpu.so"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), 7, "less"),
        (OSError(errno.EMFILE, "Too many open files"), 5, "too many open files.*ulimit -n 4096"),
        (RuntimeError("unable to mmap 8 bytes: Too many open files (24)"), 5, "too many open files"),
        (RuntimeError("can't start new thread"), 5, "no further thread or process.*ulimit -u"),
        (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), 5, "no further thread or process"),
        (OSError(errno.EFBIG, "File too large", "a.csv"), 5, r"may not grow \(a.csv\).*ulimit -f unlimited"),
        (RuntimeError("unable to resize file </torch_1>: File too large (27)"), 5, "may not grow"),
        (OSError(errno.ENOSPC, "No space left on device", "b"), 5, r"a disk does not take more \(b\): No space left"),
        (OSError(errno.ENFILE, "Too many open files in system"), 5, "too many open files.*; end other programs"),
        (OSError(errno.EIO, "Input/output error"), 5, "Input/output error; check the disk and its cable"),
        (OSError(errno.EROFS, "Read-only file system", "c"), 5, "; mount the file system for writing, or write to"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "c"), 5, "; free some space of your quota, or write to another"),
    ],
    ids=repr,
)
def test_each_has_its_line(error: Exception, code: int, words: str) -> None:
    line = explain_exhaustion(error, "less")
    assert line is not None
    assert line.exit_code == code
    assert re.search(words, str(line))


def test_the_cause_of_an_error_counts_and_other_errors_stay_what_they_are() -> None:
    wrapped = RuntimeError("cannot load")
    wrapped.__cause__ = MemoryError()
    assert explain_exhaustion(wrapped) is not None
    wrapped.__context__ = wrapped.__cause__ = wrapped  # a loop
    for error in (
        wrapped,
        ValueError("out of memory"),
        KeyError("x"),
        OSError(errno.ENOENT, "No such file"),
        TypeError(),
    ):
        assert explain_exhaustion(error) is None


def test_an_option_that_jsonargparse_left_out_is_no_mistake_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader.ArgumentParser, "add_class_arguments", lambda *_: None)
    reader._settings_parser.cache_clear()
    with pytest.raises(MemoryError):
        parse_arguments(["--output_dir", "x"], new_parser("train"))


@pytest.mark.parametrize(
    ("limits", "num_files", "after"),
    [((64, 4096), 8, 64), ((64, 4096), 500, None), ((4096, resource.RLIM_INFINITY), 10**4, None)],
)
def test_few_open_files_are_made_more(
    monkeypatch: pytest.MonkeyPatch, limits: tuple[int, int], num_files: int, after: int | None
) -> None:
    monkeypatch.setattr(workers.os, "listdir", lambda _: ["0"] * 10)
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
    found: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "setrlimit", lambda _, pair: found.append(pair))
    workers.allow_open_files(num_files)
    assert found == ([] if after else [(10 + num_files + workers.SPARE_FILES, limits[1])])


def test_too_few_open_files_are_said_before_a_server_meets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (16, 16))
    with pytest.raises(MachineError, match=r"ulimit -n is 16, decoding processes need \d+; raise it.*--data.workers 0"):
        workers.allow_open_files(5)


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("limit", "value", "code", "words"),
    [
        ("RLIMIT_AS", 900 * 2**20, 7, "out of memory"),
        pytest.param("RLIMIT_FSIZE", 20 * 2**10, 5, "ulimit -f unlimited", marks=pytest.mark.slow),
    ],
)
def test_a_limit_of_the_shell_is_one_line(tmp_path: Path, limit: str, value: int, code: int, words: str) -> None:
    command = [
        sys.executable,
        str(ROOT / "launch" / "train.py"),
        "--config",
        "smoke",
        "--output_dir",
        str(tmp_path / "r"),
    ]
    done = subprocess.run(
        [*command, "--data.workers", "1", *NOTHING_DRAWN],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: resource.setrlimit(getattr(resource, limit), (value, value)),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert (done.returncode, len(errors)) == (code, 1), done.stderr
    assert words in errors[0]
    assert "Traceback" not in done.stderr
