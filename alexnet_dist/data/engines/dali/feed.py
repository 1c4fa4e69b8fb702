"""What enters the DALI pipeline at a step: names of files, or the bytes of files that lie in containers, the plan's
numbers, and pixels where DALI cannot be asked.

One damaged file ends a DALI pipeline, and an ended one takes its batch with it. So a file goes in by its name only if
it is of a plain kind, has the length that the scan found, has not changed since, and ends as its format does: a region
of a JPEG that is cut off below it is otherwise decoded without a word. Everything else is decoded here by the reference
and enters as pixels.

What has been cut off before its end mark shows in the decoded picture alone: `Feeder.leave_out_cut`.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from alexnet_dist.data.crop_ops.operations import changes_bytes
from alexnet_dist.data.decode import Pixels, UnreadableImageError
from alexnet_dist.data.draws import FloatArray, IntArray
from alexnet_dist.data.engines.loader import Loader
from alexnet_dist.data.index import BadFile
from alexnet_dist.data.plan import StepPlan

Array: TypeAlias = npt.NDArray[np.generic]

_FILL = 128  # in all channels: what libjpeg makes of data that are missing
ENDINGS = (b"\xff\xd9", b"\x60\x82")  # of a JPEG and of a PNG


class Inputs(NamedTuple):
    """What DALI gets for n images, n > 0; in pixels where nothing else is said."""

    # (n, L) uint8, a file's name and a zero or more; or n times (L,) uint8 its contents, of one in a container. Only
    # zeros where `pixels` holds the image
    file: Array | list[Pixels]
    is_file: Array  # (n,) bool
    pixels: list[Pixels] | Array  # n times (H, W, C) the window; a black pixel where the image is in a file
    start: Array  # (n, 2) int32 x, y of the window
    shape: Array  # (n, 2) int32 width, height
    number: Array  # (n, 1) int32 of the image in the batch
    margins: Array  # (n, 1, 2) int32 y, x of the window among zeros
    padded: Array  # (n, 2) int32 height, width of the window with the zeros around it
    inner_start: Array  # (n, 2) float32 y, x of the window within its margins
    inner_end: Array  # (n, 2) float32 its other corner; with y above the start's the picture is flipped top to bottom
    resized: Array  # (n, 2) float32 height, width
    mean: Array  # (n, C) float32 subtracted from the pixels
    crops: tuple[Array, ...]  # x, y in parts of the margin (n,) float32, mirror (n,) int32, and so on for each view

    def flatten(self) -> tuple[object, ...]:
        """One item for each output of the external source, arrays as DALI wants them."""
        items = (*self[:-1], *self.crops)
        return tuple(np.ascontiguousarray(item) if isinstance(item, np.ndarray) else item for item in items)


class Feed(NamedTuple):
    """A step of one replica, ready for DALI: B rows, of which m are in the pipeline."""

    rows: StepPlan  # B rows
    mask: npt.NDArray[np.bool_]  # (B,) which of them are in the pipeline
    bad_files: list[BadFile]  # with full paths
    file_ids: list[int]  # images that DALI decodes
    means: npt.NDArray[np.float32]  # (B, C) mean of the normalization minus the color shift
    gains: npt.NDArray[np.float32]  # (m, 4) of the first and last column, first and last line; see `find_edge_gains`
    names: Array | None  # (n, L) uint8 as in `Inputs.file`, of all files that DALI has of the step
    inputs: Inputs | None  # None where no row is in the pipeline


@dataclass(frozen=True, eq=False)
class Feeder:
    """Prepares the steps of a loader.

    Args:
        loader: plan, index and normalization.
        distrusted: ids that DALI is not asked to decode any more.
        checked: what the reference said of ids whose last pixel is gray: a reason, or "" where it reads them.
        since_ns: files that changed after this time are not given to DALI either.
    """

    loader: Loader
    distrusted: set[int] = field(default_factory=set)
    checked: dict[int, str] = field(default_factory=dict)
    since_ns: int = field(default_factory=time.time_ns)

    def prepare(self, step: int) -> Feed:
        """Everything that DALI needs for a step; images that it cannot decode are decoded."""
        loader = self.loader
        rows = loader.plan.at(step).shard(loader.shard_id, loader.num_shards)
        views = loader.plan.augmentation.views
        mask = rows.ids >= 0
        images: list[bytes | Pixels] = []
        bad_files = []
        for first in (np.flatnonzero(mask[::views]) * views).tolist():
            try:
                images.append(self._find_image(rows, first))
            except UnreadableImageError as error:
                mask[first : first + views] = False
                bad_files.append(BadFile(self._find_path(int(rows.ids[first])), str(error)))
        present = rows.take(mask)
        named = list(zip(images, present.ids[::views].tolist(), strict=True))
        means = find_means(loader, rows)
        inputs = describe_images(images, present, means[mask], loader) if images else None
        return Feed(
            rows=rows,
            mask=mask,
            bad_files=bad_files,
            file_ids=[sample_id for image, sample_id in named if isinstance(image, bytes)],
            means=means,
            gains=find_edge_gains(present, loader.plan.augmentation.crop_size),
            names=inputs and self._name_files(inputs, named),
            inputs=inputs,
        )

    def _name_files(self, inputs: Inputs, named: list[tuple[bytes | Pixels, int]]) -> Array:
        """(n, L) the files that DALI is given, by the names that messages have for them."""
        if isinstance(inputs.file, np.ndarray):
            return inputs.file
        return stack_names([self._name(sample_id) if isinstance(image, bytes) else b"" for image, sample_id in named])

    def _name(self, sample_id: int) -> bytes:
        return os.fsencode(self.loader.index.locate(sample_id))

    def prepare_ahead(self, start: int, stop: int, pool: ThreadPoolExecutor, ahead: int) -> Iterator[Feed]:
        """The steps in their order; threads prepare up to `ahead` of them before they are asked for."""
        running: deque[Future[Feed]] = deque()
        for step in range(start, stop):
            running.append(pool.submit(self.prepare, step))
            if len(running) > ahead:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()

    def leave_out_cut(self, feed: Feed, last_pixels: Array, pool: ThreadPoolExecutor) -> tuple[Feed, Array]:
        """A step without the JPEGs that were cut short and have an end mark all the same.

        The decoder makes one gray of what is missing, down to the last pixel of the picture. A window that ends in
        that gray is judged by the reference, once for each file.

        Args:
            feed: the step.
            last_pixels: (n, C) of its windows.
            pool: for the reference.

        Returns:
            The step, and (n,) which of its images are kept.
        """
        views = self.loader.plan.augmentation.views
        rows = np.flatnonzero(feed.mask[::views]) * views  # (n,)
        ids, is_kept = feed.rows.ids[rows], np.ones(len(rows), np.bool_)
        is_file = np.isin(ids, feed.file_ids)
        suspects = ids[is_file & (last_pixels == _FILL).all(axis=1)].tolist()
        new = [sample_id for sample_id in suspects if sample_id not in self.checked]
        self.checked.update(zip(new, pool.map(self._judge, new), strict=True))
        # Steps that were under way when a file was found to be cut have it too, whatever their windows show.
        cut = {sample_id: self.checked[sample_id] for sample_id in ids[is_file].tolist() if self.checked.get(sample_id)}
        if not cut:
            return feed, is_kept
        self.distrusted.update(cut)
        is_kept &= ~np.isin(ids, [*cut])
        mask = feed.mask & ~np.isin(feed.rows.ids, [*cut])
        place = {self._find_path(sample_id): row for row, sample_id in enumerate(feed.rows.ids.tolist())}
        bad_files = [*feed.bad_files, *(BadFile(self._find_path(sample_id), cut[sample_id]) for sample_id in cut)]
        bad_files.sort(key=lambda bad: place[bad.path])
        return feed._replace(mask=mask, bad_files=bad_files, gains=feed.gains[mask[feed.mask]]), is_kept

    def _find_path(self, sample_id: int) -> str:
        return str(self.loader.index.root / self.loader.index.paths[sample_id])

    def find_unreadable(self, sample_ids: list[int], pool: ThreadPoolExecutor) -> list[int]:
        """Those that the reference cannot read either."""
        return [sample_id for sample_id, why in zip(sample_ids, pool.map(self._judge, sample_ids), strict=True) if why]

    def _judge(self, sample_id: int) -> str:
        try:
            self.loader.index.load_pixels(sample_id, self.loader.channels, self.loader.max_pixels)
        except UnreadableImageError as error:
            return str(error)
        return ""

    def _find_image(self, rows: StepPlan, row: int) -> bytes | Pixels:
        """The name of a file that DALI can be given, or its contents if it lies in a container; or the window's pixels.

        Raises:
            UnreadableImageError: there is no such image.
        """
        index, sample_id = self.loader.index, int(rows.ids[row])
        self.loader.plan.check_fits(sample_id)
        if index.is_plain[sample_id] and sample_id not in self.distrusted:
            if index.containers is None:
                name = self._name(sample_id)
                if is_whole(name, int(index.byte_sizes[sample_id]), self.since_ns):
                    return name
            else:
                data = index.containers.read(index.root, sample_id, int(index.byte_sizes[sample_id]))
                if data[-2:] in ENDINGS:
                    return data
        loader = self.loader
        return np.ascontiguousarray(
            index.load_pixels(sample_id, loader.channels, loader.max_pixels, rows.windows[row].tolist())
        )


def is_whole(name: bytes, byte_size: int, since_ns: int) -> bool:
    """Whether a file is as it was, as far as its length and times tell, and ends as a JPEG or a PNG does.

    Four system calls: a fiftieth of the time that decoding takes.
    """
    try:
        descriptor = os.open(name, os.O_RDONLY)
    except OSError:
        return False
    try:
        status = os.fstat(descriptor)
        is_same = status.st_size == byte_size and status.st_ctime_ns <= since_ns
        return is_same and os.pread(descriptor, 2, max(byte_size - 2, 0)) in ENDINGS
    except OSError:
        return False
    finally:
        os.close(descriptor)


def stack_names(names: list[bytes]) -> Array:
    """(n, L) uint8: one array where a list would cost DALI's Python side a copy for each of its items.

    A zero ends the longest name too: rows can be written one after the other.
    """
    return np.array(names, dtype=f"S{max(map(len, names)) + 1}")[:, None].view(np.uint8)


def find_means(loader: Loader, rows: StepPlan) -> npt.NDArray[np.float32]:
    """(B, C) what is subtracted from the pixels of each row: the mean less the row's color shift."""
    means: npt.NDArray[np.float32] = -loader.normalization.find_offsets(
        torch.from_numpy(rows.shifts.astype(np.float32))
    ).numpy()
    return means


