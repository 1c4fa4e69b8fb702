"""YAML as our files and command lines use it: the part of it that means the same to everyone.

A number is decimal. YAML 1.1 reads `010` as 8 and `1:30` as 90, YAML 1.2 and a command line do not: both are refused
where a number is wanted, and are text elsewhere. Anchors are refused because nine of them can stand for gigabytes, tags
because no setting needs one.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

_TAG = "tag:yaml.org,2002:"
_INT = re.compile(r"^[-+]?(0|[1-9][0-9]*)$")
_FLOAT = re.compile(
    r"^[-+]?((0|[1-9][0-9]*)\.[0-9]*|\.[0-9]+|(0|[1-9][0-9]*)(?=[eE]))([eE][-+]?[0-9]+)?$|^[-+]?\.inf$|^\.nan$",
    re.IGNORECASE,
)
_BOOL = re.compile(r"^(true|false)$", re.IGNORECASE)
_OWN = tuple(f":{name}" for name in ("bool", "int", "float", "timestamp"))


class StrictLoader(yaml.SafeLoader):
    """YAML without anchors and tags, where only true and false are booleans, 1e-4 is a number and 010 is none."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (PyYAML's own way to hold them)
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(_OWN)]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: Any, index: Any) -> yaml.Node | None:
        """Refuse what stands before a value to name or to type it."""
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise yaml.MarkedYAMLError(
                problem="an anchor (&) or alias (*) is not read; write the value itself, or quote it",
                problem_mark=event.start_mark,
            )
        if getattr(event, "tag", None) is not None:
            raise yaml.MarkedYAMLError(
                problem="a tag (!) is not read; write the value alone, or quote it", problem_mark=event.start_mark
            )
        return super().compose_node(parent, index)


StrictLoader.add_implicit_resolver(f"{_TAG}bool", _BOOL, list("tTfF"))
StrictLoader.add_implicit_resolver(f"{_TAG}int", _INT, list("-+0123456789"))
StrictLoader.add_implicit_resolver(f"{_TAG}float", _FLOAT, list("-+0123456789."))


class StrictDumper(yaml.SafeDumper):
    """Quotes text that would be a number to our reader, or to one of YAML 1.1."""


StrictDumper.add_implicit_resolver(f"{_TAG}float", _FLOAT, list("-+0123456789."))


def load_word(text: str) -> Any:
    """A value as it stands in a file or on a command line.

    Raises:
        yaml.YAMLError: it is no such YAML.
        ValueError: a number of more than 4,300 digits.
        RecursionError: brackets in brackets without end.
    """
    return yaml.load(text, Loader=StrictLoader)


def is_plain(value: Any, kind: Any) -> bool:
    """Whether a text, and each of a list, can be read as a value here, with its numbers in decimal.

    YAML and Python read `010`, `0x10`, `1_000`, `1:30` and digits of other scripts differently, or not at all.

    Args:
        value: as it was read or given.
        kind: the type of the setting, in words; one that takes any text takes all.
    """
    if isinstance(value, list):
        return all(is_plain(part, kind) for part in value)
    if not isinstance(value, str) or re.search(r"\bstr\b", str(kind)):
        return True
    try:
        load_word(value)
    except (yaml.YAMLError, ValueError, RecursionError):
        return False
    words = re.split(r"[\s,\[\]'\"]+", value) if re.search(r"\b(int|float)\b", str(kind)) else []
    return all(_INT.match(word) or _FLOAT.match(word) for word in words if re.search(r"\d", word))
