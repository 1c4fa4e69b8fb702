"""`alexnet-dist launch`: the exit code and the line of the worker that failed first, over torchrun's own agent."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
from helpers.dist_helper import run_processes
from helpers.ports import find_free_port, taken_port
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from alexnet_dist.base.ending import ERROR_FILE, TAKES_LAST_LINE, leave_line
from alexnet_dist.parallel.processes.launcher import bracket, check_first_machine, judge
from alexnet_dist.parallel.processes.meeting import explain_meeting

TORCH, ACCELERATE = "torch.distributed.run", "accelerate.commands.launch"
STOP = "Stopped by SIGTERM. Saved at step 3. Run the same command again to continue."
LOST = "error: lost contact with rank 1 on b: it ended or was killed; see its message; then start again"
DATA = "error: no images (data)"


# -- the verdict ------------------------------------------------------------------------------------------------------


def failure(monkeypatch: pytest.MonkeyPatch, folder: Path, rank: int, code: int, line: str) -> ProcessFailure:
    """What torch's agent knows of a worker, which left its line where it was told to."""
    path = folder / f"{rank}.json"
    monkeypatch.setenv(ERROR_FILE, str(path))
    if line:
        leave_line(line)
    return ProcessFailure(rank, 100 + rank, code, str(path))


@pytest.mark.parametrize(
    ("ended", "expected"),
    [
        ([(0, 2, DATA), (1, 2, "")], (2, DATA)),
        ([(0, 3, ""), (1, 3, DATA)], (3, DATA)),  # both had ended when the agent looked
        ([(1, 6, DATA), (0, -15, "")], (6, DATA)),
        ([(0, 143, STOP), (1, 143, "")], (143, STOP)),
        ([(1, 143, "")], (143, "Stopped by SIGTERM. Run the same command again to continue.")),
        ([(1, -9, ""), (0, 5, LOST)], (137, LOST)),
        (
            [(1, -9, ""), (0, 143, STOP)],
            (137, "error: rank 1 was ended by SIGKILL (process 101); where memory ran out,"),
        ),
        ([(0, 1, "")], (1, "error: rank 0 ended with exit code 1 (process 100); see its message above")),
    ],
    ids=["first", "another speaks", "ended then", "stopped", "stopped elsewhere", "lost", "killed", "bug"],
)
def test_a_job_ends_as_its_first_worker_that_failed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ended: list[tuple[int, int, str]], expected: tuple[int, str]
) -> None:
    code, line = judge({rank: failure(monkeypatch, tmp_path, rank, code, line) for rank, code, line in ended})
    assert code == expected[0]
    assert line.startswith(expected[1])


@pytest.mark.parametrize("is_taken", [False, True])
def test_a_line_is_left_where_torchrun_shows_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, is_taken: bool
) -> None:
    assert not leave_line(DATA)  # nobody launched it
    monkeypatch.setenv(ERROR_FILE, str(tmp_path / "error.json"))
    if is_taken:
        monkeypatch.setenv(TAKES_LAST_LINE, "1")
    assert leave_line(DATA) == is_taken
    shown = ChildFailedError("train", {0: ProcessFailure(0, 100, 3, str(tmp_path / "error.json"))})
    assert f"traceback : {DATA}" in str(shown)


@pytest.mark.parametrize(
    ("host", "expected"), [("fd00::2", "[fd00::2]"), ("[fd00::2]", "[fd00::2]"), ("a", "a"), ("10.0.0.1", "10.0.0.1")]
)
def test_an_address_of_ipv6_is_told_from_its_port(host: str, expected: str) -> None:
    assert bracket(host) == expected


@pytest.mark.parametrize(
    ("addresses", "expected"),
    [
        (["127.0.1.1"], ""),
        (["203.0.113.9", "127.0.0.1"], ""),
        (["203.0.113.9"], "--node_rank 0 makes this machine the first, and 203.0.113.9 (--master_addr) is none of its"),
    ],
)
def test_the_first_machine_says_that_the_others_look_elsewhere(
    capsys: pytest.CaptureFixture[str], addresses: list[str], expected: str
) -> None:
    said = check_first_machine(addresses, "--master_addr", "--node_rank 0")
    assert said == (expected and f"{expected} addresses")
    assert capsys.readouterr().err == (said and f"{said}\n")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            "The client socket has failed to connect to 192.0.2.9:29500 (errno: 113 - No route to host).",
            "No route to host",
        ),
        ("Timed out after 61 seconds waiting for clients. 1/2 clients joined.", "1 of 2 came within 61 s"),
        ("The client socket has timed out after 60000ms while trying to connect to (a, 1).", "no answer within 60 s"),
        ("wait timeout after 300000ms, keys: /none/torchelastic/role_info/1", "no answer within 300 s"),
        ("Connection reset by\npeer", "Connection reset by peer"),
    ],
)
def test_of_torchs_words_those_that_say_why_remain(text: str, why: str) -> None:
    error = explain_meeting(RuntimeError(text), "192.0.2.9:29500", "see")
    assert str(error) == f"the processes could not meet (192.0.2.9:29500): {why}; see"


# -- the launchers ----------------------------------------------------------------------------------------------------