def describe_images(
    images: list[bytes | Pixels], rows: StepPlan, means: npt.NDArray[np.float32], loader: Loader
) -> Inputs:
    """The numbers for n images.

    Args:
        images: the name or the contents of the file, or the pixels of the window (H, W, C).
        rows: n rows, or n times the number of views.
        means: (rows, C) subtracted from the pixels, unless operations on bytes come before.
        loader: of the plan.
    """
    views = loader.plan.augmentation.views
    windows, resized = rows.windows[::views], rows.resized[::views]
    upside_down = rows.flips[::views, 1:] & np.array([True, False])  # (n, 2) for y, x
    shape, margins = windows[:, 3:1:-1], find_margins(windows[:, 2:], resized)[:, ::-1]  # height, width from here on
    dots = np.zeros((len(images), 1, 1, loader.channels), np.uint8)
    dot, has_pixels = dots[0], not all(isinstance(image, bytes) for image in images)
    files = [image if isinstance(image, bytes) else b"" for image in images]
    has_names = loader.index.containers is None
    return Inputs(
        file=stack_names(files) if has_names else [np.frombuffer(data or b"\0", np.uint8) for data in files],
        is_file=np.array([isinstance(image, bytes) for image in images]),
        pixels=[dot if isinstance(image, bytes) else image for image in images] if has_pixels else dots,
        start=windows[:, :2].astype(np.int32),
        shape=windows[:, 2:].astype(np.int32),
        number=np.arange(len(images), dtype=np.int32)[:, None],
        margins=margins[:, None].astype(np.int32),
        padded=(shape + 2 * margins).astype(np.int32),
        inner_start=np.where(upside_down, margins + shape, margins).astype(np.float32),
        inner_end=np.where(upside_down, margins, margins + shape).astype(np.float32),
        resized=resized[:, ::-1].astype(np.float32),
        mean=np.zeros_like(means[::views]) if changes_bytes(loader.plan.augmentation) else means[::views],
        crops=place_crops(rows, views, loader.plan.augmentation.crop_size),
    )


