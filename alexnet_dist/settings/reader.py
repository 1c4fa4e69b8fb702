"""From a YAML file and a command line to a `Config`.

jsonargparse checks types and prints the help; what it lacks is here: files that change other files, keys that stand
twice, the nearest name for an unknown key, and errors of one line that say where. How a value is written is
settings/yaml_file.py's business, for files and command lines alike.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace, set_loader

from alexnet_dist.base.disk_errors import name_reason, name_remedy
from alexnet_dist.base.errors import UsageError
from alexnet_dist.base.nested import flatten, nest
from alexnet_dist.base.places import expand_home, find_place
from alexnet_dist.base.sources import SOURCES
from alexnet_dist.settings.checks import PERIODS, check_config, check_text
from alexnet_dist.settings.help import HELP, find_topic, show_help
from alexnet_dist.settings.nearest import explain_elsewhere, find_nearest
from alexnet_dist.settings.schema import PATH_KEYS, Config, walk_fields
from alexnet_dist.settings.shipped import find_yaml, shipped_folder
from alexnet_dist.settings.yaml_file import StrictDumper, StrictLoader, is_plain, load_word

MAX_CONFIG_BYTES = 1_000_000
EXCLUSIVE_KEYS = ("train.epochs", "train.max_steps")
MAX_LIST = 100  # values; the longest that a network needs has 8
TYPE_WORDS = {
    "Literal": "one of ",
    "None": "null",
    "Layer": "conv1 ... fc8",
    "SourceName": f"one of {list(SOURCES)}",
}
BASE = "base"  # key of a file that changes another one
PLAIN_NUMBERS = "write numbers plainly: 10 or 0.5 or 1e-4, not 010, 0x10, 1_000 or 1:30"


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What a command line asked for.

    `given` are the settings named on the command line, {dotted name: value}; `options` the verb's own options.
    """

    given: dict[str, Any]
    options: Namespace


def parse_arguments(argv: Sequence[str], parser: ArgumentParser, settings: type = Config) -> Arguments:
    """Read a verb's command line.

    Args:
        argv: the words after the verb.
        parser: holds the verb's own options (`--model`, `--out`).
        settings: which settings the verb takes: `Config`, or a class with some of its fields.

    Raises:
        UsageError: an unknown or mistyped option, or a wrong type.
    """
    if (topic := find_topic(argv)) is not None:
        show_help(parser, settings, topic)
        parser.exit()
    own = {action.dest for action in parser._actions}
    own_values = parser.get_defaults()
    parser = _join_settings(parser, settings)
    _refuse_unknown_flags(argv, parser)
    _refuse_odd_words(argv, parser)
    with _explaining(_pair_words(argv), {}):
        namespace = parser.parse_args(_put_words_first(argv, parser), defaults=False)
    flat = {key: value for key, value in flatten(namespace.as_dict()).items() if key in _all_keys()}
    chosen = {key: namespace.get(key, own_values.get(key)) for key in own if key not in ("help",)}
    return Arguments(flat, _settle_paths(Namespace(**chosen)))


def _join_settings(parser: ArgumentParser, settings: type) -> ArgumentParser:
    """One parser for a verb's own options and for settings."""
    joined = copy.deepcopy(_settings_parser(settings))  # a tenth of the time that making it takes
    for action in parser._actions:
        if action.dest != "help":
            joined._add_action(action)
    return joined


def parse_options(argv: Sequence[str], parser: ArgumentParser) -> Namespace:
    """Read the command line of a verb that takes no settings.

    Raises:
        UsageError: an unknown or mistyped option, or a wrong type.
    """
    if (topic := find_topic(argv)) is not None:
        show_help(parser, None, topic)
        parser.exit()
    _refuse_unknown_flags(argv, parser)
    _refuse_odd_words(argv, parser)
    with _explaining(_pair_words(argv), {}):
        options = parser.parse_args(_put_words_first(argv, parser))
    return _settle_paths(options)


