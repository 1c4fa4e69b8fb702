from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
from helpers.verbs import call

from alexnet_dist.base.errors import MachineError
from alexnet_dist.base.extras import import_extra
from alexnet_dist.cli import summary
from alexnet_dist.cli.main import run


def put_package(folder: Path, name: str, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(source)
    monkeypatch.syspath_prepend(str(folder))
    for module in [key for key in sys.modules if key == name or key.startswith(f"{name}.")]:
        monkeypatch.delitem(sys.modules, module)


def test_a_package_that_is_missing_is_named_with_its_extra() -> None:
    with pytest.raises(MachineError, match=r"^absent_package is not installed; pip install 'alexnet_dist\[plots\]'$"):
        import_extra("absent_package.part", "plots")


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("raise ImportError('libprotobuf.so.32 is missing')", "libprotobuf.so.32 is missing"),
        ("raise OSError('libcudart: no such file')", "libcudart: no such file"),
        ("raise AttributeError('_ARRAY_API not found')", "_ARRAY_API not found"),
        ("import absent_part_of_it", "No module named 'absent_part_of_it'"),
        ("import nothing from", "invalid syntax"),
    ],
)
def test_a_package_that_is_broken_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, why: str
) -> None:
    put_package(tmp_path, "broken_package", source, monkeypatch)
    with pytest.raises(MachineError) as error:
        import_extra("broken_package", "plots")
    line = str(error.value)
    assert line.startswith(f"broken_package is installed and cannot be imported: {why}")
    assert line.endswith("; mend it, or install it again: pip install --force-reinstall broken_package")


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("package", "words"),
    [
        ("wandb", ["train", "--config", "smoke", "--tracking.wandb", "offline"]),
        ("tensorboard", ["train", "--config", "smoke", "--tracking.tensorboard", "true"]),
        ("mlflow", ["train", "--config", "smoke", "--tracking.mlflow", "mlruns"]),
        ("matplotlib", ["evaluate", "--model", "nowhere", "--plots"]),
    ],
)
def test_verbs_say_why_a_package_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, words: list[str]
) -> None:
    put_package(tmp_path, package, "raise ImportError('the true reason')", monkeypatch)
    monkeypatch.chdir(tmp_path)
    output = ["--output_dir", str(tmp_path / "run")] if words[0] == "train" else []
    code, (line,), _ = call(*words, *output)
    assert code == 5
    assert f"{package} is installed and cannot be imported: the true reason" in line


@pytest.mark.parametrize(
    ("imported", "line"),
    [
        ("broken_package", "broken_package is installed and cannot be imported: the true reason; mend it"),
        ("absent_package", "absent_package is not installed; pip install absent_package"),
    ],
)
def test_a_package_that_everyone_needs_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], imported: str, line: str
) -> None:
    put_package(tmp_path, "broken_package", "raise ImportError('the true reason')", monkeypatch)
    monkeypatch.setattr(summary, "main", lambda argv: bool(importlib.import_module(imported)))
    assert run("summary", []) == 5
    assert capsys.readouterr().err.startswith(f"error: {line}")


def test_a_variable_that_a_package_cannot_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As TORCH_LOGS and TORCH_DISTRIBUTED_DEBUG are read while torch is imported."""
    put_package(tmp_path, "broken_package", "int(__import__('os').environ['BROKEN_PACKAGE_LEVEL'])", monkeypatch)
    monkeypatch.setenv("BROKEN_PACKAGE_LEVEL", "high")
    monkeypatch.setattr(summary, "main", lambda argv: bool(importlib.import_module("broken_package")))
    assert run("summary", []) == 5
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: broken_package is installed and cannot be imported: invalid literal for int()")
    assert "; unset BROKEN_PACKAGE_LEVEL, if that is at fault, or mend it" in line
    monkeypatch.setattr(summary, "main", lambda argv: int("ours"))
    with pytest.raises(ValueError, match="ours"):
        run("summary", [])


def test_an_import_of_ours_that_fails_is_a_bug_and_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summary, "main", lambda argv: bool(importlib.import_module("alexnet_dist.absent")))
    with pytest.raises(ModuleNotFoundError):
        run("summary", [])
