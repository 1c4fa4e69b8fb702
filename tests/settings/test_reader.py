from __future__ import annotations

import ast
import contextlib
import dataclasses
import errno
import functools
import itertools
import math
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from helpers.refusals import refused
from helpers.verbs import call
from jsonargparse import ArgumentParser

from alexnet_dist.assembly.loaders import build_augmentation, build_normalization
from alexnet_dist.assembly.network import build_spec
from alexnet_dist.base.errors import DataError, UsageError
from alexnet_dist.base.nested import flatten
from alexnet_dist.data.plan import Plan
from alexnet_dist.models import AlexNet
from alexnet_dist.settings import schema as config_module
from alexnet_dist.settings.reader import (
    MAX_CONFIG_BYTES,
    build_config,
    dump_config,
    find_config,
    load_config,
    new_parser,
    parse_arguments,
    parse_options,
)
from alexnet_dist.settings.schema import Config, walk_fields
from alexnet_dist.settings.shipped import shipped_folder
from alexnet_dist.training.schedule import FACTORS as SCHEDULES
from alexnet_dist.training.schedule import PlateauState, Schedule

CONFIG_FOLDER = shipped_folder("configs")
ROOT = CONFIG_FOLDER.parent
SHIPPED = sorted(path.name for path in CONFIG_FOLDER.glob("*.yaml"))
BASE = "data: {source: synthetic}\ntrain: {epochs: 2}\n"
MAX_SECONDS = 3.0


def load(folder: Path, text: str | bytes, **given: Any) -> Config:
    """The settings that a file with this text, and a command line, give."""
    path = folder / "recipe.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return load_config(str(path), {key.replace("__", "."): value for key, value in given.items()})


def refusal(folder: Path, text: str | bytes, **given: Any) -> str:
    """The one line with which a file is refused."""
    with pytest.raises(UsageError) as caught:
        load(folder, text, **given)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- the file ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seed: 1\nlog: {every_steps: 2}\nseed: 2\n", "key seed stands twice (FILE:3 and 5)"),
        ("optimizer:\n  lr: 0.1\n  lr: 0.2\n", "key optimizer.lr stands twice (FILE:4 and 5)"),
        ("optimizer.lr: 0.1\noptimizer:\n  lr: 0.2\n", "key optimizer.lr stands twice (FILE:3 and 5)"),
    ],
)
def test_duplicate_key_is_refused_with_both_lines(tmp_path: Path, text: str, expected: str) -> None:
    assert expected.replace("FILE", str(tmp_path / "recipe.yaml")) in refusal(tmp_path, BASE + text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("- seed\n- 1\n", "expected `key: value` lines (FILE:1)"),
        ("optimizer: 3\n" + BASE, "expected `key: value` lines (FILE:1): optimizer holds none"),
        (b"\xff\xfe" + BASE.encode("utf-16-le"), "not UTF-8 (FILE)"),
        ("#" * (MAX_CONFIG_BYTES + 1), "too large (FILE)"),
        ("seed: [1\n", "not YAML (FILE:"),
        ("seed: 1\n---\nseed: 2\n", "not YAML (FILE:2"),
        ("seed: !!int abc\n", "not YAML (FILE:1:7): a tag (!) is not read"),
        ("compile: !!bool maybe\n", "not YAML (FILE:1:10): a tag (!) is not read"),
        ("seed: &a 1\n", "not YAML (FILE:1:7): an anchor (&) or alias (*) is not read"),
        ("seed: 1\noptimizer: {lr: *a}\n", "not YAML (FILE:2:17): an anchor (&) or alias (*) is not read"),
        ("seed: " + "9" * 5000 + "\n", "not YAML (FILE)"),
        ("seed: !!python/object/apply:os.getcwd []\n", "not YAML (FILE:1"),
        ("seed: " + "[" * 5000 + "\n", "not YAML (FILE)"),
        ("<<: {seed: 1}\n" + BASE, "a merge (<<) is not read (FILE:1)"),
        ("[a, b]: 1\n" + BASE, "a key is no word (FILE:1); write each key by its name"),
        ("seed:\t1\n" + BASE, "that cannot start any token; write spaces in its place"),
    ],
)
def test_unusable_file_is_refused_by_name(tmp_path: Path, text: str | bytes, expected: str) -> None:
    assert expected.replace("FILE", str(tmp_path / "recipe.yaml")) in refusal(tmp_path, text)