def _settle_paths(options: Namespace) -> Namespace:
    """Options whose `~` is the user's folder: a shell does that only where a word begins with it.

    Raises:
        UsageError: an option that no file can be called.
    """
    for key, value in vars(options).items():
        if isinstance(value, str):
            check_text(f"--{key}", value, "command line")
            setattr(options, key, expand_home(value))
        elif isinstance(value, list):
            setattr(options, key, [expand_home(part) if isinstance(part, str) else part for part in value])
    return options


def new_parser(prog: str = "", description: str = "", usage: str = "[options]") -> ArgumentParser:
    """A parser for a verb's own options, to be handed to `parse_arguments`.

    Args:
        prog: the verb.
        description: help text, beginning with examples.
        usage: what follows the verb's name.
    """
    set_loader("strict", load_word, (yaml.YAMLError,))
    return ArgumentParser(
        parser_mode="strict",
        prog=prog,
        usage=usage,
        description=description,
        exit_on_error=False,
        allow_abbrev=False,
        default_env=False,
        print_config=None,  # jsonargparse's own would turn our --print_config into an option that takes a value
    )


def settle_config(config: Config | Mapping[str, Any] | str | Path, changes: Mapping[str, Any], place: str) -> Config:
    """The settings that a program gives.

    Args:
        config: as `load_config`'s name; or nested or dotted settings, which may change a `base`; or checked ones.
        changes: settings that win, nested or dotted.
        place: what to call the program in messages.

    Raises:
        UsageError: as `load_config`.
        TypeError: neither.
    """
    given = plain_settings(changes)
    if isinstance(config, str | Path):
        return load_config(os.fspath(config), given, place)
    if not isinstance(config, Config | Mapping):
        raise TypeError(f"settings must be a name, a path, a mapping or a Config; got {type(config).__name__}")
    values = plain_settings(config)
    base = values.pop(BASE, None)
    settings = _lay_over(values, given)
    if base is not None:
        return load_config(str(base), settings, place)
    return build_config(settings, dict.fromkeys(settings, place))


def plain_settings(settings: Any) -> dict[str, Any]:
    """Nested or dotted settings, or a `Config`, as a file has them: {dotted name: value}, lists, and paths as texts."""
    nested = dataclasses.asdict(settings) if isinstance(settings, Config) else settings
    plain: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            plain |= {f"{key}.{inner}": part for inner, part in plain_settings(value).items()}
        else:
            plain[str(key)] = _plain_value(value)
    return plain


