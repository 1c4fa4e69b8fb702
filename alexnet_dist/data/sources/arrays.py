"""Sets that come as arrays, in torchvision's files: CIFAR-10 and Fashion-MNIST.

The files are checked against torchvision's md5 sums at every start, downloads against sha256 sums. They are unpacked
once into the cache folder, from where every process maps the arrays into its memory. Nothing is written beside them.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import math
import os
import shutil
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from torchvision.datasets import CIFAR10, FashionMNIST
from torchvision.datasets.utils import calculate_md5, extract_archive

from alexnet_dist.base.disk_errors import name_reason, name_remedy
from alexnet_dist.base.download import Published, fetch_file
from alexnet_dist.base.durable import CACHE_SETTING, TEMPORARY, disk_errors_named, mark_name, tidy_folder
from alexnet_dist.base.errors import DataError
from alexnet_dist.data.decode import Pixels, UnreadableImageError
from alexnet_dist.data.files.kept_arrays import Array, keep_arrays
from alexnet_dist.data.index import SampleIndex, index_pixels
from alexnet_dist.data.sources.source import Source, SourceOptions, check_part, find_no_root

PARTS = ("train", "test")
ARRAYS, DOWNLOADS = "arrays", "downloads"  # folders in the cache

_IDX_PREFIX = {"train": "train", "test": "t10k"}
_IDX_MAGIC = {1: 0x0801, 3: 0x0803}  # unsigned bytes, by the number of dimensions
_FASHION_FOLDER = Path("FashionMNIST") / "raw"
FASHION_HTTPS = "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/"

# What downloads are held against, by torchvision's md5 sums. Fashion-MNIST's sha256 were taken from files that have
# these; CIFAR-10's stands in torchvision's prototype of its datasets.
PUBLISHED = {
    "8d4fb7e6c68d591d4c3dfef9ec88bf0d": Published(
        "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84", 26_421_880
    ),
    "25c81989df183df01b3e8a0aad5dffbe": Published(
        "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845", 29_515
    ),
    "bef4ecab320f06d8554ea6380940ec79": Published(
        "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073", 4_422_102
    ),
    "bb300cfdad3c16e7a12a480ee83cd310": Published(
        "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5", 5_148
    ),
    "c58f30108f718f92721af3b95e74349a": Published(
        "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce", 170_498_071
    ),
}
UNKNOWN_BYTES = 200_000_000  # the most of a file that torchvision has changed since


@dataclass(frozen=True)
class ArrayPixels:
    """The pictures of an array (N, H, W, C) that lies in a file; the number in a path says which.

    Args:
        digest: of the array's contents.
        file: where it is kept. Another place holds the same pictures, so it is no part of `repr`.
    """

    digest: str
    file: Path = field(repr=False)

    def load(self, path: str) -> Pixels:
        """uint8 (H, W, C) of the sample with this path.

        Raises:
            UnreadableImageError: the file is gone.
        """
        try:
            pictures = _map_array(self.file)
        except (OSError, ValueError) as error:
            raise UnreadableImageError(f"the prepared pictures cannot be read ({self.file}): {error}") from error
        return np.array(pictures[int(path.rpartition("/")[2])])  # a copy: the file is read-only


@lru_cache(maxsize=8)
def _map_array(file: Path) -> Array:
    """An array in a file, opened once in each process."""
    array: Array = np.load(file, mmap_mode="r")
    return array


@dataclass(frozen=True)
class _Files:
    """The files of one part, checked."""

    md5s: tuple[str, ...]
    read: Callable[[], Sequence[Array]]  # images (N, H, W, C), labels (N,) and class names


def array_index(source: str, part: str, *, root: Path | None, cache_dir: Path, download: bool) -> SampleIndex:
    """Index one part of a set; its samples are called `train/00000` and so on, as they are numbered in the files.

    Args:
        source: which set.
        part: train or test.
        root: folder as torchvision takes it, or the one that the files lie in; None where all is downloaded.
        cache_dir: where arrays and downloads are kept.
        download: fetch what root lacks.

    Returns:
        Classes in the order of their labels; sizes of the pictures as they are stored.

    Raises:
        DataError: files are missing or damaged.
        MachineError: the cache folder cannot be written, or a download failed.
    """
    files = _FINDERS[source](part, root, cache_dir, download)
    key = hashlib.sha256(" ".join(files.md5s).encode()).hexdigest()[:16]
    names = ("images", "labels", "classes")
    kept = keep_arrays(cache_dir / ARRAYS, f"{source}-{part}-{key}", names, files.read)
    images, labels = kept["images"], np.asarray(kept["labels"].array, dtype=np.int64)
    count, height, width = images.array.shape[:3]
    order = np.argsort(labels, kind="stable")
    digits = len(str(count - 1))
    return index_pixels(
        ArrayPixels(images.digest, images.file),
        paths=[f"{part}/{number:0{digits}d}" for number in order.tolist()],
        labels=labels[order],
        sizes=(width, height),
        classes=kept["classes"].array.tolist(),
    )


# -- Fashion-MNIST ----------------------------------------------------------------------------------------------------


def _find_fashion_mnist(part: str, root: Path | None, cache_dir: Path, download: bool) -> _Files:
    """The idx files of images and labels: packed as they are published, or else unpacked."""
    packed = [(name, md5) for name, md5 in FashionMNIST.resources if name.startswith(_IDX_PREFIX[part])]
    downloads = cache_dir / DOWNLOADS if download else None
    found = [_find_idx(name, md5, root, downloads) for name, md5 in packed]
    return _Files(tuple(md5 for _, md5 in found), partial(_read_fashion_mnist, *(path for path, _ in found)))


def _find_idx(name: str, md5: str, root: Path | None, downloads: Path | None) -> tuple[Path, str]:
    """Where a file is, and its md5; an unpacked one has none that it could be held against."""
    folders = [root / _FASHION_FOLDER, root] if root is not None else []
    for path in (folder / name for folder in folders):
        if path.is_file():
            _check_md5(path, md5)
            return path, md5
    for path in (folder / name.removesuffix(".gz") for folder in folders):
        if path.is_file():
            return path, _hash_file(path)
    if downloads is None:
        raise _missing_error("fashion_mnist", (root or Path()) / _FASHION_FOLDER / name)
    path = downloads / _FASHION_FOLDER / name
    fetch_file(
        [mirror + name for mirror in (FASHION_HTTPS, *FashionMNIST.mirrors)],  # torchvision's place has no https
        path,
        _find_published(md5),
        f"get the file on another machine and put it at ROOT/{_FASHION_FOLDER.as_posix()}, ROOT being data.root",
    )
    return path, md5


def _find_published(md5: str) -> Published:
    return PUBLISHED.get(md5, Published(md5, UNKNOWN_BYTES))


def _read_fashion_mnist(images_file: Path, labels_file: Path) -> tuple[Array, Array, Array]:
    images, labels = _read_idx(images_file, 3), _read_idx(labels_file, 1)
    if len(images) != len(labels):
        raise _damage_error(labels_file, f"{len(labels)} labels for {len(images)} images")
    if labels.max(initial=0) >= len(FashionMNIST.classes):
        raise _damage_error(labels_file, f"label {labels.max()} of {len(FashionMNIST.classes)} classes")
    return images[:, :, :, None], labels, np.array(FashionMNIST.classes)


def _read_idx(path: Path, dimensions: int) -> Pixels:
    """An array of bytes: magic number and sizes as big-endian integers of 32 bits, then the values.

    torchvision's own reader takes unpacked files only.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        magic, *shape = struct.unpack_from(f">{1 + dimensions}I", data)
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise _damage_error(path, str(error)) from error
    values: Pixels = np.frombuffer(data, np.uint8, offset=4 * (1 + dimensions))
    if magic != _IDX_MAGIC[dimensions]:
        raise _damage_error(path, f"it begins with {magic:#010x}, not with {_IDX_MAGIC[dimensions]:#010x}")
    if 0 in shape or len(values) != math.prod(shape):
        raise _damage_error(path, f"{len(values)} values where its header says {' x '.join(map(str, shape))}")
    return values.reshape(shape)


