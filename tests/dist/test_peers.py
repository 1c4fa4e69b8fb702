"""Processes that must agree: on their images, their versions; and what is said of one that is gone or silent."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.dist_helper import run_processes, start_processes
from helpers.ports import find_free_port
from helpers.refusals import refused
from helpers.tiny import tiny_config

from alexnet_dist.assembly import kernels
from alexnet_dist.base.errors import AlexNetDistError, DataError, MachineError
from alexnet_dist.base.machine import available_cores
from alexnet_dist.cli.main import run
from alexnet_dist.cli.train import train
from alexnet_dist.costs.model import Link, Links
from alexnet_dist.costs.probe import LinkProbe, links_from_probe, probe_links
from alexnet_dist.costs.transfers import all_reduce_hops
from alexnet_dist.parallel.peers import Peer, check_versions, list_machines
from alexnet_dist.parallel.processes import pulse, waiting
from alexnet_dist.parallel.processes.restart import join_restarted_group
from alexnet_dist.parallel.runtime import lost_peers_named
from alexnet_dist.runs import same_data

CPU = torch.device("cpu")
TINY = ["--model.image_size", "64", "--model.conv_channels", "[8,16,16,16,16]", "--model.fc_width", "16"]


# -- images -----------------------------------------------------------------------------------------------------------


def write_disk(root: Path, **counts: int) -> Path:
    """A folder source: so many small pictures of each class."""
    for name, count in counts.items():
        folder = root / "train" / name
        folder.mkdir(parents=True)
        for number in range(count):
            (folder / f"{number}.ppm").write_bytes(b"P6 72 72 255\n" + bytes(72 * 72 * 3))
    return root


def train_on(disks: list[Path], run_folder: Path, defect: bool = False) -> tuple[str, str]:
    """Each process reads its own disk; the kind of the error and its line."""
    if defect:
        same_data.check_same_images = lambda *_: None
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (a child of the test: its messages are not the test's)
    root = disks[int(os.environ["RANK"])]
    config = tiny_config(
        run_folder, data__source="folder", data__root=str(root), data__val_fraction=0.0, train__global_batch_size=4
    )
    try:
        train(replace(config, train=replace(config.train, epochs=1)))
    except AlexNetDistError as error:
        return type(error).__name__, str(error)
    return "", ""


def test_equal_disks_train(tmp_path: Path) -> None:
    disks = [write_disk(tmp_path / name, cat=4, dog=3) for name in "ab"]
    assert run_processes(2, train_on, disks, tmp_path / "run") == [("", "")] * 2


@pytest.mark.parametrize(
    ("other", "line"),
    [
        ({"cat": 4, "dog": 4}, "train has 3 images of class 'dog' on rank 0 and 4 on rank 1"),
        ({"cat": 4}, "train has 3 images of class 'dog' on rank 0 and 0 on rank 1"),
        ({"cat": 4, "cow": 3}, "train has 3 images of class 'dog' on rank 0 and 0 on rank 1"),
    ],
    ids=["one more", "a class less", "another class"],
)
def test_training_refuses_disks_that_differ(tmp_path: Path, other: dict[str, int], line: str) -> None:
    disks = [write_disk(tmp_path / "a", cat=4, dog=3), write_disk(tmp_path / "b", **other)]
    found = run_processes(2, train_on, disks, tmp_path / "run")
    assert found[0] == found[1]
    kind, text = found[0]
    assert kind == "DataError"
    assert text.startswith("the images differ between processes (rank 0 and rank 1): " + line)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_file_of_another_size_is_noticed(tmp_path: Path) -> None:
    disks = [write_disk(tmp_path / name, cat=4, dog=3) for name in "ab"]
    with (disks[1] / "train" / "dog" / "2.ppm").open("ab") as file:
        file.write(b"more")
    (_, text), _ = run_processes(2, train_on, disks, tmp_path / "run")
    assert "train has other files, or files of other sizes, of class 'dog'" in text


def test_without_the_comparison_disks_that_differ_would_train(tmp_path: Path) -> None:
    """The control: nothing else notices."""
    disks = [write_disk(tmp_path / "a", cat=4, dog=3), write_disk(tmp_path / "b", cat=4, cow=3)]
    assert run_processes(2, train_on, disks, tmp_path / "run", True) == [("", "")] * 2


def test_a_disk_that_is_missing_on_one_machine_ends_all_alike(tmp_path: Path) -> None:
    disks = [write_disk(tmp_path / "a", cat=4, dog=3), tmp_path / "nowhere"]
    found = run_processes(2, train_on, disks, tmp_path / "run")
    assert found[0] == found[1]
    assert found[0][0] == "DataError"
    assert "nowhere" in found[0][1]


def examine(disks: list[Path], messages: Path) -> int:
    rank = int(os.environ["RANK"])
    sys.stdout = sys.stderr = (messages / f"{rank}").open("w")
    words = ["--data.source", "folder", "--data.root", str(disks[rank]), "--data.val_fraction", "0"]
    code = run("doctor", [*words, "--seconds", "0.1", "--images_per_second", "100", *TINY])
    sys.stdout.flush()
    return code


def test_doctor_refuses_disks_that_differ(tmp_path: Path) -> None:
    disks = [write_disk(tmp_path / "a", cat=2), write_disk(tmp_path / "b", cat=3)]
    assert run_processes(2, examine, disks, tmp_path) == [DataError.exit_code] * 2
    said = (tmp_path / "0").read_text().splitlines()
    assert [line for line in said if line.startswith("error: the images differ")] == [said[-1]]
    assert (tmp_path / "1").read_text() == ""


# -- versions, machines -----------------------------------------------------------------------------------------------

FIRST = Peer(0, 0, "0", "a", 1, "cpu", 1, {"torch": "2.14", "numpy": "2.4", "commit": "abc"})


def other_peer(**versions: str) -> Peer:
    return replace(FIRST, rank=1, machine="1", host="b", versions={**FIRST.versions, **versions})


def test_equal_versions_pass() -> None:
    check_versions([FIRST, other_peer()])
    without_checkout = replace(other_peer(), versions={"torch": "2.14", "numpy": "2.4"})
    check_versions([FIRST, without_checkout])


@pytest.mark.parametrize("pair", [("abc+", "abc?"), ("abc?", "abc+"), ("abc", "abc?"), ("abc?", "abc?")])
def test_a_machine_without_git_may_have_the_same_code(pair: tuple[str, str]) -> None:
    check_versions([replace(FIRST, versions={**FIRST.versions, "commit": pair[0]}), other_peer(commit=pair[1])])


@pytest.mark.parametrize(
    ("versions", "why"),
    [
        ({"torch": "2.13"}, "torch is 2.13 there and 2.14 on a, rank 0"),
        ({"wandb": "1"}, "wandb is 1 there and missing on a, rank 0"),
        ({"commit": "abd"}, "commit is abd there and abc on a, rank 0"),
        ({"commit": "abd?"}, "commit is abd? there and abc on a, rank 0"),
        ({"commit": "abc+"}, "commit is abc+ there and abc on a, rank 0"),
    ],
)
def test_versions_that_differ_are_refused(versions: dict[str, str], why: str) -> None:
    line = refused(lambda: check_versions([FIRST, other_peer(**versions)]), MachineError)
    assert line.startswith(f"versions differ between processes (b, rank 1): {why};")


def test_machines_are_told_apart() -> None:
    peers = [replace(FIRST, rank=rank, machine=machine) for rank, machine in enumerate("0110")]
    assert list_machines(peers) == [[0, 3], [1, 2]]


def train_with_one_compiler(run_folder: Path) -> str:
    if os.environ["RANK"] == "1":
        kernels.load_functions = refuse_to_compile
    try:
        train(tiny_config(run_folder, train__epochs=None, train__max_steps=1))
    except AlexNetDistError as error:
        return str(error)
    return ""


def refuse_to_compile() -> None:
    raise MachineError("no C compiler")


def test_no_machine_joins_maps_where_one_of_them_has_no_compiler(tmp_path: Path) -> None:
    assert run_processes(2, train_with_one_compiler, tmp_path / "run") == [""] * 2
    told = json.loads((tmp_path / "run" / "run.json").read_text())["kernels"]
    assert (told["maps"], told["reason"]) == ("reference", "no maps joined: no C compiler")


# -- links ------------------------------------------------------------------------------------------------------------


def probe(machines: list[list[int]]) -> dict[str, LinkProbe]:
    return probe_links(CPU, machines, 0.05)


@pytest.mark.parametrize(
    ("machines", "kinds"),
    [([[0, 1]], {"inside": 2}), ([[0], [1]], {"between": 2}), ([[0, 1], [2, 3]], {"between": 4, "inside": 2})],
)
def test_the_probe_measures_what_there_is(machines: list[list[int]], kinds: dict[str, int]) -> None:
    first, *others = run_processes(sum(map(len, machines)), probe, machines)
    assert {kind: found.processes for kind, found in first.items()} == kinds
    assert all(other == first for other in others)
    for found in first.values():
        assert 1e6 < found.bus_bytes_per_second < 1e12
        assert 1e6 < found.compressed_bytes_per_second < 1e12
        # Each of the cores that gloo's threads run on can be busy all the time.
        assert 0 < found.busy_seconds_per_byte * found.bus_bytes_per_second < available_cores()
        assert 0 < found.compressed_busy_seconds_per_byte * found.compressed_bytes_per_second < available_cores()
        assert 0 < found.latency_seconds < 1


def test_links_follow_from_probes() -> None:
    one = LinkProbe(4, 2**20, 1e8, 1e-9, 8e7, 3e-9, 4e-3)
    assert one.compression_gain == pytest.approx(1.6)
    links = links_from_probe({"between": one}, 1)
    hop = 4e-3 / all_reduce_hops(4)
    assert links.between == links.inside == Link(1e8, hop, 1e-9)
    assert links.between_compressed == links.inside_compressed == Link(8e7, hop, 3e-9)
    assert links.per_machine == 1
    assert Links.from_dict(asdict(links)) == links
    with pytest.raises(ValueError, match="nothing was probed"):
        links_from_probe({}, 1)


# -- signs of life ----------------------------------------------------------------------------------------------------


def leave_group() -> None:
    """End the group that the helper made, when all have joined it: who still connects would find the others gone."""
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def join_over_tcp(port: int) -> int:
    """Join again, over a store of the kind that launchers use; this process's rank."""
    leave_group()
    rank = int(os.environ["RANK"])
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=3)
    return rank


