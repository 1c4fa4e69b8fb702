"""SIGINT, SIGTERM and SIGHUP at any moment: one line, the shell's exit code, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing import util
from pathlib import Path

import psutil
import pytest
from helpers.tiny import tiny_config
from helpers.waiting import is_alive, wait_until

from alexnet_dist.base import signals
from alexnet_dist.base.errors import MachineError, describe_stop
from alexnet_dist.base.signals import Ending, Stopped, StopRequest
from alexnet_dist.data.engines import workers
from alexnet_dist.settings.reader import dump_config

ROOT = Path(__file__).resolve().parents[2]
TRAIN = str(ROOT / "launch" / "train.py")


@pytest.fixture(autouse=True)
def _hang_up_counts() -> Iterator[None]:
    """Also where the tests run under nohup, which every process that they start would inherit."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a Python whose temporary files go to `t`; at the end none of them is left."""
    added = {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path / "t")}
    (tmp_path / "t").mkdir()
    started: list[subprocess.Popen[str]] = []

    def start_one(*words: str, **more: str) -> subprocess.Popen[str]:
        environment = {**os.environ, **added, **more}
        started.append(subprocess.Popen([sys.executable, *words], stderr=subprocess.PIPE, text=True, env=environment))
        return started[-1]

    yield start_one
    for process in started:
        process.kill()
        process.communicate()


PROGRAM = """
import ctypes, sys, time, types
from alexnet_dist.base import signals
from alexnet_dist.base.signals import ending_at_once

signals.GRACE_SECONDS = {grace}

LOCK = ctypes.create_string_buffer(64)

def wait(argv):
    print("here", file=sys.stderr, flush=True)
{body}

with ending_at_once():
    from alexnet_dist.cli.main import run
    sys.modules["alexnet_dist.cli.summary"] = types.SimpleNamespace(main=wait)
    sys.exit(run("summary", []))
"""
# Places where a main thread may be; from the last two it does not come back by itself.
WAITS = {
    "python": "    time.sleep(60)",
    "import": "    sys.path.insert(0, sys.argv[1]); import slow",
    "network": "    for _ in range(2): ctypes.CDLL(None).pthread_mutex_lock(LOCK)",
    "swallowed": "    while True:\n        try: time.sleep(60)\n        except BaseException: pass",
}
CASES = [(place, number) for place in ("python", "import") for number in signals.SIGNALS]


@pytest.mark.heavy
@pytest.mark.parametrize(("place", "number"), [*CASES, ("network", signal.SIGTERM), ("swallowed", signal.SIGINT)])
def test_a_program_ends_wherever_it_is(start: Start, tmp_path: Path, place: str, number: signal.Signals) -> None:
    grace = 30 if place in ("python", "import") else 1  # the first two end long before somebody has to end them
    (tmp_path / "slow.py").write_text("import time\ntry: time.sleep(60)\nexcept BaseException: time.sleep(60)\n")
    program = PROGRAM.replace("{body}", WAITS[place]).replace("{grace}", str(grace))
    process = start("-c", program, str(tmp_path))
    assert process.stderr is not None
    assert process.stderr.readline() == "here\n"
    time.sleep(0.2)
    process.send_signal(number)
    began = time.monotonic()
    _, stderr = process.communicate(timeout=20)
    assert (process.returncode, stderr.splitlines()) == (128 + number, [describe_stop(number)])
    assert time.monotonic() - began < 15


ENDING = """
import atexit, os, sys, threading, time
from alexnet_dist.base.signals import ending_at_once

class Kept:
    def __del__(self):
        os.write(2, b"taken apart\\n")

kept = Kept()
say = lambda word: print(word, file=sys.stderr)
with ending_at_once():
    atexit.register(say, "registered")
    threading.Thread(target=lambda: (time.sleep(0.1), say("thread"))).start()
    sys.exit(7)
"""


@pytest.mark.heavy
@pytest.mark.parametrize(("processes", "ends"), [("1", ["taken apart"]), ("2", [])])
def test_nothing_of_one_of_several_processes_is_taken_apart(start: Start, processes: str, ends: list[str]) -> None:
    """Threads of gloo may still hold something then."""
    process = start("-c", ENDING, WORLD_SIZE=processes)
    _, stderr = process.communicate(timeout=20)
    assert (process.returncode, stderr.splitlines()) == (7, ["thread", "registered", *ends])


