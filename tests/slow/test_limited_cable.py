"""Two machines in small over a cable of limited speed, a launcher on each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "tests" / "dist" / "two_machines.sh"
NOT_ALLOWED = 77
LAUNCHER = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "2", "--num_processes", "2"]
MACHINE = ["--machine_rank", "MACHINE_RANK", "--main_process_ip", "192.0.2.1", "--main_process_port", "29500"]


def run_on_two_machines(rate: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run Python in both namespaces at once, or skip, saying why."""
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [str(SCRIPT), rate, sys.executable, *words], env=environment, capture_output=True, text=True, timeout=200
    )
    if done.returncode == NOT_ALLOWED:
        pytest.skip(done.stderr.strip())
    return done


def test_each_machine_has_its_own_namespace_and_nothing_is_left() -> None:
    command = "import os, sys; print('machine MACHINE_RANK', os.popen('ip netns identify').read()); sys.exit(3)"
    done = run_on_two_machines("unlimited", "-c", command)
    assert done.returncode == 3
    names = dict(line.split()[1:] for line in done.stdout.splitlines() if line)
    assert set(names) == {"0", "1"}
    assert names["0"] != names["1"]
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    assert not any(name in listed for name in names.values())


def test_a_pair_of_towers_trains_over_the_cable(tmp_path: Path) -> None:
    words = [*LAUNCHER, *MACHINE, str(ROOT / "launch" / "train.py"), "--config", "smoke", "--model.variant", "paper"]
    settings = {
        "parallel.strategy": "towers",
        "output_dir": str(tmp_path / "run"),
        "model.init": "source2012",
        "augment.pixel_range": "255",
        "data.synthetic_images": "64",
        "data.workers": "0",
        "train.epochs": "1",
    }
    given = [word for key, value in settings.items() for word in (f"--{key}", value)]
    done = run_on_two_machines("1gbit", *words, *given)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["status"], summary["strategy"], summary["world_size"]) == ("finished", "towers", 2)