WORKER = """
import os, signal, sys, time
from alexnet_dist.base.ending import leave_line

rank, ways = os.environ.get("RANK", "0"), dict(way.split("=", 1) for way in sys.argv[2:])
open(sys.argv[1], "a").write(f"{rank}")


def end(number, frame):
    line = ways.get("then", "")
    leave_line(line) or print(line, file=sys.stderr, flush=True)
    os._exit(128 + number if "Stopped" in ways.get("then", "") else 5)


signal.signal(signal.SIGTERM, end)
way = ways.get(rank, "wait")
while len(open(sys.argv[1]).read()) % int(os.environ.get("WORLD_SIZE", 1)):  # all are ready
    time.sleep(0.01)
if way == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
if way == "signal":
    os.kill(os.getppid(), signal.SIGTERM)
if way[0] in "0123456":
    leave_line(f"error: way {way}")
    sys.exit(int(way))
time.sleep(60)
"""


def run_launcher(errors: Path, words: list[str]) -> int:
    from alexnet_dist.parallel.processes import launcher

    os.dup2(os.open(errors, os.O_CREAT | os.O_WRONLY), 2)
    sys.stderr = os.fdopen(2, "w", closefd=False)
    return launcher.main(words)


def launch(tmp_path: Path, *words: str, ways: tuple[str, ...] = ()) -> tuple[int, list[str], int]:
    """Two workers that end in some ways; the job's exit code, what is printed, and how many workers were started."""
    worker, starts = tmp_path / "worker.py", tmp_path / "starts"
    worker.write_text(WORKER)
    starts.touch()
    (code,) = run_processes(1, run_launcher, tmp_path / "errors", [*words, str(worker), str(starts), *ways])
    return code, (tmp_path / "errors").read_text().splitlines(), len(starts.read_text())


TWO = (TORCH, "--nproc_per_node", "2")
TWO_MACHINES = (ACCELERATE, "--multi_gpu", "--num_machines", "2", "--num_processes", "2", "--machine_rank", "0")


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("words", "ways", "code", "last", "starts"),
    [
        ((*TWO, "--max_restarts", "2"), ("1=3",), 3, "error: way 3", 2),
        (
            (ACCELERATE, "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"),
            ("0=4",),
            4,
            "error: way 4",
            2,
        ),
        ((*TWO, "--max_restarts", "1"), ("1=5",), 5, "error: way 5", 4),
        (TWO, ("1=kill", f"then={LOST}"), 137, LOST, 2),
        (TWO, ("1=signal", f"then={STOP}"), 143, STOP, 2),
        ((ACCELERATE, "--num_processes", "1"), ("0=signal", f"then={STOP}"), 143, STOP, 1),
    ],
    ids=["mistake", "accelerate", "restarted", "killed", "signal", "one process"],
)
def test_exit_codes_arrive_and_the_line_is_the_last(
    tmp_path: Path, words: tuple[str, ...], ways: tuple[str, ...], code: int, last: str, starts: int
) -> None:
    found, lines, started = launch(tmp_path, *words, ways=ways)
    assert (found, lines[-1], started) == (code, last, starts)
    if starts > 1:  # of one process Accelerate says which values it took
        assert lines[:-1] == (["error: way 5", "starting the workers again, 1 restarts left"] if starts == 4 else [])


@pytest.mark.heavy
def test_variables_of_kubeflow_say_what_options_would(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    port = str(find_free_port())
    told = {"NNODES": "1", "NPROC_PER_NODE": "2", "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in told.items():
        monkeypatch.setenv(f"PET_{name}", value)
    assert launch(tmp_path, TORCH, ways=("1=6",)) == (6, ["error: way 6"], 2)


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        ((TORCH, "--nnodes", "2"), 2, "error: the machines do not know where to meet (--nnodes 2); give --master_addr"),
        ((TORCH, "--nnodes", "two"), 2, "error: --nnodes is two; give a number"),
        ((TORCH, "--nodes", "2"), 2, "error: unrecognized arguments: --nodes"),
        ((ACCELERATE, "--multi_gpu", "--num_processes", "1"), 2, "error: You need to use at least 2 processes"),
        (
            (TORCH, "--nnodes", "2", "--master_addr", "a host"),
            5,
            "error: no host 'a host' can be found (--master_addr): ",
        ),
        (
            (TORCH, "--nnodes", "1:2", "--rdzv_backend", "c10d", "--rdzv_endpoint", "no host:29400"),
            5,
            "error: no host 'no host' can be found (--rdzv_endpoint): ",
        ),
        (
            (TORCH, "--nnodes", "2", "--master_addr", "127.0.0.1", "--master_port", "PORT"),
            5,
            "error: the port cannot be used (--master_port PORT): Address already in use; end the program that uses it",
        ),
        (
            (*TWO_MACHINES, "--main_process_ip", "::1", "--main_process_port", "PORT"),
            5,
            "error: the port cannot be used (--main_process_port PORT): Address already in use",
        ),
        (
            (TORCH, "--nnodes", "2", "--master_addr", "::1", "--master_port", "0", "--rdzv_conf", "timeout=1"),
            5,
            "error: the processes could not meet ([::1]:29500): 1 of 2 came within ",
        ),
    ],
    ids=["no place", "no number", "option", "accelerate", "name", "endpoint", "port", "ipv6 port", "alone"],
)
def test_what_cannot_be_launched_is_one_line(tmp_path: Path, words: tuple[str, ...], code: int, line: str) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with taken_port() as number:
        port = str(number)
        found, lines, started = launch(tmp_path, *(word.replace("PORT", port) for word in words))
    assert (found, len(lines), started) == (code, 1, 0), lines
    assert lines[0].startswith(line.replace("PORT", port))
    assert signal.getsignal(signal.SIGTERM) == before  # all of it was in a child
