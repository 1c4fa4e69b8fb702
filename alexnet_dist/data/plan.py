"""WHAT happens at step s: which images, which windows, which flips, which changes of color. Pure numpy.

`plan.at(step)` is a function of (seed, image sizes, augmentation, global batch size, step) and of nothing else. Every
random number is drawn from a counter (seed, purpose, epoch, sample), never from a generator's state, so the batches do
not depend on the engine, the workers or the number of processes, and a resumed run needs one integer.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from alexnet_dist.base.bounds import MAX_EPOCHS, MAX_FACTOR, MAX_SIDE, bounded
from alexnet_dist.base.errors import DataError
from alexnet_dist.data.crop_ops.operations import Drawn, Rows, draw_operations, take_drawn
from alexnet_dist.data.decode import DEFAULT_MAX_PIXELS, UnreadableImageError
from alexnet_dist.data.draws import (
    CROP,
    FLIP,
    NOISE,
    Blocks,
    FloatArray,
    IntArray,
    draw_uniforms,
    shuffle_blocks,
    shuffle_order,
)

Array = npt.NDArray[np.generic]

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

RESIZED_CROP_TRIES = 10  # torchvision's number
VIEW_CORNERS = np.array([(0, 0), (1, 0), (0, 1), (1, 1)])  # of the ten crops: x, y in units of the margin


class StepPlan(NamedTuple):
    """What happens to each row of a batch, in the order of the batch.

    An image is cut to its window, resized, cut to the network's input at its corner, and flipped. The operations of
    crop_ops on bytes follow, then the color shift and the normalization, then the operations on the network's input.
    A row is an image, or one of the `Augmentation.views` of an image: these follow each other and differ in corner and
    flip alone. Rows that only fill the batch up have id -1.
    """

    ids: IntArray  # (B,)
    windows: IntArray  # (B, 4) x, y, width, height in pixels of the upright image
    resized: IntArray  # (B, 2) width, height the window is resized to
    corners: IntArray  # (B, 2) x, y of the crop in the resized window
    flips: npt.NDArray[np.bool_]  # (B, 2) left-right, top-bottom
    shifts: FloatArray  # (B, 3) added to RGB on the 0-255 scale
    drawn: Drawn  # what each operation of crop_ops drew, (B, ...)

    def take(self, rows: Rows) -> StepPlan:
        """Some rows."""
        return StepPlan._make([*(field[rows] for field in self[:-1]), take_drawn(self.drawn, rows)])

    def shard(self, shard_id: int, num_shards: int) -> StepPlan:
        """The rows of one replica: equal, consecutive parts of the batch, with all views of an image in one part.

        Where the number of replicas does not divide the batch, the last parts are filled up with id -1.
        """
        count = share_rows(len(self.ids), num_shards)
        if count * num_shards == len(self.ids):
            return self.take(slice(shard_id * count, (shard_id + 1) * count))
        rows = shard_id * count + np.arange(count)
        part = self.take(np.minimum(rows, len(self.ids) - 1))
        return part._replace(ids=np.where(rows < len(self.ids), part.ids, -1))


def share_rows(rows: int, num_shards: int) -> int:
    """Rows of each of equal parts of a batch."""
    return -(-rows // num_shards)


@dataclass(frozen=True)
class Augmentation:
    """The recipe for an image; see `AugmentConfig` for the fields' meaning, units and ranges.

    What comes out of a file, config.json of a model folder, is held to these types and ranges.

    `views` is no setting of a run: 10 takes the corners and the center of the resized picture's central square, and
    their mirrors, in place of one crop and its flips.
    """

    crop_size: int
    resize: int | tuple[int, int] | None = bounded(256, minimum=1, maximum=MAX_SIDE)
    crop: Literal["centre", "random", "random_resized"] = "centre"
    crop_scale: tuple[float, float] = bounded((0.08, 1.0), above=0.0, maximum=1.0)
    crop_ratio: tuple[float, float] = bounded((3 / 4, 4 / 3), above=0.0, maximum=MAX_FACTOR)
    horizontal_flip: float = bounded(0.0, minimum=0.0, maximum=1.0)
    vertical_flip: float = bounded(0.0, minimum=0.0, maximum=1.0)
    lighting: Literal["source2012", "common"] | None = None
    lighting_std: float = bounded(0.1, minimum=0.0, maximum=MAX_FACTOR)
    lighting_epochs: int | None = bounded(None, minimum=0, maximum=MAX_EPOCHS)
    color_jitter: tuple[float, float, float, float] | None = bounded(None, minimum=0.0, maximum=MAX_FACTOR)
    random_erasing: float = bounded(0.0, minimum=0.0, maximum=1.0)
    views: Literal[1, 10] = 1

    def for_evaluation(self) -> Augmentation:
        """The same resize and the center crop, nothing random."""
        return Augmentation(crop_size=self.crop_size, resize=self.resize)


@dataclass(frozen=True, eq=False)
class Plan:
    """The batches of a run over one set of images.

    Args:
        sizes: (N, 2) width and height of each upright image in pixels.
        augmentation: what happens to them.
        global_batch_size: images of a batch over all replicas; the last batch of a pass is filled up with id -1.
        seed: of the run.
        shuffle: a new order each epoch (training), or the file order (evaluation).
        skips_unfit: images that the recipe cannot be carried out on keep their places in the order, and their rows
            stay empty as those of bad files do; see `unfit`.
        blocks: images that are read together come close to each other; None = any image may follow any other.

    Raises:
        DataError: an image smaller than the crop, or enlarged beyond measure, unless they are skipped.
    """

    sizes: Array
    augmentation: Augmentation
    global_batch_size: int
    seed: int
    shuffle: bool
    skips_unfit: bool = False
    blocks: Blocks | None = None

    def __post_init__(self) -> None:
        if self.unfit and not self.skips_unfit:
            first, reason = next(iter(self.unfit.items()))
            number = len(self.unfit)
            remedy = "leave such images out, or change augment.resize"
            what = "1 image does not fit" if number == 1 else f"{number} images do not fit"
            raise DataError(f"{what} the recipe", where=f"image {first}", why=reason, remedy=remedy)

    @cached_property
    def unfit(self) -> dict[int, str]:
        """Why the recipe cannot be carried out on some images, by their ids."""
        return find_unfit(self.sizes, self.augmentation)

    @cached_property
    def _unfit_ids(self) -> IntArray:
        return np.array([*self.unfit], np.int64)

    def check_fits(self, sample_id: int) -> None:
        """Refuse an image that the recipe cannot be carried out on.

        Raises:
            UnreadableImageError: it is one.
        """
        if sample_id in self.unfit:
            raise UnreadableImageError(self.unfit[sample_id])

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
        ids = self._order(epoch)[start : start + self.global_batch_size]
        filling = np.full(self.global_batch_size - len(ids), -1)
        rows = self._draw(np.concatenate([ids, filling]), epoch)
        return rows if self.augmentation.views == 1 else take_ten_views(rows, self.augmentation.crop_size)

    def _order(self, epoch: int) -> IntArray:
        if not self.shuffle:
            return np.arange(self.num_images)
        if self.blocks is not None:
            return shuffle_blocks(self.seed, epoch, self.blocks)
        return shuffle_order(self.seed, epoch, self.num_images)

    def _draw(self, ids: IntArray, epoch: int) -> StepPlan:
        recipe = self.augmentation
        known = np.maximum(ids, 0)  # (B,) filling too has a size
        sizes = self.sizes[known].astype(np.int64)  # (B, 2)
        sizes[np.isin(known, self._unfit_ids)] = recipe.crop_size
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
        drawn = draw_operations(recipe, self.seed, epoch, ids)
        return StepPlan(ids, windows, resized, corners, flips, self._draw_shifts(ids, epoch), drawn)

    def _draw_shifts(self, ids: IntArray, epoch: int) -> FloatArray:
        recipe = self.augmentation
        is_over = recipe.lighting_epochs is not None and epoch >= recipe.lighting_epochs
        if recipe.lighting is None or is_over:
            return np.zeros((len(ids), 3))
        components, scales = LIGHTING[recipe.lighting]
        radius, angle = np.split(draw_uniforms(self.seed, NOISE, epoch, ids, 6), 2, axis=1)  # (B, 3) each
        normals = np.sqrt(-2 * np.log1p(-radius)) * np.cos(2 * np.pi * angle)  # Box and Muller
        return np.asarray((recipe.lighting_std * normals * np.array(scales)) @ np.array(components).T)


def find_unfit(sizes: Array, recipe: Augmentation) -> dict[int, str]:
    """Why a recipe cannot be carried out on some images.

    Args:
        sizes: (N, 2) width and height of upright images.
        recipe: what is to happen to them.

    Returns:
        Reasons by the images' numbers, in their order.
    """
    if recipe.crop == "random_resized":
        return {}
    resized = resize_shapes(sizes.astype(np.int64), recipe.resize)
    too_small = resized.min(axis=1) < recipe.crop_size
    small = {
        number: "smaller than the crop of {}: {} x {} after augment.resize".format(recipe.crop_size, *resized[number])
        for number in np.flatnonzero(too_small).tolist()
    }
    return dict(sorted((describe_enlarged(resized, recipe.resize) | small).items()))


def describe_enlarged(resized: IntArray, resize: int | tuple[int, int] | None) -> dict[int, str]:
    """What to say of the images that `find_enlarged` finds, by their numbers."""
    return {
        number: "it would become too large: {} x {} after augment.resize".format(*resized[number])
        for number in np.flatnonzero(find_enlarged(resized, resize)).tolist()
    }


def find_enlarged(resized: IntArray, resize: int | tuple[int, int] | None) -> npt.NDArray[np.bool_]:
    """(N,) which images become too large when they are resized: a line of one pixel's height may have millions.

    Args:
        resized: (N, 2) as `resize_shapes` gives them, 64 bits each.
        resize: `augment.resize`.
    """
    return np.asarray((resized.prod(axis=1) > DEFAULT_MAX_PIXELS) & (resize is not None))


def take_ten_views(rows: StepPlan, crop_size: int) -> StepPlan:
    """The ten crops of 2012: ten rows for one, equal but for corners and flips.

    The central square of the resized picture is as large as its shorter side; 2012's had 256 pixels. It is cut as
    torchvision's `ten_crop` does: top left, top right, bottom left, bottom right, center, then the same windows of the
    square's mirror image. (Under an odd margin the two centers are a pixel apart.) Source: `__trim_borders` of the 2012
    program's convdata_jpeg.py.
    """
    side = rows.resized.min(axis=1, keepdims=True)  # (B, 1)
    margins = (side - crop_size)[:, :, None]  # (B, 1, 1)
    plain = np.concatenate([margins * VIEW_CORNERS, np.tile(choose_corners(margins, None), 2)], axis=1)  # (B, 5, 2)
    mirrored = np.stack([margins[:, :, 0] - plain[:, :, 0], plain[:, :, 1]], axis=2)  # (B, 5, 2)
    square = choose_corners(rows.resized - side, None)  # (B, 2)
    corners = square[:, None] + np.concatenate([plain, mirrored], axis=1)  # (B, 10, 2)
    flips = np.zeros((len(square), 10, 2), np.bool_)
    flips[:, 5:, 0] = True
    tenfold = rows.take(np.repeat(np.arange(len(square)), 10))
    return tenfold._replace(corners=corners.reshape(-1, 2), flips=flips.reshape(-1, 2))


def resize_shapes(sizes: IntArray, resize: int | tuple[int, int] | None) -> IntArray:
    """(B, 2) width and height after `augment.resize`; the longer side is cut to an integer as torchvision does."""
    if resize is None:
        return sizes
    if isinstance(resize, tuple):
        return np.full_like(sizes, (resize[1], resize[0]))
    shorter = sizes.min(axis=1, keepdims=True)
    return np.where(sizes == shorter, resize, resize * sizes // shorter)


def choose_corners(margins: IntArray, draws: FloatArray | None) -> IntArray:
    """(B, 2) x, y of a crop in a picture that is `margins` pixels larger: drawn, or in the center as torchvision's."""
    if draws is None:
        return np.rint(margins / 2).astype(np.int64)  # rint rounds halves to even, as Python's round does
    return np.minimum((draws * (margins + 1)).astype(np.int64), margins)


def choose_resized_windows(
    sizes: IntArray, draws: FloatArray, scale: tuple[float, float], ratio: tuple[float, float]
) -> IntArray:
    """(B, 4) windows x, y, width, height of a random area and shape, by the rule of torchvision's RandomResizedCrop.

    The first of ten drawn shapes that fits is taken; if none does, the largest centered window with an allowed ratio.
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