BOMB = "&a [x, x], " + "".join(
    f"&{name} [{', '.join(['*' + inner] * 10)}], " for inner, name in itertools.pairwise("abcdefghij")
)


@pytest.mark.parametrize(
    "key", ["base", "no.key", "optimizer.freeze", "augment.mean", "compile", "model.in_channels", "tracking.name"]
)
def test_aliases_that_stand_for_gigabytes_are_refused_at_once(tmp_path: Path, key: str) -> None:
    start = time.monotonic()
    assert "an anchor (&) or alias (*) is not read" in refusal(tmp_path, f"{BASE}{key}: [{BOMB}]\n")
    for value in (f"[{BOMB}]", [f"[{BOMB}]"]):  # as text in a file, and on a command line
        with contextlib.suppress(UsageError):
            build_config({"data.source": "synthetic", "train.epochs": 1, key: value})
    with contextlib.suppress(UsageError):  # a text setting takes it as it is
        parse_arguments([f"--{key}", f"[{BOMB}]"], new_parser())
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("name", ["x" * 300, "x" * 5000, "a\0b", "\udce9" * 300])
def test_a_base_that_no_file_can_be_called_is_refused(tmp_path: Path, name: str) -> None:
    text = f"base: {name}\n" if name.isprintable() else f'base: "{name}"\n'.replace("\0", "\\0").replace("\udce9", "é")
    assert len(refusal(tmp_path, text)) < 500  # it lists the names that there are


def test_unreadable_file_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, encoding: str) -> str:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "read_text", refuse)  # root, who runs many a test, may read every file
    assert "cannot be read" in refusal(tmp_path, BASE)


@pytest.mark.parametrize("text", [b"\xef\xbb\xbf" + BASE.encode(), BASE.replace("\n", "\r\n").encode()])
def test_byte_order_mark_and_windows_line_ends_are_fine(tmp_path: Path, text: bytes) -> None:
    assert load(tmp_path, text).train.epochs == 2


@pytest.mark.parametrize(("written", "value"), [("1e-4", 1e-4), ("1E-4", 1e-4), ("1.e-4", 1e-4), (".5", 0.5), ("2", 2)])
def test_numbers_are_numbers(tmp_path: Path, written: str, value: float) -> None:
    lr = load(tmp_path, f"{BASE}optimizer: {{lr: {written}}}\n").optimizer.lr
    assert lr == value
    assert isinstance(lr, float)


NUMBERS = [
    "10",
    "+5",
    "1e3",
    "1.",
    ".5",
    "1_000",
    "010",
    "0x10",
    "0o10",
    "0b11",
    "1:30",
    "\uff11\uff10",
    "1_0.5",
    "010.5",
    "-1",
]
ODD = [word for word in NUMBERS if word in ("010", "010.5", "\uff11\uff10") or set(word) & set("_:xbo")]


@pytest.mark.parametrize(
    ("key", "word"),
    [
        *(("seed", word) for word in ("10", "1_000", "010", "0x10")),
        *(("optimizer.lr", word) for word in (".5", "1e3", "010", "1:30", "\uff11\uff10")),
        *(("augment.mean", word) for word in ("1e3", "0x10", "1:30")),
    ],
)
def test_file_and_command_line_read_a_number_alike(tmp_path: Path, key: str, word: str) -> None:
    written = f"[{word}]" if key == "augment.mean" else word

    def read(text: str, words: list[str]) -> Any:
        try:
            given = parse_arguments(words, new_parser()).given if words else {}
            return flatten(load(tmp_path, BASE + text, **given))[key]
        except UsageError as error:
            assert len(str(error)) < 200 + len(str(tmp_path))  # noqa: PT017 (a value is taken or refused)
            return UsageError

    in_file, on_line = read(f"{key}: {written}\n", []), read("", [f"--{key}", written])
    assert in_file == on_line
    assert type(in_file) is type(on_line)
    assert (in_file is UsageError) or word not in ODD


@pytest.mark.parametrize("word", ODD[::2])
def test_numbers_in_odd_forms_are_text_where_text_is_wanted(tmp_path: Path, word: str) -> None:
    config = load(tmp_path, f"{BASE}tracking: {{name: {word}}}\n")
    assert config.tracking.name == word
    assert load(tmp_path, dump_config(config)) == config
    assert yaml.safe_load(dump_config(config))["tracking"]["name"] == word  # to a reader of YAML 1.1 as well


