"""Manifests and class lists as bytes: `read_manifest` and `read_class_list` give back what was put in."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from alexnet_dist.base.errors import DataError
from alexnet_dist.data.sources.manifest_read import is_integer

_UTF8_MARK = b"\xef\xbb\xbf"


def format_manifest(pictures: Mapping[str, Sequence[str]], classes: Sequence[str]) -> bytes:
    """A line for each picture, class by class, in the order in which they are given.

    A space separates path and label, or a TAB where one of them has white space in it. Labels are class names; where a
    name could be taken for a position, or holds a TAB, all labels are positions in the class list.

    Args:
        pictures: paths relative to data.root, by class.
        classes: all classes, in order.

    Raises:
        DataError: a path with a line break.
    """
    has_names = not any(is_integer(name) or "\t" in name for name in classes)
    labels = {name: name if has_names else str(number) for number, name in enumerate(classes)}
    lines = [_format_line(path, labels[name]) for name, paths in pictures.items() for path in paths]
    return _encode(lines)


def format_class_list(classes: Sequence[str]) -> bytes:
    """A class name a line.

    Raises:
        DataError: a name that would be another one when it is read back.
    """
    for name in classes:
        if "\n" in name or name.endswith("\r") or name != name.strip(" \t"):
            why = "it has a line break, or white space at an end"
            raise DataError(f"class {name!r} cannot stand in a class list", why=why, remedy="rename its folder")
    return _encode(classes)


def _format_line(path: str, label: str) -> str:
    if "\n" in path:
        why = "it has a line break in its name"
        raise DataError("a picture cannot stand in a manifest", where=path, why=why, remedy="rename it")
    has_space = any(character.isspace() for character in path + label)
    return f"{path}\t{label}" if has_space else f"{path} {label}"


def _encode(lines: Sequence[str]) -> bytes:
    data = b"".join(os.fsencode(line) + b"\n" for line in lines)
    return _UTF8_MARK + data if data.startswith(_UTF8_MARK) else data  # a reader takes the first one off
