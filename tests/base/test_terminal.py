"""Lines for a terminal of so many columns."""

from __future__ import annotations

import io
import logging
import shlex
import sys

import pytest
from helpers.terminal import Terminal

from alexnet_dist.base.progress import COMMAND, ScreenHandler
from alexnet_dist.base.terminal import COMMAND_JOINT, find_columns, fit_text, wrap_line


@pytest.mark.parametrize(
    ("line", "lines"),
    [
        ("short enough", ["short enough"]),
        ("loader    dali, which is faster here", ["loader    dali, which is", " " * 10 + "faster here"]),
        ("figures: runs/a/plots (curves.png)", ["figures: runs/a/plots", " " * 9 + "(curves.png)"]),
        ("  2 processes: hybrid sends more", ["  2 processes: hybrid", "    sends more"]),
        ("classes   'Apple Red', 'Tomato 1'", ["classes   'Apple Red',", " " * 10 + "'Tomato 1'"]),
        ("cached in /a/very/long/path/of/a/cache now", ["cached in", "  /a/very/long/path/of/a/cache", "  now"]),
        ("one's own rank's words' ends", ["one's own rank's words'", "  ends"]),
        ("画像画像画像 画像画像画像 画像", ["画像画像画像", "  画像画像画像 画像"]),
    ],
)
def test_a_line_is_broken_between_words(line: str, lines: list[str]) -> None:
    assert wrap_line(line, 24) == lines


def test_a_command_can_be_pasted() -> None:
    command = "alexnet-dist predict runs/fruits 'data/Apple Braeburn/1 2.jpg' --topk 3 --out 'my rows.csv'"
    lines = wrap_line(f"next: {command}", 40, COMMAND_JOINT)
    assert len(lines) > 2
    assert all(line.endswith(" \\") and len(line) <= 40 for line in lines[:-1])
    pasted = "\n".join(lines).removeprefix("next: ").replace("\\\n", "")  # as a shell reads it
    assert shlex.split(pasted) == shlex.split(command)


def test_only_a_terminal_has_columns() -> None:
    text = "word " * 30
    assert (find_columns(io.StringIO()), find_columns(Terminal())) == (None, 80)
    assert fit_text(text, io.StringIO()) == text
    assert [len(line) <= 80 for line in fit_text(text, Terminal()).split("\n")] == [True, True]


@pytest.mark.parametrize(("extra", "end"), [({}, "word"), (COMMAND, "\\")])
def test_messages_fit_the_screen(extra: dict[str, bool], end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", screen := Terminal())
    record = logging.makeLogRecord({"msg": " ".join(["word"] * 30), "levelno": logging.INFO, **extra})
    ScreenHandler().emit(record)
    lines = screen.screens()
    assert max(map(len, lines)) <= 80
    assert lines[0].endswith(end)
