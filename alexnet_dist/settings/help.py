"""The text of `--help`: examples, a usage line, a verb's own options, and its settings as far as they are asked for.

jsonargparse's own help shows every setting at once, with types as code; what it knows of a verb's options is read here.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import shutil
import sys
import textwrap
import types
from argparse import Action
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

from docstring_parser import parse_from_object

from alexnet_dist.base.errors import UsageError
from alexnet_dist.base.started import name_command, name_program
from alexnet_dist.settings.nearest import find_nearest
from alexnet_dist.settings.schema import PATH_KEYS

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

HELP = ("-h", "--help")
ALL, LOOSE = "all", "run"  # topics beside the sections: everything, and the settings that stand in none
MIN_WIDTH, MAX_WIDTH, COLUMN = 40, 120, 28
# What people change, in a few words, or by its choices; the rest is one word further.
OFTEN = {
    "data.root": "folder with your images: train/ and val/ lie in it",
    "data.val": "validation images, below data.root",
    "data.engine": "",
    "data.workers": "processes that decode images",
    "augment.resize": "before the crop: N (shorter side) or [H, W]",
    "model.variant": "",
    "model.image_size": "side of the network's input, in pixels",
    "model.pretrained": "weights to start from",
    "optimizer.name": "",
    "optimizer.lr": "learning rate",
    "optimizer.weight_decay": "",
    "schedule.name": "",
    "train.epochs": "passes over the training images",
    "train.global_batch_size": "images per update, over all processes",
    "train.micro_batch_size": "images per process and forward pass",
    "parallel.strategy": "",
    "precision": "",
    "seed": "of every random choice",
    "tracking.wandb": "",
    "output_dir": "run folder",
}
KINDS = {int: "N", float: "NUMBER", str: "TEXT", bool: "true|false"}
VALUES = {  # what a verb's own options take, where their name does not say it
    **dict.fromkeys(("config",), "NAME"),
    **dict.fromkeys(("model", "weights", "resume_from", "data"), "FOLDER"),
    **dict.fromkeys(("paths", "images"), "PATH"),
    **dict.fromkeys(("out", "figure", "probe", "list"), "FILE"),
    **dict.fromkeys(PATH_KEYS, "PATH"),
}
# Of settings that say nothing of theirs.
DEFAULTS = {"model.pretrained": "none", "model.": "the variant's", "data.columns.": "automatic"}
_DEFAULT = re.compile(r"[;,]? *\bnull = (.+?)(?=;|\. |$)")


@dataclasses.dataclass(frozen=True)
class Setting:
    """One setting, in words.

    Args:
        key: dotted name.
        values: what it takes: its choices, or a word for the kind of value.
        meaning: what it does.
        default: what holds without it.
    """

    key: str
    values: str
    meaning: str
    default: str


def find_topic(argv: Sequence[str]) -> str | None:
    """What a command line asks help for: "" the verb itself, a word the settings of that name; None = for nothing."""
    asked = [position for position, word in enumerate(argv) if word in HELP]
    if not asked:
        return None
    word = next(iter(argv[asked[0] + 1 :]), "")
    return "" if word.startswith("-") else word


def show_help(parser: ArgumentParser, settings: type | None, topic: str) -> None:
    """Print the help of a verb.

    Args:
        parser: with the verb's own options alone.
        settings: a class of settings that it takes, too.
        topic: see `find_topic`.

    Raises:
        UsageError: there are no settings of this name.
    """
    width = find_width()
    if settings is None:
        text = format_verb(parser, width)
    elif topic in ("", ALL):
        own = format_verb(parser, width)
        text = own + (format_sections(settings, width) if topic else point_to_settings(parser, settings, width))
    else:
        text = format_sections(settings, width, topic)
    sys.stdout.write(text)


def find_width() -> int:
    """The columns of the terminal, as far as they are fit for reading."""
    return min(max(shutil.get_terminal_size().columns, MIN_WIDTH), MAX_WIDTH)


def format_description(text: str) -> str:
    """What a verb says of itself, as wide as the terminal."""
    return fit_text(suit_examples(text), find_width())


def format_verb(parser: ArgumentParser, width: int) -> str:
    """Examples, usage and the verb's own options."""
    lines = [fit_text(suit_examples(parser.description or ""), width), ""]
    verb, *kind = parser.prog.split()
    start = suit_examples(" ".join([f"usage: python launch/{verb}.py", *kind]))
    lines += [*_wrap_whole(f"{start} {parser.usage}", r"\[[^]]*\]", width), ""]
    needed = re.findall(r"--(\w+)", re.sub(r"\[[^]]*\]", "", str(parser.usage)))
    for action in parser._actions:
        if not set(HELP) & set(action.option_strings):
            lines += _format_option(action, action.dest in needed, width)
    return "\n".join(lines) + "\n"


