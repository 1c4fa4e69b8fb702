"""Words from outside (names on the disk, keys, replies of servers), made fit for terminals, logs, tables and shells.

A name on the disk is bytes. Python keeps bytes that are not UTF-8 as lone surrogates (`surrogateescape`, PEP 383), and
inside the program a name stays like that: it then opens the same file again. It is escaped once, where it is shown:
by `AlexNetDistError`, by the logging formatter, by `durable.write_csv`, by what prints a table or draws a figure.
JSON is written in ASCII, where such a name is `\\udce9` and comes back as it was.
"""

from __future__ import annotations

import itertools
import logging
import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

MOST_NAMED = 5  # a message names this many things and counts the others

_FORMULA_STARTS = ("=", "+", "-", "@")  # a spreadsheet would compute the cell
_ESCAPE = re.compile(r"\\(\\|n|r|t|x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8})")
_NAMED = {"\\": "\\", "n": "\n", "r": "\r", "t": "\t"}


def escape_text(text: str | os.PathLike[str]) -> str:
    """A text in which all that a terminal would obey, or could not show, is a visible escape (`\\x1b`, `\\u202e`).

    Those are control characters, line ends of every kind, characters that change the direction of writing, and bytes
    that are not UTF-8. Escaping twice changes nothing.
    """
    text = os.fspath(text)
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def escape_values(value: Any) -> Any:
    """Nested dicts and lists with every text in them escaped: for programs that take UTF-8 alone."""
    if isinstance(value, Mapping):
        return {key: escape_values(part) for key, part in value.items()}
    if isinstance(value, list):
        return [escape_values(part) for part in value]
    return escape_text(value) if isinstance(value, str) else value


def escape_cell(text: str) -> str:
    """A text as a cell of a CSV file: one line, UTF-8, and no formula; `unescape_cell` gives the text back.

    A cell that a spreadsheet would compute begins with an apostrophe, as OWASP advises. A backslash is doubled where it
    could be read as the beginning of an escape.
    """
    if not text.isprintable() or _ESCAPE.search(text):
        text = escape_text(text.replace("\\", "\\\\"))
    return f"'{text}" if text.lstrip("'").startswith(_FORMULA_STARTS) else text


def unescape_cell(cell: str) -> str:
    """What `escape_cell` was given."""
    if cell.startswith("'") and cell.lstrip("'").startswith(_FORMULA_STARTS):
        cell = cell[1:]
    return _ESCAPE.sub(lambda found: _NAMED.get(found[1]) or chr(int(found[1][1:], 16)), cell)


class LogFormatter(logging.Formatter):
    """Makes each message one printable line: it may hold names from the disk and words of other programs."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's name)
        return escape_text(super().formatMessage(record))


def quote_word(word: str | os.PathLike[str]) -> str:
    """A path or value as a word of a shell's command line, printable, which names the same bytes when it is pasted."""
    text = os.fspath(word)
    if text.isprintable():
        return shlex.quote(text)
    return "$'" + "".join(map(_quote_letter, text)) + "'"  # bash, zsh and ksh know this form


def join_names(names: Sequence[str], most: int = MOST_NAMED) -> str:
    """The first few names, quoted, and how many more there are."""
    return name_few([f"'{name}'" for name in names], most)


def name_few(names: Iterable[object], most: int = MOST_NAMED) -> str:
    """The first few names as they are, and how many more there are."""
    shown = [str(name) for name in names]
    return ", ".join(shown[:most]) + (f" and {len(shown) - most} more" if len(shown) > most else "")


def shorten(text: str, length: int) -> str:
    """A text of at most `length` characters; the middle of a longer one is left out, since both ends tell something."""
    if len(text) <= length:
        return text
    head = (length - 3) // 2
    return f"{text[:head]}...{text[len(text) - (length - 3 - head) :]}"


def cut_end(text: str, length: int) -> str:
    """A text of at most `length` characters, where its beginning tells enough: a title, a label in a figure."""
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def format_bytes(number: float) -> str:
    """4.2 GB, 17 MB, 3 kB."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if number >= size:
            return f"{number / size:.1f} {unit}" if number < 10 * size else f"{number / size:,.0f} {unit}"
    return f"{max(number, 0) / 1e3:.0f} kB"


def find_difference(theirs: Sequence[str], ours: Sequence[str]) -> tuple[int, str | None, str | None] | None:
    """The first place at which two lists of classes differ, and what stands there: None where a list has ended."""
    pairs = enumerate(itertools.zip_longest(theirs, ours))
    return next(((place, their, our) for place, (their, our) in pairs if their != our), None)


def _quote_letter(letter: str) -> str:
    if letter in "\\'":
        return f"\\{letter}"
    return letter if letter.isprintable() else "".join(f"\\x{byte:02x}" for byte in os.fsencode(letter))


def align(rows: Sequence[Sequence[str]], sides: str = "<<>") -> str:
    """A table: columns as wide as their longest cell, two spaces apart, and a line a row.

    Args:
        rows: of cells; the first may be the header.
        sides: of each column, "<" = text to the left, ">" = numbers to the right; the last holds for all that follow.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    forms = [f"{{:{side}{width}}}" for side, width in zip(sides.ljust(len(widths), sides[-1]), widths, strict=True)]
    return "".join("  ".join(map(str.format, forms, row)).rstrip() + "\n" for row in rows)