def lose_one(port: int, way: int, messages: Path) -> str:
    """Rank 1 is killed or stopped in the middle of a row of all-reduces; what the others say."""
    pulse.SILENT_TICKS = 3
    rank = join_over_tcp(port)
    if rank == 2:
        pulse.LISTEN_SECONDS += 1.0  # it asks for the verdict when rank 0, which keeps the store, has long said it
    sys.stderr = (messages / f"{rank}").open("w")
    try:
        with lost_peers_named():
            for step in range(10_000):
                torch.distributed.all_reduce(torch.ones(1))
                time.sleep(0.01)
                if step == 200 and rank == 1:
                    os.kill(os.getpid(), way)
    except MachineError as error:
        return f"{error.is_local} {error}"
    return ""


def test_a_killed_process_is_named_by_one_of_the_others(tmp_path: Path) -> None:
    group = start_processes(3, lose_one, find_free_port(), signal.SIGKILL, tmp_path)
    assert group.wait(90) == [0, -signal.SIGKILL, 0]  # most of it is the start of three processes
    said = [torch.load(group.folder / f"result-{rank}", weights_only=False) for rank in (0, 2)]
    assert said[0].startswith("True lost contact with rank 1 on ")
    assert said[1].startswith("False lost contact with rank 1 on ")


