"""Parts of a set that are held out: stratified folds, of which each image is in one, or a single part."""

from __future__ import annotations

import dataclasses
from itertools import islice

import numpy as np

from alexnet_dist.base.errors import DataError, UsageError
from alexnet_dist.data.draws import IntArray
from alexnet_dist.data.index import SampleIndex


def split_fold(index: SampleIndex, num_folds: int, fold: int, seed: int) -> tuple[SampleIndex, SampleIndex]:
    """Hold out one fold; both parts keep the order of the index.

    The folds depend on the index and the seed alone. Every class is spread over them as evenly as it can be. The bad
    files stay with the first part, so that they are reported once.

    Args:
        index: the set.
        num_folds: K, at least 2.
        fold: which, from 1 to K.
        seed: equal seeds give equal folds.

    Returns:
        (the other folds, this fold).

    Raises:
        DataError: a class with fewer than K images.
    """
    check_classes_fill_folds(index, num_folds)
    from sklearn.model_selection import StratifiedKFold

    folds = StratifiedKFold(num_folds, shuffle=True, random_state=seed % 2**32)
    train_ids, val_ids = next(islice(folds.split(np.zeros(len(index)), index.labels), fold - 1, None))
    return index.subset(train_ids), dataclasses.replace(index.subset(val_ids), bad_files=())


def check_classes_fill_folds(index: SampleIndex, num_folds: int) -> None:
    """Refuse more folds than the smallest class has images.

    Raises:
        DataError: names the class and its count.
    """
    counts = np.bincount(index.labels, minlength=len(index.classes))
    present = np.flatnonzero(counts)  # a class list may name classes that no image has
    smallest = present[counts[present].argmin()]
    count = int(counts[smallest])
    if count < num_folds:
        fewer = f"use at most {count} folds, or " if count > 1 else ""
        raise DataError(
            f"cannot cut the images into {num_folds} folds",
            where=index.place,
            why=f"class '{index.classes[smallest]}' has {count} image{'s' if count > 1 else ''}, fewer than folds",
            remedy=f"{fewer}add images of it",
        )


def split_validation(index: SampleIndex, fraction: float, seed: int) -> tuple[SampleIndex, SampleIndex]:
    """Split off a stratified part for validation; both parts keep the order of the index.

    The bad files stay with the first part, so that they are reported once.

    Args:
        fraction: part of the images that goes to validation, between 0 and 1.
        seed: equal seeds give equal splits.

    Returns:
        (training part, validation part).

    Raises:
        DataError: a class would have no image in one of the parts.
        UsageError: fraction is not between 0 and 1.
    """
    if not 0 < fraction < 1:
        raise UsageError(f"data.val_fraction is {fraction}", why="it must lie between 0 and 1")
    counts = np.bincount(index.labels, minlength=len(index.classes))
    present = np.flatnonzero(counts)
    num_val = round(len(index) * fraction)
    smallest = present[counts[present].argmin()]
    if counts[smallest] < 2 or not len(present) <= num_val <= len(index) - len(present):
        raise _split_error(index, int(smallest), fraction)
    train, val = map(index.subset, draw_stratified(index.labels, num_val, seed % 2**32))
    for part in (train, val):
        without = np.setdiff1d(present, part.labels)
        if len(without):
            raise _split_error(index, int(without[0]), fraction)
    return train, dataclasses.replace(val, bad_files=())


def draw_stratified(labels: IntArray, num_val: int, seed: int) -> tuple[IntArray, IntArray]:
    """The parts that scikit-learn's `train_test_split` draws with `stratify`, to the bit, each in ascending order.

    Here because to import it takes a fifth of a start, and because a run's split must not depend on a version of it.

    Args:
        labels: (N,) of which each that occurs does so at least twice.
        num_val: size of the second part, at least the number of labels that occur, and at most N less that number.
        seed: below 2**32.

    Returns:
        (positions of the training part, positions of the validation part).
    """
    draws = np.random.RandomState(seed)
    counts = np.unique(labels, return_counts=True)[1]  # (classes,)
    members = np.split(np.argsort(labels, kind="stable"), np.cumsum(counts)[:-1])  # of each class, in order
    shares = _share_out(counts, len(labels) - num_val, draws)
    _share_out(counts - shares, num_val, draws)  # all that is left; but scikit-learn draws for it, too
    shuffled = [ids[draws.permutation(len(ids))] for ids in members]
    train = [ids[:share] for ids, share in zip(shuffled, shares, strict=True)]
    val = [ids[share:] for ids, share in zip(shuffled, shares, strict=True)]
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(val))


def _share_out(counts: IntArray, total: int, draws: np.random.RandomState) -> IntArray:
    """How many of each class make `total` in proportion to its count: the largest remainders round up, ties by lot."""
    exact = counts / counts.sum() * total
    shares = np.floor(exact)
    remainders, missing = exact - shares, int(total - shares.sum())
    for remainder in np.unique(remainders)[::-1]:
        if missing == 0:
            break
        tied = np.flatnonzero(remainders == remainder)
        rounded_up = draws.choice(tied, size=min(len(tied), missing), replace=False)
        shares[rounded_up] += 1
        missing -= len(rounded_up)
    whole: IntArray = shares.astype(np.int64)
    return whole


def _split_error(index: SampleIndex, label: int, fraction: float) -> DataError:
    count = int(np.count_nonzero(index.labels == label))
    return DataError(
        "cannot split off a validation set",
        where=index.place,
        why=f"class '{index.classes[label]}' ({count} in all) would have no image in one part",
        remedy=f"add images of it, change data.val_fraction ({fraction}) or give a validation set",
    )
