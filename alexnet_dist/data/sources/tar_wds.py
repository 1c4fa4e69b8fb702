"""The index beside a shard that DALI's wds2idx writes: it is used where it fits, and passed over where it does not."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from alexnet_dist.base.durable import check_regular
from alexnet_dist.data.decode import is_known_format
from alexnet_dist.data.sources.tar_members import Member, Read, clean_name, is_end, read_header

logger = logging.getLogger("alexnet_dist")

_VERSION = "v1.2"  # the one with names
_FIELDS = 4  # extension, offset, size, name of each member
_CHECKS = 32
_NAME_BYTES = 100  # of a tar's header


def read_wds_index(path: Path) -> list[Member] | None:
    """The members of a tar by its index SHARD.idx; None where there is none, or it does not fit the tar."""
    index = path.with_suffix(".idx")
    try:
        check_regular(index)
        lines = index.read_text("utf-8", "surrogateescape").split("\n")
    except (OSError, ValueError):
        return None
    members = _read_lines(lines)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            read = functools.partial(os.pread, descriptor)
            is_good = members is not None and _fits(read, members, os.fstat(descriptor).st_size)
        finally:
            os.close(descriptor)
    except OSError:
        return None
    if not is_good:
        logger.warning("%s does not fit its archive and is passed over", index)
        return None
    return members


def _read_lines(lines: Sequence[str]) -> list[Member] | None:
    """The members that an index names, or None where it is none of this version."""
    version, _, count = lines[0].partition(" ")
    samples = [line.split(" ") for line in lines[1:] if line]
    if version != _VERSION or count != str(len(samples)):
        return None
    members = []
    for fields in samples:
        if len(fields) % _FIELDS:
            return None
        for position in range(0, len(fields), _FIELDS):
            _, offset, size, name = fields[position : position + _FIELDS]
            if not (offset.isdigit() and size.isdigit() and clean_name(name)):
                return None
            members.append(Member(clean_name(name), int(offset), int(size)))
    return members


def _fits(read: Read, members: Sequence[Member], size: int) -> bool:
    """Whether a tar has members of these names and sizes at these places: some are looked at, and what follows all."""
    if not members or any(member.offset + member.byte_size > size for member in members):
        return False
    last = max(members, key=lambda member: member.offset)
    for member in [*members[:: max(1, len(members) // _CHECKS)], last]:
        info = read_header(read, member.offset)
        if info is None or not info.isreg() or info.size != member.byte_size:
            return False
        found, wanted = (os.fsencode(name) for name in (clean_name(info.name), member.name))
        if found != wanted and not (len(wanted) > _NAME_BYTES - 2 and wanted.startswith(found[: _NAME_BYTES - 2])):
            return False
    return is_end(read, last)


def begins_a_picture(path: Path, offsets: Sequence[int]) -> bool:
    """Whether pictures begin at these bytes of a file."""
    try:
        with path.open("rb") as file:
            return all(is_known_format(os.pread(file.fileno(), 64, offset)) for offset in offsets)
    except OSError:
        return False
