"""How far engines differ on given images, stage by stage: each stage is a plan that every engine carries out.

decode  the whole picture as it is, square by square
resize  the whole picture after the resize, square by square
crop    resize and center crop: what evaluation sees
final   resize, random crop, flips, color noise, normalization: what training sees, on the 0-255 scale again
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch

from alexnet_dist.data.draws import IntArray
from alexnet_dist.data.engines.cache.build import build_store
from alexnet_dist.data.engines.cache.store import lay_out
from alexnet_dist.data.engines.loader import Batch, Engine, Loader, Normalization, make_normalization
from alexnet_dist.data.index import SampleIndex
from alexnet_dist.data.plan import Augmentation, Plan, StepPlan, resize_shapes

STAGES = ("decode", "resize", "crop", "final")
NETWORK_STAGES = ("crop", "final")  # what networks see settles whether engines may be exchanged; the others say why not
# What these may differ by, in gray levels: two good resizes differ by so much, another kind of resize by
# more (bilinear without antialias: mean 4.8, maximum 40).
MEAN_LIMIT, MAXIMUM_LIMIT = 0.2, 6.0

ROUNDING = 1e-3  # of float32 on the way to the network's input and back

LARGEST_TILE = 2048
PIXELS_PER_BATCH, MOST_PER_BATCH = 2**22, 64


@dataclass(frozen=True)
class Recipe:
    """What the images go through.

    Args:
        resize: shorter side in pixels.
        crop: side of the crop in pixels.
        channels: 3, or 1 for gray.
        seed: of what is random.
    """

    resize: int = 256
    crop: int = 224
    channels: int = 3
    seed: int = 0


class StageDifference(NamedTuple):
    """How far two engines differ after a stage, in gray levels."""

    stage: str
    num_images: int
    maximum: float
    mean: float  # over all values of all images
    worst: str  # path of the image with the largest difference; "" where all are equal but for float32's rounding

    @property
    def is_small(self) -> bool:
        """Whether engines that differ by so much may be exchanged."""
        return self.mean <= MEAN_LIMIT and self.maximum <= MAXIMUM_LIMIT


@dataclass(frozen=True)
class Comparison:
    """Two engines on the same images.

    Args:
        reference: the first engine.
        other: the second.
        stages: their differences.
        refused: files that only one of them decodes, as {path: engine that refuses it}.
        bad_files: files that both refuse, with their reasons.
    """

    reference: str
    other: str
    stages: tuple[StageDifference, ...]
    refused: dict[str, str]
    bad_files: dict[str, str]

    @property
    def may_be_exchanged(self) -> bool:
        """Whether training and evaluating with the one is doing so with the other."""
        return not self.refused and all(stage.is_small for stage in self.stages if stage.stage in NETWORK_STAGES)

    @property
    def first_difference(self) -> str:
        """The first stage after which they differ by more than they may; "" without one."""
        return next((stage.stage for stage in self.stages if not stage.is_small), "")


@dataclass(frozen=True, eq=False)
class TilePlan(Plan):
    """The batches that show the whole of every picture in squares, which may overlap at its right and lower edges.

    It inherits because a `Loader` takes a `Plan`, and all that differs is which rows a step has.

    Args:
        tiles: (T, 3) image, x and y of each square in the resized picture.
    """

    tiles: IntArray = field(default_factory=lambda: np.empty((0, 3), np.int64))

    @property
    def num_steps(self) -> int:
        """Batches that show every square once."""
        return -(-len(self.tiles) // self.global_batch_size)

    def at(self, step: int) -> StepPlan:
        """The next squares."""
        start = step * self.global_batch_size
        tiles = self.tiles[start : start + self.global_batch_size]
        filling = np.tile([-1, 0, 0], (self.global_batch_size - len(tiles), 1))
        ids, corners = np.split(np.concatenate([tiles, filling]), [1], axis=1)  # (B, 1), (B, 2)
        sizes = self.sizes[np.maximum(ids[:, 0], 0)].astype(np.int64)  # (B, 2)
        windows = np.concatenate([np.zeros_like(sizes), sizes], axis=1)
        resized = resize_shapes(sizes, self.augmentation.resize)
        flips, shifts = np.zeros((len(ids), 2), np.bool_), np.zeros((len(ids), 3))
        return StepPlan(ids[:, 0], windows, resized, corners, flips, shifts, drawn={})


def compare_engines(
    index: SampleIndex, names: Sequence[str], engines: Mapping[str, Engine], like: Loader, recipe: Recipe
) -> list[Comparison]:
    """Compare the first of several engines with each of the others.

    Args:
        index: the images.
        names: of the engines.
        engines: by name.
        like: device, workers and cache folder of the loaders; its plan, index and engine do not matter.
        recipe: what the images go through.
    """
    like = replace(like, channels=recipe.channels)
    made: list[Comparison] = []
    for other in names[1:]:
        pair = (engines[names[0]], engines[other])
        bad_files: tuple[dict[str, str], dict[str, str]] = ({}, {})
        stages = []
        for stage in STAGES:
            loaders = list(_stage_loaders(stage, index, like, recipe))
            if "cache" in (names[0], other):
                _build_caches(loaders)
            pairs = [(replace(loader, engine=pair[0]), replace(loader, engine=pair[1])) for loader in loaders]
            stages.append(_compare_stage(stage, pairs, bad_files))
        made.append(_judge(names[0], other, stages, *bad_files))
    return made


def _build_caches(loaders: Sequence[Loader]) -> None:
    for loader in loaders:
        resize = loader.plan.augmentation.resize
        layout = lay_out(loader.cache_dir, loader.index, resize, loader.channels, loader.max_pixels)
        build_store(layout, workers=0, on_bad_file="skip", progress=False)


def _judge(
    reference: str, other: str, stages: list[StageDifference], ours: dict[str, str], theirs: dict[str, str]
) -> Comparison:
    refused = dict.fromkeys(ours.keys() - theirs, reference) | dict.fromkeys(theirs.keys() - ours, other)
    both = {path: reason for path, reason in ours.items() if path in theirs}
    return Comparison(reference, other, tuple(stages), refused, both)


# -- plans ------------------------------------------------------------------------------------------------------------


def _stage_loaders(stage: str, index: SampleIndex, like: Loader, recipe: Recipe) -> Iterator[Loader]:
    """The loaders that show a stage; their engine is still to be set."""
    bytes_scale = Normalization((0.0,) * recipe.channels, (1.0,) * recipe.channels)
    if stage in ("decode", "resize"):
        resize = None if stage == "decode" else recipe.resize
        yield from _tile_loaders(index, resize, replace(like, normalization=bytes_scale))
        return
    plain = Augmentation(crop_size=recipe.crop, resize=recipe.resize)
    random = replace(plain, crop="random", horizontal_flip=0.5, vertical_flip=0.5, lighting="source2012")
    plan = Plan(
        index.sizes, plain if stage == "crop" else random, _count_rows(recipe.crop), recipe.seed, stage == "final"
    )
    normalization = bytes_scale if stage == "crop" else make_normalization(recipe.channels, 1, None, None)
    yield replace(like, index=index, plan=plan, normalization=normalization)


def _tile_loaders(index: SampleIndex, resize: int | None, like: Loader) -> Iterator[Loader]:
    """One loader for the images whose squares are of one size: the largest power of two that fits."""
    resized = resize_shapes(index.sizes.astype(np.int64), resize)  # (N, 2)
    sides = np.minimum(2 ** np.floor(np.log2(resized.min(axis=1))).astype(np.int64), LARGEST_TILE)  # (N,)
    for side in np.unique(sides).tolist():
        ids = np.flatnonzero(sides == side)
        tiles = np.concatenate([_cut_tiles(number, resized[image], side) for number, image in enumerate(ids)])
        part = index.subset(ids)
        recipe = Augmentation(crop_size=side, resize=resize, crop="random")
        plan = TilePlan(part.sizes, recipe, _count_rows(side), seed=0, shuffle=False, tiles=tiles)
        yield replace(like, index=part, plan=plan)


def _cut_tiles(number: int, size: IntArray, side: int) -> IntArray:
    """(T, 3) image, x, y of squares that cover a picture; the last of a line or column ends where the picture ends."""
    columns, rows = ([*range(0, length - side, side), length - side] for length in size.tolist())
    return np.array([(number, x, y) for y, x in itertools.product(rows, columns)], np.int64)


def _count_rows(side: int) -> int:
    return max(1, min(PIXELS_PER_BATCH // side**2, MOST_PER_BATCH))


# -- sums -------------------------------------------------------------------------------------------------------------


def _compare_stage(
    stage: str, pairs: list[tuple[Loader, Loader]], bad_files: tuple[dict[str, str], dict[str, str]]
) -> StageDifference:
    """Sum up how two engines differ; what they refuse is added to `bad_files`, a dict for each."""
    total, count = 0.0, 0
    maxima: dict[str, float] = {}
    for loader, other in pairs:
        num_steps = loader.plan.num_steps if isinstance(loader.plan, TilePlan) else loader.plan.steps_per_epoch
        scale = torch.tensor(loader.normalization.std, device=loader.device)[:, None, None]
        with (
            contextlib.closing(_as_generator(loader, num_steps)) as ours,
            contextlib.closing(_as_generator(other, num_steps)) as theirs,
        ):
            for one, two in zip(ours, theirs, strict=True):
                for found, batch in zip(bad_files, (one, two), strict=True):
                    found.update((bad.path, bad.reason) for bad in batch.bad_files)
                differences, ids = _subtract(one, two, scale)
                total += float(differences.sum(dtype=torch.float64))
                count += differences.numel()
                for sample_id, largest in zip(ids, differences.amax(dim=(1, 2, 3)).tolist(), strict=True):
                    path = loader.index.paths[sample_id]
                    maxima[path] = max(largest, maxima.get(path, 0.0))
    worst = max(maxima, key=lambda path: maxima[path], default="")
    largest = maxima.get(worst, 0.0)
    return StageDifference(stage, len(maxima), largest, total / max(count, 1), worst if largest > ROUNDING else "")


def _as_generator(loader: Loader, num_steps: int) -> Generator[Batch]:
    yield from loader.batches(0, num_steps)


def _subtract(one: Batch, two: Batch, scale: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
    """Differences (R, C, S, S) in gray levels of the rows that both engines have, and these rows' images."""
    if not torch.equal(one.ids, two.ids):
        raise RuntimeError(f"engines do not carry out the same plan: {one.ids.tolist()}, {two.ids.tolist()}")
    is_image = (one.mask * two.mask).bool()
    differences = (one.images[is_image].float() - two.images[is_image].float()).abs() * scale
    return differences, one.ids[is_image.cpu()].tolist()
