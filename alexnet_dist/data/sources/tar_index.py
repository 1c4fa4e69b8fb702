"""The pictures of a set of archives: listed once, in parallel, and kept in the cache folder or beside the archives.

A kept list is one file: a line with a checksum, then arrays in safetensors' format. It is written whole and renamed.
An archive with another size or time than when it was listed is listed anew, and so is every one after a damage.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from alexnet_dist.base.durable import disk_errors_named, tidy_folder
from alexnet_dist.base.errors import DataError, MachineError
from alexnet_dist.base.progress import Progress
from alexnet_dist.data.files.containers import Containers
from alexnet_dist.data.files.index_files import FileRules
from alexnet_dist.data.files.kept_index import find_folder
from alexnet_dist.data.files.names import Names
from alexnet_dist.data.files.scan import FileSet, FoundFile, Header, read_headers
from alexnet_dist.data.files.sealed import read_arrays, write_arrays
from alexnet_dist.data.sources.tar_labels import Kind, Row, find_kind, pair_members
from alexnet_dist.data.sources.tar_members import INNER, Contents, Member, list_inner, list_members
from alexnet_dist.data.sources.tar_wds import begins_a_picture, read_wds_index

logger = logging.getLogger("alexnet_dist")

_TITLE = "alexnet_dist archives 2"  # the number changes when the meaning of an array does
_SUFFIX = ".index"
_NUM_THREADS = min(32, 4 * (os.cpu_count() or 1))  # reading headers waits for the disk or the network
_SPOT_CHECKS = 16

Ints: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ArchiveSet:
    """Which archives, and how the labels of their pictures are found.

    Args:
        root: folder that the archives' names are relative to.
        names: of the archives, POSIX.
        folder: below which members count, "" = all.
        labels: cls, json, folder or none; None = what the archives have.
        json_key: of the label in a .json; "" = one of the usual ones.
    """

    root: Path
    names: tuple[str, ...]
    folder: str = ""
    labels: Kind | None = None
    json_key: str = ""

    @property
    def stem(self) -> str:
        """Tells the set from others: the same wherever the archives lie."""
        facts = "\0".join([self.folder, str(self.labels), self.json_key, *self.names])
        return f"archives-{hashlib.sha256(os.fsencode(facts)).hexdigest()[:12]}"

    @property
    def file_name(self) -> str:
        """Of the kept list."""
        return self.stem + _SUFFIX

    def look_up(self) -> list[tuple[int, int]]:
        """Bytes and time of change of each archive.

        Raises:
            DataError: one cannot be looked up.
        """
        return [_look_up(self.root / name) for name in self.names]


@dataclass(frozen=True, eq=False)
class Listing:
    """The N pictures of K archives.

    Args:
        names: (K,) of the archives.
        byte_sizes: (K,) of the archives.
        modified_ns: (K,) of the archives.
        bounds: (K + 1,) first picture of each archive, and N.
        rows: (N,) the pictures.
        sizes: (N, 2) upright width and height; 0 where no header was read.
        is_plain: (N,) see `ImageHeader`.
        kind: how their labels were found.
        is_whole: no archive is damaged.
    """

    names: tuple[str, ...]
    byte_sizes: Ints
    modified_ns: Ints
    bounds: Ints
    rows: list[Row]
    sizes: npt.NDArray[np.int32]
    is_plain: npt.NDArray[np.bool_]
    kind: Kind
    is_whole: bool = True

    @property
    def numbers(self) -> npt.NDArray[np.int32]:
        """(N,) the archive of each picture."""
        return np.repeat(np.arange(len(self.names), dtype=np.int32), np.diff(self.bounds))

    def list_files(self) -> list[FoundFile]:
        """(N,) the pictures by the names that messages have for them: ARCHIVE!MEMBER."""
        numbers, times = self.numbers.tolist(), self.modified_ns.tolist()
        return [
            FoundFile(f"{self.names[number]}!{row.name}", row.byte_size, times[number])
            for number, row in zip(numbers, self.rows, strict=True)
        ]

    def place(self, positions: Sequence[int]) -> Containers:
        """Where some of the pictures lie; -1 stands for one that is nowhere."""
        offsets = np.array([row.offset for row in self.rows], np.int64)
        return Containers(self.names, self.byte_sizes, self.modified_ns, self.numbers[positions], offsets[positions])


def list_pictures(wanted: ArchiveSet, rules: FileRules) -> tuple[Listing, list[Header]]:
    """The pictures of a set of archives with their headers, from what is kept of them as far as it is true.

    Raises:
        DataError: an archive is damaged under `on_bad_file: fail`, or is none; or a name stands twice in one.
    """
    facts = wanted.look_up()
    place = find_folder(rules.cache_dir, wanted.root) / wanted.file_name
    kept = _read_kept(place) or _read_beside(wanted)
    is_same = kept is not None and kept.names == wanted.names and _list_facts(kept) == facts
    listing = kept if kept is not None and is_same else _list_again(wanted, facts, kept, rules)
    listing, headers = _read_headers(wanted, listing, rules)
    if listing is not kept and listing.is_whole:
        tidy_folder(place.parent)
        try:
            write_listing(place, listing)
        except OSError as error:
            logger.debug("the list of archives is not kept (%s): %s", place, error)
    return listing, headers


def _list_again(
    wanted: ArchiveSet, facts: Sequence[tuple[int, int]], kept: Listing | None, rules: FileRules
) -> Listing:
    """What is kept of archives that are as they were, and the others listed anew."""
    known = {} if kept is None else _find_unchanged(wanted, kept, facts)
    new = [number for number in range(len(facts)) if number not in known]
    listed, kind, damage = _list_new(wanted, new, kept.kind if known and kept is not None else None, rules.progress)
    if damage and rules.on_bad_file == "fail":
        where, why = damage[0]
        why += f" ... and {len(damage) - 1} more archives" if len(damage) > 1 else ""
        remedy = "fetch it again, or set data.on_bad_file: skip to use what can be read"
        raise DataError("a damaged archive", where=where, why=why, remedy=remedy)
    for where, why in damage:
        logger.warning("%s is damaged, and what follows is not read: %s", where, why)
    parts, sizes, plain = [], [], []
    for number in range(len(facts)):
        if number in known and kept is not None:
            parts.append(kept.rows[known[number]])
            sizes.append(kept.sizes[known[number]])
            plain.append(kept.is_plain[known[number]])
        else:
            parts.append(listed[number])
            sizes.append(np.zeros((len(parts[-1]), 2), np.int32))
            plain.append(np.zeros(len(parts[-1]), np.bool_))
    return Listing(
        wanted.names,
        np.array([size for size, _ in facts], np.int64),
        np.array([modified_ns for _, modified_ns in facts], np.int64),
        np.cumsum([0, *map(len, parts)], dtype=np.int64),
        [row for part in parts for row in part],
        np.concatenate(sizes),
        np.concatenate(plain),
        kind,
        is_whole=not damage,
    )


def _read_headers(wanted: ArchiveSet, listing: Listing, rules: FileRules) -> tuple[Listing, list[Header]]:
    """The headers of all pictures, and the list with those that it lacked; unreadable ones are read at each start."""
    known, plain = listing.sizes.tolist(), listing.is_plain.tolist()
    headers = [Header(width, height, is_plain) for (width, height), is_plain in zip(known, plain, strict=True)]
    too_many = listing.sizes.astype(np.int64).prod(axis=1) > rules.max_pixels
    is_row = np.array([not row.reason for row in listing.rows], np.bool_)
    positions = np.flatnonzero(((listing.sizes[:, 0] == 0) | too_many) & is_row).tolist()
    if not positions:
        return listing, headers
    files = listing.list_files()
    images = FileSet(wanted.root, files, containers=listing.place(range(len(files))))
    sizes, is_plain = listing.sizes.copy(), listing.is_plain.copy()
    for position, header in zip(
        positions, read_headers(images, positions, rules.max_pixels, rules.progress), strict=True
    ):
        headers[position] = header
        if not header.reason:
            sizes[position], is_plain[position] = header[:2], header.is_plain
    if (sizes == listing.sizes).all():
        return listing, headers
    return replace(listing, sizes=sizes, is_plain=is_plain), headers


def write_listing(path: Path, listing: Listing) -> None:
    """Keep a list of pictures in a file.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    rows = listing.rows
    arrays: dict[str, npt.NDArray[Any]] = {
        "byte_sizes": listing.byte_sizes,
        "modified_ns": listing.modified_ns,
        "bounds": listing.bounds,
        "offsets": np.array([row.offset for row in rows], np.int64),
        "lengths": np.array([row.byte_size for row in rows], np.int64),
        "sizes": listing.sizes,
        "is_plain": listing.is_plain,
        "archives": Names.of(listing.names).blob,
        "names": Names.of(row.name for row in rows).blob,
        "labels": Names.of(row.label for row in rows).blob,
        "reasons": Names.of(row.reason for row in rows).blob,
        "kind": Names.of([listing.kind]).blob,
    }
    write_arrays(path, _TITLE, arrays)


