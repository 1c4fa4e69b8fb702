"""Several processes and machines as people start them: doctor, elastic restarts, a limited link."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from helpers.dist_helper import run_processes, wait_for_step
from helpers.ports import find_free_port
from helpers.tiny import tiny_config
from safetensors.torch import load_file

from alexnet_dist.cli.main import run
from alexnet_dist.cli.train import train
from alexnet_dist.settings.reader import dump_config

ROOT = Path(__file__).resolve().parents[2]
TRAIN, DOCTOR = str(ROOT / "launch" / "train.py"), str(ROOT / "launch" / "doctor.py")
TWO_MACHINES = str(ROOT / "launch" / "accelerate" / "two_machines.yaml")
TINY = ["--model.image_size", "64", "--model.conv_channels", "[8,16,16,16,16]", "--model.fc_width", "16"]
QUICK = ["--seconds", "0.3", "--images_per_second", "100"]


def environment(**more: str) -> dict[str, str]:
    path = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    values = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", **more}
    return {name: value for name, value in values.items() if value}


def start(*words: str, **more: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen(
        words, stdout=pipe, stderr=pipe, text=True, env=environment(**more), start_new_session=True, cwd=ROOT
    )


def accelerate(*words: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0", *words)


def finish(process: subprocess.Popen[str], seconds: float = 120) -> tuple[int, str, list[str]]:
    """Exit code, standard output, and our own lines of standard error."""
    out, err = process.communicate(timeout=seconds)
    return process.returncode, out, [line for line in err.splitlines() if line.startswith("error: ")]


# -- doctor -----------------------------------------------------------------------------------------------------------


def test_doctor_on_one_process(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    probe = tmp_path / "doctor.json"
    words = ["--device", "cpu", "--images_per_process", "2", *TINY, "--out", str(probe)]
    assert run("doctor", words) == 0
    printed = capsys.readouterr().out
    assert "processes 1 on 1 machine, all here" in printed
    assert "link      none: one process" in printed
    assert json.loads(probe.read_text())["links"] is None
    assert run("estimate", ["--probe", str(probe), "--link_gbits", "1", "--processes", "2"]) == 0


def test_doctor_on_two_processes_measures_what_estimate_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    probe = tmp_path / "doctor.json"
    words = ["--config", "smoke", "--seconds", "0.3", "--images_per_process", "32", "--out", str(probe)]
    code, out, errors = finish(start(*accelerate("--multi_gpu", "--num_processes", "2", DOCTOR, *words)))
    assert (code, errors) == (0, [])
    assert "processes 2 on 1 machine, all here" in out
    assert re.search(r"^clocks +within [\d.]+ ms of rank 0's", out, re.MULTILINE)
    assert re.search(r"^data +found: 256 train, 32 val, 0 test images, fingerprint [0-9a-f]{12}$", out, re.MULTILINE)
    values = json.loads(probe.read_text())
    assert values["machines"] == [[0, 1]]
    assert values["probes"]["inside"]["bus_bytes_per_second"] > 1e7
    assert values["compute"]["seconds_per_image"] > 0  # of 32 images and of 4; 1 and 2 differ by less than the noise
    assert run("estimate", ["--probe", str(probe), "--processes", "2", "--format", "json"]) == 0
    estimate = json.loads(capsys.readouterr().out)
    found, expected = estimate["predictions"][0], values["predictions"][0]
    assert found["step_seconds"] == pytest.approx(expected["step_seconds"])


@pytest.mark.slow  # train's are tested in test_launch.py, by the same code
@pytest.mark.parametrize(
    ("words", "more", "line"),
    [
        (["--cpu", "--num_processes", "2"], {}, "error: the launcher started 1 process instead of 2"),
        (
            ["--multi_gpu", "--num_processes", "2"],
            {"ACCELERATE_USE_CPU": ""},
            "error: the launcher started 2 processes that do not know each other",
        ),
    ],
    ids=["one process", "strangers"],
)
def test_doctor_refuses_a_wrong_launch(words: list[str], more: dict[str, str], line: str) -> None:
    if torch.cuda.is_available():
        pytest.skip("with GPUs the processes do find each other")
    code, _, errors = finish(start(*accelerate(*words, DOCTOR), **more))
    assert code != 0
    assert len(errors) == 1
    assert errors[0].startswith(line)


def test_doctor_does_not_wait_for_ever() -> None:
    alone = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29517"}
    started = time.monotonic()
    code, _, errors = finish(start(sys.executable, DOCTOR, "--wait_seconds", "2", "--device", "cpu", **alone))
    assert code == 5
    assert time.monotonic() - started < 60
    (line,) = errors
    assert line.startswith("error: not every process came within 2 s (rank 0 of 2): they meet at 127.0.0.1 port 29517;")


# -- a lost worker ----------------------------------------------------------------------------------------------------


def kill_rank(launcher: subprocess.Popen[str], rank: int) -> None:
    children = psutil.Process(launcher.pid).children()
    (worker,) = [child for child in children if child.environ().get("RANK") == str(rank)]
    os.kill(worker.pid, signal.SIGKILL)


def train_undisturbed(folder: Path) -> None:
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (a child of the test: its messages are not the test's)
    train(tiny_config(folder, precision="fp32"))


def test_a_lost_worker_is_named_and_the_restarted_group_ends_with_the_same_bits(tmp_path: Path) -> None:
    folder, config = tmp_path / "killed", tmp_path / "tiny.yaml"
    config.write_text(dump_config(tiny_config(folder, precision="fp32")))
    words = ["--multi_gpu", "--num_processes", "2", "--max_restarts", "2", TRAIN, "--config", str(config)]
    process = start(*accelerate(*words))
    wait_for_step(folder, 6, process)
    kill_rank(process, 1)
    code, _, errors = finish(process)
    assert code == 0
    (line,) = errors
    assert line.startswith("error: lost contact with rank 1 on ")
    starts = json.loads((folder / "run.json").read_text())["starts"]
    assert len(starts) == 2
    assert starts[1]["step"] > 0
    run_processes(2, train_undisturbed, tmp_path / "undisturbed")
    name = "checkpoints/step-00000020/weights.safetensors"
    ours, theirs = load_file(folder / name), load_file(tmp_path / "undisturbed" / name)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


# -- two machines -----------------------------------------------------------------------------------------------------


def test_the_launch_file_waits_a_minute_for_the_other_machine() -> None:
    parser = launch_command_parser()
    arguments = parser.parse_args(["--config_file", TWO_MACHINES, "--machine_rank", "1", TRAIN])
    arguments.nondefault = {"config_file", "machine_rank"}
    settled, *_ = _validate_launch_command(arguments)
    assert (settled.rdzv_conf, settled.max_restarts) == ("timeout=60", 0)
    assert (settled.num_machines, settled.machine_rank) == (2, 1)


def on_two_machines(rate: str, *words: str) -> subprocess.Popen[str]:
    """The same launch on both; MACHINE_RANK in a word becomes 0 or 1."""
    launcher = (sys.executable, "-m", "accelerate.commands.launch", "--config_file", TWO_MACHINES)
    options = ("--num_processes", "2", "--machine_rank", "MACHINE_RANK", "--main_process_ip", "192.0.2.1")
    return start(str(ROOT / "tests" / "dist" / "two_machines.sh"), rate, *launcher, *options, *words)


@pytest.fixture
def _namespaces() -> None:
    done = subprocess.run(
        [ROOT / "tests" / "dist" / "two_machines.sh", "1gbit", "true"], capture_output=True, text=True, timeout=60
    )
    if done.returncode == 77:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr


@pytest.mark.usefixtures("_namespaces")
def test_doctor_sees_the_speed_of_the_link_between_two_machines() -> None:
    code, out, errors = finish(on_two_machines("1gbit", DOCTOR, "--seconds", "1", *QUICK[2:], *TINY))
    assert (code, errors) == (0, [])
    assert "processes 2 on 2 machines, all here" in out
    (speed,) = re.findall(r"^link +over 2 machines: ([\d.]+) Gbit/s", out, re.MULTILINE)
    assert 0.75 < float(speed) < 1.05


@pytest.mark.slow
@pytest.mark.usefixtures("_namespaces")
def test_doctor_names_the_interface_that_gloo_should_take() -> None:
    launch = (sys.executable, "-m", "alexnet_dist", "launch", "--nnodes", "2", "--node_rank", "MACHINE_RANK")
    words = ("--master_addr", "192.0.2.1", "doctor", *QUICK, *TINY, "--wait_seconds", "8")
    script = str(ROOT / "tests" / "dist" / "two_machines.sh")
    process = start(script, "unlimited", "env", "GLOO_SOCKET_IFNAME=lo", *launch, *words)
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 5, errors
    hint = "GLOO_SOCKET_IFNAME is lo, and eth0 leads to 192.0.2.1: set GLOO_SOCKET_IFNAME=eth0 NCCL_SOCKET_IFNAME=eth0"
    assert errors.count(f"interface WARNING: {hint}\n") == 2
    last = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert last[-1].endswith(hint)


@pytest.mark.slow
@pytest.mark.usefixtures("_namespaces")
def test_machines_with_other_images_are_refused(tmp_path: Path) -> None:
    for machine in (0, 1):
        folder = tmp_path / f"disk{machine}" / "train" / "cat"
        folder.mkdir(parents=True)
        for number in range(3 + machine):
            (folder / f"{number}.ppm").write_bytes(b"P6 64 64 255\n" + bytes(64 * 64 * 3))
    disk = ("--data.source", "folder", "--data.root", f"{tmp_path}/diskMACHINE_RANK", "--data.val_fraction", "0")
    code, _, errors = finish(on_two_machines("unlimited", DOCTOR, *disk, *QUICK, *TINY))
    assert code != 0
    (error,) = errors
    assert "train has 3 images of class 'cat' on rank 0 and 4 on rank 1" in error


# -- machines that come and go ----------------------------------------------------------------------------------------


def wait_for_line(path: Path, part: str, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 150
    while not (path.is_file() and part in path.read_text()):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, path.read_text() if path.is_file() else "no log"
        time.sleep(0.1)


def test_a_run_goes_on_as_machines_come_and_go(tmp_path: Path) -> None:
    folder, config = tmp_path / "run", tmp_path / "tiny.yaml"
    config.write_text(dump_config(tiny_config(folder, precision="fp32", device="cpu", train__epochs=100000)))
    meet = ("--rdzv_backend", "c10d", "--rdzv_endpoint", "127.0.0.1:29517", "--rdzv_id", "elastic")
    quick = ("--rdzv_conf", "last_call_timeout=2,keep_alive_interval=1")
    words = ("-m", "alexnet_dist", "launch", "--nnodes", "1:3", *meet, *quick, "train", "--config", str(config))
    first = start(sys.executable, *words)
    try:
        wait_for_step(folder, 2, first)
        second = start(sys.executable, *words)
        wait_for_line(folder / "run.log", "processes 2 instead of 1; each update has as many images as before", first)
        second.terminate()
        second.communicate(timeout=60)
        assert second.returncode == 143
        wait_for_line(folder / "run.log", "processes 1 instead of 2; each update has as many images as before", first)
    finally:
        first.terminate()
    _, errors = first.communicate(timeout=60)
    assert first.returncode == 143, errors
    assert errors.splitlines()[-1].startswith("Stopped by SIGTERM.")
    assert "another machine has come: the workers save, and all start again together" in errors
    starts = json.loads((folder / "run.json").read_text())["starts"]
    assert [entry["processes"] for entry in starts] == [1, 2, 1]
    assert starts[0]["step"] < starts[1]["step"] <= starts[2]["step"]


PORT_OF = {"--nnodes": "--master_port", "accelerate": "--main_process_port"}


@pytest.mark.parametrize(
    "words",
    [
        ("--nnodes", "2", "--node_rank", "0", "--master_addr", "127.0.0.1"),
        (
            *("accelerate", "--multi_gpu", "--num_machines", "2", "--num_processes", "2", "--machine_rank", "0"),
            *("--main_process_ip", "127.0.0.1"),
        ),
    ],
    ids=["torchrun", "accelerate"],
)
def test_a_launcher_that_waits_for_machines_is_stopped_at_once(words: tuple[str, ...]) -> None:
    port = (PORT_OF[words[0]], str(find_free_port()))
    launcher = start(sys.executable, "-m", "alexnet_dist", "launch", *words, *port, "train", "--config", "smoke")
    assert launcher.stderr is not None
    lines = iter(launcher.stderr.readline, "")
    assert any(line.startswith("waiting for the other machines") for line in lines)
    began = time.monotonic()
    launcher.terminate()
    _, said = launcher.communicate(timeout=30)
    assert (launcher.returncode, said.splitlines()[-1][:19]) == (143, "Stopped by SIGTERM.")
    assert time.monotonic() - began < 20
