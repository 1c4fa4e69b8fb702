"""From a setting to its effect: its name is found where settings become objects."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from alexnet_dist.settings.schema import Config, walk_fields

PACKAGE = Path(__file__).resolve().parent.parent.parent / "alexnet_dist"
READ = {
    room: "\n".join(path.read_text(encoding="utf-8") for path in sorted((PACKAGE / room).rglob("*.py")))
    for room in ("assembly", "runs", "costs", "cli", "tracking")
}


def is_read(name: str) -> bool:
    """Whether a setting is read by its name; the trackers take theirs as a dict."""
    as_field = any(re.search(rf"\.{name}\b", READ[room]) for room in ("assembly", "runs", "costs", "cli"))
    return as_field or f'"{name}"' in READ["tracking"]


@pytest.mark.parametrize("key", [key for key, _ in walk_fields(Config)])
def test_grep_finds_where_a_setting_takes_effect(key: str) -> None:
    assert is_read(key.rpartition(".")[2])


def test_a_setting_that_nobody_reads_is_noticed() -> None:
    assert not is_read("color_jitter_strength")
