"""What a run's own files say is believed only where they agree."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.tiny import tiny_config
from helpers.verbs import call, call_well

from alexnet_dist.base.errors import CheckpointError
from alexnet_dist.base.run_record import MARKER, METRICS, RUN, SETTINGS, SUMMARY, read_run
from alexnet_dist.runs.folder import BAD_FILES
from alexnet_dist.runs.held_out import HELD_OUT
from alexnet_dist.runs.image_list import IMAGES
from alexnet_dist.runs.ownership import LOCK, OWN_FILES, OWN_FOLDERS
from alexnet_dist.settings.reader import dump_config

pytestmark = pytest.mark.heavy

SHORT = {"train__epochs": 2, "checkpoint__every_steps": 2}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; tests take copies."""
    folder = tmp_path_factory.mktemp("record")
    (folder / "tiny.yaml").write_text(dump_config(tiny_config(folder / "run", **SHORT)))
    call_well("train", "--config", folder / "tiny.yaml")
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained / "run", tmp_path / "run"))


def start(trained: Path, folder: Path, *words: str) -> tuple[int, list[str], str]:
    return call("train", "--config", trained / "tiny.yaml", "--output_dir", folder, *words)


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


@pytest.mark.parametrize("damage", [Path.unlink, cut])
@pytest.mark.parametrize("name", ["run.json", "config.yaml"])
def test_a_lost_file_is_written_again_from_the_runs_copy(
    trained: Path, folder: Path, name: str, damage: Callable[[Path], None]
) -> None:
    before = {key: json.loads((folder / "run.json").read_text())[key] for key in ("data", "run_id", "wandb_id")}
    damage(folder / name)
    code, errors, text = start(trained, folder, "--train.epochs", "3")
    assert (code, errors) == (0, [])
    assert f"{folder / name} is missing" in text or damage is not Path.unlink
    after = json.loads((folder / "run.json").read_text())
    assert {key: after[key] for key in before} == before
    assert yaml.safe_load((folder / "config.yaml").read_text())["seed"] == 0


@pytest.mark.parametrize("name", ["run.json", "config.yaml", None])
def test_other_settings_and_images_are_refused_without_the_file(trained: Path, folder: Path, name: str | None) -> None:
    if name is not None:
        (folder / name).unlink()
    code, (line,), _ = start(trained, folder, "--seed", "1")
    assert (code, "seed was 0, is 1" in line) == (2, True)
    edit(folder / MARKER, settings=json.loads((folder / MARKER).read_text())["settings"] | {"seed": 1})
    code, (line,), _ = start(trained, folder, "--seed", "1")  # the seed of made-up images is another
    assert (code, "the images changed since this run began" in line) == (3, True)


def test_settings_that_were_edited_in_place_are_noticed(trained: Path, folder: Path) -> None:
    path = folder / "config.yaml"
    path.write_text(path.read_text().replace("seed: 0", "seed: 1"))
    code, (line,), _ = call("train", "--config", path)
    assert (code, "seed was 0, is 1" in line) == (2, True)


def test_every_name_in_a_runs_folder_is_known_to_be_its_own(trained: Path) -> None:
    names = {path.name for path in (trained / "run").iterdir()}
    assert {"run.json", "checkpoints", MARKER} < names
    assert names - {*OWN_FILES["run"], *OWN_FOLDERS["run"], MARKER, LOCK} == set()
    assert {SETTINGS, RUN, SUMMARY, METRICS, BAD_FILES, HELD_OUT, IMAGES} < {*OWN_FILES["run"]}


def of_an_earlier_version(folder: Path) -> None:
    (folder / MARKER).unlink()
    for path in (folder / "checkpoints").iterdir():
        state = json.loads((path / "state.json").read_text())
        for key in ("run_id", "data_fingerprint"):
            del state[key]
        data = json.dumps(state).encode()
        (path / "state.json").write_bytes(data)
        manifest = json.loads((path / "manifest.json").read_text())
        manifest["sha256"]["state.json"] = __import__("hashlib").sha256(data).hexdigest()
        (path / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("name", ["run.json", "config.yaml", None])
def test_without_any_copy_the_run_does_not_go_on(trained: Path, folder: Path, name: str | None) -> None:
    of_an_earlier_version(folder)
    if name is None:
        assert start(trained, folder)[:2] == (0, [])
        return
    (folder / name).unlink()
    code, (line,), _ = start(trained, folder)
    assert code == 4
    assert line.startswith(f"error: {name} of this run is missing")
    assert "--new" in line


HOSTILE = {
    "wandb_id": ["x/../../../victim", "*", 5, "ABCDEFGH"],
    "data": ["text", {}, {"fingerprint": 3}, [], {"fingerprint": "f", "num_train": float("nan")}],
    "engine": ["warp", 1],
    "precision": ["fp64"],
    "starts": [3, ["x"], {}, [{"x": float("inf")}]],
    "pretrained": ["x"],
    "run_id": ["../x"],
    "best": [float("inf")],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in HOSTILE.items() for value in values])
def test_a_value_that_no_run_writes_is_refused(folder: Path, key: str, value: Any) -> None:
    edit(folder / "run.json", **{key: value})
    damaged = re.escape(f"a file of this run is damaged ({folder / 'run.json'}): {key} is ")
    with pytest.raises(CheckpointError, match=rf"^{damaged}.*; remove run.json: the run has a copy$"):
        read_run(folder)
    (folder / "run.json").unlink()
    assert read_run(folder)["run_id"]


@pytest.mark.parametrize("key", ["wandb_id", "starts"])  # read for itself, and with the decision whether a run goes on
def test_a_start_that_refuses_a_value_is_one_line(trained: Path, folder: Path, key: str) -> None:
    edit(folder / "run.json", **{key: HOSTILE[key][0]})
    code, (line,), _ = start(trained, folder)
    assert code == 4
    assert line.startswith(f"error: a file of this run is damaged ({folder / 'run.json'}): {key} is ")
    (folder / "run.json").unlink()
    assert start(trained, folder)[:2] == (0, [])
