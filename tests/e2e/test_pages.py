"""README and docs/: every command, the links between the pages, and the names that the text has.

A block is run word for word, in a folder laid out as the pages have it, or it says what it needs. The recipes are the
shipped ones with a tiny network and one epoch: they lie in configs/ of that folder, which is searched first.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.launch import launch_command_parser
from helpers import lanes
from helpers.archives import read_files, write_shards, write_tar
from helpers.array_files import write_fashion_mnist
from helpers.imagenet import make_pictures, write_kaggle
from helpers.images import save_jpeg
from helpers.pages import BLOCKS, COMMANDS, PAGES, ROOT, Block, Command, names_program, read_commands, split_script
from helpers.parquet_files import write_folder_as_parquet
from helpers.verbs import call_with_output
from torch.distributed.run import get_args_parser

from alexnet_dist.base.errors import UsageError
from alexnet_dist.cli.launch import ACCELERATE, TORCH, build_command
from alexnet_dist.cli.main import VERBS, run
from alexnet_dist.cli.prepare import KINDS

DATA = os.environ.get("ALEXNET_DIST_TEST_DATA")
FIRST_PAGES = ("README.md",)  # the others are `slow`
ELSEWHERE = {  # verbs whose commands another test runs
    "summary": "below",
    "serve": "tests/serving/test_application.py",
    "estimate": "tests/cli/test_estimate.py",
}
FOREIGN_OPTIONS = {"--requeue", "--ipc"}  # of sbatch and docker, which are named without their programs
LOOKING = ("ls", "tar")  # programs of the system that show what lies somewhere
SHOWN = ("text", "yaml")  # languages of blocks that are no commands
LAUNCHERS = {ACCELERATE: launch_command_parser, TORCH: get_args_parser}
TINY = {
    "model": {"image_size": 68, "conv_channels": [8, 16, 16, 16, 16], "fc_width": 16},
    "data": {"workers": 0, "cache_dir": "cache"},
    "augment": {"resize": 72},
    "train": {"epochs": 1, "global_batch_size": 12},
    "schedule": {"warmup_steps": 0},
    "log": {"plots": False, "report": False},
}


def find_headings(page: Path) -> set[str]:
    """The names that a link can end in: as GitHub makes them of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
    for link in (link for link in links if not link.startswith("https://")):
        name, _, heading = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        assert not heading or heading in find_headings(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tests_that_are_named_are_there(page: Path) -> None:
    named = re.findall(r"`(tests/[^`\s]+)`", page.read_text(encoding="utf-8"))
    assert [name for name in named if not (lanes.TESTS.parent / name).exists()] == []


def names_benchmark(words: list[str]) -> bool:
    """Whether a command starts a script of benchmarks/."""
    return len(words) > 1 and words[1].startswith("benchmarks/")


def how_it_runs(command: Command) -> str:
    """By which test here a command is run or, where that needs nothing but a parser, read; "" for none."""
    words = command.words
    verb = split_script(words)[1]
    if verb:
        return ELSEWHERE.get(verb, "run")
    if words[0] in LOOKING:
        return "run"
    if words[0] == "alexnet-dist":
        return "read" if words[1] == "launch" else "run"
    if words[0] == "make" or words[:2] == ["pip", "install"] or names_benchmark(words):
        return "read"
    return ""


def explain_block(block: Block) -> str:
    """Why nobody runs a block that does not say what it needs; "" where it is run."""
    if block.needs or block.language in SHOWN:
        return ""
    if block.language == "python":
        readers = [path for path in lanes.TESTS.rglob("test_*.py") if f'"{Path(block.page).name}"' in path.read_text()]
        return "" if readers else "no test reads the Python of this page"
    if block.language:
        return f"a block of {block.language}"
    lines = [line for line in block.text.replace("\\\n", " ").splitlines() if line.strip()]
    if "/" in lines[0].split()[0] and not any(map(names_program, lines)):
        return ""  # a tree of files
    strange = [line for line in lines if not names_program(line)]
    return f"no command: {strange[0]}" if strange else " ".join(str(c) for c in block.commands() if not how_it_runs(c))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_block_is_run_or_says_what_it_needs(page: Path) -> None:
    blocks = [block for block in BLOCKS if ROOT / block.page == page]
    assert {block.line: why for block in blocks if (why := explain_block(block))} == {}


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("sbatch launch/slurm/train.sbatch\n", "sbatch"),
        ("frobnicate --now\n", "no command: frobnicate"),
        ("data/flowers/rose/*.jpg\npython launch/train.py data/flowers\n", "no command: data/flowers"),
    ],
)
def test_a_block_that_nobody_runs_is_found(text: str, part: str) -> None:
    assert part in explain_block(Block("README.md", 1, "", text, ""))
    assert explain_block(Block("README.md", 1, "", text, "a cluster")) == ""
    assert explain_block(Block("docs/none.md", 1, "python", text, "")) != ""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """What the pages speak of, as the working folder."""
    folder = tmp_path
    for name in ("flowers", "imagenet_subset"):
        save_classes(folder / "data" / name / "train", ("daisy", "rose", "tulip"), 8)
        save_classes(folder / "data" / name / "val", ("daisy", "rose", "tulip"), 2)
    for part, count in (("train", 12), ("valid", 2)):
        save_classes(folder / "data" / "fruits" / part, ("apple", "pear"), count)
    save_classes(folder / "data" / "more_flowers", ("daisy", "rose", "tulip"), 2)
    for part in ("train_data", "test_data"):
        save_classes(folder / "data" / "cat_dog" / part, ("cat", "dog"), 12)
    for part, count in (("train", 100), ("val", 2)):
        save_classes(folder / "data" / "imagenet" / part, tuple(f"n{number:08d}" for number in range(12)), count)
    save_classes(folder / "data" / "photos", ("day", "night"), 12)
    save_archives(folder / "data")
    make_pictures(folder / "ilsvrc")
    write_kaggle(folder / "data" / "kaggle", folder / "ilsvrc")
    rows = [f"{path.relative_to(folder / 'data/photos')},{path.parent.name}" for path in folder.glob("data/photos/*/*")]
    (folder / "data" / "photos" / "train.csv").write_text("\n".join(["file,label", *rows]) + "\n")
    for name in ("picture.jpg", "folder/1.jpg", "pictures/may/2.jpg", "3.jpg", "one.jpg", "two.jpg"):
        save_jpeg(folder / name, 90, 80)
    (folder / "more.txt").write_text("3.jpg\n")
    (folder / "launch").symlink_to(ROOT / "launch")
    (folder / "configs").mkdir()
    for recipe in (ROOT / "configs").glob("*.yaml"):
        (folder / "configs" / recipe.name).write_text(yaml.safe_dump({"base": str(recipe), **TINY}))
    with pytest.MonkeyPatch.context() as patch, contextlib.chdir(folder):
        write_fashion_mnist(folder / "data" / "fashion_mnist" / "FashionMNIST" / "raw", patch, train=100)
        patch.setenv("PWD", str(folder))
        yield folder


