"""WHAT happens at step s: which images, which windows, which flips, which colour shift. Pure numpy.

`plan.at(step)` is a function of (seed, image sizes, augmentation, global batch size, step) and of nothing else. Every
random number is drawn from a counter (seed, purpose, epoch, sample), never from a generator's state, so the batches do
not depend on the engine, the workers or the number of processes, and a resumed run needs one integer.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from alexnet_dist.errors import DataError

Array = npt.NDArray[np.generic]
IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
LUMA = (0.299, 0.587, 0.114)

# Principal components of ImageNet's RGB values, one per column, and the noise's scale along them on the 0-255 scale.
# source2012: standard deviations and components of cuda-convnet2's make-data/input_meta.
# common: the constants of fb.resnet.torch, which multiply by the variances on the 0-1 scale: 2.3 times weaker.
LIGHTING = {
    "source2012": (
        ((-0.56351, -0.71258, 0.41796), (-0.57618, -0.02354, -0.81698), (-0.59200, 0.70120, 0.39731)),
        (121.7801, 37.0939, 19.7208),
    ),
    "common": (
        ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203)),
        (0.2175 * 255, 0.0188 * 255, 0.0045 * 255),
    ),
}

# One number per purpose keeps the draws for order, crop, flips and lighting independent of each other.
ORDER, CROP, FLIP, NOISE = range(4)
RESIZED_CROP_TRIES = 10  # torchvision's number


class StepPlan(NamedTuple):
    """What happens to each image of a batch, in the order of the batch.

    An image is cut to `window`, resized to `resized`, cut to the network's input at `corner`, flipped, and shifted in
    colour. Rows that only fill the batch up have id -1.
    """

    ids: IntArray  # (B,)
    windows: IntArray  # (B, 4) x, y, width, height in pixels of the upright image
    resized: IntArray  # (B, 2) width, height the window is resized to
    corners: IntArray  # (B, 2) x, y of the crop in the resized window
    flips: npt.NDArray[np.bool_]  # (B, 2) left-right, top-bottom
    shifts: FloatArray  # (B, 3) added to RGB on the 0-255 scale

    def shard(self, shard_id: int, num_shards: int) -> StepPlan:
        """The rows of one replica: equal, consecutive parts of the batch."""
        rows = len(self.ids) // num_shards
        part = slice(shard_id * rows, (shard_id + 1) * rows)
        return StepPlan._make(field[part] for field in self)


@dataclass(frozen=True)
class Augmentation:
    """The recipe for an image; see `AugmentConfig` for the fields' meaning and units."""

    crop_size: int
    resize: int | tuple[int, int] | None = 256
    crop: Literal["centre", "random", "random_resized"] = "centre"
    crop_scale: tuple[float, float] = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    horizontal_flip: float = 0.0
    vertical_flip: float = 0.0
    lighting: Literal["source2012", "common"] | None = None
    lighting_std: float = 0.1

    def for_evaluation(self) -> Augmentation:
        """The same resize and the centre crop, nothing random."""
        return Augmentation(crop_size=self.crop_size, resize=self.resize)


