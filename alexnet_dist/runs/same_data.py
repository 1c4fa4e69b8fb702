"""Whether every process sees the same images: each looks at its own machine's disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from alexnet_dist.assembly.sets import Splits
from alexnet_dist.base.errors import AlexNetDistError, DataError
from alexnet_dist.data.index import SampleIndex
from alexnet_dist.parallel.runtime import Runtime

ClassFacts = dict[str, tuple[int, str]]  # {class: (number of images, digest)}


def find_same_images(runtime: Runtime, find: Callable[[], Splits]) -> Splits:
    """What `find` gives, in the main process first; refused together where processes find different images.

    Raises:
        AlexNetDistError: whatever `find` raised in any process.
        DataError: the images differ.
    """
    splits, error = None, None
    try:
        splits = runtime.main_first(find)
    except AlexNetDistError as caught:
        error = caught
    runtime.raise_together(error)
    assert splits is not None
    check_same_images(runtime, splits)
    return splits


def check_same_images(runtime: Runtime, splits: Splits) -> None:
    """Compare the images of all processes.

    Raises:
        DataError: they differ; the line names the first difference.
    """
    if runtime.world_size == 1:
        return
    fingerprints = runtime.gather(splits.fingerprint)
    other = next((rank for rank, found in enumerate(fingerprints) if found != fingerprints[0]), None)
    if other is None:
        return
    facts = runtime.gather({name: _describe(index) for name, index in splits.named().items()})
    raise DataError(
        "the images differ between processes",
        where=f"rank 0 and rank {other}",
        why=_first_difference(facts[0], facts[other], other),
        remedy="give every machine the same files",
    )


def _describe(index: SampleIndex) -> ClassFacts:
    facts: ClassFacts = {}
    for label, name in enumerate(index.classes):
        ids = (index.labels == label).nonzero()[0]
        files = sorted(f"{index.paths[i]!r} {index.byte_sizes[i]}" for i in ids.tolist())
        facts[name] = (len(files), hashlib.sha256("\n".join(files).encode(errors="surrogateescape")).hexdigest())
    return facts


def _first_difference(ours: dict[str, ClassFacts], theirs: dict[str, ClassFacts], rank: int) -> str:
    for part in {**ours, **theirs}:
        mine, other = ours.get(part, {}), theirs.get(part, {})
        for name in {**mine, **other}:
            (count, digest), (other_count, other_digest) = mine.get(name, (0, "")), other.get(name, (0, ""))
            if count != other_count:
                return f"{part} has {count:,} images of class {name!r} on rank 0 and {other_count:,} on rank {rank}"
            if digest != other_digest:
                return f"{part} has other files, or files of other sizes, of class {name!r}"
    return "the order of the classes or the pictures' source differs"