def save_archives(data: Path) -> None:
    """Flowers as shards, as one archive, and as parquet."""
    train, val = (read_files(data / "flowers" / part) for part in ("train", "val"))
    write_shards(data / "shards", train, 10)
    write_shards(data / "shards", val, 2, "val")
    for part in ("train", "val"):
        classes = sorted(path.name for path in (data / "flowers" / part).iterdir())
        write_folder_as_parquet(data / "flowers" / part, data / "tables", classes, split=part)
    write_tar(
        data / "pets.tar", {f"train/{name}": train[name] for name in train} | {f"val/{name}": val[name] for name in val}
    )


def save_classes(folder: Path, names: tuple[str, ...], count: int) -> None:
    """As many pictures in each class; a picture of a class is one file with several names."""
    for number, name in enumerate(names):
        first = save_jpeg(folder / name / "0.jpg", 80 + number, 75)
        for other in range(1, count):
            (folder / name / f"{other}.jpg").hardlink_to(first)


def count_processes(words: list[str]) -> int:
    """How many a launcher would start here, where it takes two GPUs for granted."""
    if words[:2] != ["accelerate", "launch"]:
        return 1
    options = launch_command_parser().parse_args([*words[2:], "script.py"])
    return options.num_processes or 1 + bool(options.multi_gpu)


def carry_out(command: Command) -> None:
    """Run a command as it stands: a verb in forked processes."""
    if command.words[0] in LOOKING:
        subprocess.run(["bash", "-o", "pipefail", "-c", command.line], check=True, capture_output=True, timeout=60)
        return
    before, verb, words = split_script(command.words)
    if not verb:
        _, verb, *words = before
    code, errors, output = call_with_output(verb, *map(os.path.expandvars, words), processes=count_processes(before))
    assert code == 0, f"{command}\n{errors}{output}"


PAGES_WITH_COMMANDS = dict.fromkeys(c.page for c in COMMANDS if how_it_runs(c) == "run" and not c.needs)


@pytest.mark.parametrize(
    "page", [pytest.param(name, marks=[] if name in FIRST_PAGES else pytest.mark.slow) for name in PAGES_WITH_COMMANDS]
)
@pytest.mark.timeout(900)  # a page may have twenty trainings
def test_commands_run_word_for_word(page: str, folder: Path) -> None:
    for command in COMMANDS:
        if command.page == page and how_it_runs(command) == "run" and not command.needs:
            carry_out(command)