def _read_kept(path: Path) -> Listing | None:
    """What `write_listing` wrote; None where it is missing, damaged or of another version."""
    arrays = read_arrays(path, _TITLE)
    if arrays is None:
        return None
    texts = {key: Names.joined(arrays[key]) for key in ("archives", "names", "labels", "reasons", "kind")}
    places = arrays["offsets"].tolist(), arrays["lengths"].tolist()
    rows = list(map(Row, texts["names"], *places, texts["labels"], texts["reasons"]))
    names, kind = tuple(texts["archives"]), texts["kind"][0]
    bounds, facts = arrays["bounds"], (arrays["byte_sizes"], arrays["modified_ns"])
    headers = arrays["sizes"], arrays["is_plain"]
    is_sound = {len(names), len(facts[0]), len(facts[1])} == {len(bounds) - 1} and {*map(len, headers)} == {len(rows)}
    is_sound &= bounds[0] == 0 and bounds[-1] == len(rows) and bool((np.diff(bounds) >= 0).all())
    return Listing(names, *facts, bounds, rows, *headers, kind) if is_sound else None  # type: ignore[arg-type]


def _list_facts(listing: Listing) -> list[tuple[int, int]]:
    """Bytes and time of change of each archive when it was listed."""
    return list(zip(listing.byte_sizes.tolist(), listing.modified_ns.tolist(), strict=True))


