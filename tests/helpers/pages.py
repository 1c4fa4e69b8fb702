"""The pages that a user reads: their blocks of code, and the commands in them.

A block that cannot be run on any machine says so in a comment before it, which a browser does not show:
`<!-- needs: two machines -->`.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PROGRAMS = {
    *(
        "python",
        "accelerate",
        "alexnet-dist",
        "torchrun",
        "pip",
        "make",
        "docker",
        "kubectl",
        "sky",
        "git",
        "cd",
        "tar",
    ),
    *(
        "ls",
        "sbatch",
        "srun",
        "scancel",
        "sacct",
        "wandb",
        "tensorboard",
        "mlflow",
        "jupyter",
        "aws",
        "export",
        "mpirun",
        "curl",
    ),
}
NEEDS = re.compile(r"<!-- needs: (.+) -->")
_SETTING = re.compile(r"[A-Z_]+=\S*$")  # of the environment, before a program


@dataclass(frozen=True)
class Block:
    """A block of code of a page.

    Args:
        page: its path in the repository.
        line: of the first line of code, from 1.
        language: the word behind the fence; "" where there is none.
        text: the code, without indentation.
        needs: what the machine must have, from the comment before the block; "" where any machine will do.
    """

    page: str
    line: int
    language: str
    text: str
    needs: str

    def commands(self) -> list[Command]:
        """Each line that begins with a program. Lines that end with a backslash are one."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [Command(self.page, line, self.needs) for line in lines if names_program(line)]


@dataclass(frozen=True)
class Command:
    """A line of a block, its page and what the block needs."""

    page: str
    line: str
    needs: str

    @property
    def all_words(self) -> list[str]:
        """With the settings of the environment that stand before the program."""
        return shlex.split(self.line, comments=True)

    @property
    def words(self) -> list[str]:
        """The program and what it is told."""
        words = self.all_words
        return words[next(n for n, word in enumerate(words) if not _SETTING.match(word)) :]

    def __str__(self) -> str:
        return f"{self.page}: {shlex.join(self.all_words)}"


def names_program(line: str) -> bool:
    """Whether a line is a command, and no path or line of a file."""
    words = [word for word in line.split() if not _SETTING.match(word)]
    return bool(words) and words[0] in PROGRAMS


def read_blocks(page: Path) -> list[Block]:
    """The fenced and the indented blocks of a page, in their order."""
    lines = page.read_text(encoding="utf-8").splitlines()
    name = page.relative_to(ROOT).as_posix()
    blocks, number, before = [], 0, ""
    while number < len(lines):
        start, language = number, ""
        if fence := re.match(r"```(\S*)$", lines[number]):
            language, start = fence[1], number + 1
            stop = lines.index("```", start)
            number = stop + 1
        elif lines[number].startswith("    ") and not (number and lines[number - 1].strip()):
            stop = number
            while stop < len(lines) and (lines[stop].startswith("    ") or not lines[stop].strip()):
                stop += 1
            number = stop
        else:
            before = lines[number] or before
            number += 1
            continue
        text = "\n".join(lines[start:stop]).rstrip() + "\n"
        if not language:
            text = re.sub("^    ", "", text, flags=re.MULTILINE)
        needs = NEEDS.fullmatch(before)
        blocks.append(Block(name, start + 1, language, text, needs[1] if needs else ""))
        before = ""
    return blocks


BLOCKS = [block for page in PAGES for block in read_blocks(page)]
COMMANDS = [command for block in BLOCKS for command in block.commands()]


def split_script(words: list[str]) -> tuple[list[str], str, list[str]]:
    """The words before a script of launch/, the verb, and those after; without a script, the verb is ""."""
    for number, word in enumerate(words):
        if word.startswith("launch/") and word.endswith(".py"):
            return words[:number], Path(word).stem, words[number + 1 :]
    return words, "", []


def read_commands(verb: str) -> list[list[str]]:
    """The words after `launch/VERB.py`, of each such command in a block of code; each command once."""
    found = [split_script(command.words)[1:] for command in COMMANDS]
    return [list(words) for words in dict.fromkeys(tuple(words) for name, words in found if name == verb)]


def read_code(page: str, language: str = "python") -> list[str]:
    """The fenced blocks of a language of a page, in their order."""
    return [block.text for block in BLOCKS if Path(block.page).name == page and block.language == language]