@pytest.mark.parametrize("words", read_commands("summary"), ids=" ".join)
def test_summaries_are_printed(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("summary", words) == 0
    assert "conv1" in capsys.readouterr().out


def find_inline(verb: str) -> list[list[str]]:
    """The words after `launch/VERB.py` of commands in sentences and tables."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    found = re.findall(rf"`[^`\n]*launch/{verb}\.py ([^`;]*)", text)
    return [shlex.split(words) for words in dict.fromkeys(found) if not {"...", "--help"} & set(words.split())]


def list_training() -> list[Any]:
    """Verbs and words of all commands that train; those that do not stand on the first pages are `slow`."""
    first = [split_script(command.words)[1:] for command in COMMANDS if command.page in FIRST_PAGES]
    return [
        pytest.param(verb, words, marks=() if (verb, words) in first else pytest.mark.slow)
        for verb in ("train", "crossval")
        for words in read_commands(verb) + find_inline(verb)
        if not {"data/npy", "--help"} & set(words)  # the one is of a source that is not ours
    ]


@pytest.mark.parametrize(("verb", "words"), list_training())
def test_settings_of_training_are_names_and_values_that_exist(
    verb: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No more than that: `--print_config` reads them, over the shipped recipes."""
    for name in ("flowers", "fruits"):
        (tmp_path / "data" / name / "train").mkdir(parents=True)
    write_tar(tmp_path / "data" / "shards" / "train-0000.tar", {})
    (tmp_path / "data" / "tables").mkdir()
    (tmp_path / "data" / "tables" / "train.parquet").touch()
    monkeypatch.chdir(tmp_path)
    assert run(verb, [*words, "--print_config"]) == 0
    assert "output_dir: runs/" in capsys.readouterr().out


def list_options(capsys: pytest.CaptureFixture[str]) -> set[str]:
    """Every option that a verb, a benchmark or a launcher has."""
    known = {word for new in LAUNCHERS.values() for action in new()._actions for word in action.option_strings}
    helps = [(verb, ["--help", *more]) for verb in VERBS for more in ([], ["all"]) if not (verb == "launch" and more)]
    helps += [("prepare", [name, "--help"]) for name in KINDS]
    for verb, words in helps:
        with contextlib.suppress(SystemExit):
            run(verb, words)
    known |= set(re.findall(r"--[a-z][\w.]*\w", capsys.readouterr().out))
    for script in (ROOT / "benchmarks").rglob("*.py"):
        known |= set(re.findall(r'add_argument\("(--[\w.]+)"', script.read_text(encoding="utf-8")))
    return known


def is_ours(code: str) -> bool:
    """Whether a command is one of ours, or one of a launcher that takes our verbs; also options alone."""
    words = [word for word in code.split() if not re.match("[A-Z_]+=", word)]
    return bool(words) and (words[0] in ("python", "accelerate", "torchrun", "alexnet-dist") or code.startswith("--"))


def test_options_of_the_text_are_names_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    known = list_options(capsys)
    for page in PAGES:
        inline = re.findall(r"`([^`]+)`", page.read_text(encoding="utf-8"))
        lines = [command.line for command in COMMANDS if ROOT / command.page == page]
        code = " ".join(code for code in (*inline, *lines) if is_ours(code))
        named = set(re.findall(r"(?<![\w-])--[a-z][\w.]*\w", code))
        assert sorted(named - known - FOREIGN_OPTIONS) == [], page.name


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.words[0] == "make"], ids=str)
def test_make_knows_its_targets(command: Command) -> None:
    done = subprocess.run([*command.words, "--dry-run"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.words[:2] == ["pip", "install"]], ids=str)
def test_extras_that_are_installed_are_there(command: Command) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (names,) = re.findall(r"\[(.*)\]", command.words[-1])
    assert set(names.split(",")) <= set(project["optional-dependencies"])


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.words[0] == "alexnet-dist"], ids=str)
def test_words_for_the_launcher_are_taken(command: Command) -> None:
    if command.words[1] == "launch":
        module, *words = build_command(command.words[2:])[2:]
        assert LAUNCHERS[module]().parse_args(words)
    else:
        assert command.words[1] in VERBS


@pytest.mark.parametrize("command", [c for c in COMMANDS if names_benchmark(c.words)], ids=str)
def test_options_of_benchmarks_are_taken(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are read, and nothing is measured: tests/slow/test_benchmarks.py runs each with `--tiny`."""
    script = importlib.import_module(Path(command.words[1]).stem)
    seen: list[object] = []

    def stop(*told: object) -> int:
        seen.append(told)
        raise UsageError("far enough")

    monkeypatch.setattr(sys, "argv", command.words[1:])
    works = {"run_all": "run", "speed_page": "write_page"}.get(script.__name__, "measure")
    monkeypatch.setattr(script, works, stop)
    with contextlib.suppress(UsageError):
        script.main()
    assert seen


@pytest.mark.slow
@pytest.mark.skipif(DATA is None, reason="ALEXNET_DIST_TEST_DATA is not set")
def test_fashion_mnist_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (words,) = [words for words in read_commands("train") if "fashion_mnist" in words]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(str(DATA))
    short = ["--train.max_steps", "2", "--data.val_fraction", "0.002", "--data.cache_dir", "cache"]
    assert run("train", [*words, *short, "--data.test", "null"]) == 0
    assert (tmp_path / "runs" / "fashion_mnist" / "model" / "model.safetensors").is_file()
