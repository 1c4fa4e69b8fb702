"""Pictures of one set that are nearly those of another: what is measured on them says too much.

Pictures are compared by the cosine between the features of a trained network, less the mean of a set. The features of
conv5 keep where something is in the picture: pictures of one class are less alike than copies of one picture. A picture
is compared as it is and mirrored.

The features of the validation and test images are kept in memory. The training images pass by in batches: no table of
all pairs is ever made.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from alexnet_dist.assembly.evaluation import plan_evaluation
from alexnet_dist.assembly.loaders import build_loader
from alexnet_dist.assembly.sets import Splits
from alexnet_dist.base.errors import DataError
from alexnet_dist.base.progress import Progress
from alexnet_dist.data.index import BadFile, SampleIndex
from alexnet_dist.inference.features import CONVOLUTIONS, compute_features
from alexnet_dist.inference.model_folder import ModelCard
from alexnet_dist.models import AlexNet
from alexnet_dist.parallel.runtime import Runtime
from alexnet_dist.settings.schema import DataConfig

BATCH_SIZE = 64
MAP_SIDE = 6  # to which maps are averaged: conv5's of 13 x 13 would take five times the memory

Ids = npt.NDArray[np.int64]


class Features(NamedTuple):
    """Some pictures of a set: N rows."""

    ids: Ids  # (N,) positions in the set
    plain: Tensor  # (N, width)
    mirrored: Tensor  # (N, width) of the pictures, left and right exchanged; no rows where that is not asked for


class Pairs(NamedTuple):
    """Pictures of one set, each beside one of another set that is like it."""

    first: Ids  # (P,) positions in the one set
    second: Ids  # (P,) positions in the other one
    similarity: npt.NDArray[np.float32]  # (P,) cosine, at most 1
    is_mirrored: npt.NDArray[np.bool_]  # (P,) alike when left and right are exchanged in one of them


@dataclass(frozen=True)
class Finding:
    """How far two sets are alike.

    Args:
        names: of the sets, as train, val and test.
        sizes: pictures that were compared, in each set.
        pairs: those that are alike, the most alike first; as many as were asked for.
        num_pairs: all that are alike.
        num_alike: pictures of the first set that have such a partner.
    """

    names: tuple[str, str]
    sizes: tuple[int, int]
    pairs: Pairs
    num_pairs: int
    num_alike: int


@dataclass(eq=False)
class FeatureReader:
    """Computes the features of sets.

    Args:
        runtime: this process by itself.
        model: in evaluation mode.
        card: its preprocessing.
        data: the settings; bad files are skipped.
        layer: whose values are the features.
        bad_files: those that were met and left out.
    """

    runtime: Runtime
    model: AlexNet
    card: ModelCard
    data: DataConfig
    layer: str
    bad_files: set[BadFile] = field(default_factory=set)

    def read(self, name: str, index: SampleIndex, mirrors: bool) -> Iterator[Features]:
        """The features of a set, batch by batch, in its order."""
        plan = plan_evaluation(self.data, self.card.evaluation, index, BATCH_SIZE, 1, ten_crop=False)
        loader = build_loader(self.runtime, self.data, index, plan, self.card.normalization, channels_last=True)
        with Progress(f"comparing {name}", len(index)) as bar:
            for step, batch in enumerate(loader.batches(0, plan.steps_per_epoch)):
                self.bad_files.update(batch.bad_files)
                is_there = batch.mask.bool()
                images = batch.images[is_there]  # (N, C, S, S)
                plain = self._compute(images)  # (N, width)
                mirrored = self._compute(images.flip(3)) if mirrors else plain[:0]
                yield Features(batch.ids[is_there.cpu()].numpy(), plain, mirrored)
                bar.advance(plan.count(step))

    def _compute(self, images: Tensor) -> Tensor:
        values = compute_features(self.model, images, self.layer)  # (N, width)
        if self.layer not in CONVOLUTIONS:
            return values
        channels = self.card.spec.conv_channels[CONVOLUTIONS.index(self.layer)]
        side = round((values.shape[1] / channels) ** 0.5)
        maps = values.reshape(len(values), channels, side, side)  # (N, K, h, w)
        return F.adaptive_avg_pool2d(maps, min(side, MAP_SIDE)).flatten(1)


def find_similar(reader: FeatureReader, splits: Splits, threshold: float, most: int) -> list[Finding]:
    """Compare validation with training images, test with training images, and test with validation images.

    Args:
        reader: computes the features.
        splits: the sets.
        threshold: the least cosine of pictures that are alike.
        most: pairs that are kept of two sets.

    Raises:
        DataError: there is one set alone, or none of the pictures of a set can be read.
    """
    sets = splits.named()
    if len(sets) < 2:
        remedy = "name one with --data.val, or keep a part with --data.val_fraction"
        raise DataError("there is one set alone", where=splits.train.place, why="nothing to compare", remedy=remedy)
    held = {name: _gather(reader.read(name, index, mirrors=True)) for name, index in sets.items() if name != "train"}
    for name, features in held.items():
        if not len(features.ids):
            raise DataError("no image could be read", where=sets[name].place, remedy="check the files")
    center = next(iter(held.values())).plain.mean(dim=0)  # (width,)
    held = {name: _center(features, center) for name, features in held.items()}
    searches = {name: _Search(features, threshold, most) for name, features in held.items()}
    count = 0
    for batch in reader.read("train", sets["train"], mirrors=False):
        count += len(batch.ids)
        for search in searches.values():
            search.add(_center(batch, center))
    findings = [search.finish((name, "train"), count) for name, search in searches.items()]
    if len(held) == 2:
        between = _Search(held["test"], threshold, most)
        for start in range(0, len(held["val"].ids), BATCH_SIZE):
            between.add(Features._make(part[start : start + BATCH_SIZE] for part in held["val"]))
        findings.append(between.finish(("test", "val"), len(held["val"].ids)))
    return findings


def _gather(batches: Iterator[Features]) -> Features:
    ids, plain, mirrored = zip(*batches, strict=True)
    return Features(np.concatenate(ids), torch.cat(plain), torch.cat(mirrored))


def _center(features: Features, center: Tensor) -> Features:
    """Vectors of length 1, so that a product is a cosine."""
    plain, mirrored = (F.normalize(rows - center, dim=1) for rows in features[1:])
    return Features(features.ids, plain, mirrored)


class _Search:
    """Finds, for each picture of a set that is kept, those of another set that are like it.

    Args:
        kept: N pictures, with what they are when they are mirrored; vectors of length 1.
        threshold: the least cosine.
        most: pairs that are kept.
    """

    def __init__(self, kept: Features, threshold: float, most: int) -> None:
        self._kept, self._threshold, self._most = kept, threshold, most
        no_ids = np.empty(0, np.int64)
        self._pairs = [Pairs(no_ids, no_ids, np.empty(0, np.float32), np.empty(0, np.bool_))]
        self._is_alike = np.zeros(len(kept.ids), np.bool_)
        self._num_pairs = 0

    def add(self, others: Features) -> None:
        """Compare with some pictures of the other set: (B, N) cosines at a time."""
        as_they_are, mirrored = (others.plain @ rows.T for rows in self._kept[1:])
        cosines, is_mirrored = torch.maximum(as_they_are, mirrored), mirrored > as_they_are  # (B, N)
        row, column = (cosines >= self._threshold).nonzero(as_tuple=True)
        first, second = column.cpu().numpy(), row.cpu().numpy()
        values, flags = cosines[row, column].clamp(max=1).cpu().numpy(), is_mirrored[row, column].cpu().numpy()
        self._pairs.append(Pairs(self._kept.ids[first], others.ids[second], values, flags))
        self._is_alike[first] = True
        self._num_pairs += len(first)
        if sum(len(pairs.first) for pairs in self._pairs) > 2 * self._most:
            self._pairs = [self._sort()]

    def _sort(self) -> Pairs:
        joined = Pairs._make(np.concatenate(column) for column in zip(*self._pairs, strict=True))
        order = np.lexsort((joined.second, joined.first, -joined.similarity))[: self._most]
        return Pairs._make(column[order] for column in joined)

    def finish(self, names: tuple[str, str], num_others: int) -> Finding:
        """What was found."""
        sizes = (len(self._kept.ids), num_others)
        return Finding(names, sizes, self._sort(), self._num_pairs, int(self._is_alike.sum()))
