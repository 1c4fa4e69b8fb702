"""The image cache: a set of images, decoded and resized once, in files that are mapped into memory.

A cache is the folder images/KEY below data.cache_dir. It holds the images after the part of the recipe that is the same
in every epoch, each as uint8 (H, W, C), in the order of the index. KEY stands for all that the pixels depend on: the
resize, the channels, the pixel limit, and path, byte size and sides of every image, but not the root: images that move
keep their cache. Sizes are known before anything is decoded, so the place of every pixel is, too.

The pixels lie in chunks (chunks.py). manifest.json comes last and says that the cache is whole.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from alexnet_dist.base.disk_errors import name_reason
from alexnet_dist.base.durable import format_json, is_marked, read_json_file, write_json
from alexnet_dist.base.errors import DataError, UsageError
from alexnet_dist.base.machine import list_versions
from alexnet_dist.data.decode import Pixels
from alexnet_dist.data.draws import IntArray
from alexnet_dist.data.engines.cache.chunks import ChunkError, Footer, hash_pixels, map_pixels, read_footer
from alexnet_dist.data.engines.torchvision import resize_pixels
from alexnet_dist.data.index import SampleIndex
from alexnet_dist.data.plan import StepPlan, find_enlarged, resize_shapes

Resize: TypeAlias = int | tuple[int, int] | None
Mask: TypeAlias = npt.NDArray[np.bool_]

FORMAT = 1  # changes when the meaning of the files does
FOLDER = "images"  # in the cache folder
MANIFEST = "manifest.json"
CHUNK_BYTES, CHUNK_IMAGES = 64 * 2**20, 4096  # at most; a killed build loses one chunk for each of its processes
DECODERS = ("pillow", "torch", "torchvision")
REMEDY = "delete it and run `python launch/prepare.py cache`"


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the images of a set lie in its cache, whether or not that exists.

    Args:
        index: which images.
        resize: what was done to them, as `augment.resize`; None where they are kept at their own size.
        channels: 3, or 1 for gray.
        max_pixels: larger images are bad files.
        folder: of the cache.
        fingerprint: sha256 of all that the pixels depend on, in hexadecimal.
        sizes: (N, 2) width and height of each image as it is kept.
        offsets: (N,) first byte of each image in its chunk.
        bounds: (chunks + 1,) first image of each chunk, and N.
    """

    index: SampleIndex
    resize: Resize
    channels: int
    max_pixels: int
    folder: Path
    fingerprint: str
    sizes: IntArray
    offsets: IntArray
    bounds: IntArray

    @property
    def num_chunks(self) -> int:
        """Files of pixels."""
        return len(self.bounds) - 1

    @property
    def total_bytes(self) -> int:
        """Bytes of all pixels."""
        return sum(map(self.count_bytes, range(self.num_chunks)))

    @property
    def is_whole(self) -> bool:
        """Whether a build has ended here."""
        return (self.folder / MANIFEST).is_file()

    def chunk_ids(self, number: int) -> range:
        """The images of a chunk."""
        return range(int(self.bounds[number]), int(self.bounds[number + 1]))

    def count_bytes(self, number: int) -> int:
        """Bytes of pixels in a chunk."""
        last = int(self.bounds[number + 1]) - 1
        return int(self.offsets[last] + self.sizes[last].prod() * self.channels)

    def chunk_path(self, number: int) -> Path:
        """The file of a chunk."""
        return self.folder / f"{number:05d}.bin"

    def read_footer(self, number: int) -> Footer:
        """What a chunk says of itself.

        Raises:
            ChunkError: it is missing, damaged, or belongs to another cache.
        """
        footer = read_footer(self.chunk_path(number), self.count_bytes(number))
        if (footer.fingerprint, footer.number) != (self.fingerprint, number):
            raise ChunkError("it belongs to another cache")
        return footer


def is_cache(folder: Path) -> bool:
    """Whether a folder is the cache of some images: by its name, and by the kind of all files in it."""
    if re.fullmatch("[0-9a-f]{16}", folder.name) is None or not folder.is_dir():
        return False
    names = [path.name for path in folder.iterdir()]
    ours = re.compile(rf"[0-9]{{5,}}[.]bin|{re.escape(MANIFEST)}|[.]lock")
    return bool(names) and all(ours.fullmatch(name) or is_marked(name) for name in names)


