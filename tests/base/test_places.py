"""What is said of paths: where something was looked for, what lies there, and what to do about each error."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from helpers.refusals import refused
from helpers.tiny import tiny_config

from alexnet_dist.base.durable import disk_errors_named, write_file
from alexnet_dist.base.errors import CheckpointError, MachineError, UsageError
from alexnet_dist.base.places import describe_missing, expand_home
from alexnet_dist.cli.picture_paths import find_pictures, read_list
from alexnet_dist.data.sources.manifest_read import read_plain_text
from alexnet_dist.inference.model_folder import find_model_folder
from alexnet_dist.runs.resume import compare_settings
from alexnet_dist.settings.reader import build_config, dump_config, load_config, new_parser, parse_options


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EDQUOT, "your quota"),
        (errno.EROFS, "mount the file system for writing"),
        (errno.EACCES, "mend the permissions"),
        (errno.EPERM, "mend the permissions"),
        (errno.ENOENT, "make the folder that is missing"),
        (errno.ENOTDIR, "move the file"),
        (errno.EISDIR, "move the folder"),
        (errno.EEXIST, "move what lies there"),
        (errno.ENAMETOOLONG, "shorten the path"),
        (errno.ELOOP, "remove the link"),
        (errno.EMFILE, "ulimit -n"),
        (errno.ENOLCK, "use a file system with locks"),
        (errno.EIO, "check the disk"),
        (errno.EBUSY, "end the program that uses it"),
        (errno.ETXTBSY, "end the program that uses it"),
        (errno.EINTR, "start again"),
        (errno.ESTALE, "mount"),
        (9999, "set --data.cache_dir to a folder that can be written"),
    ],
)
def test_each_error_of_the_disk_has_its_remedy(tmp_path: Path, number: int, remedy: str) -> None:
    with pytest.raises(MachineError) as caught, disk_errors_named(tmp_path / "a.json", "data.cache_dir"):
        raise OSError(number, os.strerror(number), "a.json")
    line = str(caught.value)
    assert line.startswith(f"cannot write a.json ({tmp_path}/a.json): {os.strerror(number)}; ")
    assert remedy in line
    assert line.endswith("set --data.cache_dir to a folder that can be written")
    assert ("permissions" in line) == (number in (errno.EACCES, errno.EPERM))


def test_a_file_where_a_folder_should_be_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "results").write_text("")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MachineError, match=rf"\({tmp_path}/results/a\.json\): Not a directory; move the file"):
        write_file(Path("results/a.json"), b"")


@pytest.mark.parametrize(
    ("look", "kind"),
    [
        (lambda: find_model_folder(Path("runs/digts")), CheckpointError),
        (lambda: read_list("runs/digts"), None),
        (lambda: read_plain_text(Path("runs/digts"), "manifest"), None),
    ],
)
def test_what_is_missing_is_said_with_where_it_was_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, look: object, kind: type | None
) -> None:
    (tmp_path / "runs" / "digits").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    line = refused(look, kind) if kind else refused(look)  # type: ignore[arg-type]
    assert f"{tmp_path}/runs/digts" in line
    assert "its folder has 'digits'" in line
    assert "did you mean 'digits'?" in line


def test_a_configuration_that_is_missing_is_said_with_where_it_was_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    line = refused(lambda: load_config("my/settings.yaml", {}), UsageError)
    assert f"({tmp_path}/my/settings.yaml)" in line
    assert len(line) <= 280


def test_an_empty_place_is_said_to_be_empty(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    looked = tmp_path / "data" / "a" / "b"
    assert describe_missing(looked) == (str(looked), f"'{tmp_path}/data' is empty", "")


def test_home_is_found_in_settings_options_and_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    values = {"output_dir": "~/run", "data.root": "~/data", "data.cache_dir": "~", "model.pretrained": "~/w.pth"}
    config = build_config({"train.epochs": 1, "tracking.name": "~/name", **values})
    assert (config.output_dir, config.data.root) == (f"{tmp_path}/run", f"{tmp_path}/data")
    assert (config.data.cache_dir, config.model.pretrained) == (str(tmp_path), f"{tmp_path}/w.pth")
    assert config.tracking.name == "~/name"  # which is no path
    (tmp_path / "tiny.yaml").write_text(dump_config(tiny_config(tmp_path / "run")))
    assert load_config("~/tiny.yaml", {}).train.epochs == 5
    parser = new_parser("toy")
    parser.add_argument("paths", type=str, nargs="*")
    parser.add_argument("--out", type=str)
    options = parse_options(["~/a.jpg", "b.jpg", "--out", "~/o"], parser)
    assert (options.paths, options.out) == ([f"{tmp_path}/a.jpg", "b.jpg"], f"{tmp_path}/o")
    assert find_pictures(options.paths, None) == options.paths


def test_a_user_that_is_unknown_has_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME")
    assert expand_home("~nobody_of_this_name/a") == "~nobody_of_this_name/a"


def test_a_key_of_a_newer_version_is_said_to_be_in_the_runs_own_file(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    (tmp_path / "config.yaml").write_text("newkey: 1\n" + dump_config(config))
    line = refused(lambda: compare_settings(tmp_path, config), UsageError)
    assert line.startswith(f"unknown key newkey ({tmp_path}/config.yaml:1); ")
    assert line.endswith("or update alexnet_dist if a newer one wrote it")
