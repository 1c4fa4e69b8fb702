"""How wide a terminal is, and lines that fit it: a terminal itself breaks a line in the middle of a word."""

from __future__ import annotations

import os
import re
from typing import Any

from tqdm.utils import disp_len

COMMAND_JOINT = " \\"  # at the end of a line that a shell reads on from
_COLUMNS = 80  # of a terminal that does not tell
_LONGEST_LABEL = 12
_LABEL = re.compile(r"\S+ {2,}(?=\S)|\S+: (?=\S)")  # "loader    dali ...", "figures: runs/..."
_WORD = re.compile(r"(?:'[^']*'(?!\w)|\S)\S*")  # what stands in quotes stays whole


def find_columns(stream: Any) -> int | None:
    """The columns of the terminal that a stream writes to; None where it is none."""
    if not stream.isatty():
        return None
    try:
        return os.get_terminal_size(stream.fileno()).columns or _COLUMNS
    except (OSError, ValueError, AttributeError):
        return _COLUMNS


def fit_text(text: str, stream: Any, joint: str = "") -> str:
    """A text as a stream should have it: for a terminal, lines that are too long are broken between words.

    Args:
        text: of lines. Not JSON, nor a table for another program.
        stream: where it will be written.
        joint: ends each line that goes on in the next one.
    """
    columns = find_columns(stream)
    if columns is None:
        return text
    return "\n".join(part for line in text.split("\n") for part in wrap_line(line, columns, joint))


def wrap_line(line: str, columns: int, joint: str = "") -> list[str]:
    """A line on as many lines as it takes. They begin below the text that follows a label, or two columns to the right.

    A word that is longer than a line stays whole: it may be a path that someone will copy.
    """
    if disp_len(line) <= columns:
        return [line]
    label = _LABEL.match(line)
    indent = len(line) - len(line.lstrip())
    start = label.end() if label is not None and label.end() <= _LONGEST_LABEL else indent + 2
    lines, used, end = [""], 0, 0
    for word in _WORD.finditer(line):
        gap, width = line[end : word.start()], disp_len(word[0])
        room = columns - len(joint)
        if lines[-1].strip() and used + len(gap) + width > room:
            lines[-1] += joint
            lines.append(" " * start + word[0])
            used = start + width
        else:
            lines[-1] += gap + word[0]
            used += len(gap) + width
        end = word.end()
    return lines