def lay_out(cache_dir: Path, index: SampleIndex, resize: Resize, channels: int, max_pixels: int) -> Layout:
    """The layout of a set's cache.

    Where no image is larger, in pixels, than its resized picture, images are kept at their own size: the file is then
    the smaller one, and resizing is left to whoever reads it.

    Args:
        cache_dir: folder for prepared data.
        index: which images.
        resize: `augment.resize`.
        channels: 3, or 1 for gray.
        max_pixels: larger images are bad files.
    """
    own = index.sizes.astype(np.int64)
    sizes = resize_shapes(own, resize)
    is_enlarged = find_enlarged(sizes, resize)
    if (own.prod(axis=1) <= sizes.prod(axis=1))[~is_enlarged].all():
        resize, sizes = None, own
    else:
        sizes[is_enlarged] = 1  # they are not kept
    ends = np.cumsum(sizes.prod(axis=1) * channels)  # (N,)
    bounds = _cut_chunks(ends)
    starts = ends - sizes.prod(axis=1) * channels
    offsets = starts - np.repeat(starts[bounds[:-1]], np.diff(bounds))
    fingerprint = _hash_contents(index, resize, channels, max_pixels)
    folder = cache_dir / FOLDER / fingerprint[:16]
    return Layout(index, resize, channels, max_pixels, folder, fingerprint, sizes, offsets, bounds)


def check_cacheable(crop: str) -> None:
    """Refuse a recipe that resized images cannot serve.

    Args:
        crop: `augment.crop`.

    Raises:
        UsageError: the crop needs the originals.
    """
    if crop == "random_resized":
        why = "engine cache holds resized images; random_resized needs the originals"
        raise UsageError("augment.crop random_resized cannot be cached", why=why, remedy="use dali or torchvision")


def _cut_chunks(ends: IntArray) -> IntArray:
    """(chunks + 1,) first image of each chunk, and N, from the byte that each image ends with."""
    bounds = [0]
    while bounds[-1] < len(ends):
        first = bounds[-1]
        start = int(ends[first - 1]) if first else 0
        fitting = int(np.searchsorted(ends, start + CHUNK_BYTES, side="right"))
        bounds.append(min(max(fitting, first + 1), first + CHUNK_IMAGES, len(ends)))
    return np.array(bounds)


def _hash_contents(index: SampleIndex, resize: Resize, channels: int, max_pixels: int) -> str:
    recipe = {
        "format": FORMAT,
        "chunks": [CHUNK_BYTES, CHUNK_IMAGES],
        "resize": resize,
        "channels": channels,
        "max_pixels": max_pixels,
        "pixels": repr(index.pixels),
    }
    digest = hashlib.sha256(format_json(recipe, "a cache's key", sort_keys=True).encode())
    for values in (index.byte_sizes.astype("<i8"), index.sizes.astype("<i8")):
        digest.update(values.tobytes())
    digest.update(index.paths.blob[:-1].data)  # a zero between each two; none holds one
    return digest.hexdigest()


# -- the manifest -----------------------------------------------------------------------------------------------------


def write_manifest(layout: Layout, footers: list[Footer]) -> None:
    """Say that the cache is whole.

    Raises:
        MachineError: the disk is full, or the folder cannot be written.
    """
    chunks = [
        {"name": layout.chunk_path(number).name, "bytes": layout.count_bytes(number), "sha256": footer.sha256}
        for number, footer in enumerate(footers)
    ]
    bad_files = [(sample, layout.index.paths[sample], reason) for sample, reason in list_bad(layout, footers)]
    versions = list_versions()
    values = {
        "format": FORMAT,
        "fingerprint": layout.fingerprint,
        "resize": layout.resize,
        "channels": layout.channels,
        "max_pixels": layout.max_pixels,
        "num_images": len(layout.index),
        "total_bytes": layout.total_bytes,
        "bad_files": bad_files,
        "made_with": {name: versions[name] for name in DECODERS if name in versions},
        "chunks": chunks,
    }
    write_json(layout.folder / MANIFEST, values)


def list_bad(layout: Layout, footers: list[Footer]) -> Iterator[tuple[int, str]]:
    """Id and reason of each image that could not be decoded."""
    for number, footer in enumerate(footers):
        first = layout.chunk_ids(number).start
        yield from ((first + position, reason) for position, reason in footer.bad_files)


def read_footers(layout: Layout) -> list[Footer]:
    """What the chunks of a whole cache say of themselves. Sizes and footers are checked, pixels are not read.

    Raises:
        DataError: there is no cache, or it is damaged or foreign; the line names the file.
    """
    sums = _read_sums(layout)
    footers = []
    for number in range(layout.num_chunks):
        try:
            footer = layout.read_footer(number)
        except ChunkError as error:
            raise name_damage(layout.chunk_path(number), str(error)) from error
        if footer.sha256 != sums[number]:
            raise name_damage(layout.chunk_path(number), f"{MANIFEST} has another sha256")
        footers.append(footer)
    return footers


def _read_sums(layout: Layout) -> list[str]:
    """sha256 of each chunk, from the manifest."""
    path = layout.folder / MANIFEST
    try:
        values: Any = read_json_file(path)
        version, fingerprint = values["format"], values["fingerprint"]
        sums = [str(chunk["sha256"]) for chunk in values["chunks"]] if version == FORMAT else []
    except FileNotFoundError as error:
        remedy = "run `python launch/prepare.py cache`"
        raise DataError("these images are not cached", where=str(layout.folder), remedy=remedy) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise name_damage(path, f"it cannot be read ({type(error).__name__})") from error
    if version != FORMAT:
        raise name_damage(path, f"its format is {version!r}, this program's is {FORMAT}")
    if fingerprint != layout.fingerprint or len(sums) != layout.num_chunks:
        raise name_damage(path, "it is the manifest of another cache")
    return sums