@pytest.mark.heavy
@pytest.mark.parametrize(
    "verb", ["predict a.jpg --model", "export --out x --model", "summary --weights", "estimate --probe"]
)
@pytest.mark.parametrize("word", ["x" * 300, "a/" * 3000], ids=["name", "path"])
def test_an_option_that_no_file_can_be_called_is_refused(verb: str, word: str) -> None:
    code, lines, _ = call(*verb.split(), word)
    assert code == 2
    assert [line for line in lines if "is too long (command line): " in line and len(line) < 200] == lines


# -- keys, types, ranges ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("optimizer: {lrr: 1}\n", "unknown key optimizer.lrr (FILE:3); did you mean optimizer.lr?"),
        ("optimzer: {lr: 1}\n", "unknown key optimzer (FILE:3); did you mean optimizer?"),
        ("batch_size: 1\n", "unknown key batch_size (FILE:3); did you mean train.global_batch_size?"),
        ("lr: 1\n", "unknown key lr (FILE:3); did you mean optimizer.lr?"),
        ("zzzz: 1\n", "unknown key zzzz (FILE:3); see --help"),
    ],
)
def test_unknown_key_is_refused_with_the_nearest(tmp_path: Path, text: str, expected: str) -> None:
    assert expected.replace("FILE", str(tmp_path / "recipe.yaml")) in refusal(tmp_path, BASE + text)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", "true"),
        ("seed", "1.5"),
        ("seed", "null"),
        ("seed", "[1]"),
        ("seed", "{a: 1}"),
        ("compile", "1"),
        ("compile", "null"),
        ("precision", "fp8"),
        ("precision", "null"),
        ("optimizer.lr", "true"),
        ("optimizer.lr", "fast"),
        ("optimizer.name", "sdg"),
        ("model.lrn", "1"),
        ("model.in_channels", "2"),
        ("model.in_channels", "true"),
        ("model.in_channels", "1.0"),
        ("augment.pixel_range", "255.0"),
        ("model.conv_channels", "[true, 1, 1, 1, 1]"),
        ("augment.mean", "0.5"),
        ("augment.resize", "1.5"),
        ("tracking.tags", "[1, 2]"),
        ("log.every_steps", "null"),
    ],
)
def test_wrong_type_is_refused_with_its_place(tmp_path: Path, key: str, value: str) -> None:
    assert f"wrong value for {key} ({tmp_path / 'recipe.yaml'}:3): expected" in refusal(
        tmp_path, f"{BASE}{key}: {value}\n"
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", "-1"),
        ("seed", str(2**63)),
        ("seed", "9" * 400),
        ("optimizer.lr", "0"),
        ("optimizer.lr", "-0.1"),
        ("optimizer.lr", ".nan"),
        ("optimizer.lr", ".inf"),
        ("optimizer.lr", "-.inf"),
        ("optimizer.momentum", "1"),
        ("optimizer.weight_decay", "-1e-9"),
        ("optimizer.bias_lr_factor", ".nan"),
        ("model.dropout", "1.0"),
        ("model.num_classes", "0"),
        ("model.conv_groups", "[1, 2, 0, 2, 2]"),
        ("data.val_fraction", "1"),
        ("data.workers", "-1"),
        ("augment.resize", "[0, 10]"),
        ("augment.mean", "[.inf]"),
        ("augment.std", "[0]"),
        ("augment.horizontal_flip", "1.01"),
        ("augment.crop_scale", "[0.0, 1.0]"),
        ("schedule.gamma", "1"),
        ("train.epochs", "0"),
        ("train.global_batch_size", "0"),
        ("log.every_steps", "0"),
        ("checkpoint.keep", "-1"),
    ],
)
def test_value_out_of_range_is_refused_with_its_place(tmp_path: Path, key: str, value: str) -> None:
    text = f"{BASE.replace('train: {epochs: 2}', 'train.max_steps: 1') if key == 'train.epochs' else BASE}"
    assert f"{key} is out of range ({tmp_path / 'recipe.yaml'}:3): got" in refusal(tmp_path, f"{text}{key}: {value}\n")


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("augment.mean", "[1, 2]", "wrong length"),
        ("augment.resize", "[1, 2, 3]", "wrong length"),
        ("model.conv_channels", "[1, 2]", "wrong length"),
        ("augment.crop_scale", "[1.0, 0.5]", "out of order"),
    ],
)
def test_list_that_cannot_be_meant_is_refused(tmp_path: Path, key: str, value: str, expected: str) -> None:
    assert f"{key} " in (line := refusal(tmp_path, f"{BASE}{key}: {value}\n"))
    assert expected in line


