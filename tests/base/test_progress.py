"""What is seen while something takes its time."""

from __future__ import annotations

import io
import logging
import sys
import threading
import time
import types
from collections.abc import Iterator

import pytest
from helpers.terminal import Terminal
from tqdm.utils import disp_len

from alexnet_dist.base import notebook, progress
from alexnet_dist.base.progress import FILE_ALONE, Progress, ScreenHandler, View, fit_line, format_seconds, phase, say

LONG = View(
    "scanning /a/very/long/folder/with/many/parts/below/it/train", 467, 1000, [("132/s", ""), ("0:04 left", "")]
)
TRAINING = View("epoch 3/90", 12, 184, [(text, text) for text in ["loss 2.302", "top-1 13.9%", "137/s", "lr 0.0003"]])


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("TQDM_DISABLE", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    with progress.level_kept():
        progress.set_level("normal")
        yield


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    screen = Terminal()  # pytest takes sys.stderr back when a test begins
    monkeypatch.setattr(progress, "sys", types.SimpleNamespace(stderr=screen, stdout=sys.stdout, modules={}))
    return screen


@pytest.mark.parametrize("view", [LONG, TRAINING, View("empty", 0, 0)], ids=["long", "training", "empty"])
@pytest.mark.parametrize("width", [40, 60, 79, 200])
def test_a_line_fits_and_its_bar_stays(view: View, width: int) -> None:
    line = fit_line(view, width, is_ascii=True)
    assert len(line) == width
    assert f" {view.done}/{view.total}" in line
    count = line.index(f" {view.done}/")
    name = fit_line(view, width).split("█")[0].split(" ")
    assert name
    assert count >= 8


def test_the_least_important_facts_go_first() -> None:
    seen = [[short in fit_line(TRAINING, width) for short, _ in TRAINING.facts] for width in range(30, 90)]
    assert seen[0] == [False] * 4
    assert seen[-1] == [True] * 4
    assert all(facts == sorted(facts, reverse=True) for facts in seen)


@pytest.mark.parametrize(("seconds", "text"), [(None, "-"), (12.4, "0:12"), (220, "3:40"), (3723, "1:02:03")])
def test_seconds_are_read_at_a_glance(seconds: float | None, text: str) -> None:
    assert format_seconds(seconds) == text


def test_a_bar_is_one_line_that_goes_away(terminal: Terminal) -> None:
    with Progress("scanning", 10) as bar:
        for _ in range(10):
            bar.advance()
            time.sleep(0.03)
        say("a line above it")
    assert "a line above it" in terminal.screens()
    assert terminal.getvalue().count("\n") == 1  # of that line alone
    assert any("/10 " in line for line in terminal.screens())
    assert terminal.getvalue().endswith("\r")


@pytest.mark.parametrize("shown", [True, False])
@pytest.mark.parametrize("reason", ["a pipe", "TQDM_DISABLE", "debug"])
def test_where_nothing_can_move_a_line_comes_now_and_then(
    shown: bool, reason: str, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reason == "a pipe":
        monkeypatch.setattr(terminal, "isatty", lambda: False)
    elif reason == "debug":
        progress.set_level("debug")
    else:
        monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.1)
    with Progress("scanning", 4, shown=shown) as bar:
        bar.advance()
        time.sleep(0.15)
        bar.advance()
        bar.advance()
    assert [line.split("  ")[:2] for line in terminal.screens()] == [["scanning", "2/4 images"]] * shown
    assert "\r" not in terminal.getvalue()


@pytest.mark.parametrize("level", ["quiet", "normal", "debug"])
def test_quiet_shows_warnings_alone(level: str, terminal: Terminal) -> None:
    progress.set_level(level)
    handler, said = ScreenHandler(), ("a word", "a warning")
    for text, number in zip(said, (logging.INFO, logging.WARNING), strict=True):
        handler.handle(logging.LogRecord("x", number, "", 0, text, (), None))
    record = logging.LogRecord("x", logging.INFO, "", 0, "for the file", (), None)
    record.__dict__.update(FILE_ALONE)
    handler.handle(record)
    say("talk")
    with Progress("scanning", 4), phase("building"):
        time.sleep(0.05)
    lines = terminal.screens()
    assert [line for line in lines if line in (*said, "talk", "for the file")] == (
        ["a warning"] if level == "quiet" else ["a word", "a warning", "talk"]
    )
    assert (len(lines) > 3) == (level != "quiet")


def test_a_phase_moves_and_leaves_nothing(terminal: Terminal) -> None:
    with phase("building"):
        time.sleep(0.3)
    assert "building ... 0 s" in terminal.screens()
    assert "\n" not in terminal.getvalue()
    assert not [thread for thread in threading.enumerate() if thread.name == "phase"]


def test_a_long_phase_says_so_where_nothing_can_move(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", screen := io.StringIO())
    monkeypatch.setattr(progress, "PATIENCE_SECONDS", 0.05)
    with phase("building"):
        time.sleep(0.3)
    with phase("sitting", shown=False):
        time.sleep(0.1)
    assert screen.getvalue() == "building ... 0 s\n"


class Shell:
    """A kernel's shell, as far as it is asked for, and what a cell shows beside its streams."""

    kernel = object()

    def __init__(self) -> None:
        self.execution_count = 1
        self.outputs: list[list[str]] = []  # of each output, what stood there

    def make_output(self) -> types.SimpleNamespace:
        """What IPython calls a DisplayHandle."""
        frames: list[str] = []
        self.outputs.append(frames)

        def show(bundle: dict[str, str], *, raw: bool) -> None:
            assert raw
            frames.append(bundle["text/plain"])

        return types.SimpleNamespace(display=show, update=show)


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch) -> Shell:
    shell = Shell()
    monkeypatch.setattr(notebook, "_PATIENCE_SECONDS", 0.1)
    display = types.SimpleNamespace(DisplayHandle=shell.make_output)
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell, display=display))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    return shell


