"""The house rules that a reader relies on: who imports whom, how long things are, what is never called."""

from __future__ import annotations

import ast
import fnmatch
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted(path for part in ("alexnet_dist", "launch", "benchmarks") for path in (ROOT / part).rglob("*.py"))

# A room may import what stands in an earlier row; rooms of one row never import each other.
ROWS = (
    ("base",),
    ("settings", "models", "data", "tracking", "figures"),
    ("parallel", "inference"),
    ("training", "serving"),
    ("assembly",),
    ("runs", "costs"),
    ("cli",),
    ("__main__", "launch", "benchmarks"),
)
LAYERS = {room: row for row, rooms in enumerate(ROWS) for room in rooms} | {"__init__": 6}  # the door for users
READERS_OF_SETTINGS = ("assembly", "runs", "costs", "cli", "benchmarks")
NEVER = dict.fromkeys(("inference", "serving"), ("training", "parallel"))  # who predicts never loads the trainer
# Modules that only one place may import.
HOMES = {
    "accelerate": ("alexnet_dist/parallel/", "benchmarks/plain/"),
    "torch.distributed": ("alexnet_dist/parallel/", "alexnet_dist/costs/probe.py"),
    "wandb": "alexnet_dist/tracking/wandb",
    "tensorboard": "alexnet_dist/tracking/tensorboard",
    "mlflow": "alexnet_dist/tracking/mlflow",
    "torch.utils.tensorboard": "alexnet_dist/tracking/tensorboard",
    "nvidia": ("alexnet_dist/data/engines/dali/", "benchmarks/"),
    "matplotlib": "alexnet_dist/figures/",
    "vl_convert": "alexnet_dist/figures/vega.py",
    "matplotlib.pyplot": "nowhere",  # it would choose a backend for the whole program
    "huggingface_hub": (
        "alexnet_dist/inference/hub.py",
        "alexnet_dist/inference/model_page.py",
        "alexnet_dist/data/remote/hub.py",
    ),
    "pyarrow": ("alexnet_dist/data/sources/parquet_packs.py", "alexnet_dist/inference/features_file.py", "benchmarks/"),
    "obstore": "alexnet_dist/data/remote/store.py",
    **dict.fromkeys(("gradio", "fastapi", "starlette", "uvicorn"), "alexnet_dist/serving/"),
    "torchvision.io": "nowhere",  # a damaged file kills the process
    "pickle": "nowhere",
}
RANKS = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK"}  # variables of launchers
RANK_HOMES = ("alexnet_dist/base/ranks.py", "alexnet_dist/parallel/processes/environment.py")  # read, checked
# Plans are numbers: who reads one, or checks sizes alone, does not wait for torch.
LIGHT, LIGHT_FOLDER = ("alexnet_dist/data/plan.py", "alexnet_dist/data/draws.py"), "alexnet_dist/data/crop_ops/"
STRANGERS = "benchmarks/plain/"  # what a user would have written instead
JSON_HOME = "alexnet_dist/base/durable.py"
PRINTING = ("alexnet_dist/cli/", "launch/", "benchmarks/")
MAX_FILE_LINES, MAX_FUNCTION_LINES = 600, 60

_IMPORTS = ast.Import | ast.ImportFrom


def find_violations(source: str, path: str) -> list[str]:
    """The rules that a file breaks; `path` is relative to the repository, POSIX."""
    tree = ast.parse(source)
    return [
        *_check_imports(tree, path),
        *_check_heads(tree, path),
        *_check_calls(tree, path),
        *_check_lengths(tree, source, path),
    ]