# -- epochs and max_steps ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "given", "expected"),
    [
        ("train: {epochs: 2}", {}, (2, None)),
        ("train: {epochs: 2}", {"train__max_steps": 7}, (None, 7)),
        ("train: {max_steps: 2}", {"train__epochs": 7}, (7, None)),
        ("train: {epochs: 2, max_steps: null}", {"train__max_steps": 7}, (None, 7)),
        ("train: {epochs: 2}", {"train__epochs": 3}, (3, None)),
    ],
)
def test_command_line_replaces_the_other_length(
    tmp_path: Path, text: str, given: dict[str, int], expected: tuple[int | None, int | None]
) -> None:
    train = load(tmp_path, f"data: {{source: synthetic}}\n{text}\n", **given).train
    assert (train.epochs, train.max_steps) == expected


@pytest.mark.parametrize(
    ("text", "given", "why"),
    [
        ("", {}, "neither is set"),
        ("train: {epochs: 2, max_steps: 3}", {}, "both are set"),
        ("train: {epochs: 2}", {"train__epochs": 2, "train__max_steps": 3}, "both are set"),
    ],
)
def test_exactly_one_length_is_needed(tmp_path: Path, text: str, given: dict[str, int], why: str) -> None:
    assert why in refusal(tmp_path, f"data: {{source: synthetic}}\n{text}\n", **given)


# -- names, command line, round trip ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["smoke", "smoke.yaml", str(CONFIG_FOLDER / "smoke.yaml")])
def test_config_is_found_by_name_and_path(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_config(name).samefile(CONFIG_FOLDER / "smoke.yaml")


@pytest.mark.parametrize(
    ("name", "expected"),
    [("smok", "did you mean smoke?"), ("x" * 300, "in configs/:"), ("", "in configs/:")],
)
def test_missing_config_is_refused_with_the_nearest(name: str, expected: str) -> None:
    with pytest.raises(UsageError) as caught:
        find_config(name)
    assert expected in str(caught.value)


def test_command_line_wins_over_the_file(tmp_path: Path) -> None:
    words = ["--optimizer.lr", "1e-3", "--seed=5", "--model.lrn", "false", "--augment.mean", "[0.1,0.2,0.3]"]
    given = parse_arguments(words, new_parser()).given
    path = tmp_path / "recipe.yaml"
    path.write_text(f"{BASE}optimizer: {{lr: 0.5, momentum: 0.3}}\nseed: 1\n")
    config = load_config(str(path), given)
    assert (config.optimizer.lr, config.optimizer.momentum, config.seed) == (1e-3, 0.3, 5)
    assert (config.model.lrn, config.augment.mean) == (False, [0.1, 0.2, 0.3])


@pytest.mark.parametrize("words", [["--seed", "x"], ["--optimizer.lrr", "1"], ["--opt", "1"], ["stray"], ["--seed"]])
def test_bad_command_line_is_refused_in_one_line(words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        parse_arguments(words, new_parser())
    assert "\n" not in str(caught.value)


DEEP: Any = functools.reduce(lambda value, _: [value], range(10_000), 1)


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("data.root", lambda: parse_arguments(["--data.root", "[" * 500], new_parser())),
        ("data.root", lambda: build_config({"data.root": "[" * 500, "train.epochs": 1})),
        ("augment.mean", lambda: build_config({"augment.mean": DEEP, "train.epochs": 1})),
        ("data.root", lambda: build_config({"data.root": DEEP, "train.epochs": 1})),
        ("prog", lambda: parse_options(["--prog", "[" * 500], _parser_of("--prog"))),
    ],
)
def test_brackets_without_end_are_a_wrong_value_of_the_setting_that_has_them(name: str, read: Any) -> None:
    line = refused(read, UsageError)
    assert line.startswith(f"wrong value for {name} (command line): ")
    assert "brackets" in line


def _parser_of(option: str) -> ArgumentParser:
    parser = new_parser()
    parser.add_argument(option, type=str)
    return parser


