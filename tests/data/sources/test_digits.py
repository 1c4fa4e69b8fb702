from __future__ import annotations

import hashlib
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
from helpers.class_folders import scan

from alexnet_dist.base.errors import MachineError, UsageError
from alexnet_dist.data.sources.digits import prepare_digits


def hash_folder(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*/*")):
        digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


@pytest.mark.parametrize("name", ["README", "cats/1.jpg", "7/mine.jpg", "3/digit-1.jpg", "7/digit-0042.jpg/1.jpg"])
def test_a_folder_of_digits_that_is_its_users_stays(tmp_path: Path, name: str) -> None:
    path = tmp_path / "cache" / "digits" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(UsageError, match=r"data\.cache_dir"):
        prepare_digits(tmp_path / "cache")
    assert path.read_text() == "mine"


@pytest.mark.heavy
def test_digits(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    folder = prepare_digits(tmp_path / "cache")
    index = scan(folder)
    assert len(index) == 1797
    assert index.classes == tuple("0123456789")
    digits = load_digits()
    numbers = [int(path[-8:-4]) for path in index.paths]
    assert index.labels.tolist() == digits.target[numbers].tolist()
    assert (index.sizes == 8).all()
    pixels = np.stack([index.load_pixels(sample_id, channels=1)[:, :, 0] for sample_id in range(0, 1797, 50)])
    assert np.abs(pixels - digits.images[numbers[::50]] * 255 / 16).mean() < 3  # JPEG of quality 95 on sharp edges
    before = hash_folder(folder)
    (folder / "3" / "digit-0003.jpg").unlink()  # no longer complete: written again
    assert hash_folder(prepare_digits(tmp_path / "cache")) == before
    assert hash_folder(prepare_digits(tmp_path / "other")) == before
    assert [path.name for path in (tmp_path / "cache").glob(".*")] == [".digits.lock"]


def test_complete_digits_are_not_touched(tmp_path: Path) -> None:
    def look(folder: Path) -> list[tuple[Path, int, int]]:
        found = [(path, path.stat()) for path in [folder, *sorted(folder.rglob("*"))]]
        return [(path, stat.st_ino, stat.st_mtime_ns) for path, stat in found]

    before = look(prepare_digits(tmp_path))
    assert look(prepare_digits(tmp_path)) == before


@pytest.mark.heavy
def test_two_processes_prepare_digits_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=prepare_digits, args=(tmp_path,)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(scan(tmp_path / "digits")) == 1797
    assert not list(tmp_path.glob(".digits.new*"))


def test_digits_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "occupied").write_text("")
    with pytest.raises(MachineError, match=r"cannot write digits.*data\.cache_dir"):
        prepare_digits(tmp_path / "occupied")
