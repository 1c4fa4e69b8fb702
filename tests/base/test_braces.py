from __future__ import annotations

import pytest
from helpers.refusals import refused

from alexnet_dist.base.braces import expand_braces


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a.tar", ["a.tar"]),
        ("{8..10}", ["8", "9", "10"]),
        ("x{,.gz}", ["x", "x.gz"]),
        ("{08..11}.tar", ["08.tar", "09.tar", "10.tar", "11.tar"]),
        ("a-{2..0}", ["a-2", "a-1", "a-0"]),
        ("{a,b}{1..2}", ["a1", "a2", "b1", "b2"]),
        ("a{}b", ["a{}b"]),
        ("{1..x}", ["{1..x}"]),
    ],
)
def test_braces_as_a_shell_has_them(pattern: str, names: list[str]) -> None:
    assert expand_braces(pattern) == names


@pytest.mark.parametrize("pattern", ["{0..9999999}", "{0..9999}{0..9999}"])
def test_too_many_names_are_refused(pattern: str) -> None:
    assert "too many names" in refused(lambda: expand_braces(pattern))