@pytest.mark.parametrize("name", SHIPPED)
def test_dumped_config_reads_back_equal(name: str, tmp_path: Path) -> None:
    config = load_config(name, {"seed": 3, "tracking.tags": ["größe"], "optimizer.lr": 1e-7, "data.root": "1e3"})
    (tmp_path / "again.yaml").write_text(dump_config(config), encoding="utf-8")
    assert load_config(str(tmp_path / "again.yaml"), {}) == config


# -- shipped recipes and help -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_config_shows_its_command_and_builds_its_network(name: str) -> None:
    config = load_config(name, {})
    first = (CONFIG_FOLDER / name).read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# ")
    verb = "crossval" if name.startswith("rmsprop_kfold") else "train"
    assert f"launch/{verb}.py --config {Path(name).stem}" in first
    with torch.device("meta"):
        model = AlexNet(build_spec(config.model, num_classes=10))
    assert sum(parameter.numel() for parameter in model.parameters()) > 0


def documented_settings() -> Iterator[tuple[str, str]]:
    """(class and field, docstring or "") of every setting that is not a section."""
    tree = ast.parse(Path(config_module.__file__).read_text(encoding="utf-8"))
    for cls in tree.body:
        if not (isinstance(cls, ast.ClassDef) and cls.name.endswith("Config")):
            continue
        for node, after in zip(cls.body, [*cls.body[1:], ast.Pass()], strict=True):
            if isinstance(node, ast.AnnAssign) and not ast.unparse(node.annotation).endswith("Config"):
                is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                yield f"{cls.name}.{ast.unparse(node.target)}", str(after.value.value) if is_text else ""


@dataclass(frozen=True)
class Finished:
    code: int
    out: str
    err: str
    seconds: float


def start_train(*words: str) -> Finished:
    command = [sys.executable, str(ROOT / "launch" / "train.py"), *words]
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return Finished(done.returncode, done.stdout, done.stderr, time.perf_counter() - began)


@pytest.mark.heavy
def test_help_is_quick_and_begins_with_examples() -> None:
    helped = start_train("--help")
    assert (helped.code, helped.err) == (0, "")
    assert helped.seconds < MAX_SECONDS
    assert "python launch/train.py --config" in helped.out[:200]


def test_every_setting_is_documented() -> None:
    assert [name for name, text in documented_settings() if len(text) < 8] == []


@pytest.mark.heavy
def test_unknown_key_ends_quickly_with_one_line_and_code_2() -> None:
    done = start_train("--config", "smoke", "--optimizer.lrr", "3")
    assert (done.code, done.out) == (2, "")
    assert done.err == "error: unknown option --optimizer.lrr (command line); did you mean --optimizer.lr?\n"
    assert done.seconds < MAX_SECONDS


@pytest.mark.heavy
def test_print_config_prints_settings_that_read_back() -> None:
    done = start_train("--config", "smoke", "--print_config", "--seed", "4")
    assert (done.code, done.err) == (0, "")
    assert yaml.safe_load(done.out)["seed"] == 4