def point_to_settings(parser: ArgumentParser, settings: type, width: int) -> str:
    """The settings that people use, for `train`; for other verbs, where they are told."""
    told = {setting.key: setting for setting in describe_settings(settings)}
    names = ", ".join([*list_sections(settings), ALL])
    lines = [""]
    if parser.prog == "train":
        lines.append("settings that people change (a configuration has them all):")
        lines += [line for key, words in OFTEN.items() for line in _format_briefly(told[key], words, width)]
        lines.append("")
        said = f"`--help SECTION` tells all of a section: {names}."
    else:
        where = "see `alexnet-dist train --help`, or " if set(OFTEN) <= set(told) else ""
        said = f"Settings can be given, too: {where}`--help SECTION`: {names}."
    return "\n".join([*lines, *_fit_prose([said], width)]) + "\n"


def format_sections(settings: type, width: int, topic: str = ALL) -> str:
    """All settings, or those of a section.

    Raises:
        UsageError: there is no such section, and no such setting.
    """
    told = describe_settings(settings)
    sections = list_sections(settings)
    picked = [setting for setting in told if topic == ALL or _is_below(setting.key, topic)]
    if not picked:
        near = find_nearest(topic, [setting.key for setting in told], [*sections, ALL])
        remedy = f"did you mean --help {near}?" if near else f"give {ALL}, or one of {', '.join(sections)}"
        raise UsageError(f"no settings are called {topic!r}", where="--help", remedy=remedy)
    lines: list[str] = []
    for section, summary in sections.items():
        inside = [setting for setting in picked if _is_below(setting.key, section)]
        if inside:
            lines += ["", *textwrap.wrap(f"{section}: {summary}", width)]
            lines += [line for setting in inside for line in _format_fully(setting, width)]
    return "\n".join(lines[topic != ALL :]) + "\n"


def list_sections(settings: type) -> dict[str, str]:
    """What the top sections hold: {name: summary}."""
    parts = {item.name: item.default_factory for item in dataclasses.fields(settings) if _is_section(item)}
    loose = {LOOSE: f"{'The run as a whole' if settings.__name__ == 'Config' else 'The whole'}."}
    has_loose = len(parts) < len(dataclasses.fields(settings))
    return {**(loose if has_loose else {}), **{name: _join(part.__doc__) for name, part in parts.items()}}


@functools.cache  # reading the docstrings of fields takes a tenth of a second
def describe_settings(settings: Any, prefix: str = "") -> list[Setting]:
    """Every setting of a class, in its order."""
    hints = get_type_hints(settings)
    told = {item.arg_name: _join(item.description) for item in parse_from_object(settings).params}
    found: list[Setting] = []
    for item in dataclasses.fields(settings):
        default = item.default_factory() if item.default_factory is not dataclasses.MISSING else item.default
        if dataclasses.is_dataclass(default):
            section: Any = type(default)
            found += describe_settings(section, f"{prefix}{item.name}.")
            continue
        key = prefix + item.name
        meaning, said = split_default(key, told.get(item.name, ""), default)
        found.append(Setting(key, VALUES.get(key) or name_values(hints[item.name]), meaning, said))
    return found


def split_default(key: str, text: str, default: Any) -> tuple[str, str]:
    """What a setting means, and its default in words, out of its docstring."""
    match = _DEFAULT.search(text)
    if match is not None:
        text = text[: match.start()] + text[match.end() :]
    text = text.replace("null", "none")
    if default is not None:
        return text, name_value(default)
    words = next((words for start, words in DEFAULTS.items() if key.startswith(start)), "none")
    return text, match[1] if match is not None else words


def name_values(hint: Any) -> str:
    """What a setting takes, in a word or by its choices."""
    origin, parts = get_origin(hint), [part for part in get_args(hint) if part is not type(None)]
    if origin is Literal:
        return "{" + ",".join(str(part) for part in parts) + "}"
    if origin is list:
        return "[" + name_values(parts[0]).strip("{}").replace(",", "|") + ", ...]"
    if origin in (Union, types.UnionType):
        return " or ".join(name_values(part) for part in parts)
    return KINDS[hint]


def name_value(value: Any) -> str:
    """A value as it is written in a file."""
    if isinstance(value, list):
        return f"[{', '.join(map(name_value, value))}]" if value else "none"
    return str(value).lower() if isinstance(value, bool) else f"{value:.4g}" if isinstance(value, float) else str(value)


def suit_examples(text: str) -> str:
    """Examples in the form in which this program was started; they are written with the scripts of a checkout."""
    text = re.sub(r"python launch/(\w+)\.py", lambda match: name_command(match[1]), text)
    pattern = r"^(  .*(?<!python )(?<!/))\blaunch/(\w+)\.py\b"
    return re.sub(pattern, lambda match: match[1] + name_program(match[2]), text, flags=re.MULTILINE)