def is_ready(process: psutil.Process) -> bool:
    """Whether a process handles signals by now."""
    caught = Path(f"/proc/{process.pid}/status").read_text().partition("SigCgt:")[2].split()[0]
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("importing", signal.SIGTERM),
        pytest.param("starting", signal.SIGHUP, marks=pytest.mark.slow),
        pytest.param("training", signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_a_training_that_begins_leaves_nothing(
    start: Start, tmp_path: Path, moment: str, number: signal.Signals
) -> None:
    """With a decoding process, whose server starts first of all."""
    config = tmp_path / "tiny.yaml"
    config.write_text(dump_config(tiny_config(tmp_path / "run", data__workers=1, train__epochs=500)))
    process = start(TRAIN, "--config", str(config))
    here = psutil.Process(process.pid)
    has_come: dict[str, Callable[[], object]] = {
        "importing": lambda: is_ready(here),
        "starting": here.children,
        "training": (tmp_path / "run" / "metrics.jsonl").is_file,
    }
    wait_until(has_come[moment])
    children = here.children(recursive=True)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)  # also says that no child holds the pipe
    assert process.returncode == 128 + number
    (said,) = [line for line in stderr.splitlines() if line.startswith(("error", "Stopped"))]
    assert said.startswith(describe_stop(number).partition(".")[0] + ".")
    assert "Traceback" not in stderr
    wait_until(lambda: not any(map(is_alive, children)))
    assert list((tmp_path / "t").iterdir()) == []


LEAVING = """
import os, sys, tempfile, types
from multiprocessing import util
from alexnet_dist.base.ending import leave
util.get_temp_dir()
with tempfile.NamedTemporaryFile(suffix=".py", prefix="__autograph_generated_file", delete=False) as file:
    sys.modules[os.path.basename(file.name)[:-3]] = types.SimpleNamespace(__file__=file.name)
{end}
"""


@pytest.mark.heavy
@pytest.mark.parametrize(("end", "num_left"), [("leave(7)", 0), ("os._exit(7)", 2)])
def test_whoever_leaves_at_once_takes_temporary_files_along(
    start: Start, tmp_path: Path, end: str, num_left: int
) -> None:
    process = start("-c", LEAVING.replace("{end}", end))
    assert process.wait(20) == 7
    assert len(list((tmp_path / "t").iterdir())) == num_left


INHERITING = """
import multiprocessing, os, sys
from multiprocessing import util
from alexnet_dist.base.ending import leave

def end_here():
    leave(3)

folder = util.get_temp_dir()
if sys.argv[1] == "fork":
    child = os.fork()
    if child == 0:
        leave(3)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
else:
    child = multiprocessing.get_context("fork").Process(target=end_here)
    child.start()
    child.join()
    code = child.exitcode
is_there = os.path.isdir(folder)
print(code, is_there, file=sys.stderr, flush=True)
leave(0)
"""


@pytest.mark.heavy
@pytest.mark.parametrize("way", ["fork", "multiprocessing"])
def test_a_child_that_leaves_at_once_keeps_the_folder_of_its_parent(start: Start, tmp_path: Path, way: str) -> None:
    process = start("-c", INHERITING, way)
    _, stderr = process.communicate(timeout=20)
    assert (process.returncode, stderr) == (0, "3 True\n")
    assert list((tmp_path / "t").iterdir()) == []  # the parent's own end removes it


def test_a_repeated_signal_is_the_same_signal(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    codes: list[int] = []
    monkeypatch.setattr(signals, "leave", codes.append)
    ending = Ending()
    with pytest.raises(Stopped) as stopped:
        ending.receive(signal.SIGTERM, sys._getframe())
    ending.receive(signal.SIGINT, sys._getframe())  # a terminal and a launcher both pass it on: no second exception
    for _ in range(2):
        stopped.value.ending.say(stopped.value.number)
    assert capfd.readouterr().err == describe_stop(signal.SIGTERM) + "\n"
    monkeypatch.setenv("RANK", "1")
    Ending().say(signal.SIGTERM)  # rank 0 speaks for all
    ending.is_over = True
    ending.receive(signal.SIGTERM, sys._getframe())
    assert (codes, capfd.readouterr().err) == ([143], "")


def test_a_closed_terminal_asks_to_stop_and_nohup_holds() -> None:
    before = {number: signal.getsignal(number) for number in signals.SIGNALS}
    try:
        request = StopRequest()
        request.listen()
        signal.raise_signal(signal.SIGHUP)
        assert request.counts() == (0, 1, 0)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        request = StopRequest()
        request.listen()
        signal.raise_signal(signal.SIGHUP)
        assert request.counts() == (0, 0, 0)
    finally:
        [signal.signal(number, handler) for number, handler in before.items()]


def test_a_request_outside_the_main_thread_is_left_to_whoever_runs_it() -> None:
    import threading

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=StopRequest().listen)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is before


# -- a long TMPDIR ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("length", "asked"), [(0, []), (100, ["/tmp"])])
def test_sockets_lie_where_their_path_is_short(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, length: int, asked: list[str]
) -> None:
    folder = str(tmp_path / ("t" * length)) if length else "/var/tmp"
    found: list[str] = []
    monkeypatch.setattr(tempfile, "tempdir", folder)
    monkeypatch.setattr(util, "get_temp_dir", lambda: found.append(tempfile.gettempdir()))
    workers.worker_context()
    assert (found, tempfile.tempdir) == (asked, folder)


def test_a_long_tmpdir_without_a_short_one_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("t" * 100)))
    monkeypatch.setattr(workers, "SHORT_FOLDERS", ())
    with pytest.raises(MachineError, match=r"path of TMPDIR is too long .*a socket's path has room for 76; set TMPDIR"):
        workers.worker_context()