# -- CIFAR-10 ---------------------------------------------------------------------------------------------------------


class _BatchFiles(CIFAR10):  # type: ignore[misc]
    """torchvision's reader, for batch files that lie directly in a folder."""

    base_folder = ""


def _find_cifar10(part: str, root: Path | None, cache_dir: Path, download: bool) -> _Files:
    """The folder of batch files, or else the archive with them."""
    wanted = _list_batches(part)
    md5s = tuple(md5 for _, md5 in wanted)
    for folder in [root / CIFAR10.base_folder, root] if root is not None else []:
        missing = [name for name, _ in _list_batches(*PARTS) if not (folder / name).is_file()]
        if len(missing) == len(_list_batches(*PARTS)):
            continue
        if missing and not download:
            raise _missing_error("cifar10", folder / missing[0])
        if not missing:
            for name, md5 in wanted:
                _check_md5(folder / name, md5)
            return _Files(md5s, partial(_read_folder, folder, part, cache_dir / ARRAYS / "unpacked"))
    archive = _find_archive(root, cache_dir / DOWNLOADS if download else None)
    return _Files(md5s, partial(_read_archive, archive, part, cache_dir / ARRAYS / "unpacked"))


def _list_batches(*parts: str) -> list[tuple[str, str]]:
    """Names and md5 sums of the files of these parts, and of the one with the class names."""
    lists = {"train": CIFAR10.train_list, "test": CIFAR10.test_list}
    batches = [(name, md5) for part in parts for name, md5 in lists[part]]
    return [*batches, (CIFAR10.meta["filename"], CIFAR10.meta["md5"])]