def name_damage(path: Path, why: str, is_local: bool = False) -> DataError:
    """The error for a file of a cache that cannot be used."""
    return DataError("damaged image cache", where=str(path), why=why, remedy=REMEDY, is_local=is_local)


# -- reading ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Store:
    """An open cache.

    Args:
        layout: where the images lie.
        chunks: uint8 (bytes,) each, mapped into memory.
        bad_files: reasons, by id, of the images that could not be decoded, or do not fit who opened it.
        chunk_of: (N,) the chunk of each image.
        footers: of the chunks.
        is_checked: (N,) images whose pixels were held against their checksum.
    """

    layout: Layout
    chunks: tuple[Tensor, ...]
    bad_files: dict[int, str]
    chunk_of: npt.NDArray[np.int32]
    footers: list[Footer]
    is_checked: Mask

    @property
    def is_uniform(self) -> bool:
        """Whether all images are kept at one size."""
        return bool((self.layout.sizes == self.layout.sizes[0]).all())

    def load(self, sample_id: int) -> Tensor:
        """uint8 (H, W, C) of an image, in the file: nothing may be written to it.

        Raises:
            DataError: its pixels are not those that were written; they are checked when they are first used.
        """
        if not self.is_checked[sample_id]:
            self._check(sample_id)
        width, height = self.layout.sizes[sample_id].tolist()
        channels, first = self.layout.channels, int(self.layout.offsets[sample_id])
        shape, strides = (height, width, channels), (width * channels, channels, 1)
        return torch.as_strided(self.chunks[self.chunk_of[sample_id]], shape, strides, first)

    def find_addresses(self, sample_ids: IntArray) -> IntArray:
        """(n,) where the first bytes of some images lie in this process's memory, (n,) ids; see `load`."""
        return self._bases[self.chunk_of[sample_ids]] + self.layout.offsets[sample_ids]

    @cached_property
    def _bases(self) -> IntArray:
        return np.array([chunk.data_ptr() for chunk in self.chunks])

    def _check(self, sample_id: int) -> None:
        """Hold an image against its checksum, or its whole chunk, where an older version wrote that."""
        number, layout = int(self.chunk_of[sample_id]), self.layout
        ids, footer, pixels = layout.chunk_ids(number), self.footers[number], self.chunks[number].numpy()
        if len(footer.sums) == len(ids):
            first = int(layout.offsets[sample_id])
            part = pixels[first : first + int(layout.sizes[sample_id].prod()) * layout.channels]
            is_good, checked = zlib.crc32(part.data) == footer.sums[sample_id - ids.start], [sample_id]
        else:
            is_good, checked = hashlib.sha256(pixels.data).hexdigest() == footer.sha256, list(ids)
        if not is_good:
            path = layout.index.paths[sample_id]
            why = f"the pixels of {path} are not those that were written"
            # The other processes may have read it well, or not at all.
            raise name_damage(layout.chunk_path(number), why, is_local=True)
        self.is_checked[checked] = True


def open_store(layout: Layout) -> Store:
    """Map a cache into memory.

    Raises:
        DataError: there is no cache, or it is damaged or foreign; the line names the file.
    """
    footers = read_footers(layout)
    chunks = []
    for number in range(layout.num_chunks):
        try:
            chunks.append(map_pixels(layout.chunk_path(number), layout.count_bytes(number)))
        except OSError as error:
            raise name_damage(layout.chunk_path(number), name_reason(error)) from error
    numbers = np.arange(layout.num_chunks, dtype=np.int32)
    chunk_of = np.repeat(numbers, np.diff(layout.bounds))
    is_checked = np.zeros(len(chunk_of), np.bool_)
    return Store(layout, tuple(chunks), dict(list_bad(layout, footers)), chunk_of, footers, is_checked)


def iterate_checks(layout: Layout) -> Iterator[int]:
    """Read a whole cache and hold every chunk against its sha256; yields the number of images in each.

    Raises:
        DataError: there is no cache, or it is damaged or foreign; the line names the file.
    """
    for number, footer in enumerate(read_footers(layout)):
        path = layout.chunk_path(number)
        try:
            found = hash_pixels(path, layout.count_bytes(number))
        except OSError as error:
            raise name_damage(path, name_reason(error)) from error
        if found != footer.sha256:
            raise name_damage(path, f"its sha256 is {found[:16]}..., not {footer.sha256[:16]}...")
        yield len(layout.chunk_ids(number))


def load_picture(store: Store, rows: StepPlan, row: int) -> Pixels:
    """(H, W, C), resized as the plan says; the cache keeps small pictures as they are."""
    return resize_pixels(store.load(int(rows.ids[row])).numpy(), *rows.resized[row].tolist())
