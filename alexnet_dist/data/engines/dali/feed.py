"""What enters the DALI pipeline at a step: names of files, or the bytes of files that lie in containers, and the plan's
numbers. Pictures that DALI cannot be asked for are decoded here, and join its pictures behind the pipeline.

One damaged file ends a DALI pipeline, and an ended one takes its batch with it. So a file goes in by its name only if
it is of a plain kind, has the length that the scan found, has not changed since, and ends as its format does: a region
of a JPEG that is cut off below it is otherwise decoded without a word. Everything else is decoded, resized and cut by
the reference.

What has been cut off before its end mark shows in the decoded picture alone: `Feeder.leave_out_cut`.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from alexnet_dist.data.decode import Pixels, UnreadableImageError
from alexnet_dist.data.engines.dali.scaling import Array, Scaling, describe_scaling, list_edges
from alexnet_dist.data.engines.finish import find_images
from alexnet_dist.data.engines.loader import Loader
from alexnet_dist.data.engines.torchvision import cut_views
from alexnet_dist.data.index import BadFile
from alexnet_dist.data.plan import StepPlan

_FILL = 128  # in all channels: what libjpeg makes of data that are missing
ENDINGS = (b"\xff\xd9", b"\x60\x82")  # of a JPEG and of a PNG


class Inputs(NamedTuple):
    """What DALI gets for n files, n > 0, in pixels."""

    file: Array | list[Pixels]  # (n, L) uint8 names, a zero or more behind each; or n contents of files in containers
    start: Array  # (n, 2) int32 x, y of the window
    shape: Array  # (n, 2) int32 width, height
    scaling: Scaling | None  # where DALI does more than to decode

    def flatten(self) -> tuple[object, ...]:
        """One item for each output of the external source, arrays as DALI wants them."""
        more = () if self.scaling is None else (*self.scaling[:-1], *self.scaling.crops)
        items = (*self[:-1], *more)
        return tuple(np.ascontiguousarray(item) if isinstance(item, np.ndarray) else item for item in items)


class Feed(NamedTuple):
    """A step of one replica, ready for DALI: B rows, of which m are in the pipeline."""

    rows: StepPlan  # B rows
    mask: npt.NDArray[np.bool_]  # (B,) which of them have an image
    in_dali: npt.NDArray[np.bool_]  # (B,) of these, which are in the pipeline
    crops: Pixels  # (k, S, S, C) of the others with an image, cut and not flipped; operations on bytes are to come
    bad_files: list[BadFile]  # with full paths
    names: Array | None  # (n, L) uint8, the names of all files that DALI has of the step
    inputs: Inputs | None  # None where no row is in the pipeline
    edges: list[Tensor]  # what is left to do where DALI scales; see `list_edges`

    @property
    def file_ids(self) -> list[int]:
        """Images that DALI decodes."""
        return list(dict.fromkeys(self.rows.ids[self.in_dali].tolist()))


@dataclass(frozen=True, eq=False)
class Feeder:
    """Prepares the steps of a loader.

    Args:
        loader: plan, index and normalization.
        dali_scales: whether DALI resizes, crops and normalizes, or gives windows.
        distrusted: ids that DALI is not asked to decode any more.
        checked: what the reference said of ids whose last pixel is gray: a reason, or "" where it reads them.
        since_ns: files that changed after this time are not given to DALI either.
    """

    loader: Loader
    dali_scales: bool
    distrusted: set[int] = field(default_factory=set)
    checked: dict[int, str] = field(default_factory=dict)
    since_ns: int = field(default_factory=time.time_ns)

    def prepare(self, step: int) -> Feed:
        """Everything that DALI needs for a step; images that it cannot decode are decoded and cut."""
        loader, recipe = self.loader, self.loader.plan.augmentation
        rows = loader.plan.at(step).shard(loader.shard_id, loader.num_shards)
        mask = rows.ids >= 0
        in_dali = mask.copy()
        files: list[bytes] = []
        crops: list[Pixels] = []
        bad_files = []
        for first in find_images(loader, mask):
            views = slice(first, first + recipe.views)
            try:
                file = self._find_file(int(rows.ids[first]))
                if file is not None:
                    files.append(file)
                    continue
                crops += [crop for _, crop in cut_views(self._load_window(rows, first), rows, first, recipe)]
            except UnreadableImageError as error:
                mask[views] = False
                bad_files.append(BadFile(self._find_path(int(rows.ids[first])), str(error)))
            in_dali[views] = False
        present, side = rows.take(in_dali), recipe.crop_size
        ids = present.ids[:: recipe.views].tolist()
        names = stack_names(files if self._has_names else [self._name(sample_id) for sample_id in ids])
        return Feed(
            rows=rows,
            mask=mask,
            in_dali=in_dali,
            crops=np.stack(crops) if crops else np.empty((0, side, side, loader.channels), np.uint8),
            bad_files=bad_files,
            names=names if files else None,
            inputs=self._describe_files(files, names, present) if files else None,
            edges=list_edges(self.loader, present) if self.dali_scales else [],
        )

    def _describe_files(self, files: list[bytes], names: Array, rows: StepPlan) -> Inputs:
        """Of n files by their names (n, L) or with what is in them, and of n rows, or n times the number of views."""
        windows = rows.windows[:: self.loader.plan.augmentation.views]
        return Inputs(
            file=names if self._has_names else [np.frombuffer(data, np.uint8) for data in files],
            start=windows[:, :2].astype(np.int32),
            shape=windows[:, 2:].astype(np.int32),
            scaling=describe_scaling(rows, self.loader) if self.dali_scales else None,
        )

    @property
    def _has_names(self) -> bool:
        """Whether DALI gets names of files; else what is in them."""
        return self.loader.index.containers is None

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

    def leave_out_cut(self, feed: Feed, windows: list[Pixels], pool: ThreadPoolExecutor) -> tuple[Feed, list[Pixels]]:
        """A step without the JPEGs that were cut short and have an end mark all the same.

        The decoder makes one gray of what is missing, down to the last pixel of the picture. A window that ends in
        that gray is judged by the reference, once for each file.

        Args:
            feed: the step.
            windows: (H, W, C) of its n images.
            pool: for the reference.

        Returns:
            The step and the windows that are kept.
        """
        ids = feed.rows.ids[feed.in_dali][:: self.loader.plan.augmentation.views].tolist()  # n
        new = [
            sample_id
            for sample_id, window in zip(ids, windows, strict=True)
            if sample_id not in self.checked and (window[-1, -1] == _FILL).all()
        ]
        self.checked.update(zip(new, pool.map(self._judge, new), strict=True))
        # Steps that were under way when a file was found to be cut have it too, whatever their windows show.
        cut = {sample_id: self.checked[sample_id] for sample_id in ids if self.checked.get(sample_id)}
        if not cut:
            return feed, windows
        self.distrusted.update(cut)
        is_cut = feed.in_dali & np.isin(feed.rows.ids, [*cut])  # (B,)
        place = {self._find_path(sample_id): row for row, sample_id in enumerate(feed.rows.ids.tolist())}
        bad_files = [*feed.bad_files, *(BadFile(self._find_path(sample_id), cut[sample_id]) for sample_id in cut)]
        bad_files.sort(key=lambda bad: place[bad.path])
        left = feed._replace(mask=feed.mask & ~is_cut, in_dali=feed.in_dali & ~is_cut, bad_files=bad_files)
        return left, [window for sample_id, window in zip(ids, windows, strict=True) if sample_id not in cut]

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

    def _find_file(self, sample_id: int) -> bytes | None:
        """The name of a file that DALI can be given, or its contents if it lies in a container; None if it cannot be.

        Raises:
            UnreadableImageError: there is no such image.
        """
        index = self.loader.index
        self.loader.plan.check_fits(sample_id)
        if not index.is_plain[sample_id] or sample_id in self.distrusted:
            return None
        size = int(index.byte_sizes[sample_id])
        if index.containers is None:
            name = self._name(sample_id)
            return name if is_whole(name, size, self.since_ns) else None
        data = index.containers.read(index.root, sample_id, size)
        return data if data[-2:] in ENDINGS else None

    def _load_window(self, rows: StepPlan, row: int) -> Pixels:
        """(H, W, C) of a row, by the reference.

        Raises:
            UnreadableImageError: there is no such image.
        """
        loader = self.loader
        return loader.index.load_pixels(
            int(rows.ids[row]), loader.channels, loader.max_pixels, rows.windows[row].tolist()
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
    return np.array(names, dtype=f"S{max(map(len, names), default=0) + 1}")[:, None].view(np.uint8)
