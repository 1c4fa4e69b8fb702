"""Pictures of an archive and their labels: from a .cls or .json beside each, or the folder that it lies in.

webdataset's rule: the members of a sample have one name up to its first dot, which is their key.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from alexnet_dist.base.durable import parse_json
from alexnet_dist.base.errors import DataError
from alexnet_dist.base.text import join_names
from alexnet_dist.data.sources.folders import IMAGE_EXTENSIONS
from alexnet_dist.data.sources.layouts import SETS
from alexnet_dist.data.sources.tar_members import INNER, Member

Kind: TypeAlias = Literal["cls", "json", "folder", "none"]
"""Where labels are; none: not in the archives."""

JSON_KEYS = ("label", "cls", "class", "class_id", "class_name", "target")
_MOST_BYTES = {"cls": 2**10, "json": 2**20}


class Row(NamedTuple):
    """A picture of an archive."""

    name: str  # of the member
    offset: int
    byte_size: int
    label: str  # as written; "" without one
    reason: str  # why it is no picture with a label, or ""


def find_kind(parts: Sequence[Sequence[Member]]) -> Kind:
    """How the labels of a set are to be found, by what its archives have."""
    names = [member.name for members in parts for member in members]
    pictures = [name for name in names if name.lower().endswith(IMAGE_EXTENSIONS)]
    if any(name.lower().endswith(".cls") for name in names):
        return "cls"
    is_flat = any("/" not in name.replace(INNER, "/") for name in pictures)
    return "json" if is_flat and any(name.lower().endswith(".json") for name in names) else "folder"


def pair_members(path: Path, members: Sequence[Member], kind: Kind, json_key: str) -> list[Row]:
    """The pictures of an archive with their labels as written, in the archive's order.

    Args:
        path: of the archive.
        members: what lies in it.
        kind: how labels are found; the one of `folder` is the member's name, see `strip_folders`.
        json_key: of the label in a .json; "" = one of the usual ones.

    Raises:
        DataError: a name stands twice, two pictures have one key, or the archive cannot be read.
    """
    seen: set[str] = set()
    for member in members:
        if member.name in seen:
            where, remedy = f"{path}!{member.name}", "write the archive again"
            raise DataError("a name stands twice in an archive", where=where, remedy=remedy)
        seen.add(member.name)
    pictures = [member for member in members if member.name.lower().endswith(IMAGE_EXTENSIONS)]
    if kind in ("folder", "none"):
        return [Row(*member, label="", reason="") for member in pictures]
    of_key = _choose_pictures(path, pictures)
    ending = f".{kind}"
    labels = {split_key(member.name)[0]: member for member in members if split_key(member.name)[1].lower() == kind}
    rows = []
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            for key, picture in of_key.items():
                if key not in labels:
                    rows.append(Row(*picture, label="", reason=f"it has no label: no member {key}{ending}"))
                    continue
                text, reason = _read_label(descriptor, labels[key], kind, json_key)
                rows.append(Row(*picture, label=text, reason=reason))
        finally:
            os.close(descriptor)
    except OSError as error:
        raise DataError("cannot read the archive", where=str(path), why=error.strerror or str(error)) from error
    orphans = (labels[key] for key in labels.keys() - of_key.keys())
    lost = [Row(member.name, 0, 0, "", "a label without a picture") for member in orphans]
    return rows + sorted(lost)


def split_key(name: str) -> tuple[str, str]:
    """The key and the ending of a member: its name is cut at the first dot behind its folders."""
    head, slash, tail = name.rpartition("/")
    inner, mark, tail = tail.rpartition(INNER)
    key, _, ending = tail.partition(".")
    return head + slash + inner + mark + key, ending


def _choose_pictures(path: Path, pictures: Sequence[Member]) -> dict[str, Member]:
    """The picture of each key: KEY.jpg comes before KEY.mask.png."""
    of_key: dict[str, Member] = {}
    for member in pictures:
        key, ending = split_key(member.name)
        first = of_key.setdefault(key, member)
        if first is member:
            continue
        before = split_key(first.name)[1]
        if ("." in before) == ("." in ending):
            why = f"'{first.name}' and '{member.name}'"
            remedy = "write the archive again, with a key for each picture"
            raise DataError("two pictures with one key", where=str(path), why=why, remedy=remedy)
        if "." in before:
            of_key[key] = member
    return of_key


def _read_label(descriptor: int, member: Member, kind: Kind, json_key: str) -> tuple[str, str]:
    """A label as written, and why there is none."""
    if member.byte_size > _MOST_BYTES[kind]:
        return "", f"its label has {member.byte_size:,} bytes"
    data = os.pread(descriptor, member.byte_size, member.offset)
    try:
        text = data.decode("utf-8").strip() if kind == "cls" else _find_value(parse_json(data), json_key)
    except (ValueError, KeyError) as error:
        return "", f"its label cannot be read: {error.args[0] if error.args else error}"
    if not text or "\0" in text or "\n" in text:
        return "", "its label is empty" if not text else "its label is no line of text"
    return text, ""


def _find_value(value: Any, json_key: str) -> str:
    """The label in a sample's JSON."""
    if not isinstance(value, dict):
        raise ValueError("no JSON object")
    keys = [key for key in ((json_key,) if json_key else JSON_KEYS) if key in value]
    if not keys:
        raise ValueError(f"no {json_key or JSON_KEYS[0]!r} among {join_names(list(value))}; set data.columns.label")
    found = value[keys[0]]
    if isinstance(found, bool) or not isinstance(found, (str, int)):
        raise ValueError(f"{keys[0]!r} is {type(found).__name__}, not a name or an integer")
    return str(found).strip()


def strip_folders(names: Sequence[str], folder: str, where: str) -> list[str]:
    """Names of members below the folder that holds the classes; a tar within a tar is a folder.

    Args:
        names: of all pictures of a set.
        folder: that holds the classes; "" = the one that all have in common, above their class.
        where: for the message.

    Raises:
        DataError: the folders are those of sets, and not of classes.
    """
    inside = [name.replace(INNER, "/") for name in names]
    if folder:
        return [name[len(folder) + 1 :] for name in inside]
    while (
        inside and all(name.count("/") > 1 for name in inside) and len({name.split("/", 1)[0] for name in inside}) == 1
    ):
        inside = [name.split("/", 1)[1] for name in inside]
    tops = {name.split("/", 1)[0] for name in inside if "/" in name}
    if "train" in tops and len(tops) > 1 and tops <= SETS:
        above = names[0].replace(INNER, "/").removesuffix(inside[0])
        why = f"it holds {', '.join(sorted(tops))}"
        remedy = f"name the folder: --data.train 'ARCHIVE!{above}train'"
        raise DataError("folders of sets where classes should be", where=where, why=why, remedy=remedy)
    return inside