def _imported_names(tree: ast.AST) -> Iterator[str]:
    """Every dotted module name that is imported, or reached as an attribute (`torch.distributed`)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute):
            yield ast.unparse(node)


def _layer(path_or_module: str) -> str:
    parts = path_or_module.removesuffix(".py").replace("/", ".").split(".")
    return parts[1] if parts[0] == "alexnet_dist" and len(parts) > 1 else parts[0]


def _may_import(here: str, there: str) -> bool:
    if there in NEVER.get(here, ()) or (there == "settings" and here not in READERS_OF_SETTINGS):
        return False
    return LAYERS.get(there, 9) < LAYERS[here]


def _check_imports(tree: ast.AST, path: str) -> Iterator[str]:
    here = _layer(path)
    for name in _imported_names(tree):
        if name.startswith("."):
            yield f"relative import {name}"
        elif path.startswith(STRANGERS) and name.split(".")[0] in ("alexnet_dist", "common"):
            yield f"{name} in a stranger's program"
        elif name.split(".")[0] in ("alexnet_dist", "launch", "benchmarks", "tests"):
            there = _layer(name)
            if there != here and not _may_import(here, there):
                yield f"{here} imports {name}"
        for module, home in HOMES.items():
            if (name == module or name.startswith(f"{module}.")) and not path.startswith(home):
                yield f"{module} outside {home}"


def _check_heads(tree: ast.Module, path: str) -> Iterator[str]:
    """What is imported as soon as the file is."""
    if path in LIGHT or (path.startswith(LIGHT_FOLDER) and not path.endswith("_pixels.py")):
        names = [name for node in tree.body if isinstance(node, _IMPORTS) for name in _imported_names(node)]
        yield from (f"{name} at the head of a light file" for name in names if name.startswith("torch"))


def _check_calls(tree: ast.AST, path: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node.value in RANKS and path.startswith("alexnet_dist/"):
            yield from () if path in RANK_HOMES else (f"{node.value} outside {RANK_HOMES[0]}",)
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        keywords = {word.arg: ast.unparse(word.value) for word in node.keywords}
        if name == "print" and not path.startswith(PRINTING):
            yield "print"
        if name == "torch.load" and keywords.get("weights_only") != "True":
            yield "torch.load without weights_only=True"
        if name == "json.dumps" and path.startswith("alexnet_dist/") and path != JSON_HOME:
            yield f"JSON is made outside {JSON_HOME}, which knows what to do with NaN"
        if name == "torch.save" or keywords.get("allow_pickle", "False") != "False":
            yield "writes or reads pickles"


def _check_lengths(tree: ast.AST, source: str, path: str) -> Iterator[str]:
    if path.startswith("benchmarks/"):
        return
    if len(source.splitlines()) > MAX_FILE_LINES:
        yield f"more than {MAX_FILE_LINES} lines"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno >= MAX_FUNCTION_LINES:
            yield f"{node.name} has more than {MAX_FUNCTION_LINES} lines"


@pytest.mark.parametrize("path", [path.relative_to(ROOT).as_posix() for path in FILES])
def test_file_keeps_the_rules(path: str) -> None:
    assert find_violations((ROOT / path).read_text(encoding="utf-8"), path) == []


def test_modules_import_each_other_in_no_circle() -> None:
    """At import time; what a function imports when it is called comes later."""
    modules = {path.relative_to(ROOT).as_posix()[:-3].replace("/", "."): path for path in FILES}
    ours = {name.removesuffix(".__init__"): path for name, path in modules.items() if name.startswith("alexnet_dist")}
    graph: dict[str, set[str]] = {}
    for name, path in ours.items():
        top = [node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, _IMPORTS)]
        reached = {module for node in top for module in _imported_names(node)}
        graph[name] = {module if module in ours else module.rpartition(".")[0] for module in reached} & ours.keys() - {
            name
        }
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize(
    ("path", "source", "expected"),
    [
        ("alexnet_dist/models/toy.py", "from alexnet_dist.data.plan import Plan", "models imports"),
        ("alexnet_dist/data/toy.py", "import alexnet_dist.models", "data imports"),
        ("alexnet_dist/data/toy.py", "from alexnet_dist import training", "data imports"),
        ("alexnet_dist/cli/toy.py", "from alexnet_dist import AlexNet", "cli imports"),
        ("alexnet_dist/parallel/toy.py", "def f():\n    from alexnet_dist.training import loop", "parallel imports"),
        ("alexnet_dist/settings/schema.py", "from alexnet_dist.data import plan", "settings imports"),
        ("alexnet_dist/cli/toy.py", "from benchmarks import model", "cli imports"),
        ("benchmarks/plain/toy.py", "from alexnet_dist.models import AlexNet", "in a stranger's program"),
        ("benchmarks/plain/toy.py", "from common.timing import Spread", "in a stranger's program"),
        ("alexnet_dist/inference/toy.py", "from alexnet_dist.training import step", "inference imports"),
        ("alexnet_dist/training/toy.py", "from alexnet_dist.settings.schema import Config", "training imports"),
        ("alexnet_dist/runs/toy.py", "import alexnet_dist.costs.model", "runs imports"),
        ("alexnet_dist/data/toy.py", "from .plan import Plan", "relative import"),
        ("alexnet_dist/training/toy.py", "import accelerate", "accelerate outside"),
        ("alexnet_dist/training/toy.py", "from torch import distributed", "torch.distributed outside"),
        ("alexnet_dist/training/toy.py", "import torch\ntorch.distributed.barrier()", "torch.distributed outside"),
        ("alexnet_dist/cli/toy.py", "import wandb", "wandb outside"),
        ("alexnet_dist/training/toy.py", "import tensorboard", "tensorboard outside"),
        ("alexnet_dist/training/toy.py", "from torch.utils import tensorboard", "tensorboard outside"),
        ("alexnet_dist/data/toy.py", "from torchvision.io import read_image", "torchvision.io outside"),
        ("alexnet_dist/data/toy.py", "import torchvision\ntorchvision.io.read_image('x')", "torchvision.io outside"),
        ("alexnet_dist/data/toy.py", "from nvidia.dali import fn", "nvidia outside"),
        ("alexnet_dist/figures/toy.py", "from alexnet_dist.runs import plots", "figures imports"),
        ("alexnet_dist/cli/toy.py", "from matplotlib.figure import Figure", "matplotlib outside"),
        ("alexnet_dist/figures/toy.py", "from matplotlib import pyplot", "matplotlib.pyplot outside"),
        ("alexnet_dist/data/toy.py", "import pickle", "pickle outside"),
        ("alexnet_dist/data/crop_ops/toy.py", "from torchvision.transforms import v2", "at the head of a light file"),
        ("alexnet_dist/inference/model_folder.py", "from pickle import loads", "pickle outside"),
        ("alexnet_dist/training/toy.py", "import torch\ntorch.load('x')", "torch.load without"),
        ("alexnet_dist/training/toy.py", "torch.load('x', weights_only=False)", "torch.load without"),
        ("alexnet_dist/data/toy.py", "np.load('x', allow_pickle=True)", "pickles"),
        ("alexnet_dist/training/toy.py", "print('x')", "print"),
        ("alexnet_dist/training/toy.py", "json.dumps(x)", "JSON is made outside"),
        ("alexnet_dist/training/toy.py", "os.environ['RANK']", "RANK outside"),
        ("alexnet_dist/training/toy.py", "x = 1\n" * 601, "more than 600 lines"),
        ("alexnet_dist/training/toy.py", "def f():\n" + "    x = 1\n" * 60, "f has more than 60 lines"),
    ],
)
def test_checker_finds_a_planted_violation(path: str, source: str, expected: str) -> None:
    assert any(expected in violation for violation in find_violations(source, path))


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("alexnet_dist/training/toy.py", "from alexnet_dist.parallel.runtime import Runtime"),
        ("alexnet_dist/training/toy.py", "import torch\ntorch.load('x', weights_only=True)"),
        ("alexnet_dist/parallel/toy.py", "import torch.distributed as dist\nfrom accelerate import Accelerator"),
        ("alexnet_dist/training/toy.py", "def f():\n" + "    x = 1\n" * 59),
        ("alexnet_dist/data/crop_ops/toy.py", "def f():\n    import torch"),
        ("launch/toy.py", "from alexnet_dist.cli.main import run\nprint(run)"),
    ],
)
def test_checker_lets_good_code_pass(path: str, source: str) -> None:
    assert find_violations(source, path) == []


def test_pytest_looks_into_every_folder_of_tests(pytestconfig: pytest.Config) -> None:
    folders = {path.parent.name for path in (ROOT / "tests").rglob("test_*.py")}
    skipped = pytestconfig.getini("norecursedirs")
    assert "dist" in folders
    assert [name for name in folders if any(fnmatch.fnmatch(name, pattern) for pattern in skipped)] == []
