"""A real kernel of Jupyter: what its cells show while a network is trained, and what an interrupt leaves."""

from __future__ import annotations

import re
import sys
from typing import Any

import pytest
from helpers.pages import ROOT

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("ipykernel")
nbclient = pytest.importorskip("nbclient")

pytestmark = pytest.mark.slow  # a kernel, and a training in it

SETTINGS = {
    "model.fc_width": 16,
    "model.conv_channels": [8, 8, 8, 8, 8],
    "data.workers": 0,
    "log.plots": False,
    "log.report": False,
    "log.every_steps": 4,
    "precision": "fp32",
}
CELLS = {
    "import": f"""
import os, signal, sys, threading, time
from pathlib import Path
from alexnet_dist import predict, train

def press_stop(file):
    while not (os.path.exists(file) and os.path.getsize(file)):
        time.sleep(0.02)
    os.killpg(os.getpgrp(), signal.SIGINT)  # what a front end sends

settings = {SETTINGS!r}
""",
    "train": 'print(train("smoke", {**settings, "output_dir": "one"})["status"])',
    "again": 'print(train("smoke", {**settings, "output_dir": "two", "train.epochs": 1})["step"])',
    "moving": """
from alexnet_dist.base.progress import Progress
bar = Progress("scanning", 30)
for _ in range(30):
    bar.advance()
    time.sleep(0.05)
""",
    "mistake": 'train("smoke", {**settings, "output_dir": "two", "optimizer.lrr": 1})',
    "interrupted": """
threading.Thread(target=press_stop, args=["stopped/metrics.jsonl"]).start()
train("smoke", {**settings, "output_dir": "stopped", "train.epochs": 5000})
""",
    "usable": 'print(len(list(Path("stopped/checkpoints").glob("step-*"))), threading.active_count() < 15)',
    "gone on": """
step = int(sorted(Path("stopped/checkpoints").glob("step-*"))[-1].name[5:])
more = {"train.epochs": None, "train.max_steps": step + 3}
print(train("smoke", {**settings, "output_dir": "stopped", **more})["step"] - step)
""",
    "thread": """
ended = []
thread = threading.Thread(target=lambda: ended.append(train("smoke", {**settings, "output_dir": "three"})))
thread.start()
thread.join()
print(ended[0]["status"])
""",
    "command": """
from alexnet_dist.base.started import name_command
done = get_ipython().run_cell(name_command("--version"))
""",
    "program": """
code = (
    "import time; from alexnet_dist.base.progress import Progress\\n"
    "with Progress('scanning', 30, patience=0) as bar:\\n"
    "    for _ in range(30): bar.advance(); time.sleep(0.02)"
)
!{sys.executable} -c "{code}"
""",
}


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every cell after it was executed, by name."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code.strip()) for code in CELLS.values()])
    place = {"metadata": {"path": str(tmp_path_factory.mktemp("notebook"))}}
    client = nbclient.NotebookClient(notebook, timeout=120, allow_errors=True, resources=place)
    client.create_kernel_manager().kernel_spec.argv[0] = sys.executable
    return dict(zip(CELLS, client.execute().cells, strict=True))


def read_text(cell: Any) -> str:
    """What a cell says on standard output."""
    return "".join(output.text for output in cell.outputs if output.get("name") == "stdout")


def find_errors(cell: Any) -> list[str]:
    """What a cell shows of an error, without colors."""
    return ["\n".join(output.traceback) for output in cell.outputs if output.output_type == "error"]


@pytest.mark.parametrize("name", [name for name in CELLS if name != "moving"])
def test_nothing_is_red_and_nothing_is_left_of_what_moved(cells: dict[str, Any], name: str) -> None:
    outputs = cells[name].outputs
    assert [output for output in outputs if output.get("name") == "stderr"] == []
    assert "\r" not in read_text(cells[name]).replace("\r\n", "\n")
    assert [output.data for output in outputs if "data" in output] in ([], [{"text/plain": " "}])


def test_what_moves_is_one_output(cells: dict[str, Any]) -> None:
    (output,) = cells["moving"].outputs
    assert output.data["text/plain"].startswith("scanning █")


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        (
            "train",
            [
                "run       one, from step 0",
                "epoch 1/2  train ",
                "epoch 2/2  train ",
                "next: !",
                "finished",
            ],
        ),
        ("again", ["run       two, from step 0", "epoch 1/1  train ", "8"]),
        ("usable", ["1 True"]),
        ("gone on", ["run       stopped, resumed from step-", "3"]),
        ("thread", ["run       three, from step 0", "epoch 2/2  train ", "finished"]),
        ("command", ["alexnet-dist 0."]),
        ("program", ["scanning  1/30 images  "]),
    ],
)
def test_a_cell_says_in_lines_what_it_does(cells: dict[str, Any], name: str, lines: list[str]) -> None:
    said = read_text(cells[name]).splitlines()
    assert find_errors(cells[name]) == []
    assert all(any(line.startswith(start) for line in said) for start in lines), said
    assert len(said) < 30


def test_an_interrupted_run_is_saved_and_says_so(cells: dict[str, Any]) -> None:
    (said,) = find_errors(cells["interrupted"])
    assert said.startswith("Stopped. Saved at step ")
    assert said.endswith("Run the same command again to continue.")


def test_a_mistake_is_one_line(cells: dict[str, Any]) -> None:
    (said,) = find_errors(cells["mistake"])
    assert said.startswith("UsageError: ")
    assert "did you mean optimizer.lr?" in said
    assert "\n" not in said


def test_the_notebook_of_the_docs_shows_what_its_cells_gave() -> None:
    """`make notebook` has executed it from top to bottom; nothing in it is of the machine, red, or large."""
    path = ROOT / "docs" / "first_run.ipynb"
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    outputs = [output for cell in cells for output in cell.outputs]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert {output.output_type for output in outputs} == {"stream", "execute_result"}
    assert {output.name for output in outputs if output.output_type == "stream"} == {"stdout"}
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"\\r|/root/|/home/|/Users/", text)
    assert len(text) < 150_000
