"""What verbs share of their options."""

from __future__ import annotations

import importlib
from argparse import Namespace
from collections.abc import Callable

import pytest

from alexnet_dist.base.errors import UsageError
from alexnet_dist.cli.main import VERBS
from alexnet_dist.cli.options import check_above_zero, check_at_least_one

TOOLS = [f"prepare.{name}" for name in ("verify", "index", "cache", "parity", "manifest", "subset")]


@pytest.mark.parametrize("verb", [*(verb for verb in VERBS if verb not in ("launch", "prepare")), *TOOLS])
def test_help_names_no_function_of_the_parsers(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        importlib.import_module(f"alexnet_dist.cli.{verb}").main(["--help"])
    text = capsys.readouterr().out
    assert "--debug" in text
    assert "<function" not in " ".join(text.split())


@pytest.mark.parametrize("value", [None, 1, 0.5])
def test_numbers_above_zero_pass(value: float | None) -> None:
    check_above_zero(Namespace(a=value), "a")
    check_at_least_one(Namespace(a=value and 1), "a")


@pytest.mark.parametrize(
    ("check", "value", "line"),
    [
        (check_above_zero, 0.0, "--b is 0 (command line); give a number above 0"),
        (check_above_zero, float("nan"), "--b is nan (command line); give a number above 0"),
        (check_at_least_one, 0, "--b must be 1 or more"),
    ],
)
def test_other_numbers_are_refused_by_name(check: Callable[..., None], value: float, line: str) -> None:
    with pytest.raises(UsageError) as raised:
        check(Namespace(a=1, b=value), "a", "b")
    assert str(raised.value) == line
