"""Stratified folds of a set: each image is held out once."""

from __future__ import annotations

import dataclasses
from itertools import islice

import numpy as np

from alexnet_dist.base.errors import DataError
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
            where=str(index.root) if index.pixels is None else "",
            why=f"class '{index.classes[smallest]}' has {count} image{'s' if count > 1 else ''}, fewer than folds",
            remedy=f"{fewer}add images of it",
        )
