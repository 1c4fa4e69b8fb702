"""Whole indices, kept as arrays: an index of a million pictures of archives is there in a second.

What is kept is mapped into memory, and so are its copies in decoding processes: the pictures' names and places are in
a machine's memory once.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from alexnet_dist.base.durable import tidy_folder
from alexnet_dist.base.progress import phase
from alexnet_dist.data.files.containers import Containers
from alexnet_dist.data.files.index_files import FileRules, warn_about_classes
from alexnet_dist.data.files.names import Names
from alexnet_dist.data.files.scan import hash_place
from alexnet_dist.data.files.sealed import Arrays, read_arrays, write_arrays
from alexnet_dist.data.files.verify import read_verdicts
from alexnet_dist.data.index import SampleIndex

logger = logging.getLogger("alexnet_dist")

_TITLE = "alexnet_dist index 2"  # the number changes when the meaning of an array does
_SUFFIX = ".set"


def make_once(
    rules: FileRules, root: Path, stem: str, facts: object, make: Callable[[], SampleIndex], name: Path
) -> SampleIndex:
    """The index that is kept of a set in its present state, or a new one, which is then kept.

    Processes that ask at once wait for the one that makes it. An index with bad files is not kept, nor is one of
    pictures that lie in files of their own.

    Args:
        rules: how pictures are looked at; they say where it is kept.
        root: of the index.
        stem: tells the set from others of the same root.
        facts: what the index depends on beside the rules, by its `repr`.
        make: gives a new one.
        name: of the set, for messages.
    """
    if read_verdicts(root, rules.cache_dir):
        return make()
    state = hashlib.sha256(repr((facts, rules.max_pixels)).encode("utf-8", "surrogateescape")).hexdigest()
    folder = find_folder(rules.cache_dir, root)
    place = folder / f"{stem}-{state[:12]}{_SUFFIX}"
    index = _recall(place, root)
    if index is None:
        with _held(folder / f".{stem}.lock", rules.progress):
            index = _recall(place, root)  # another process has made it while this one waited
            if index is None:
                return _make(place, stem, root, make)
    warn_about_classes(index, name)
    return index


def find_folder(cache_dir: Path, root: Path) -> Path:
    """Where lists of the pictures in archives below a root are kept."""
    return cache_dir / "archives" / hash_place(root)


def _make(place: Path, stem: str, root: Path, make: Callable[[], SampleIndex]) -> SampleIndex:
    """A new index; from where it is kept, if it is: there it takes less memory."""
    index, folder = make(), place.parent
    if index.containers is not None and not index.bad_files:
        try:
            for other in folder.glob(f"{stem}-*{_SUFFIX}"):  # of files that are no more as they were
                other.unlink(missing_ok=True)
            tidy_folder(folder)
            write_arrays(place, _TITLE, _list_arrays(index))
        except OSError as error:
            logger.debug("the index is not kept (%s): %s", place, error)
    return _recall(place, root) or index


@contextlib.contextmanager
def _held(path: Path, shown: bool) -> Iterator[None]:
    """Keep other processes from a set, as far as anything can be written there."""
    lock = FileLock(path)
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                with phase(f"another process lists the same pictures ({path.parent})", shown):
                    lock.acquire()
            stack.callback(lock.release)
        yield


def _list_arrays(index: SampleIndex) -> Arrays:
    places = index.containers
    assert places is not None
    names = {"paths": index.paths, "classes": Names.of(index.classes), "containers": Names.of(places.names)}
    return {
        **{name: each.blob for name, each in names.items()},
        **{f"{name}_ends": each.ends for name, each in names.items()},
        "labels": index.labels,
        "sizes": index.sizes,
        "byte_sizes": index.byte_sizes,
        "is_plain": index.is_plain,
        "newest_ns": np.array([index.newest_ns], np.int64),
        "fingerprint": Names.of([index.fingerprint()]).blob,
        "container_sizes": places.byte_sizes,
        "container_times": places.modified_ns,
        "numbers": places.numbers,
        "offsets": places.offsets,
    }


def _recall(path: Path, root: Path) -> SampleIndex | None:
    """The index that is kept in a file, or None."""
    arrays = read_arrays(path, _TITLE)
    if arrays is None:
        return None
    facts = ("container_sizes", "container_times", "numbers", "offsets")
    paths, classes, containers = (
        Names(arrays[name], arrays[f"{name}_ends"]) for name in ("paths", "classes", "containers")
    )
    index = SampleIndex(
        root=root,
        paths=paths,
        labels=arrays["labels"],
        sizes=arrays["sizes"],
        byte_sizes=arrays["byte_sizes"],
        is_plain=arrays["is_plain"],
        classes=tuple(classes),
        newest_ns=int(arrays["newest_ns"][0]),
        containers=Containers(tuple(containers), *(arrays[name] for name in facts)),
    )
    index.know_fingerprint(Names.joined(arrays["fingerprint"])[0])
    return index