@pytest.mark.heavy
def test_settings_do_not_import_torch() -> None:
    code = (
        "import sys, alexnet_dist, alexnet_dist.settings.reader as s; "
        "print(sorted({'torch', s.__name__} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['alexnet_dist.settings.reader']"


# -- fuzz -------------------------------------------------------------------------------------------------------------

FUZZ_CASES = 300
ODD_VALUES = [
    *("null", "true", "false", "-1", "0", "1e309", ".nan", "-.inf", "''", "[]", "{}", "[1, 2, 3]", "{a: 1}", "yes"),
    *(
        "0x10",
        "1:30",
        "2024-01-01",
        "~",
        "!!int x",
        "!!binary x",
        "*anchor",
        "&a [*a]",
        "'é'",
        "\t",
        "9" * 50,
        "9" * 5000,
    ),
]


def mutate(text: str, seed: int) -> str:
    """The file with one or two changes: a key, a value, a line twice or left out, or a character."""
    rng = random.Random(seed)
    lines = text.splitlines()
    for _ in range(rng.randint(1, 2)):
        number = rng.randrange(len(lines))
        key, colon, _ = lines[number].partition(":")
        position = rng.randrange(len(lines[number]) + 1)
        lines[number] = rng.choice(
            [
                key[: position % max(len(key), 1)] + rng.choice("abz_. -") + key[position % max(len(key), 1) :] + ": 1",
                f"{key}{colon} {rng.choice(ODD_VALUES)}",
                f"{lines[number]}\n{lines[number]}",
                "",
                lines[number][:position] + rng.choice("{}[]:,&*!|>'\"%@`#\x00\x85é") + lines[number][position:],
            ]
        )
    return "\n".join(lines) + "\n"


@pytest.mark.slow
def test_mutated_files_are_read_or_refused_in_one_line(tmp_path: Path) -> None:
    config = build_config({"data.source": "synthetic", "train.epochs": 1})
    valid = yaml.safe_dump(yaml.safe_load(dump_config(config)))  # a key a line

    def outcome(seed: int) -> str:
        try:
            load(tmp_path, mutate(valid, seed))
        except UsageError as error:
            return str(error)
        return ""

    outcomes = [outcome(seed) for seed in range(FUZZ_CASES)]
    assert all("\n" not in line for line in outcomes)
    assert sum(map(bool, outcomes)) > FUZZ_CASES // 2  # most mutations matter ...
    assert outcomes.count("") > FUZZ_CASES // 50  # ... and some do not


NASTY: list[Any] = [
    *(None, True, 0, 1, -1, 2**31, 2**63, -(2**63), 10**30, 10**400, 0.5, -0.0, 1e308, 5e-324, math.inf, math.nan),
    *("", "0", "x" * 300, "x" * 5000, "a/" * 3000, "a\0b", "\udce9", "\ud800", "é" * 200, "\x1b[31m", "../..", "1e999"),
    *(
        [],
        [1],
        [0] * 5,
        [1e308] * 4,
        [10**400] * 2,
        ["x" * 300],
        [[1]],
        [None],
        [True] * 3,
        ["conv1"] * 200,
        {},
        {"a": 1},
    ),
]
FIELDS = dict(walk_fields(Config))


def draw_values(key: str) -> list[Any]:
    """Some of the nasty values, and the smallest and the largest that the setting takes with what lies beyond them."""
    bounds, kind = FIELDS[key].metadata, str(FIELDS[key].type)
    edges = [value for bound in bounds.values() for value in (bound, 2 * bound + 1)]
    numbers = [int(value) if "int" in kind else float(value) for value in edges]
    count = {
        "augment.color_jitter": 4,
        "model.conv_channels": 5,
        "model.conv_groups": 5,
        "augment.mean": 1,
        "augment.std": 1,
    }
    lists = [[number] * count.get(key, 2) for number in numbers] if "list" in kind else numbers
    return [*random.Random(key).sample(NASTY, 2), *lists]


def use(config: Config) -> None:
    """What the values of a setting are for, as far as nothing is computed."""
    spec = build_spec(config.model, config.data.synthetic_classes, config.parallel.exchange_at)
    augmentation = build_augmentation(config.augment, config.model.image_size)
    build_normalization(config.augment, spec.in_channels)
    Plan(np.array([[9000, 9000]]), augmentation, 1, config.seed, shuffle=True).at(0)
    total = config.train.max_steps or 1000 * (config.train.epochs or 0)
    values = dataclasses.asdict(config.schedule)
    for name in SCHEDULES:
        rates = {**values, "name": name, "base_lr": config.optimizer.lr, "steps_per_epoch": 1000, "total_steps": total}
        for step in (0, total // 2, total - 1):
            assert math.isfinite(Schedule(**rates).lr(step, PlateauState()))


@pytest.mark.slow
@pytest.mark.parametrize("part", range(10))
def test_any_value_of_a_setting_is_taken_or_refused_in_one_line(part: int) -> None:
    taken, refused = 0, 0
    for key in list(FIELDS)[part::10]:
        for value in draw_values(key):
            values = {"data.source": "synthetic", "train.epochs": None if key == "train.max_steps" else 1, key: value}
            try:
                use(build_config(values))
                taken += 1
            except (UsageError, DataError) as error:
                assert len(str(error)) <= 200, f"{key}: {error}"  # noqa: PT017 (a value is taken or refused)
                refused += 1
    assert taken > 3
    assert refused > 3


def test_every_number_has_a_smallest_and_a_largest_value() -> None:
    for key, item in FIELDS.items():
        if re.search(r"\b(int|float)\b", str(item.type)):
            assert {"minimum", "above"} & set(item.metadata), key
            assert {"maximum", "below"} & set(item.metadata), key
