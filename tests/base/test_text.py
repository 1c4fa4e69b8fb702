from __future__ import annotations

import logging
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.refusals import refused

from alexnet_dist.assembly.trackers import check_mirrors
from alexnet_dist.base.durable import read_csv, write_csv
from alexnet_dist.base.errors import LONGEST_LINE, DataError, UsageError
from alexnet_dist.base.text import (
    align,
    escape_cell,
    escape_text,
    escape_values,
    find_difference,
    format_bytes,
    join_names,
    name_few,
    quote_word,
    shorten,
    unescape_cell,
)
from alexnet_dist.runs.folder import silence_logging, start_logging
from alexnet_dist.settings.schema import TrackingConfig
from alexnet_dist.tracking import wandb as wandb_mirror

LATIN = os.fsdecode(b"caf\xe9")  # not UTF-8
ODD = [
    "plain",
    "猫 ä",
    LATIN,
    "\x1b]0;title\x07",
    "two\r\nlines",
    "\r",
    "right \u202e left",
    "line\u2028separator",
    "\x9b31m",
    "back\\slash",
    "C:\\new\\x41",
    "\\\\n\n\\",
    "=cmd|' /C calc'!A0",
    "+1",
    "-1",
    "@sum",
    "'=1",
    "''",
    "'quoted'",
    'a,"b"',
    " padded ",
    "",
]


@pytest.mark.parametrize("text", ODD)
def test_nothing_that_a_terminal_obeys_is_left(text: str) -> None:
    shown = escape_text(text)
    assert shown.isprintable()
    shown.encode()
    assert escape_text(shown) == shown
    assert shown == text or not text.isprintable()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31m", r"\x1b[31m"),
        ("a\nb\r", r"a\nb\r"),
        ("\u202e\u2028", r"\u202e\u2028"),
        (LATIN, r"caf\udce9"),
        ("猫", "猫"),
    ],
)
def test_escapes_are_those_of_json_and_python(text: str, shown: str) -> None:
    assert escape_text(text) == shown


@pytest.mark.parametrize("text", ODD)
def test_a_cell_comes_back_and_is_no_formula(text: str) -> None:
    cell = escape_cell(text)
    assert unescape_cell(cell) == text
    assert cell.isprintable()
    assert not cell.startswith(("=", "+", "-", "@"))


@pytest.mark.parametrize("text", ["plain", "back\\slash", "'quoted'", "猫 ä", "a,b"])
def test_a_cell_of_common_characters_stays_as_it_is(text: str) -> None:
    assert escape_cell(text) == text


def test_a_table_has_a_row_a_line_whatever_is_in_it(tmp_path: Path) -> None:
    write_csv(tmp_path / "table.csv", ("path", "class"), [(text, text[::-1]) for text in ODD])
    data = (tmp_path / "table.csv").read_bytes()
    assert data.decode().count("\n") == len(ODD) + 1
    assert b"\r" not in data
    assert read_csv(tmp_path / "table.csv") == [{"path": text, "class": text[::-1]} for text in ODD]


def test_a_table_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    (tmp_path / "held_out.csv").write_bytes(b"path,class\ntrain/caf\xe9/1.jpg,caf\xe9\n=a/2.jpg,=a\n")
    classes = [row["class"] for row in read_csv(tmp_path / "held_out.csv")]
    assert classes == [LATIN, "=a"]


@pytest.mark.heavy
@pytest.mark.parametrize("text", [text for text in ODD if "\0" not in text])
def test_a_shell_reads_a_quoted_word_as_it_was(text: str) -> None:
    word = quote_word(text)
    assert word.isprintable()
    printed = subprocess.run(["bash", "-c", f"printf %s {word}"], capture_output=True, check=True).stdout
    assert printed == os.fsencode(text)


def test_a_shortened_text_keeps_both_ends() -> None:
    assert shorten("abc", 3) == "abc"
    assert shorten("a" * 50 + "b" * 50, 13) == "aaaaa...bbbbb"


@pytest.mark.parametrize("part", ["what", "where", "why"])
def test_an_error_line_is_short_and_keeps_its_remedy(part: str) -> None:
    parts = {
        "what": "wrong value",
        "where": "a.yaml:3",
        "why": "expected int",
        part: "9" * 10**6,
    }
    line = str(UsageError(**parts, remedy="set --train.epochs 3"))
    assert len(line) <= LONGEST_LINE + (200 if part == "where" else 0)  # a long path may make it longer
    assert line.endswith("; set --train.epochs 3")


