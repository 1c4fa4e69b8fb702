"""What is seen while something takes its time: one moving line on a terminal, a line now and then elsewhere.

Results go to standard output and never pass here. All of this is talk: it goes to standard error, or in a notebook to
standard output, where it is not red. Only a process that speaks for all shows anything.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm
from tqdm.std import Bar  # type: ignore[attr-defined]
from tqdm.utils import disp_len, disp_trim

from alexnet_dist.base.notebook import find_cell, import_quietly, is_below_notebook, is_notebook
from alexnet_dist.base.terminal import COMMAND_JOINT, find_columns, fit_text
from alexnet_dist.base.text import LogFormatter, escape_text, shorten

LEVELS = {"quiet": logging.WARNING, "normal": logging.INFO, "debug": logging.DEBUG}
FILE_ALONE = {"is_for_file_alone": True}  # `extra` of a message that run.log gets and the screen does not
COMMAND = {"is_command": True}  # `extra` of a message that ends with a command: who copies it copies all of it
PLAIN_SECONDS = 10.0  # between two lines where nothing can move
PATIENCE_SECONDS = 2.0  # what takes no longer is not worth a line of its own

_SCREEN = logging.getLogger("alexnet_dist.screen")  # holds what is shown; a level of logging's, as of every logger
_SCREEN.setLevel(logging.INFO)
_SHORTEST_BAR, _LONGEST_BAR = 8, 30
_SHORTEST_NAME = 12
_COLUMNS = 80  # of what is no terminal
_KEY_COLUMNS = 3  # for ^C, with which a terminal answers that key, and one that stays free

import_quietly()

Fact = tuple[str, str]  # as it stands in a bar, and in a line of its own


@dataclass(frozen=True)
class View:
    """How far something is.

    Args:
        name: what is done.
        done, total: units, as far as they are known.
        facts: what else is known, the most important first.
    """

    name: str
    done: int
    total: int
    facts: Sequence[Fact] = ()


def set_level(name: str) -> None:
    """Show as much as log.level says: quiet, normal or debug."""
    _SCREEN.setLevel(LEVELS[name])


def is_debug() -> bool:
    """Whether everything is shown."""
    return _SCREEN.level <= logging.DEBUG


@contextlib.contextmanager
def level_kept() -> Iterator[None]:
    """What this block sets counts no longer after it."""
    before = _SCREEN.level
    try:
        yield
    finally:
        _SCREEN.setLevel(before)


def say(line: str) -> None:
    """Show a line; quiet programs do not."""
    if _SCREEN.level <= logging.INFO:
        _write(escape_text(line))


class ScreenHandler(logging.Handler):
    """Shows the package's messages, above the line that moves."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(LogFormatter("%(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Show a message, unless it is for the file alone or the user wants less."""
        if record.levelno < _SCREEN.level or getattr(record, "is_for_file_alone", False):
            return
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001 (logging's contract: a message that cannot be made is shown as such)
            self.handleError(record)
        else:
            _write(line, COMMAND_JOINT if getattr(record, "is_command", False) else "")


_TELLING: set[Progress] = set()  # those that say more than the phase around them


class Progress:
    """Shows how far a work of known size is, while it is entered as a context.

    Args:
        name: what is done.
        total: units in all.
        unit: what is counted.
        done: units done before.
        shown: whether this process speaks.
        describe: says more than these numbers do; asked only when something is drawn.
        patience: seconds until the first line where nothing can move; None = as many as between two.
    """

    def __init__(
        self,
        name: str,
        total: int,
        unit: str = "images",
        *,
        done: int = 0,
        shown: bool = True,
        describe: Callable[[], View] | None = None,
        patience: float | None = None,
    ) -> None:
        self._name, self._total, self._unit = escape_text(name), total, unit
        self._first = self._done = done
        self._describe = describe or self._count
        self._is_shown = shown and _SCREEN.level <= logging.INFO
        self._began = time.monotonic()
        # When the next line comes where nothing can move:
        self._due = self._began + (PLAIN_SECONDS if patience is None else patience)
        self._line = _open_line(self._draw) if self._is_shown else None  # which draws at once

    def __enter__(self) -> Progress:
        if self._is_shown:
            _TELLING.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        _TELLING.discard(self)
        if self._line is not None:
            self._line.close()

    @property
    def rate(self) -> float:
        """Units a second, 0 as long as there are none."""
        seconds = time.monotonic() - self._began
        return (self._done - self._first) / seconds if seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """None as long as nothing is done."""
        return (self._total - self._done) / self.rate if self.rate else None

    def advance(self, number: int = 1) -> None:
        """So many more are done."""
        self._done += number
        if self._line is not None:
            self._line.update(number)
        elif self._is_shown and time.monotonic() >= self._due:
            self.say_now()

    def say_now(self) -> None:
        """Where nothing can move, show a line at once."""
        if self._line is None and self._is_shown:
            self._due = time.monotonic() + PLAIN_SECONDS
            view = self._describe()
            count = f"{view.done:,}/{view.total:,} {self._unit}"
            say("  ".join([view.name, count, *(long for _, long in view.facts)]))

    def _count(self) -> View:
        left = format_seconds(self.seconds_left)
        facts = [(f"{self.rate:,.0f}/s", f"{self.rate:,.0f} {self._unit}/s"), (f"{left} left", f"{left} left")]
        return View(self._name, self._done, self._total, facts)

    def _draw(self, width: int, is_ascii: bool) -> str:
        return fit_line(self._describe(), width, is_ascii)


@contextlib.contextmanager
def phase(name: str, shown: bool = True) -> Iterator[None]:
    """Show that a work of unknown length goes on in this block: its seconds move, or a line says what it is.

    Args:
        name: what is done ("comparing loaders").
        shown: whether this process speaks.
    """
    if not shown or _SCREEN.level > logging.INFO:
        yield
        return
    began, over = time.monotonic(), threading.Event()
    line = _open_line(lambda width, _: _fill(f"{name} ... {time.monotonic() - began:.0f} s", width))
    teller = threading.Thread(target=_tell, args=(name, began, line, over), name="phase", daemon=True)
    teller.start()
    try:
        yield
    finally:
        over.set()
        teller.join(timeout=1.0)  # a signal may have left it waiting for tqdm's lock
        if is_debug():
            say(f"{name}: {time.monotonic() - began:.1f} s")


def fit_line(view: View, width: int, is_ascii: bool = False) -> str:
    """A line of just so many columns: the name is shortened, the least important facts go first, the bar stays.

    Args:
        view: what is shown.
        width: columns.
        is_ascii: the terminal has no other letters.
    """
    count = f" {view.done}/{view.total}"
    facts = ["".join(f" {short}" for short, _ in view.facts[:number]) for number in range(len(view.facts), -1, -1)]
    least = min(disp_len(view.name), _SHORTEST_NAME) + 1 + _SHORTEST_BAR + len(count)
    tail = count + next((text for text in facts if least + len(text) <= width), "")
    name = _shorten(view.name, max(width - 1 - _SHORTEST_BAR - len(tail), _SHORTEST_NAME))
    bar = max(1, min(width - disp_len(name) - 1 - len(tail), _LONGEST_BAR))
    part = min(view.done / view.total, 1.0) if view.total else 1.0
    drawn = Bar(part, bar, Bar.ASCII if is_ascii else Bar.UTF)
    return _fill(f"{name} {drawn}{tail}", width)


def format_seconds(seconds: float | None) -> str:
    """0:12, 3:40 or 1:02:03; a dash where it is not known."""
    return "-" if seconds is None else tqdm.format_interval(seconds).removeprefix("0")


# -- where it is shown ------------------------------------------------------------------------------------------------


class _Line(tqdm):  # type: ignore[type-arg]
    """The line that moves: tqdm's, with our own text on it."""

    monitor_interval = 0  # no thread of tqdm's

    def __init__(self, draw: Callable[[int, bool], str], **options: Any) -> None:
        self._draw = draw
        super().__init__(**options)

    def refresh(self, *_: Any, **__: Any) -> None:
        """Draw; tqdm's own would keep its lock where something is raised meanwhile, as by the interrupt of a kernel."""
        with self.get_lock():  # type: ignore[no-untyped-call]
            self.display()

    def __str__(self) -> str:
        return self._draw(_find_width(self.fp), bool(self.ascii))


def _open_line(draw: Callable[[int, bool], str]) -> _Line | None:
    """A line that moves; None where nothing can."""
    if is_debug() or not _can_move():
        return None
    stream, seconds = (find_cell(), 0.25) if is_notebook() else (sys.stderr, 0.1)
    return _Line(draw, file=stream, disable=False, leave=False, position=0, miniters=1, mininterval=seconds)


def _tell(name: str, began: float, line: _Line | None, over: threading.Event) -> None:
    """Let a line move, or say now and then that something goes on."""
    if line is None:
        wait = PATIENCE_SECONDS
        while not over.wait(wait):
            if not _TELLING:
                say(f"{name} ... {time.monotonic() - began:.0f} s")
            wait = PLAIN_SECONDS
        return
    with line:
        while not over.wait(0.25):
            if not _TELLING:
                line.refresh()


def _shorten(name: str, columns: int) -> str:
    """A name in so many columns of a terminal, of which some letters take two."""
    return name if disp_len(name) <= columns else shorten(name, max(4, len(name) * columns // disp_len(name)))


def _fill(line: str, columns: int) -> str:
    """A line of just so many columns: what is longer would be broken, and what is left would stay on the screen."""
    cut = line if disp_len(line) <= columns else disp_trim(line, columns)
    return cut + " " * (columns - disp_len(cut))


def _write(line: str, joint: str = "") -> None:
    with contextlib.suppress(OSError, ValueError):  # nothing ends because nobody can read of it
        stream = _find_stream()
        tqdm.write(fit_text(line, stream, joint), file=stream)


def _find_stream() -> Any:
    return sys.stdout if is_notebook() else sys.stderr


def _can_move() -> bool:
    """Whether a line can be written over: on a terminal, and in a notebook. TQDM_DISABLE asks for none."""
    if os.environ.get("TQDM_DISABLE", "0") not in ("", "0") or os.environ.get("TERM") == "dumb":
        return False
    return is_notebook() or (sys.stderr.isatty() and not is_below_notebook())


def _find_width(stream: Any) -> int:
    """Columns that a line may have: a terminal breaks one that fills it, and writes ^C behind it."""
    return (find_columns(stream) or _COLUMNS) - _KEY_COLUMNS