def _find_archive(root: Path | None, downloads: Path | None) -> Path:
    name: str = CIFAR10.filename
    if root is not None and (root / name).is_file():
        _check_md5(root / name, CIFAR10.tgz_md5)
        return root / name
    if downloads is None:
        raise _missing_error("cifar10", (root or Path()) / name)
    path = downloads / name
    instead = "get the file on another machine and put it into data.root"
    fetch_file([CIFAR10.url], path, _find_published(CIFAR10.tgz_md5), instead)
    return path


def _read_archive(archive: Path, part: str, place: Path) -> tuple[Array, Array, Array]:
    """Read an archive by way of a folder beside `place`."""
    try:
        with _scratch_folder(place) as scratch:
            with disk_errors_named(scratch, CACHE_SETTING):
                extract_archive(str(archive), str(scratch))
            return _read_batches(scratch / CIFAR10.base_folder, part, archive)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise _damage_error(archive, str(error)) from error


def _read_folder(folder: Path, part: str, place: Path) -> tuple[Array, Array, Array]:
    """Read a folder of batch files by way of a copy that only its user can change: what is checked is what is opened.

    The files are pickles, and others may be able to exchange them between the check and the reading.
    """
    with _scratch_folder(place) as scratch:
        for name, _ in _list_batches(*PARTS):
            try:
                data = (folder / name).read_bytes()
            except OSError as error:
                raise _unreadable_error(folder / name, error) from error
            with disk_errors_named(scratch, CACHE_SETTING):
                (scratch / name).write_bytes(data)
        return _read_batches(scratch, part, folder)


@contextlib.contextmanager
def _scratch_folder(place: Path) -> Iterator[Path]:
    """A folder beside `place`, for this user and this process alone, which goes at the end."""
    tidy_folder(place.parent, of=place.name, alone=True)
    scratch = mark_name(place, TEMPORARY)
    with disk_errors_named(scratch, CACHE_SETTING):
        scratch.parent.mkdir(parents=True, exist_ok=True)
        scratch.mkdir(mode=0o700)
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _read_batches(folder: Path, part: str, origin: Path) -> tuple[Array, Array, Array]:
    """Read with torchvision, which asks for the files of both parts. They are pickles: none is opened unchecked.

    Args:
        folder: where they lie.
        part: train or test.
        origin: what they were copied from; named in errors.
    """
    for name, md5 in _list_batches(*PARTS):
        _check_md5(folder / name, md5, origin / name)
    try:
        batches = _BatchFiles(folder, train=part == "train")
    except (OSError, RuntimeError) as error:
        raise _damage_error(origin, str(error)) from error
    return batches.data, np.array(batches.targets, dtype=np.uint8), np.array(batches.classes)


# -- what can be wrong with a file ------------------------------------------------------------------------------------


def _hash_file(path: Path) -> str:
    try:
        return str(calculate_md5(path))
    except OSError as error:
        raise _unreadable_error(path, error) from error


def _check_md5(path: Path, md5: str, origin: Path | None = None) -> None:
    """Refuse a file, or a copy of `origin`, that has another md5."""
    found = _hash_file(path)
    if found != md5:
        raise _damage_error(origin or path, f"its md5 is {found}, not {md5}")


def _unreadable_error(path: Path, error: OSError) -> DataError:
    where, why = os.path.abspath(path), name_reason(error)
    return DataError("cannot read the file", where=where, why=why, remedy=name_remedy(error))


def _missing_error(source: str, path: Path) -> DataError:
    remedy = "put it there, or set --data.download true"
    return DataError(f"a file of {source} is missing", where=str(path), remedy=remedy)


def _damage_error(path: Path, why: str) -> DataError:
    remedy = "get it again, or leave it out and set --data.download true"
    return DataError("damaged file", where=str(path), why=why, remedy=remedy)


_FINDERS: dict[str, Callable[[str, Path | None, Path, bool], _Files]] = {
    "cifar10": _find_cifar10,
    "fashion_mnist": _find_fashion_mnist,
}


# -- as a source ------------------------------------------------------------------------------------------------------


def _list_split(options: SourceOptions, key: str, classes: tuple[str, ...] | None) -> SampleIndex:
    check_part(options, key, PARTS)
    part, cache_dir = options.parts[key], options.rules.cache_dir
    return array_index(options.name, part, root=options.root, cache_dir=cache_dir, download=options.download)


def _check(options: SourceOptions) -> None:
    for key in options.parts:
        check_part(options, key, PARTS)


def _count_classes(options: SourceOptions) -> tuple[int | None, str]:
    return 10, f"source {options.name}"


SOURCE = Source(list_split=_list_split, check=_check, find_root=find_no_root, count_classes=_count_classes)