def test_another_remedy_leaves_the_rest_of_the_line_as_it_is() -> None:
    error = DataError("a network's outputs are not finite", where="step 12", why="a fault of 40 letters, or of 41")
    error.set_remedy("lower optimizer.lr or warm up " * 5)
    assert str(error).startswith("a network's outputs are not finite (step 12): a fault of 40 letters, or of 41; lower")
    error.set_remedy("wait")
    assert str(pickle.loads(pickle.dumps(error))) == f"{str(error).partition(';')[0]}; wait"


@pytest.mark.parametrize("is_local", [False, True])
def test_an_error_of_one_process_is_known_as_such_wherever_it_travels(is_local: bool) -> None:
    error = pickle.loads(pickle.dumps(DataError("damaged image cache", is_local=is_local)))
    assert error.is_local == is_local
    assert not DataError.is_local


def test_an_error_line_is_one_printable_line() -> None:
    line = str(DataError("unreadable image", where=f"\x1b[2J/{LATIN}\u2028", why="a\nb", remedy="remove '\u202egpj'"))
    assert line == r"unreadable image (\x1b[2J/caf\udce9\u2028): a b; remove '\u202egpj'"


def test_log_lines_are_printable_and_whole(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("alexnet_dist")
    try:
        start_logging(tmp_path / "run.log")
        logger.warning("left out: %s", f"\x1b]0;x\x07{LATIN}\nnext")
    finally:
        silence_logging()
    line = r"left out: \x1b]0;x\x07caf\udce9\nnext" + "\n"
    assert (tmp_path / "run.log").read_text().endswith(f" WARNING {line}")
    assert capfd.readouterr().err == line


@pytest.mark.parametrize("tracking", [{"wandb": "offline"}, {"tensorboard": True}])
def test_a_run_folder_that_a_mirror_cannot_write_to_is_refused_before_training(
    tmp_path: Path, tracking: dict[str, Any]
) -> None:
    folder = tmp_path / LATIN
    line = refused(lambda: check_mirrors(TrackingConfig(**tracking), folder), UsageError)
    assert r"caf\udce9): it is not UTF-8" in line
    check_mirrors(TrackingConfig(), folder)
    check_mirrors(TrackingConfig(**tracking), tmp_path)


def test_mirrors_get_texts_that_are_utf_8() -> None:
    settings = {"data": {"root": LATIN}, "tags": [LATIN, "a\x1b"], "lr": 0.1, "none": None}
    assert escape_values(settings) == {
        "data": {"root": r"caf\udce9"},
        "tags": [r"caf\udce9", r"a\x1b"],
        "lr": 0.1,
        "none": None,
    }


def test_wandb_is_given_no_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["train.py", "--data.root", LATIN]
    monkeypatch.setattr(sys, "argv", words)
    with wandb_mirror._no_command_line():
        assert sys.argv == ["alexnet-dist"]
    assert sys.argv is words


@pytest.mark.parametrize(
    ("names", "quoted", "plain"),
    [
        ([], "", ""),
        (["a", "b"], "'a', 'b'", "a, b"),
        (list("abcdefg"), "'a', 'b', 'c', 'd', 'e' and 2 more", "a, b, c, d, e and 2 more"),
    ],
)
def test_many_names_are_few_and_a_number(names: list[str], quoted: str, plain: str) -> None:
    assert (join_names(names), name_few(names)) == (quoted, plain)


@pytest.mark.parametrize(
    ("theirs", "ours", "expected"),
    [("ab", "ab", None), ("ab", "ac", (1, "b", "c")), ("a", "ab", (1, None, "b")), ("ab", "", (0, "a", None))],
)
def test_the_first_difference_of_two_lists(theirs: str, ours: str, expected: tuple[Any, ...] | None) -> None:
    assert find_difference(theirs, ours) == expected


@pytest.mark.parametrize(
    ("sides", "table"),
    [
        ("<", "a      b     c\naa {}  1234  1\n"),
        ("<>", "a         b  c\naa {}  1234  1\n"),
        ("<><", "a         b  c\naa {}  1234  1\n"),
        (">><", "    a     b  c\naa {}  1234  1\n"),
    ],
)
def test_a_table_has_its_numbers_to_the_right(sides: str, table: str) -> None:
    assert align([("a", "b", "c"), ("aa {}", "1234", "1")], sides) == table


def test_bytes_are_told_in_units() -> None:
    numbers = (0, 999, 12_345, 4_200_000, 17_000_000, 150e9, 2e12)
    assert [format_bytes(n) for n in numbers] == ["0 kB", "1 kB", "12 kB", "4.2 MB", "17 MB", "150 GB", "2.0 TB"]
