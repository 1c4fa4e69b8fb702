"""What is imported before a verb says its first line: lists of modules, as seconds depend on the machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.images import save_jpeg
from helpers.verbs import NOTHING_DRAWN

from alexnet_dist.data.engines import resize

HEAVY = ["torch", "torchvision", "accelerate", "scipy", "sklearn", "matplotlib", "huggingface_hub", "wandb", "nvidia"]
RARE = ["IPython", "asyncio", "onnx", "onnxruntime", "pandas", "pyarrow", "obstore", "ray", "tensorboard", "webdataset"]

# Runs commands up to where the import of PyTorch is shown, and says which modules each has imported until then.
PROGRAM = """
import contextlib, io, json, sys
from alexnet_dist.base import progress
from alexnet_dist.cli import main, options

class Shown(BaseException): pass

def stop(*_):
    raise Shown

options.phase = stop
for words in json.loads(sys.argv[1]):
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            main.main(words)
        except Shown:
            end = "import shown"
        except SystemExit as ended:
            end = ended.code
    lines = said.getvalue().splitlines()
    print(json.dumps([end, lines[0] if lines else "", sorted({name.partition(".")[0] for name in sys.modules})]))
"""


def run_commands(commands: list[list[str]], folder: Path) -> list[tuple[object, str, set[str]]]:
    """How each command ended, its first line, and what was imported by then, in one process."""
    words = [sys.executable, "-c", PROGRAM, json.dumps(commands)]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=True)
    return [(end, line, set(names)) for end, line, names in map(json.loads, done.stdout.splitlines())]


@pytest.mark.heavy
def test_help_and_a_mistake_wait_for_nothing_heavy(tmp_path: Path) -> None:
    from alexnet_dist.cli.main import VERBS

    commands = [["--version"], [], ["trane"], *([verb, "--help"] for verb in VERBS), ["train", "--help", "all"]]
    commands += [
        ["train", "--config", "smoke", "--optimizer.rate", "1"],
        ["train", "--config", "digits", "--print_config"],
    ]
    seen = run_commands(commands, tmp_path)
    assert [end for end, _, _ in seen] == [0, 2, 2, *[0] * len(VERBS), 0, 2, 0]
    for command, (_, _, names) in zip(commands, seen, strict=True):
        assert names & {*HEAVY, *RARE, "numpy", "PIL"} == set(), command


@pytest.mark.heavy
def test_a_start_is_said_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (tmp_path / "picture.jpg").write_bytes(b"")
    commands = [
        ["train", "--config", "digits"],
        ["crossval", "--config", "rmsprop_kfold", "--data.root", "."],
        ["predict", "model", "picture.jpg"],
        ["evaluate", "model"],
        ["export", "--model", "model", "--out", "model.onnx"],
        ["doctor", "--config", "smoke"],
        ["prepare", "cache", "--config", "digits"],
    ]
    for command, (end, line, names) in zip(commands, run_commands(commands, tmp_path), strict=True):
        assert end == "import shown", (command, line)
        assert names & {*HEAVY, *RARE} == set(), command
        if command[0] in ("train", "crossval"):
            assert f": {command[0]}, configuration {command[2]}, folder runs/{command[2]}" in line


@pytest.mark.heavy
@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in resize._FAST, reason="torchvision resizes bytes on this CPU"
)
def test_a_training_imports_only_what_it_uses(tmp_path: Path) -> None:
    for number in range(8):
        path = tmp_path / "pictures" / f"class-{number % 2}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_jpeg(path, 80, 90)
    words = ["train", str(tmp_path / "pictures"), "--data.workers", "0", *NOTHING_DRAWN, "--train.max_steps", "1"]
    words += [
        "--model.fc_width",
        "8",
        "--model.image_size",
        "64",
        "--augment.resize",
        "70",
        "--data.val_fraction",
        "0.5",
    ]
    words += ["--train.global_batch_size", "4", "--output_dir", str(tmp_path / "run")]
    code = (
        "import sys\n"
        "from alexnet_dist.cli.main import run\n"
        "import alexnet_dist.runs.session\n"
        "assert 'huggingface_hub.hf_api' not in sys.modules  # a third of a second, which the end of a run needs\n"
        "assert run(sys.argv[1], sys.argv[2:]) == 0\n"
        "assert 'torch._dynamo' not in sys.modules  # a second and a half, which torch.compile needs\n"
        "print(*{name.partition('.')[0] for name in sys.modules})\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    unused = {*HEAVY, *RARE, "sympy"} - {"torch", "accelerate", "asyncio", "huggingface_hub"}
    assert set(done.stdout.split()) & unused == set()
