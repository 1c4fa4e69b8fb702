"""Notebooks: whether this program is one's kernel, and where in a cell something can move.

Front ends erase what a carriage return takes back, but the file of a notebook keeps it. So what moves is one output of
its cell, which is replaced.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
import time
import warnings
from typing import Any

_PATIENCE_SECONDS = 0.5  # a cell that takes no longer shows nothing that moves
_BLANK = " "  # keeps the height of a line, so that nothing below it jumps


def is_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and getattr(ipython.get_ipython(), "kernel", None) is not None


def is_below_notebook() -> bool:
    """Whether a cell has started this program, as `!alexnet-dist`: on a terminal that keeps every line.

    This pair is what a kernel tells its children (ipykernel/zmqshell.py), whatever front end started it.
    """
    return (os.environ.get("TERM"), os.environ.get("PAGER")) == ("xterm-color", "cat")


class Cell:
    """What a moving line is written to: a stream whose last line is an output of a cell.

    Args:
        number: of the cell; None = wherever the thread began.
    """

    encoding = "utf-8"  # with block letters for bars

    def __init__(self, number: int | None) -> None:
        self.number, self._began = number, time.monotonic()
        self._output: Any = None

    def write(self, text: str) -> None:
        """Show another line, or none."""
        line = text.strip("\r\n").rstrip() or _BLANK
        if self._output is not None:
            self._output.update({"text/plain": line}, raw=True)
        elif line != _BLANK and time.monotonic() - self._began >= _PATIENCE_SECONDS:
            self._output = importlib.import_module("IPython.display").DisplayHandle()
            self._output.display({"text/plain": line}, raw=True)

    def isatty(self) -> bool:
        """It is no terminal, and has no columns."""
        return False

    def flush(self) -> None:
        """Every line is sent at once."""


_here = threading.local()  # .cell: where this thread shows what moves


def find_cell() -> Cell:
    """Where this thread shows what moves: one place in each cell. A thread that outlives its cell stays there."""
    is_main = threading.current_thread() is threading.main_thread()
    number = sys.modules["IPython"].get_ipython().execution_count if is_main else None
    cell: Cell | None = getattr(_here, "cell", None)
    if cell is None or cell.number != number:
        _here.cell = cell = Cell(number)
    return cell


def import_quietly() -> None:
    """In a notebook, import what complains in red there that it cannot draw bars. Accelerate would; we draw our own."""
    if is_notebook():
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "IProgress not found")
            importlib.import_module("tqdm.auto")