def _plain_value(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else os.fspath(value) if isinstance(value, Path) else value


def load_config(name: str, given: dict[str, Any], place: str = "") -> Config:
    """The settings of a run: defaults, then the YAML file, then the command line.

    A file with `base: NAME` changes what the file of that name says, which may lie beside it or be one of ours.

    Args:
        name: a path, or a name found in configs/ with or without `.yaml`.
        given: settings from the command line, {dotted name: value}; they win. `train.epochs` and `train.max_steps`
            replace each other.
        place: where they come from, for messages; "" for a command line.

    Raises:
        UsageError: a missing file, a key that is unknown or stands twice, a wrong type, a value out of range.
    """
    path = find_config(name)
    values, places = read_layers(path)
    above = dict.fromkeys(given, place) if place else {}
    below = {key: line for key, line in places.items() if key not in given}
    config = build_config(_lay_over(values, given), {**below, **above})
    if config.output_dir is None:
        config = dataclasses.replace(config, output_dir=str(Path("runs") / path.stem))
    return config


def names_output_dir(name: str | None, given: Mapping[str, Any]) -> bool:
    """Whether a configuration (None = without one) or the command line says where a run goes."""
    in_file = read_layers(find_config(name))[0] if name is not None else {}
    return {**in_file, **given}.get("output_dir") is not None


def read_layers(path: Path, above: tuple[Path, ...] = ()) -> tuple[dict[str, Any], dict[str, str]]:
    """A file with its base below it: {dotted name: value}, and where each was read ("file.yaml:12").

    Raises:
        UsageError: as `load_config`; or files that are each other's base.
    """
    if find_place(path) in above:
        raise UsageError("configuration is its own base", where=str(path), remedy=f"remove `{BASE}:` from one of them")
    values, lines = read_yaml(path)
    places = {key: f"{path}:{line}" for key, line in lines.items()}
    base = values.pop(BASE, None)
    if base is None:
        return values, places
    if not isinstance(base, str):
        raise UsageError(f"wrong value for {BASE}", where=places[BASE], why=f"expected a name, got {base!r}")
    beside = [path.parent / file for file in (base, f"{base}.yaml")]
    below = next(filter(os.path.isfile, beside), None) or find_config(base)
    lower, lower_places = read_layers(below, (*above, find_place(path)))
    return _lay_over(lower, values), {**lower_places, **places}


def _lay_over(values: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Settings with others laid over them; what these others replace without naming it is left out."""
    values = dict(values)
    for first, second in (EXCLUSIVE_KEYS, EXCLUSIVE_KEYS[::-1]):
        if given.get(first) is not None and given.get(second) is None:
            values.pop(second, None)
    if "schedule.name" in given:  # the period below belongs to the schedule that is replaced
        for key in set(PERIODS.values()) - {PERIODS.get(given["schedule.name"])}:
            values.pop(key, None)
    return {**values, **given}


def build_config(values: dict[str, Any], places: dict[str, str] | None = None) -> Config:
    """A checked `Config` from {dotted name: value}.

    Args:
        values: settings; what is missing keeps its default.
        places: where each setting was read ("file.yaml:12"), for messages.

    Raises:
        UsageError: an unknown key, a wrong type or a value out of range.
    """
    places = places or {}
    _refuse_unknown_keys(values, places)
    _refuse_lookalikes(values, places)
    _refuse_odd_shapes(values, places)
    homes = {key: expand_home(values[key]) for key in PATH_KEYS if isinstance(values.get(key), str)}
    parser = _settings_parser(Config)
    with _explaining(values, places):
        namespace = parser.parse_object(nest({**values, **homes}), defaults=False)  # Config has them
        config = parser.instantiate(namespace).as_dict()
    result = Config(**config)
    check_config(result, places)
    return result


def find_config(name: str) -> Path:
    """The file that `--config` names: a path, or a name in configs/ (here, or ours) with or without `.yaml`."""
    return find_yaml(name, (Path("configs"), shipped_folder("configs")), "configuration")


def read_yaml(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """A YAML file as {dotted name: value} and {dotted name: line}.

    Raises:
        UsageError: not UTF-8, not YAML, too large, a key that stands twice, or anything but a mapping.
    """
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise UsageError("configuration too large", where=str(path), remedy="a configuration has at most 1 MB")
        loader = StrictLoader(path.read_text(encoding="utf-8-sig"))
        root = loader.get_single_node()
        values: dict[str, Any] = {}
        lines: dict[str, int] = {}
        if root is not None:
            _read_mapping(loader, root, "", path, values, lines)
    except UnicodeDecodeError:
        raise UsageError("configuration is not UTF-8", where=str(path), remedy="save it as UTF-8") from None
    except OSError as error:
        where, why = os.path.abspath(path), name_reason(error)
        raise UsageError("configuration cannot be read", where=where, why=why, remedy=name_remedy(error)) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        why = str(getattr(error, "problem", error))
        remedy = "write spaces in its place" if r"'\t'" in why else ""
        raise UsageError("configuration is not YAML", where=where, why=why, remedy=remedy) from None
    except RecursionError:
        why = "brackets in brackets without end"
        raise UsageError("configuration is not YAML", where=str(path), why=why) from None
    except (ValueError, AttributeError) as error:  # PyYAML on a number of 5,000 digits
        raise UsageError("configuration is not YAML", where=str(path), why=str(error)) from None
    return values, lines


def _read_mapping(
    loader: StrictLoader, node: yaml.Node, prefix: str, path: Path, values: dict[str, Any], lines: dict[str, int]
) -> None:
    if not isinstance(node, yaml.MappingNode):
        raise UsageError(
            "expected `key: value` lines",
            where=f"{path}:{node.start_mark.line + 1}",
            why=f"{prefix.rstrip('.') or 'the file'} holds none",
        )
    sections = {key.rpartition(".")[0] for key in _all_keys()} - {""}
    for key_node, value_node in node.value:
        key, line = prefix + str(key_node.value), key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode) or key_node.value == "<<":
            what = "a merge (<<) is not read" if isinstance(key_node, yaml.ScalarNode) else "a key is no word"
            raise UsageError(what, where=f"{path}:{line}", remedy="write each key by its name")
        if key in lines:
            raise UsageError(
                f"key {key} stands twice", where=f"{path}:{lines[key]} and {line}", remedy="keep one of them"
            )
        lines[key] = line
        if key in sections:
            _read_mapping(loader, value_node, f"{key}.", path, values, lines)
        else:
            values[key] = loader.construct_object(value_node, deep=True)


def dump_config(config: Config, unicode: bool = True) -> str:
    """The resolved settings as YAML that `load_config` reads back; without `unicode` in ASCII, with escapes."""
    values = dataclasses.asdict(config)
    return yaml.dump(values, Dumper=StrictDumper, sort_keys=False, default_flow_style=None, allow_unicode=unicode)


@functools.cache  # it takes a tenth of a second
def _settings_parser(settings: type) -> ArgumentParser:
    parser = new_parser()
    parser.add_class_arguments(settings, None)
    if any(f"--{key}" not in parser._option_string_actions for key, _ in walk_fields(settings)):
        raise MemoryError  # jsonargparse leaves out an option for whatever goes wrong with it
    return parser


def _all_keys() -> list[str]:
    return [key for key, _ in walk_fields(Config)]


def _refuse_unknown_keys(values: dict[str, Any], places: dict[str, str]) -> None:
    known = _all_keys()
    sections = {key.partition(".")[0] for key in known if "." in key}
    for key in values:
        if key not in known:
            near = find_nearest(key, known, sections)
            remedy = f"did you mean {near}?" if near else "see --help all"
            where = places.get(key, "command line")
            newer = (
                ", or update alexnet_dist if a newer one wrote it" if ":" in places.get(key, "") else ""
            )  # FILE:LINE
            raise UsageError(f"unknown key {key}", where=where, remedy=remedy + newer)


def _refuse_lookalikes(values: dict[str, Any], places: dict[str, str]) -> None:
    """Refuse what jsonargparse lets through: null where a value is needed, `true` or `1.0` for one of 1 and 3."""
    for key, item in walk_fields(Config):
        value = values.get(key)
        is_missing = key in values and value is None and "None" not in str(item.type)
        is_choice = str(item.type).startswith("Literal") and not (
            isinstance(value, bool) and str(value) in str(item.type)
        )
        if is_missing or (isinstance(value, bool | float) and is_choice):
            raise _wrong_value(key, values, places)


def _refuse_odd_shapes(values: dict[str, Any], places: dict[str, str]) -> None:
    """Refuse what no setting holds, before it is looked at more closely: mappings, lists of lists, endless lists."""
    kinds = {key: item.type for key, item in walk_fields(Config)}
    for key, value in values.items():
        inner = value if isinstance(value, list) else []
        if isinstance(value, dict) or any(isinstance(part, list | dict) for part in inner):
            raise _wrong_value(key, values, places)
        if len(inner) > MAX_LIST:
            why = f"it has {len(inner)} values, and a list has at most {MAX_LIST}"
            raise UsageError(f"wrong value for {key}", where=places.get(key, "command line"), why=why)
        if not is_plain(value, kinds[key]):
            raise _wrong_value(key, values, places, PLAIN_NUMBERS)


def _refuse_odd_words(argv: Sequence[str], parser: ArgumentParser) -> None:
    """Refuse on a command line what a file would read otherwise, or not at all."""
    kinds = {action.dest: getattr(action, "_typehint", action.type) for action in parser._actions}
    for key, word in _pair_words(argv).items():
        if not is_plain(word, kinds.get(key, "str")):
            why = f"expected a plain value, got {word!r}"
            raise UsageError(f"wrong value for {key}", where="command line", why=why, remedy=PLAIN_NUMBERS)


def _refuse_unknown_flags(argv: Sequence[str], parser: ArgumentParser) -> None:
    known = [flag for action in parser._actions for flag in action.option_strings]
    keys = [flag.removeprefix("--") for flag in known if flag not in HELP]
    for word in itertools.takewhile(lambda word: word != "--", argv):
        flag = word.partition("=")[0]
        if re.match("--?[a-zA-Z]", flag) and flag not in known:
            near = find_nearest(flag, keys)
            remedy = f"did you mean --{near}?" if near else "see --help all"
            raise UsageError(f"unknown option {flag}", where="command line", remedy=explain_elsewhere(flag) or remedy)
    sections = {key.rpartition(".")[0] for key in keys} - {""}
    for key, word in _pair_words(argv).items():
        if key in sections and not word.startswith("{") and not os.path.isfile(word):
            near = find_nearest(key, [name for name in keys if name not in sections])
            remedy = f"did you mean --{near}?" if near else f"see --help {key}"
            raise UsageError(f"--{key} is a section", where="command line", why=f"got {word!r}", remedy=remedy)


def _put_words_first(argv: Sequence[str], parser: ArgumentParser) -> list[str]:
    """A command line with the words that no option takes before the options: argparse may read them nowhere else."""
    if "--" in argv:
        return list(argv)
    words: list[str] = []
    rest: list[str] = []
    room = 0  # for values of the option before
    for word in argv:
        if word.startswith("-") and len(word) > 1:
            action = parser._option_string_actions.get(word)  # None where it holds its value: --key=value
            room = 0 if action is None or action.nargs == 0 else 1 if action.nargs is None else len(argv)
            rest.append(word)
        else:
            (rest if room else words).append(word)
            room = max(room - 1, 0)
    return [*words, *rest]


def _pair_words(argv: Sequence[str]) -> dict[str, str]:
    """The value that follows each option of a command line, {dotted name: value}."""
    words = [part for word in argv for part in (word.split("=", 1) if word.startswith("--") else [word])]
    return {word.lstrip("-"): value for word, value in itertools.pairwise(words) if word.startswith("--")}


@contextlib.contextmanager
def _explaining(values: dict[str, Any], places: dict[str, str]) -> Iterator[None]:
    """Turn whatever jsonargparse raises into one line. It raises several kinds; each is the user's wrong value.

    Args:
        values: that it reads, {dotted name: value}.
        places: where each was read.

    Raises:
        UsageError: it raised something.
        MemoryError: the machine has no memory left, which is no wrong value.
    """
    try:
        yield
    except MemoryError:
        raise
    except RecursionError:
        key = max(values, key=lambda name: len(str(values[name])), default="")  # what is nested so deeply is long
        what, where = f"wrong value for {key}", places.get(key, "command line")
        raise UsageError(what, where=where, why="brackets in brackets without end", remedy="see --help") from None
    except Exception as error:  # noqa: BLE001 (see above)
        raise _explain(error, values, places) from None


def _explain(error: Exception, values: dict[str, Any], places: dict[str, str]) -> UsageError:
    """jsonargparse's message of several lines as one: the key, where it stands, the type wanted, the value got."""
    text = " ".join(str(error).split())
    match = re.search(r'key "([\w.]+)"', text) or re.search(r"argument --([\w.]+)", text)
    if (unknown := re.search("unrecognized arguments: (.*)", text)) is not None:
        is_folder = os.path.isdir(unknown[1])
        remedy = (
            "a folder stands behind its option here, --data.root or --data; see --help" if is_folder else "see --help"
        )
        return UsageError(f"unexpected word {unknown[1]!r}", where="command line", remedy=remedy)
    if match is None or match[1] not in _all_keys():
        return UsageError("cannot read the command line", why=text.removeprefix("error: "), remedy="see --help")
    return _wrong_value(match[1], values, places)


def _wrong_value(key: str, values: dict[str, Any], places: dict[str, str], remedy: str = "see --help") -> UsageError:
    types = {name: item.type for name, item in walk_fields(Config)}
    wanted = str(types[key])
    for name, words in TYPE_WORDS.items():
        wanted = wanted.replace(name, words)
    got = f"got {'null' if values[key] is None else _show(values[key])}" if key in values else "got no value"
    return UsageError(
        f"wrong value for {key}",
        where=places.get(key, "command line"),
        why=f"expected {wanted}, {got}",
        remedy=remedy,
    )


def _show(value: Any) -> str:
    try:
        return repr(value)
    except RecursionError:
        return f"a {type(value).__name__} in which brackets lie in brackets without end"