def _read_beside(wanted: ArchiveSet) -> Listing | None:
    """The list that `prepare index --out` has put into the archives' root, whose times are not those of a copy.

    It counts for an archive of the same size in which some members are where the list says.
    """
    listing = _read_kept(wanted.root / wanted.file_name)
    if listing is None or listing.names != wanted.names:
        return None
    modified_ns = listing.modified_ns.copy()
    for number, name in enumerate(listing.names):
        size, now = _look_up(wanted.root / name)
        part = listing.rows[listing.bounds[number] : listing.bounds[number + 1]]
        if size == listing.byte_sizes[number] and _fits(wanted.root / name, size, part):
            modified_ns[number] = now
        else:
            logger.warning("%s does not fit %s, which is listed anew", wanted.file_name, name)
    return replace(listing, modified_ns=modified_ns)


def _fits(path: Path, size: int, rows: Sequence[Row]) -> bool:
    """Whether some of the pictures lie in an archive where a list says, as far as their first bytes tell."""
    if any(row.offset < 0 or row.byte_size < 0 or row.offset + row.byte_size > size for row in rows):
        return False
    some = [row for row in rows if not row.reason and row.byte_size]
    picked = some[:: max(1, len(some) // _SPOT_CHECKS)] + some[-1:]
    return begins_a_picture(path, [row.offset for row in picked])


def _find_unchanged(wanted: ArchiveSet, kept: Listing, facts: Sequence[tuple[int, int]]) -> dict[int, slice]:
    """Where the pictures are kept of archives that are as they were, by the archives' numbers."""
    was = _list_facts(kept)
    before = {name: (was[number], slice(*kept.bounds[number : number + 2])) for number, name in enumerate(kept.names)}
    found = {}
    for number, (name, fact) in enumerate(zip(wanted.names, facts, strict=True)):
        if name in before and before[name][0] == fact:
            found[number] = before[name][1]
    return found


def _look_up(path: Path) -> tuple[int, int]:
    """Bytes and time of change of an archive."""
    try:
        status = path.stat()
    except OSError as error:
        raise DataError("cannot read the archive", where=str(path), why=error.strerror or str(error)) from error
    return status.st_size, status.st_mtime_ns


# -- listing ----------------------------------------------------------------------------------------------------------


def _list_new(
    wanted: ArchiveSet, new: Sequence[int], kind: Kind | None, progress: bool
) -> tuple[dict[int, list[Row]], Kind, list[tuple[str, str]]]:
    """The rows of archives by their numbers, how labels were found, and what is damaged as (archive, why)."""
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        bar = Progress(f"listing archives in {wanted.root}", len(new), "archives", shown=progress)
        with bar:
            found = _map(pool, lambda number: _list_one(wanted.root / wanted.names[number]), new, bar)
        inner = [(number, *tar) for number, contents in zip(new, found, strict=True) for tar in contents.inner]
        bar = Progress(f"listing tars in {wanted.root}", len(inner), "tars", shown=progress and bool(inner))
        with bar:
            listed = _map(pool, lambda tar: list_inner(wanted.root / wanted.names[tar[0]], *tar[1:]), inner, bar)
        units = [*zip(new, found, strict=True), *((tar[0], part) for tar, part in zip(inner, listed, strict=True))]
        _say_passed(wanted, [contents for _, contents in units])
        members = [_below(wanted.folder, contents.members) for _, contents in units]
        _refuse_no_members(wanted, units, members)
        kind = wanted.labels or kind or find_kind(members)
        bar = Progress(f"reading labels in {wanted.root}", len(units), "archives", shown=progress)

        def pair(position: int) -> list[Row]:
            path = wanted.root / wanted.names[units[position][0]]
            return pair_members(path, members[position], kind, wanted.json_key)

        with bar:
            paired = _map(pool, pair, range(len(units)), bar)
    rows: dict[int, list[Row]] = {number: [] for number in new}
    for (number, _), some in zip(units, paired, strict=True):
        rows[number] += some
    damage = [(str(wanted.root / wanted.names[number]), part.damage) for number, part in units if part.damage]
    return rows, kind, damage


def _map(pool: ThreadPoolExecutor, work: Callable[[Any], Any], items: Sequence[Any], bar: Progress) -> list[Any]:
    done = []
    for result in pool.map(work, items):
        done.append(result)
        bar.advance()
    return done


def _list_one(path: Path) -> Contents:
    members = read_wds_index(path)
    return list_members(path) if members is None else Contents(members)


def _below(folder: str, members: list[Member]) -> list[Member]:
    """The members below a folder; a tar within a tar is a folder."""
    start = folder + "/"
    return [member for member in members if member.name.replace(INNER, "/").startswith(start)] if folder else members


def _refuse_no_members(
    wanted: ArchiveSet, units: Sequence[tuple[int, Contents]], members: Sequence[list[Member]]
) -> None:
    if any(members) or not units:
        return
    names = [member.name.replace(INNER, "/") for _, contents in units for member in contents.members]
    where = str(wanted.root / wanted.names[0])
    if wanted.folder and names:
        folders = sorted({os.path.dirname(os.path.dirname(name)) or os.path.dirname(name) for name in names[:10_000]})
        why = f"there is no '{wanted.folder}' in it; its folders are {', '.join(folders[:4])}"
        raise DataError("no such folder in the archive", where=where, why=why, remedy="write ARCHIVE!FOLDER")
    raise DataError("an archive without files", where=where, remedy="give archives with pictures")


def _say_passed(wanted: ArchiveSet, parts: Sequence[Contents]) -> None:
    total = sum((contents.passed for contents in parts), type(parts[0].passed)()) if parts else {}
    for what, count in sorted(total.items()):
        logger.warning("%s: %d %s passed over", wanted.root / wanted.names[0], count, what)


def write_listing_out(folder: Path, wanted: ArchiveSet, listing: Listing) -> Path:
    """Put a list of pictures into a folder, where who reads archives from there finds it.

    Raises:
        MachineError: the disk is full, or the folder cannot be written.
    """
    path = folder / wanted.file_name
    if not listing.is_whole:
        raise MachineError("a list of damaged archives is not kept", where=str(path), remedy="mend the archives")
    with disk_errors_named(path, "out"):
        write_listing(path, listing)
    return path