@pytest.mark.slow
def test_a_process_that_falls_silent_ends_the_others(tmp_path: Path) -> None:
    """A stopped process keeps its connections: no collective fails, and none ever ends."""
    started = time.monotonic()
    group = start_processes(3, lose_one, find_free_port(), signal.SIGSTOP, tmp_path)
    while sum(group._ended(child) for child in group.children) < 2 and time.monotonic() - started < 40:
        time.sleep(0.05)
    group.kill([1])
    codes: Any = group.wait(5)
    assert codes[1] == -signal.SIGKILL
    assert MachineError.exit_code in (codes[0], codes[2])
    said = "".join((tmp_path / f"{rank}").read_text() for rank in (0, 2))
    assert "error: lost contact with rank 1: no sign of life for 3 s; " in said


def end_by_errors(port: int, ways: list[str]) -> str:
    """Each process ends in its own way; whether it speaks, and its error."""
    rank = join_over_tcp(port)
    try:
        with lost_peers_named():
            time.sleep(1.5)  # until the first signs of life
            if ways[rank] == "wait":
                torch.distributed.barrier()
            elif ways[rank] == "memory":
                raise MemoryError
            raise DataError(ways[rank])
    except (AlexNetDistError, MemoryError) as error:
        torch.distributed.destroy_process_group()
        speaks = not error.is_said and (rank == 0 or getattr(error, "is_local", True))
        time.sleep(0.0 if speaks else 3.0)  # a speaker ends, and with rank 0 goes the store
        return f"{speaks} {error}"
    return ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ways", "expected"),
    [
        (["wait", "broken picture", "wait"], ["broken picture"]),
        (["broken picture", "wait", "wait"], ["broken picture"]),
        (["wait", "wait", "memory"], [""]),
        (["no space"] * 3, ["no space"]),
    ],
    ids=["another", "first", "memory", "all"],
)
def test_of_processes_that_end_by_errors_one_speaks(ways: list[str], expected: list[str]) -> None:
    said = run_processes(3, end_by_errors, find_free_port(), ways)
    assert [line.removeprefix("True ") for line in said if line.startswith("True ")] == expected


