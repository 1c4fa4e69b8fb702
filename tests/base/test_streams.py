from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from alexnet_dist.base.errors import MachineError
from alexnet_dist.base.streams import BROKEN_PIPE_CODE, write_output
from alexnet_dist.cli import main as cli
from alexnet_dist.cli import summary
from alexnet_dist.settings.reader import load_config

ROOT = Path(__file__).resolve().parents[2]
PRINT_CONFIG = [str(ROOT / "launch" / "train.py"), "--config", "smoke", "--print_config"]
FULL = "error: cannot write to standard output: No space left on device; free some space, or send it elsewhere\n"


def shell(line: str, *words: str, encoding: str = "utf-8") -> tuple[int, str]:
    """Exit code and stderr of a line of bash in which `"$@"` is a Python program."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": encoding}
    command = ["bash", "-c", line, "bash", sys.executable, *words]
    done = subprocess.run(command, capture_output=True, env=environment, cwd=ROOT, check=False, timeout=60)
    return done.returncode, done.stderr.decode()


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("line", "words", "code", "said"),
    [
        ('"$@" | true; exit ${PIPESTATUS[0]}', PRINT_CONFIG, 141, ""),
        ('"$@" > /dev/full', PRINT_CONFIG, 5, FULL),
        ('"$@" >&- 2>&- <&-', PRINT_CONFIG, 0, ""),
        ('"$@" | true; exit ${PIPESTATUS[0]}', [PRINT_CONFIG[0], "--help"], 141, ""),
        ('"$@" > /dev/full', ["-m", "alexnet_dist", "--help"], 5, FULL),
        ('"$@" 2> /dev/full', [PRINT_CONFIG[0], "--config", "absent"], 2, ""),
        ('"$@" --list - <&-', [str(ROOT / "launch" / "predict.py"), "--model", "m"], 3, "it is empty"),
    ],
)
def test_a_stream_that_goes_away_is_a_line_or_silence(line: str, words: list[str], code: int, said: str) -> None:
    found, errors = shell(line, *words)
    assert found == code, errors
    assert said in errors
    assert len(errors.splitlines()) == bool(said)


@pytest.mark.parametrize("size", [10, 10**6])  # one waits in a buffer until the end, the other is written at once
@pytest.mark.parametrize(("device", "code"), [("/dev/full", None), ("pipe", BROKEN_PIPE_CODE)])
def test_lost_output_is_noticed_whatever_its_size(
    monkeypatch: pytest.MonkeyPatch, device: str, code: int | None, size: int
) -> None:
    reading, writing = os.pipe() if device == "pipe" else (None, os.open(device, os.O_WRONLY))
    if reading is not None:
        os.close(reading)
    with open(writing, "w", encoding="utf-8") as output:
        monkeypatch.setattr(sys, "stdout", output)
        if code is None:
            with pytest.raises(MachineError, match="No space left on device"):
                write_output(lambda: sys.stdout.write("x" * size) * 0)
        else:
            assert write_output(lambda: sys.stdout.write("x" * size) * 0) == code


def test_a_broken_pipe_of_another_kind_is_no_lost_output() -> None:
    def fail() -> int:
        raise BrokenPipeError("of a worker")

    with pytest.raises(BrokenPipeError, match="of a worker"):
        write_output(fail)


@pytest.mark.heavy
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_terminal_without_the_letters_gets_escapes(tmp_path: Path, encoding: str) -> None:
    code, errors = shell('"$@"', *PRINT_CONFIG, "--absent_猫", encoding=encoding)
    assert (code, errors.count(r"\u732b")) == (2, encoding != "utf-8")
    code, errors = shell(f'"$@" > {tmp_path}/new.yaml', *PRINT_CONFIG, "--tracking.name", "猫", encoding=encoding)
    assert (code, errors) == (0, "")
    assert load_config(str(tmp_path / "new.yaml"), {}).tracking.name == "猫"


@pytest.mark.parametrize(
    ("verb", "remedy"),
    [("train", "--train.micro_batch_size"), ("evaluate", "--batch_size"), ("predict", "fewer pictures")],
)
def test_what_to_do_without_memory_is_the_verbs_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], verb: str, remedy: str
) -> None:
    def fail(argv: list[str]) -> int:
        raise MemoryError

    monkeypatch.setattr(summary, "main", fail)
    monkeypatch.setattr(cli.importlib, "import_module", lambda name: summary)
    assert cli.run(verb, []) == 7
    (line,) = capsys.readouterr().err.splitlines()
    assert remedy in line


def test_what_a_terminal_obeys_is_escaped_in_results_and_kept_for_progress_bars(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def speak(argv: list[str]) -> int:
        sys.stdout.write("fold \x1b[31m\u202e\n\nnext\n")
        sys.stderr.write("\r50 %\x1b[A")
        logging.getLogger("alexnet_dist").warning("read \x9b31m")
        return 0

    logger = logging.getLogger("alexnet_dist")
    monkeypatch.setattr(logger, "handlers", [])  # of a verb that starts no logging
    monkeypatch.setattr(logger, "parent", None)
    monkeypatch.setattr(summary, "main", speak)
    assert cli.run("summary", []) == 0
    assert capfd.readouterr() == ("fold \\x1b[31m\\u202e\n\nnext\n", "\r50 %\x1b[Aread \\x9b31m\n")
