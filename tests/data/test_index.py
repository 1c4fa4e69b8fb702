from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.class_folders import scan, spoil_files
from helpers.images import save_jpeg

from alexnet_dist.base.errors import DataError, UsageError
from alexnet_dist.data.decode import UnreadableImageError
from alexnet_dist.data.files.names import Names
from alexnet_dist.data.folds import split_validation
from alexnet_dist.data.index import SampleIndex
from alexnet_dist.data.sources.synthetic import synthetic_index


def test_fingerprint_does_not_depend_on_the_place(root: Path, tmp_path: Path) -> None:
    index = scan(root)
    shutil.copytree(root, tmp_path / "copy")
    assert scan(tmp_path / "copy").fingerprint() == index.fingerprint()
    assert index.subset(np.arange(10)[::-1]).fingerprint() == index.fingerprint()


def _change_label(index: SampleIndex) -> SampleIndex:
    return dataclasses.replace(index, labels=np.roll(index.labels, 1))


def _change_byte_size(index: SampleIndex) -> SampleIndex:
    return dataclasses.replace(index, byte_sizes=index.byte_sizes + (np.arange(10) == 4))


def _change_name(index: SampleIndex) -> SampleIndex:
    return dataclasses.replace(index, paths=Names.of(["cat/00.jpg", *index.paths[1:]]))


def _change_class(index: SampleIndex) -> SampleIndex:
    return dataclasses.replace(index, classes=("cat", "dog", "red wolf"))


def _drop_one(index: SampleIndex) -> SampleIndex:
    return index.subset(range(9))


@pytest.mark.parametrize("change", [_change_label, _change_byte_size, _change_name, _change_class, _drop_one])
def test_fingerprint_sees_a_change(root: Path, change: Callable[[SampleIndex], SampleIndex]) -> None:
    index = scan(root)
    assert change(index).fingerprint() != index.fingerprint()


def test_subset_keeps_samples_together(root: Path) -> None:
    index = scan(root)
    part = index.subset([5, 0])
    assert part.paths == ("dog/more/wide.JPEG", "cat/0.jpg")
    assert part.labels.tolist() == [1, 0]
    assert part.sizes.tolist() == [[64, 16], [40, 24]]
    assert part.byte_sizes.tolist() == index.byte_sizes[[5, 0]].tolist()
    assert part.classes == index.classes
    assert part.load_pixels(0).shape == (16, 64, 3)
    assert len(index.subset([])) == 0


def test_file_that_changed_after_the_scan_is_refused(root: Path) -> None:
    index = scan(root)
    save_jpeg(root / "cat" / "0.jpg", width=10, height=10)
    with pytest.raises(UnreadableImageError, match=r"changed since it was scanned: 10x10, was 40x24"):
        index.load_pixels(0)


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5])
def test_split_is_stratified_and_complete(fraction: float) -> None:
    index = synthetic_index(600, 4, (8, 8), seed=0).subset([i for i in range(600) if i % 4 or i % 8])  # unequal classes
    train, val = split_validation(index, fraction, seed=1)
    assert sorted([*train.paths, *val.paths]) == sorted(index.paths)
    order = {path: position for position, path in enumerate(index.paths)}
    for part in (train, val):
        positions = [order[path] for path in part.paths]
        assert positions == sorted(positions)
        assert part.classes == index.classes
    wanted = np.bincount(index.labels) * fraction
    assert np.abs(np.bincount(val.labels) - wanted).max() <= 1
    assert len(val) == round(len(index) * fraction)


def test_split_follows_the_seed() -> None:
    index = synthetic_index(200, 4, (8, 8), seed=0)
    first, again, other = (split_validation(index, 0.2, seed)[1].paths for seed in (7, 7, 2**40 + 1))
    assert first == again
    assert first != other


def test_split_reports_bad_files_once(root: Path) -> None:
    spoil_files(root)
    train, val = split_validation(scan(root, on_bad_file="skip"), 0.4, seed=0)
    assert len(train.bad_files) == 4
    assert val.bad_files == ()


@pytest.mark.parametrize(
    ("counts", "fraction", "name"),
    [
        ((1, 9, 9), 0.3, "class-000"),
        ((9, 9, 2), 0.1, "class-002"),
        ((30, 30, 3), 0.1, "class-002"),
        ((9, 4, 9), 0.95, "class-001"),
    ],
)
def test_split_names_the_class_that_is_too_small(counts: tuple[int, ...], fraction: float, name: str) -> None:
    labels = np.repeat(np.arange(3), counts)
    ids = labels + 3 * np.concatenate([np.arange(count) for count in counts])  # in a synthetic set, class = id mod 3
    index = synthetic_index(90, 3, (8, 8), seed=0).subset(ids)
    with pytest.raises(DataError, match=f"cannot split off a validation set.*{name}.*; ") as error:
        split_validation(index, fraction, seed=0)
    assert error.value.exit_code == 3


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_split_refuses_a_fraction_that_is_none(fraction: float) -> None:
    with pytest.raises(UsageError, match=r"data\.val_fraction"):
        split_validation(synthetic_index(90, 3, (8, 8), seed=0), fraction, seed=0)
