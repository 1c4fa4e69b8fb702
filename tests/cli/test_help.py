"""What `--help` shows of each verb, and what the program says without one."""

from __future__ import annotations

import re
import sys

import pytest

from alexnet_dist import __version__
from alexnet_dist.cli.main import VERBS, main, run
from alexnet_dist.cli.prepare import KINDS
from alexnet_dist.settings.help import OFTEN, describe_settings, split_choices
from alexnet_dist.settings.schema import Config, EvaluationConfig, walk_fields

COMMANDS = [*((verb,) for verb in VERBS), *(("prepare", kind) for kind in KINDS)]


def read_help(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The help of a verb, which ends well; jsonargparse leaves the program by itself."""
    try:
        code = run(words[0], words[1:])
    except SystemExit as end:
        code = int(end.code or 0)
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    return str(out)


@pytest.mark.parametrize(("width", "topic"), [(60, ""), (80, ""), (80, "all")])
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_shows_words_not_code_and_fits_the_terminal(
    command: tuple[str, ...],
    width: int,
    topic: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    text = read_help(capsys, *command, "--help", *([topic] if topic else []))
    assert re.findall(r"<|null|lambda|type:|Literal|None|\bint\b|\bstr\b", text) == []
    assert [line for line in text.splitlines() if len(line) > width and " " in line.strip(" \\")] == []
    assert text.index("\n\nexamples:\n  ") < 200
    assert text.endswith("\n")
    if command not in (("launch",), ("prepare",)):
        assert f"\n\nusage: alexnet-dist {' '.join(command)}" in text


def test_each_choice_that_is_told_stands_on_a_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = read_help(capsys, "train", "--help", "all")
    for name in ("adam", "cosine", "ddp", "paper_text", "cifar10, fashion_mnist", "fc_only", "tf32"):
        assert f"\n        {name}: " in text
    for setting in describe_settings(Config):
        meaning, choices = split_choices(setting)
        assert meaning
        assert "; ".join([meaning, *choices]) == setting.meaning


def test_help_of_train_is_a_screen(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = read_help(capsys, "train", "--help").splitlines()
    assert len(lines) <= 49
    assert [key for key in OFTEN if not any(line.startswith(f"  --{key} ") for line in lines)] == []


@pytest.mark.parametrize(
    ("command", "settings"),
    [(("train",), Config), (("prepare", "cache"), Config), (("evaluate",), EvaluationConfig)],
)
def test_help_all_tells_every_setting(
    command: tuple[str, ...], settings: type, capsys: pytest.CaptureFixture[str]
) -> None:
    text = read_help(capsys, *command, "--help", "all")
    shown = re.findall(r"^  --([\w.]+) \S.*\n      \S", text, flags=re.MULTILINE)
    assert shown == [key for key, _ in walk_fields(settings)]


@pytest.mark.parametrize(
    ("topic", "first", "last"),
    [
        ("optimizer", "optimizer: The update rule.", "(default: 0)"),
        ("optimizer.lr_factors", "optimizer: The update rule.", "of fc8 (default: 1)"),
        ("train.epochs", "train: How long", "(default: none)"),
        ("run", "run: The run as a whole.", "torch.compile the network (default: false)"),
    ],
)
def test_help_of_a_section_is_that_section(
    topic: str, first: str, last: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = read_help(capsys, "train", "--config", "digits", "--help", topic)
    keys = re.findall(r"^  --([\w.]+) ", text, flags=re.MULTILINE)
    assert keys
    assert all(key.startswith(topic) or (topic == "run" and "." not in key) for key in keys)
    assert text.startswith(first)
    assert text.endswith(f"{last}\n")


@pytest.mark.parametrize(
    ("topic", "remedy"),
    [
        ("optimiser", "did you mean --help optimizer?"),
        ("lr", "did you mean --help optimizer.lr?"),
        ("qqq", "give all,"),
    ],
)
def test_help_of_an_unknown_section_names_the_nearest(
    topic: str, remedy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", ["--help", topic]) == 2
    assert capsys.readouterr().err.startswith(f"error: no settings are called '{topic}' (--help); {remedy}")


@pytest.mark.parametrize(
    ("started", "shown"),
    [
        ("launch/train.py", ["  python launch/train.py --config digits\n", "launch/train.py --config smoke"]),
        ("/usr/bin/alexnet-dist", ["  alexnet-dist train --config digits\n", "-m alexnet_dist train --config smoke"]),
    ],
)
def test_examples_fit_how_the_program_was_started(
    started: str, shown: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [started])
    text = read_help(capsys, "train", "--help").replace(" \\\n      ", " ")
    assert [part for part in shown if part not in text] == []


@pytest.mark.parametrize(
    ("words", "code", "out", "err"),
    [
        ([], 2, "\ntrain     train a network", ""),
        (["--help"], 0, "\nlaunch    start one", ""),
        (["-h"], 0, "examples:\n  alexnet-dist train", ""),
        (["help"], 0, "usage: alexnet-dist VERB", ""),
        (["help", "export"], 0, "\nusage: alexnet-dist export", ""),
        (["--version"], 0, f"alexnet-dist {__version__}\n", ""),
        (["trane"], 2, "", "error: unknown verb 'trane' (command line); did you mean train?\n"),
        (["qqqqq"], 2, "", "error: unknown verb 'qqqqq' (command line); give one of train, evaluate"),
    ],
)
def test_the_program_says_what_there_is_to_call(
    words: list[str], code: int, out: str, err: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as end:
        main(words)
    printed = capsys.readouterr()
    assert (int(end.value.code or 0), printed.err[: len(err) or None]) == (code, err)
    assert out in printed.out
    assert max(map(len, printed.out.splitlines()), default=0) <= 80
