"""The wheel, installed in an environment of its own: verbs work in an empty folder, far from the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("alexnet_dist", "configs", "launch", "pyproject.toml", "README.md", "LICENSE")


def run_command(*words: str, cwd: Path) -> str:
    """What a command printed; it must succeed."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, f"{words}: {done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts of a fresh environment with the wheel in it.

    Its dependencies are those of the environment that runs the tests, reached by path: a path in a .pth file brings
    the packages and leaves out the checkout, which only an editable install's own .pth file would add.
    """
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # setuptools writes build/ and *.egg-info beside what it builds
    source.mkdir()
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    run_command(*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), str(source), cwd=folder)
    run_command(sys.executable, "-m", "venv", "--without-pip", str(folder / "venv"), cwd=folder)
    (packages,) = (folder / "venv").glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (wheel,) = folder.glob("*.whl")
    python = str(folder / "venv" / "bin" / "python")
    run_command(*pip, "--python", python, "install", "--no-deps", "--no-index", str(wheel), cwd=folder)
    shutil.rmtree(source)
    return folder / "venv" / "bin"


def test_the_checkout_is_out_of_reach(scripts: Path, tmp_path: Path) -> None:
    """Otherwise the tests below would say nothing about the wheel."""
    printed = run_command(
        str(scripts / "python"), "-c", "import alexnet_dist; print(alexnet_dist.__file__)", cwd=tmp_path
    )
    assert Path(printed.strip()).is_relative_to(scripts.parent)


def test_classes_have_their_words(scripts: Path, tmp_path: Path) -> None:
    code = "from alexnet_dist.data.class_words import find_words; print(find_words('n01440764'))"
    assert run_command(str(scripts / "python"), "-c", code, cwd=tmp_path).strip() == "tench"


@pytest.mark.parametrize("config", sorted(path.stem for path in (ROOT / "configs").glob("*.yaml")))
def test_every_config_is_found_by_name(scripts: Path, tmp_path: Path, config: str) -> None:
    printed = run_command(str(scripts / "alexnet-dist"), "train", "--config", config, "--print_config", cwd=tmp_path)
    assert f"output_dir: runs/{config}" in printed


def test_it_trains_evaluates_and_predicts(scripts: Path, tmp_path: Path) -> None:
    verb = str(scripts / "alexnet-dist")
    run_command(verb, "train", "--config", "smoke", "--train.max_steps", "2", "--data.workers", "0", cwd=tmp_path)
    printed = run_command(verb, "evaluate", "--model", "runs/smoke", "--data.workers", "0", cwd=tmp_path)
    assert '"num_examples": 32' in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs"]


def test_launch_files_are_found_by_name(scripts: Path, tmp_path: Path) -> None:
    """Two processes through accelerate, with the launch file inside the wheel; none is left behind."""
    options = ["--config", "smoke", "--device", "cpu", "--train.max_steps", "2", "--data.workers", "0"]
    port = ["--main_process_port", "0"]
    printed = run_command(
        str(scripts / "alexnet-dist"), "launch", "cpu_processes", *port, "train", *options, cwd=tmp_path
    )
    assert "2 x cpu (ddp)" in printed
    assert not [process for process in psutil.process_iter(["cwd"]) if process.info["cwd"] == str(tmp_path)]


@pytest.mark.parametrize("name", ["slurm", "kubernetes", "kubeflow", "skypilot"])
def test_recipes_for_other_engines_are_in_it(scripts: Path, tmp_path: Path, name: str) -> None:
    printed = run_command(str(scripts / "alexnet-dist"), "launch", name, "--print", cwd=tmp_path)
    assert printed.startswith("#")
    assert "alexnet" in printed