def fit_text(text: str, width: int) -> str:
    """A text wrapped to a width: paragraphs, commands (two spaces before them) and rows of two columns."""
    return "\n".join(
        line for block in text.split("\n\n") for line in [*_fit_block(block.split("\n"), width), ""]
    ).rstrip()


_HANGING: dict[str, Any] = {"subsequent_indent": " " * 6, "break_on_hyphens": False, "break_long_words": False}


def _fit_block(lines: Sequence[str], width: int) -> list[str]:
    fitted: list[str] = []
    prose: list[str] = []
    for line in lines:
        row = re.match(r"\S+ {2,}(?=\S)", line)
        if row or line.startswith("  ") or line.endswith(":"):
            fitted += _fit_prose(prose, width)
            prose = []
            fitted += _fit_command(line, width) if not row else _hang(row[0], line[row.end() :], row.end(), width)
        else:
            prose.append(line)
    return fitted + _fit_prose(prose, width)


def _fit_prose(lines: Sequence[str], width: int) -> list[str]:
    return textwrap.wrap(" ".join(lines), width, break_on_hyphens=False)


def _fit_command(line: str, width: int) -> list[str]:
    """A command on as many lines as it takes, which a shell reads as one."""
    parts = _wrap_whole(line, r"--?[\w.]+ [^-\s]+", width - 2)  # an option and its value stay together
    return [f"{part} \\" for part in parts[:-1]] + parts[-1:]


def _wrap_whole(text: str, whole: str, width: int) -> list[str]:
    """Wrap a text, and nothing that fits the pattern."""
    joined = re.sub(whole, lambda match: match[0].replace(" ", "\0"), text)
    return [line.replace("\0", " ") for line in textwrap.wrap(joined, width, **_HANGING)]


def _format_option(action: Action, is_needed: bool, width: int) -> list[str]:
    kind: Any = getattr(action, "_typehint", None) or action.type
    flag = action.option_strings[-1] if action.option_strings else ""
    if action.choices:
        value = "{" + ",".join(map(str, action.choices)) + "}"
    else:
        value = str(action.metavar or VALUES.get(action.dest) or KINDS.get(kind, action.dest.upper()))
    if action.nargs == 0:
        value = ""
    elif action.nargs in ("+", "*"):
        value += " ..."
    text = str(action.help or "") + " (required)" * is_needed
    if action.nargs != 0 and action.default not in (None, []) and flag and "(default" not in text:
        text += f" (default: {name_value(action.default).strip('[]').replace(',', '')})"
    return _hang(f"  {flag} {value}".replace("   ", "  ").rstrip(), text, COLUMN, width)


def _format_briefly(setting: Setting, words: str, width: int) -> list[str]:
    choices = setting.values.strip("{}").replace(",", ", ") if setting.values.startswith("{") else ""
    return _hang(f"  --{setting.key}", words or choices or re.split("[;:,]", setting.meaning)[0], COLUMN, width)


def split_choices(setting: Setting) -> tuple[str, list[str]]:
    """What a setting means, and a line for each choice of which its docstring says something: "adam: as PyTorch's"."""
    names = setting.values.strip("{}").split(",") if setting.values.startswith("{") else []
    one = rf"(?:{'|'.join(map(re.escape, names))})"
    parts = re.split(rf"(?:^|; )(?={one}(?:, {one})*: )", setting.meaning) if names else [setting.meaning]
    return parts[0], parts[1:]


def _format_fully(setting: Setting, width: int) -> list[str]:
    meaning, choices = split_choices(setting)
    head, text = f"  --{setting.key} {setting.values}", f"{meaning} (default: {setting.default})".lstrip()
    if len(head) > width and setting.values.startswith("{"):  # choices that are broken between words stand below
        head, text = f"  --{setting.key} NAME", f"{setting.values.strip('{}').replace(',', ', ')}. {text}"
    return [head, *_indent(text, 6, width), *(line for choice in choices for line in _hang_choice(choice, width))]


def _hang_choice(line: str, width: int) -> list[str]:
    return textwrap.wrap(line, width, initial_indent=" " * 8, subsequent_indent=" " * 10, break_on_hyphens=False)


def _hang(head: str, text: str, column: int, width: int) -> list[str]:
    """Two columns; a head that is too long for its own stands on a line by itself."""
    lines = _indent(text, column, width)
    return [head.ljust(column) + lines[0][column:], *lines[1:]] if len(head.rstrip()) < column else [head, *lines]


def _indent(text: str, column: int, width: int) -> list[str]:
    margin = " " * column
    return textwrap.wrap(text, width, initial_indent=margin, subsequent_indent=margin, break_on_hyphens=False) or [
        margin
    ]


def _is_below(key: str, topic: str) -> bool:
    return key == topic or key.startswith(f"{topic}.") or (topic == LOOSE and "." not in key)


def _is_section(item: dataclasses.Field[Any]) -> bool:
    return dataclasses.is_dataclass(item.default_factory)


def _join(text: str | None) -> str:
    return " ".join((text or "").split())
