"""What lies in an archive, and at which byte: tar, a tar of tars, or a zip of stored members. Nothing is extracted.

Only regular files count. Links and devices are passed over, and so are names that lead out of the archive.
"""

from __future__ import annotations

import functools
import os
import stat
import struct
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from alexnet_dist.base.disk_errors import name_reason, name_remedy
from alexnet_dist.base.errors import DataError
from alexnet_dist.data.sources.folders import is_stray

INNER = ".tar!"  # between the name of a tar within a tar and the name within that

_BLOCK = 512
_ZEROS = bytes(_BLOCK)
_MOST_HEADER_BYTES = 2**20  # of a long name, or of pax records
_EXTRA_TYPES = frozenset({b"L", b"K", b"x", b"g", b"X"})  # what they hold belongs to the next header
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # of a zip's member: mark, bytes of its name, bytes of its extra field
_PACKED = {
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"BZh": ("bzip2", "bunzip2"),
    b"\xfd7zXZ": ("xz", "unxz"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"),
}


class Member(NamedTuple):
    """A regular file in an archive."""

    name: str  # POSIX; within a tar of a tar INNER.tar!NAME
    offset: int  # byte of the archive where its contents begin
    byte_size: int


@dataclass
class Contents:
    """What was found in an archive.

    Args:
        members: the files.
        inner: the tars among them, as (name, first byte, byte after the last); their own members are not listed.
        passed: kinds of what is passed over, and how many.
        damage: why nothing is known of what follows the last member; "" where the archive ends as it should.
    """

    members: list[Member] = field(default_factory=list)
    inner: list[tuple[str, int, int]] = field(default_factory=list)
    passed: Counter[str] = field(default_factory=Counter)
    damage: str = ""


Read = Callable[[int, int], bytes]
"""The bytes at a place of a file: `read(number, first)`."""


def list_members(path: Path) -> Contents:
    """The members of an archive.

    Raises:
        DataError: it cannot be read, or is packed or encrypted, or is no archive.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(descriptor).st_size
            head = os.pread(descriptor, _BLOCK, 0)
            if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
                return _list_zip(path, functools.partial(os.pread, descriptor))
            _refuse_packed(path, head)
            contents = Contents()
            _walk_tar(functools.partial(os.pread, descriptor), 0, size, contents)
        finally:
            os.close(descriptor)
    except OSError as error:
        where, why = str(path), name_reason(error)
        raise DataError("cannot read the archive", where=where, why=why, remedy=name_remedy(error)) from error
    if contents.damage and not contents.members and not contents.inner:
        remedy = "give a tar, or a zip with stored members"
        raise DataError("not an archive", where=str(path), why=contents.damage, remedy=remedy)
    return contents


def list_inner(path: Path, name: str, first: int, end: int) -> Contents:
    """The members of a tar within a tar.

    Raises:
        DataError: the archive cannot be read.
    """
    contents = Contents()
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _walk_tar(functools.partial(os.pread, descriptor), first, end, contents, name + "!")
        finally:
            os.close(descriptor)
    except OSError as error:
        where, why = str(path), name_reason(error)
        raise DataError("cannot read the archive", where=where, why=why, remedy=name_remedy(error)) from error
    if contents.inner:
        contents.passed["tars within a tar of a tar"] += len(contents.inner)
    if contents.damage:
        contents.damage = f"{name}: {contents.damage}"
    return contents


def read_header(read: Read, offset: int) -> tarfile.TarInfo | None:
    """What the header before a member's contents says; None where none is."""
    try:
        return tarfile.TarInfo.frombuf(read(_BLOCK, offset - _BLOCK), "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return None


def is_end(read: Read, member: Member) -> bool:
    """Whether a tar ends behind a member."""
    return read(_BLOCK, _pad(member.offset + member.byte_size)) == _ZEROS


def clean_name(name: str) -> str:
    """A member's name without `.` folders; "" for one that leads out of the archive."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    return "" if name.startswith("/") or ".." in parts or "\0" in name else "/".join(parts)


def _pad(position: int) -> int:
    return -(-position // _BLOCK) * _BLOCK


def _take(contents: Contents, name: str, member: Member, prefix: str) -> None:
    """Add a regular file, unless its name says that it is none of the user's."""
    if not name:
        contents.passed["names that lead out of the archive"] += 1
    elif any(map(is_stray, name.split("/"))):
        return
    elif name.lower().endswith(".tar"):
        contents.inner.append((prefix + name, member.offset, member.offset + member.byte_size))
    else:
        contents.members.append(member._replace(name=prefix + name))


# -- tar --------------------------------------------------------------------------------------------------------------


def _walk_tar(read: Read, start: int, end: int, contents: Contents, prefix: str = "") -> None:
    """Go from header to header. tarfile's own walk reads and keeps much more, and takes 30 times as long."""
    position, name, records = start, "", {}
    while position + _BLOCK <= end:
        block = read(_BLOCK, position)
        if block == _ZEROS:
            return
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError:
            contents.damage = f"no header at byte {position:,}"
            return
        first = position + _BLOCK
        if info.type in _EXTRA_TYPES:
            if not 0 <= info.size <= _MOST_HEADER_BYTES:
                contents.damage = f"a name of {info.size:,} bytes at byte {position:,}"
                return
            data = read(info.size, first)
            if info.type == tarfile.GNUTYPE_LONGNAME:
                name = data.rstrip(b"\0").decode("utf-8", "surrogateescape")
            elif info.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
                records = _read_records(data)
            position = first + _pad(info.size)
            continue
        found, size = records.get("path") or name or info.name, _read_size(records, info.size)
        is_sparse = info.type == tarfile.GNUTYPE_SPARSE or any(key.startswith("GNU.sparse") for key in records)
        name, records = "", {}
        while info.type == tarfile.GNUTYPE_SPARSE and block[482 if first == position + _BLOCK else 504]:
            block, first = read(_BLOCK, first).ljust(_BLOCK, b"\0"), first + _BLOCK
        has_data = info.isreg() or info.type not in tarfile.SUPPORTED_TYPES
        position = first + (_pad(size) if has_data else 0)
        if has_data and first + size > end:
            contents.damage = f"cut short: '{found}' ends at byte {first + size:,} of {end:,}"
            return
        if info.isreg() and not is_sparse:
            _take(contents, clean_name(found), Member("", first, size), prefix)
        elif not info.isdir():
            contents.passed["links, devices and sparse files"] += 1
    contents.damage = "cut short: it has no end mark"


def _read_records(data: bytes) -> dict[str, str]:
    """pax records: `LENGTH KEY=VALUE` and a line's end, each."""
    records: dict[str, str] = {}
    while data:
        length, _, _ = data.partition(b" ")
        if not length.isdigit() or not len(length) < int(length) <= len(data):
            break
        key, _, value = data[len(length) + 1 : int(length) - 1].partition(b"=")
        records[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        data = data[int(length) :]
    return records


def _read_size(records: dict[str, str], otherwise: int) -> int:
    text = records.get("size", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else otherwise


def _refuse_packed(path: Path, head: bytes) -> None:
    for mark, (kind, command) in _PACKED.items():
        if head.startswith(mark):
            why = f"it is packed with {kind}, and pictures are read from anywhere in it"
            raise DataError("a packed archive", where=str(path), why=why, remedy=f"unpack it once: {command} FILE")


# -- zip --------------------------------------------------------------------------------------------------------------


def _list_zip(path: Path, read: Read) -> Contents:
    contents = Contents()
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        remedy = "copy or make it again"
        raise DataError("a damaged zip", where=str(path), why=str(error), remedy=remedy) from error
    for info in infos:
        if info.is_dir():
            continue
        if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
            contents.passed["links, devices and sparse files"] += 1
            continue
        if info.flag_bits & 1 or info.compress_type != zipfile.ZIP_STORED:
            what = "an encrypted" if info.flag_bits & 1 else "a compressed"
            why = f"'{info.filename}' is {what} member, and pictures are read as they lie there"
            raise DataError("members that are not stored", where=str(path), why=why, remedy="make it with `zip -0 -r`")
        mark, *lengths = _LOCAL_HEADER.unpack(read(_LOCAL_HEADER.size, info.header_offset).ljust(_LOCAL_HEADER.size))
        if mark != b"PK\x03\x04":
            contents.damage = f"'{info.filename}' is not where the directory says"
            break
        first = info.header_offset + _LOCAL_HEADER.size + sum(lengths)
        _take(contents, clean_name(info.filename), Member("", first, info.file_size), "")
    return contents
