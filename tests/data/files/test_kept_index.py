from __future__ import annotations

import dataclasses
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alexnet_dist.data.files.containers import Containers
from alexnet_dist.data.files.index_files import FileRules
from alexnet_dist.data.files.kept_index import make_once
from alexnet_dist.data.files.names import Names
from alexnet_dist.data.files.sealed import MappedArray
from alexnet_dist.data.index import BadFile, SampleIndex

COUNT = 3


@dataclasses.dataclass
class Maker:
    """Makes an index, and counts how often."""

    root: Path
    times: int = 0
    bad_files: tuple[BadFile, ...] = ()
    seconds: float = 0.0

    def __call__(self) -> SampleIndex:
        self.times += 1
        time.sleep(self.seconds)
        return SampleIndex(
            root=self.root,
            paths=Names.of(f"s.tar!ü{number}.jpg" for number in range(COUNT)),
            labels=np.array([0, 1, 1]),
            sizes=np.full((COUNT, 2), 9, np.int32),
            byte_sizes=np.arange(COUNT),
            is_plain=np.ones(COUNT, np.bool_),
            classes=("ant", "bee"),
            bad_files=self.bad_files,
            containers=Containers(
                ("s.tar",), np.array([99]), np.array([1]), np.zeros(COUNT, np.int32), np.arange(COUNT)
            ),
            newest_ns=7,
        )


@pytest.fixture
def maker(tmp_path: Path) -> Maker:
    return Maker(tmp_path)


def take(tmp_path: Path, maker: Maker, facts: Any = 1, cache: str = "cache") -> SampleIndex:
    return make_once(FileRules(tmp_path / cache), tmp_path, "set", facts, maker, tmp_path)


def test_an_index_is_made_once_for_each_state_and_mapped(tmp_path: Path, maker: Maker) -> None:
    for found in (take(tmp_path, maker), take(tmp_path, maker)):
        expected = maker()
        maker.times -= 1
        assert isinstance(found.labels, MappedArray)
        assert isinstance(found.paths.blob, MappedArray)
        assert found.paths == expected.paths
        assert found.fingerprint() == expected.fingerprint() == dataclasses.replace(found).fingerprint()
        assert dataclasses.replace(found, byte_sizes=found.byte_sizes + 1).fingerprint() != expected.fingerprint()
        assert (found.classes, found.newest_ns) == (expected.classes, 7)
        assert found.containers is not None
        assert found.containers.names == ("s.tar",)
        np.testing.assert_array_equal(found.sizes, expected.sizes)
    assert maker.times == 1
    take(tmp_path, maker, facts=2)
    assert maker.times == 2
    assert len(list((tmp_path / "cache").rglob("*.set"))) == 1


def test_an_index_with_bad_files_is_made_each_time(tmp_path: Path, maker: Maker) -> None:
    maker.bad_files = (BadFile("s.tar!x.jpg", "cut"),)
    assert [take(tmp_path, maker).bad_files for _ in range(2)] == [maker.bad_files] * 2
    assert maker.times == 2


def test_where_nothing_can_be_kept_it_is_made_each_time(tmp_path: Path, maker: Maker, full_disk: None) -> None:
    for _ in range(2):
        assert len(take(tmp_path, maker)) == COUNT
    (tmp_path / "file").touch()
    assert len(take(tmp_path, maker, cache="file")) == COUNT
    assert maker.times == 3


def test_who_asks_at_once_waits(tmp_path: Path, maker: Maker) -> None:
    maker.seconds = 0.2
    threads = [threading.Thread(target=take, args=(tmp_path, maker)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert maker.times == 1