@dataclass(frozen=True, eq=False)
class Plan:
    """The batches of a run over one set of images.

    Args:
        sizes: (N, 2) width and height of each upright image in pixels.
        augmentation: what happens to them.
        global_batch_size: rows of a batch over all replicas; the last batch of a pass is filled up with id -1.
        seed: of the run.
        shuffle: a new order each epoch (training), or the file order (evaluation).

    Raises:
        DataError: an image smaller than the crop.
    """

    sizes: Array
    augmentation: Augmentation
    global_batch_size: int
    seed: int
    shuffle: bool

    def __post_init__(self) -> None:
        augmentation = self.augmentation
        if augmentation.crop == "random_resized":
            return
        resized = resize_shapes(self.sizes.astype(np.int64), augmentation.resize)
        small = np.flatnonzero(resized.min(axis=1) < augmentation.crop_size)
        if len(small):
            width, height = resized[small[0]]
            raise DataError(
                f"{len(small)} images are smaller than the crop",
                where=f"image {small[0]} is {width} x {height} after augment.resize",
                why=f"model.image_size is {augmentation.crop_size}",
                remedy=f"set augment.resize to {augmentation.crop_size} or more",
            )

    @property
    def num_images(self) -> int:
        """Images in the set."""
        return len(self.sizes)

    @property
    def steps_per_epoch(self) -> int:
        """Batches of one pass, the last one possibly short."""
        return -(-self.num_images // self.global_batch_size)

    def count(self, step: int) -> int:
        """Images in the batch of a step, without the filling."""
        start = (step % self.steps_per_epoch) * self.global_batch_size
        return min(self.global_batch_size, self.num_images - start)

    def at(self, step: int) -> StepPlan:
        """The batch of a step, counted from 0 over all epochs."""
        epoch, position = divmod(step, self.steps_per_epoch)
        start = position * self.global_batch_size
        order = shuffle_order(self.seed, epoch, self.num_images) if self.shuffle else np.arange(self.num_images)
        ids = order[start : start + self.global_batch_size]
        filling = np.full(self.global_batch_size - len(ids), -1)
        return self._draw(np.concatenate([ids, filling]), epoch)

    def _draw(self, ids: IntArray, epoch: int) -> StepPlan:
        recipe = self.augmentation
        sizes = self.sizes[np.maximum(ids, 0)].astype(np.int64)  # (B, 2)
        crop_draws = draw_uniforms(self.seed, CROP, epoch, ids, 2 * RESIZED_CROP_TRIES + 2)
        target = np.full((len(ids), 2), recipe.crop_size)
        if recipe.crop == "random_resized":
            windows = choose_resized_windows(sizes, crop_draws, recipe.crop_scale, recipe.crop_ratio)
            resized, corners = target, np.zeros_like(target)
        else:
            windows = np.concatenate([np.zeros_like(sizes), sizes], axis=1)
            resized = resize_shapes(sizes, recipe.resize)
            corners = choose_corners(resized - recipe.crop_size, crop_draws[:, :2] if recipe.crop == "random" else None)
        flip_draws = draw_uniforms(self.seed, FLIP, epoch, ids, 2)
        flips = flip_draws < np.array([recipe.horizontal_flip, recipe.vertical_flip])
        return StepPlan(ids, windows, resized, corners, flips, self._draw_shifts(ids, epoch))

    def _draw_shifts(self, ids: IntArray, epoch: int) -> FloatArray:
        recipe = self.augmentation
        if recipe.lighting is None:
            return np.zeros((len(ids), 3))
        components, scales = LIGHTING[recipe.lighting]
        radius, angle = np.split(draw_uniforms(self.seed, NOISE, epoch, ids, 6), 2, axis=1)  # (B, 3) each
        normals = np.sqrt(-2 * np.log1p(-radius)) * np.cos(2 * np.pi * angle)  # Box and Muller
        return np.asarray((recipe.lighting_std * normals * np.array(scales)) @ np.array(components).T)


@lru_cache(maxsize=4)
def shuffle_order(seed: int, epoch: int, num_images: int) -> IntArray:
    """A permutation of the images. Sorting raw 64-bit draws keeps it equal under every version of numpy."""
    bits = np.random.Philox(key=seed, counter=[0, 0, ORDER, epoch]).random_raw(num_images)
    order = np.argsort(bits, kind="stable")
    order.flags.writeable = False
    return order


def draw_uniforms(seed: int, purpose: int, epoch: int, ids: IntArray, count: int) -> FloatArray:
    """(B, count) numbers in [0, 1), each a hash of (seed, purpose, epoch, id, its position)."""
    with np.errstate(over="ignore"):
        state = _mix(np.uint64(seed) ^ _mix(np.uint64(purpose) + np.uint64(1)))
        state = _mix(_mix(state + np.uint64(epoch)) + ids.astype(np.uint64))  # (B,)
        draws = _mix(state[:, None] + np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN)  # (B, count)
    return (draws >> np.uint64(11)).astype(np.float64) * 2.0**-53


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(bits: npt.NDArray[np.uint64] | np.uint64) -> npt.NDArray[np.uint64]:
    """The finaliser of the SplitMix64 generator (Steele, Lea and Flood, 2014): a good hash of 64 bits."""
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(bits ^ (bits >> np.uint64(31)))


def resize_shapes(sizes: IntArray, resize: int | tuple[int, int] | None) -> IntArray:
    """(B, 2) width and height after `augment.resize`; the longer side is cut to an integer as torchvision does."""
    if resize is None:
        return sizes
    if isinstance(resize, tuple):
        return np.full_like(sizes, (resize[1], resize[0]))
    shorter = sizes.min(axis=1, keepdims=True)
    return np.where(sizes == shorter, resize, resize * sizes // shorter)


def choose_corners(margins: IntArray, draws: FloatArray | None) -> IntArray:
    """(B, 2) x, y of a crop in a picture that is `margins` pixels larger: drawn, or in the centre as torchvision's."""
    if draws is None:
        return np.rint(margins / 2).astype(np.int64)  # rint rounds halves to even, as Python's round does
    return np.minimum((draws * (margins + 1)).astype(np.int64), margins)


def choose_resized_windows(
    sizes: IntArray, draws: FloatArray, scale: tuple[float, float], ratio: tuple[float, float]
) -> IntArray:
    """(B, 4) windows x, y, width, height of a random area and shape, by the rule of torchvision's RandomResizedCrop.

    The first of ten drawn shapes that fits is taken; if none does, the largest centred window with an allowed ratio.
    """
    area = sizes.prod(axis=1, keepdims=True) * (scale[0] + draws[:, :RESIZED_CROP_TRIES] * (scale[1] - scale[0]))
    low, high = np.log(ratio)
    shape = np.exp(low + draws[:, RESIZED_CROP_TRIES : 2 * RESIZED_CROP_TRIES] * (high - low))  # width / height
    widths = np.rint(np.sqrt(area * shape)).astype(np.int64)  # (B, tries)
    heights = np.rint(np.sqrt(area / shape)).astype(np.int64)
    fits = (widths > 0) & (heights > 0) & (widths <= sizes[:, :1]) & (heights <= sizes[:, 1:])
    first = fits.argmax(axis=1)
    rows = np.arange(len(sizes))
    drawn = np.stack([widths[rows, first], heights[rows, first]], axis=1)  # (B, 2)
    inner = np.where(fits.any(axis=1, keepdims=True), drawn, _largest_windows(sizes, ratio))
    margins = sizes - inner
    corners = np.where(
        fits.any(axis=1, keepdims=True), choose_corners(margins, draws[:, -2:]), choose_corners(margins, None)
    )
    return np.concatenate([corners, inner], axis=1)


def _largest_windows(sizes: IntArray, ratio: tuple[float, float]) -> IntArray:
    width, height = sizes[:, 0], sizes[:, 1]
    narrow = np.stack([width, np.maximum(np.rint(width / ratio[0]), 1).astype(np.int64)], axis=1)
    wide = np.stack([np.maximum(np.rint(height * ratio[1]), 1).astype(np.int64), height], axis=1)
    shape = (width / height)[:, None]
    return np.where(shape < ratio[0], narrow, np.where(shape > ratio[1], wide, sizes))