def work(name: str, seconds: float = 0.5) -> None:
    with phase("looking"), Progress(name, 3) as bar:
        for _ in range(3):
            time.sleep(seconds / 3)
            bar.advance()
    say("done")


@pytest.mark.heavy
def test_a_notebook_gets_one_output_a_cell_for_what_moves(shell: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    work("scanning")
    work("validating")
    work("nothing", seconds=0.0)
    shell.execution_count = 2
    work("nothing", seconds=0.0)
    work("decoding")
    (first, second), said = shell.outputs, capsys.readouterr()
    assert {line.split(" ")[0] for line in first if line.strip()} >= {"scanning", "validating"}
    assert {line.split(" ")[0] for line in second if line.strip()} == {"decoding"}
    assert [first[-1], second[-1]] == [" ", " "]  # a line that is empty, and no taller or smaller than it was
    assert said.out == "done\n" * 5
    assert said.err == ""


@pytest.mark.heavy
def test_a_thread_stays_in_the_cell_that_started_it(shell: Shell) -> None:
    def work_on() -> None:
        work("scanning")
        shell.execution_count = 2
        work("validating")

    thread = threading.Thread(target=work_on)
    thread.start()
    thread.join()
    assert len(shell.outputs) == 1


@pytest.mark.parametrize(("term", "pager", "moves"), [("xterm-color", "cat", False), ("xterm", "cat", True)])
def test_a_program_that_a_cell_starts_says_plain_lines(
    term: str, pager: str, moves: bool, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", term)
    monkeypatch.setenv("PAGER", pager)
    with Progress("scanning", 3, patience=0.0) as bar:
        time.sleep(0.15)
        bar.advance(3)
    assert ("\r" in terminal.getvalue()) == moves
    assert [line for line in terminal.screens() if " 3/3 " in line]


def test_a_fault_while_drawing_keeps_no_lock(terminal: Terminal) -> None:
    """A kernel lives on after it: the next phase moves, and ends at once."""

    def fail() -> View:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), phase("building"):
        Progress("scanning", 3, describe=fail)
    began = time.monotonic()
    with phase("saving"):
        time.sleep(0.3)
    assert time.monotonic() - began < 1
    assert "saving ... 0 s" in terminal.screens()


def test_a_name_of_wide_letters_takes_no_more_columns(terminal: Terminal) -> None:
    view = View("scanning /データ/写真/トレーニング画像/二千二十四年", 3, 10, [("9/s", "")])
    assert {disp_len(fit_line(view, width)) for width in range(40, 100)} == set(range(40, 100))


@pytest.mark.parametrize("error", [OSError(28, "full"), ValueError("closed")])
def test_a_screen_that_cannot_be_written_ends_nothing(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(progress.tqdm, "write", fail)
    ScreenHandler().handle(logging.LogRecord("x", logging.WARNING, "", 0, "a warning", (), None))
    say("talk")


def test_a_phase_leaves_the_word_to_the_bar_inside_it(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "isatty", lambda: False)
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.02)
    monkeypatch.setattr(progress, "PATIENCE_SECONDS", 0.02)
    with phase("looking"), Progress("scanning", 2):
        time.sleep(0.1)
    assert terminal.getvalue() == ""
