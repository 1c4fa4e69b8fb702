"""Which commit a run says that it was made with, and what is not executed to find out."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from alexnet_dist.base.machine import find_git_commit

pytestmark = [pytest.mark.heavy, pytest.mark.skipif(shutil.which("git") is None, reason="makes repositories")]
WHO = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]


def git(folder: Path, *words: str) -> str:
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "GIT_CONFIG_NOSYSTEM": "1"}
    done = subprocess.run(
        ["git", *WHO, *words], cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with our pyproject.toml, a package, and a second commit."""
    root = tmp_path / "checkout"
    (root / "alexnet_dist").mkdir(parents=True)
    (root / "pyproject.toml").write_text('[project]\nname = "alexnet_dist"\n')
    git(root, "init", "-q", "-b", "main")
    for text in ("x = 1\n", "x = 2\n"):
        (root / "alexnet_dist" / "code.py").write_text(text)
        git(root, "add", ".")
        git(root, "commit", "-q", "-m", "change")
    return root


def found(root: Path) -> str | None:
    return find_git_commit(root / "alexnet_dist")


@pytest.mark.parametrize("form", ["branch", "packed", "detached", "worktree", "packed worktree", "sha256"])
def test_the_commit_is_read_in_every_form_of_repository(checkout: Path, tmp_path: Path, form: str) -> None:
    root = checkout
    if form == "sha256":
        shutil.rmtree(root / ".git")
        git(root, "init", "-q", "--object-format=sha256")
        git(root, "add", ".")
        git(root, "commit", "-q", "-m", "first")
    if form == "detached":
        git(root, "checkout", "-q", "HEAD^")
    if "worktree" in form:
        root = tmp_path / "other"
        git(checkout, "worktree", "add", "-q", "-b", "a/b", str(root), "HEAD^")
    if "packed" in form:
        git(checkout, "pack-refs", "--all")
        git(checkout, "gc", "-q")
    commit = git(root, "rev-parse", "HEAD")
    assert found(root) == commit
    (root / "alexnet_dist" / "code.py").write_text("x = 3\n")
    assert found(root) == commit + "+"
    git(root, "add", ".")
    assert found(root) == commit + "+"


def test_a_repository_above_an_installed_package_is_not_ours(checkout: Path) -> None:
    site = checkout / ".venv" / "site-packages"
    (site / "alexnet_dist").mkdir(parents=True)
    assert found(site) is None
    (site / "pyproject.toml").write_text('[project]\nname = "alexnet_dist"\n')
    assert found(site) is None  # without a .git of its own
    (checkout / "pyproject.toml").write_text('[project]\nname = "project_of_the_user"\n')
    assert found(checkout) is None


def test_nothing_that_a_configuration_names_is_executed(checkout: Path, tmp_path: Path) -> None:
    """The control: git itself executes them."""
    trap = tmp_path / "trap.sh"
    trap.write_text(f"#!/bin/sh\necho x >> {tmp_path}/sprung\ncat\n")
    trap.chmod(0o755)
    git(checkout, "config", "core.fsmonitor", str(trap))
    git(checkout, "config", "filter.trap.clean", str(trap))
    (checkout / ".git" / "info" / "attributes").write_text("*.py filter=trap\n")
    (checkout / "alexnet_dist" / "code.py").write_text("x = 4\n")
    assert (found(checkout) or "").endswith("+")
    assert not (tmp_path / "sprung").exists()
    git(checkout, "status")
    assert (tmp_path / "sprung").exists()


def test_without_git_changes_cannot_be_told(checkout: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    commit = git(checkout, "rev-parse", "HEAD")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert found(checkout) == commit + "?"


@pytest.mark.parametrize("head", ["", "ref: ../../secret", "ref: refs/heads/none", "hello", "ref: refs/heads/loop"])
def test_a_damaged_head_is_no_commit(checkout: Path, head: str) -> None:
    (checkout / ".git" / "refs" / "heads" / "loop").write_text("ref: refs/heads/loop\n")
    (checkout / ".git" / "HEAD").write_text(head)
    assert found(checkout) is None