def wait_for_nobody(seconds: float, errors: Path) -> None:
    sys.stderr = errors.open("w")
    waiting.NOTE_SECONDS = 0.3
    os.environ.update({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "192.0.2.1", "MASTER_PORT": "29500"})
    with waiting.limit_wait(seconds):
        time.sleep(1.0)


@pytest.mark.parametrize(("seconds", "code"), [(0.5, 5), (30.0, 0)])
def test_waiting_for_others_has_a_limit_and_is_said(tmp_path: Path, seconds: float, code: int) -> None:
    assert start_processes(1, wait_for_nobody, seconds, tmp_path / "e").wait() == [code]
    lines = (tmp_path / "e").read_text().splitlines()
    assert lines[0].startswith("waiting for the other processes since 0 s (rank 0 of 2, at 192.0.2.1 port 29500)")
    errors = [line for line in lines if line.startswith("error")]
    assert len(errors) == (code > 0)
    assert all(
        line.startswith("error: not every process came within 0.5 s (rank 0 of 2): they meet") for line in errors
    )


# -- restarts ---------------------------------------------------------------------------------------------------------


def join_again(port: int, restarts: int, times: int) -> tuple[str, float]:
    """What a worker does that trains so many times; the last prefix of its keys, and the sum over the processes."""
    os.environ.update({"TORCHELASTIC_RESTART_COUNT": str(restarts), "TORCHELASTIC_USE_AGENT_STORE": "True"})
    os.environ["MASTER_PORT"] = str(port)
    for _ in range(times):
        if torch.distributed.is_initialized():
            leave_group()
        join_restarted_group(on_gpu=False)
    if not torch.distributed.is_initialized():
        return "", 0.0
    ones = torch.ones(1)
    torch.distributed.all_reduce(ones)
    store = torch.distributed.distributed_c10d._get_default_store().underlying_store
    store.set("mark", "")
    prefix = f"restart_{restarts}_{times - 1}"
    return prefix if store.underlying_store.check([f"{prefix}/mark"]) else "another", float(ones)


@pytest.mark.parametrize(
    ("restarts", "times", "expected"),
    [
        (0, 1, ("", 0.0)),
        (1, 1, ("restart_1_0", 2.0)),
        (2, 1, ("restart_2_0", 2.0)),
        (0, 2, ("restart_0_1", 2.0)),
        (1, 3, ("restart_1_2", 2.0)),
    ],
)
def test_workers_that_met_before_meet_under_keys_of_their_own(
    restarts: int, times: int, expected: tuple[str, float]
) -> None:
    """After a restart, and where a program trains again. The first meeting is Accelerate's business."""
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    assert run_processes(2, join_again, store.port, restarts, times) == [expected] * 2


def test_one_process_listens_to_nobody() -> None:
    """It would look twenty times a second, for as long as it trains, whether others have joined."""
    with lost_peers_named():
        assert [thread.name for thread in threading.enumerate() if thread.name == "pulse"] == []