def place_crops(rows: StepPlan, views: int, side: int) -> tuple[Array, ...]:
    """x, y, mirror of each view, in pictures that are flipped top to bottom already.

    DALI wants x and y in parts of the margin, multiplies, and rounds: for any margin below 2**22 that gives the plan's
    corner again.
    """
    margins = rows.resized - side  # (n * views, 2)
    corners = np.where(rows.flips[:, 1:] & np.array([False, True]), margins - rows.corners, rows.corners)
    parts = (corners / np.maximum(margins, 1)).astype(np.float32)
    mirror = rows.flips[:, 0].astype(np.int32)
    columns = (parts[:, 0], parts[:, 1], mirror)
    return tuple(column[view::views] for view in range(views) for column in columns)


def find_margins(shape: IntArray, resized: IntArray) -> IntArray:
    """(n, 2) zeros to put around a window on each axis, so that DALI's filter finds nothing beyond its edges.

    Both filters are a triangle that reaches `scale` = shape / resized pixels to each side of an output pixel. Beyond
    the edge DALI repeats the last pixel, while the reference leaves those weights out and divides by the rest. With
    zeros there DALI leaves them out too, and `find_edge_gains` gives the division. Enlarging needs none of this: a
    repeated pixel gives the same as dividing.
    """
    return np.where(shape > resized, -(-shape // (2 * resized)) + 1, 0)


def find_edge_gains(rows: StepPlan, side: int) -> npt.NDArray[np.float32]:
    """(m, 4) what the first and last column and the first and last line of each crop are multiplied by.

    Only the outermost pixels of a resized window reach beyond its edges; a crop within them has gains of 1.
    """
    if not len(rows.ids):
        return np.ones((0, 4), np.float32)
    shape = rows.windows[:, 2:]
    gains = _divide_weights(shape / rows.resized)  # (m, 2) for x and y
    at_start, at_end = rows.corners == 0, rows.corners + side == rows.resized  # (m, 2)
    first = np.where(rows.flips, at_end, at_start)
    last = np.where(rows.flips, at_start, at_end)
    touches = np.stack([first[:, 0], last[:, 0], first[:, 1], last[:, 1]], axis=1)
    return np.where(touches, gains[:, [0, 0, 1, 1]], 1).astype(np.float32)


def _divide_weights(scale: FloatArray) -> FloatArray:
    """All weights of an outermost pixel over those within the picture; 1 where it is not made smaller."""
    scale = np.maximum(scale, 1)
    reach = int(np.ceil(scale.max()))
    source = np.arange(-reach, 2 * reach + 1) + 0.5  # centers of source pixels; the output pixel's is scale / 2
    weights = np.maximum(1 - np.abs(source / scale[..., None] - 0.5), 0)  # (m, 2, J)
    return np.asarray(weights.sum(axis=2) / weights[..., source > 0].sum(axis=2))
