from __future__ import annotations

import multiprocessing
import os
import pickle
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alexnet_dist.data.files.sealed import MappedArray, read_arrays, read_table, write_arrays, write_table

ARRAYS: dict[str, np.ndarray[Any, Any]] = {
    "labels": np.arange(5, dtype=np.int64),
    "sizes": np.arange(10, dtype=np.int32).reshape(5, 2),
    "is_plain": np.array([True, False, True]),
    "blob": np.frombuffer(b"odd", np.uint8),
    "none": np.zeros((0, 2), np.int32),
}


def test_arrays_come_back_as_they_were(tmp_path: Path) -> None:
    write_arrays(tmp_path / "deep" / "a", "things 1", ARRAYS)
    found = read_arrays(tmp_path / "deep" / "a", "things 1")
    assert found is not None
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype
        assert found[name].flags.aligned
        assert not found[name].size or not found[name].flags.writeable
        np.testing.assert_array_equal(found[name], array)
    assert read_arrays(tmp_path / "deep" / "a", "things 2") is None


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    "damage",
    [Path.unlink, _flip, _pipe, lambda path: path.write_bytes(b""), lambda path: os.truncate(path, 100)],
    ids=["gone", "flipped", "pipe", "empty", "cut"],
)
def test_what_is_damaged_is_not_there(tmp_path: Path, damage: Callable[[Path], Any]) -> None:
    for name, write in (
        ("a", lambda p: write_arrays(p, "x", ARRAYS)),
        ("t", lambda p: write_table(p, "x", [["ab"] * 90])),
    ):
        write(tmp_path / name)
        damage(tmp_path / name)
    assert read_arrays(tmp_path / "a", "x") is None
    assert list(read_table(tmp_path / "t", "x")) == []


def _answer(arrays: list[np.ndarray[Any, Any]], answer: Connection) -> None:
    answer.send([(type(array).__name__, array.tolist()) for array in arrays])


@pytest.mark.heavy
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_process_that_is_started_with_arrays_maps_their_file_even_where_its_name_is_gone(
    tmp_path: Path, method: str
) -> None:
    write_arrays(tmp_path / "a", "things 1", ARRAYS)
    found = read_arrays(tmp_path / "a", "things 1")
    assert found is not None
    (tmp_path / "a").unlink()
    context = multiprocessing.get_context(method)
    mine, other = context.Pipe(duplex=False)
    sent = [found["labels"], found["sizes"], found["labels"][1:3], found["labels"] + 1]
    process = context.Process(target=_answer, args=(sent, other))  # type: ignore[attr-defined]
    process.start()
    answer = mine.recv()
    process.join()
    assert [kind for kind, _ in answer] == ["MappedArray", "MappedArray", "ndarray", "ndarray"]
    assert [values for _, values in answer] == [array.tolist() for array in sent]


def test_a_copy_that_is_no_process_own_is_a_plain_array(tmp_path: Path) -> None:
    write_arrays(tmp_path / "a", "things 1", ARRAYS)
    found = read_arrays(tmp_path / "a", "things 1")
    assert found is not None
    assert isinstance(found["sizes"], MappedArray)
    copy = pickle.loads(pickle.dumps(found["sizes"]))
    assert type(copy) is np.ndarray
    assert copy.flags.writeable
    np.testing.assert_array_equal(copy, ARRAYS["sizes"])
