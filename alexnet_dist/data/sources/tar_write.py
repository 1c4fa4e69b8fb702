"""Pictures as WebDataset shards: what source tar, webdataset's own reader and DALI's read alike.

A sample is two or three members with one key: the picture as it was, the position of its class in KEY.cls, and what is
known of it in KEY.json. The key is the path of the picture without its ending. The same pictures, seed and size give
the same bytes.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from alexnet_dist.base.durable import disk_errors_named, format_json, replacing
from alexnet_dist.base.errors import DataError
from alexnet_dist.base.progress import Progress
from alexnet_dist.data.decode import UnreadableImageError
from alexnet_dist.data.index import SampleIndex
from alexnet_dist.data.sources.folders import IMAGE_EXTENSIONS

_BLOCK = 512  # bytes of a header, and what the bytes of a member are filled up to
_READ_AT_ONCE = 64
_NUM_THREADS = 8
_BEGINNINGS = {b"\xff\xd8": "jpg", b"\x89P": "png", b"GI": "gif", b"BM": "bmp", b"RI": "webp"}


@dataclass(frozen=True)
class Shard:
    """A tar that is to be written: its name, and which samples it holds, in this order."""

    name: str
    samples: tuple[int, ...]


def plan_shards(index: SampleIndex, name: str, seed: int, shard_bytes: int, has_json: bool) -> list[Shard]:
    """Which sample goes into which shard: all of them in a random order, cut where a shard is full.

    Args:
        index: the samples.
        name: of the set; shards are called NAME-0000.tar and so on.
        seed: of the order.
        shard_bytes: a shard has no more pictures than fit, and one at least.
        has_json: whether each has a KEY.json, too.
    """
    order = np.random.default_rng(seed).permutation(len(index)).tolist()
    groups: list[list[int]] = [[]]
    filled = 0
    for sample in order:
        size = _count_sample(int(index.byte_sizes[sample]), has_json)
        if groups[-1] and filled + size > shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(sample)
        filled += size
    digits = max(4, len(str(len(groups) - 1)))
    return [Shard(f"{name}-{number:0{digits}d}.tar", tuple(group)) for number, group in enumerate(groups)]


def count_bytes(index: SampleIndex, has_json: bool) -> int:
    """Bytes that the shards of a set take, about."""
    return sum(_count_sample(size, has_json) for size in index.byte_sizes.tolist())


def _count_sample(size: int, has_json: bool) -> int:
    """A picture, a label, and the headers of both; what is known of it with its header."""
    return (-(-size // _BLOCK) + 4 + (2 if has_json else 0)) * _BLOCK


def write_shards(
    index: SampleIndex, shards: Sequence[Shard], out: Path, labels: Sequence[str], bar: Progress
) -> list[int]:
    """Write shards, each whole or not at all; the bytes of each.

    Args:
        index: the samples.
        shards: see `plan_shards`.
        out: folder for them.
        labels: what lies beside a picture: cls, json or both.
        bar: shows how far it is.

    Raises:
        DataError: a picture that cannot be read any more.
        MachineError: the disk is full, or the folder cannot be written.
    """
    keys, sizes = name_samples(index), []
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        for shard in shards:
            path = out / shard.name
            with (
                disk_errors_named(path, "out"),
                replacing(path) as file,
                tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar,
            ):
                for sample, data in _read_all(index, shard.samples, pool):
                    for name, content in _make_members(index, sample, keys[sample], data, labels):
                        info = tarfile.TarInfo(name)
                        info.size = len(content)
                        tar.addfile(info, io.BytesIO(content))
                    bar.advance()
            sizes.append(path.stat().st_size)
    return sizes


def _read_all(index: SampleIndex, samples: Sequence[int], pool: ThreadPoolExecutor) -> Iterator[tuple[int, bytes]]:
    """The bytes of samples, some at once, in order."""
    for start in range(0, len(samples), _READ_AT_ONCE):
        some = samples[start : start + _READ_AT_ONCE]
        yield from zip(some, pool.map(lambda sample: _read(index, sample), some), strict=True)


def _read(index: SampleIndex, sample: int) -> bytes:
    try:
        if index.containers is None:
            return Path(index.locate(sample)).read_bytes()
        return index.containers.read(index.root, sample, int(index.byte_sizes[sample]))
    except (OSError, UnreadableImageError) as error:
        why = getattr(error, "strerror", None) or str(error)
        where, remedy = index.locate(sample), "run the same command again with --overwrite"
        raise DataError("cannot read a picture", where=where, why=why, remedy=remedy) from error


def _make_members(
    index: SampleIndex, sample: int, key: str, data: bytes, labels: Sequence[str]
) -> Iterator[tuple[str, bytes]]:
    label = int(index.labels[sample])
    yield f"{key}.{_find_ending(index.paths[sample], data)}", data
    if "cls" in labels:
        yield f"{key}.cls", str(label).encode()
    if "json" in labels:
        facts: dict[str, Any] = {"label": label, "class_name": index.classes[label], "path": index.paths[sample]}
        yield f"{key}.json", format_json(facts, f"{key}.json").encode()


def name_samples(index: SampleIndex) -> list[str]:
    """A key for each sample, so that what is read from the shards has the order of the index.

    That is by class, then by name. Keys lack the dots of names, and may be sorted otherwise: a.b.jpg comes before
    a0.jpg, and a_b.jpg behind it. Then all keys begin with the sample's number.
    """
    keys, labels = name_keys(index.paths), index.labels.tolist()
    names = [key + _known_ending(path) for key, path in zip(keys, index.paths, strict=True)]
    pairs = zip(pairwise(labels), pairwise(names), strict=True)
    if all(label != next_label or name < next_name for (label, next_label), (name, next_name) in pairs):
        return keys
    flat = str.maketrans("/.", "-_")
    return [f"{number:08d}-{key.translate(flat)}" for number, key in enumerate(keys)]


def name_keys(paths: Iterable[str]) -> list[str]:
    """A key for each path: without its ending, without dots in its last name, and no two alike.

    A key ends at the first dot of a member's last name, so a dot in it would cut it short.
    """
    keys: list[str] = []
    taken: set[str] = set()
    for path in paths:
        inner = path.rpartition("!")[2]  # of an archive
        *folders, base = [part for part in inner.split("/") if part not in ("", ".", "..")] or ["picture"]
        stem = base[: -len(ending)] if (ending := _known_ending(base)) else base
        plain = "/".join([*folders, stem.replace(".", "_") or "picture"])
        key, number = plain, 2
        while key in taken:
            key, number = f"{plain}-{number}", number + 1
        taken.add(key)
        keys.append(key)
    return keys


def _known_ending(name: str) -> str:
    return next((ending for ending in IMAGE_EXTENSIONS if name.lower().endswith(ending)), "")


def _find_ending(path: str, data: bytes) -> str:
    """What a picture's member ends in: as its path does, or as its first bytes say."""
    return _known_ending(path).removeprefix(".") or _BEGINNINGS.get(data[:2], "jpg")
