"""The pages that a user reads, and the commands in them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def read_commands(verb: str) -> list[list[str]]:
    """The words after `launch/VERB.py`, of each such command in a block of code; each command once."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES).replace("\\\n", " ")
    found = re.findall(rf"^    (?:accelerate launch|python)[^`\n]*? launch/{verb}\.py (.*)$", text, re.MULTILINE)
    return [list(words) for words in dict.fromkeys(tuple(shlex.split(line, comments=True)) for line in found)]


def read_code(page: str, language: str = "python") -> list[str]:
    """The fenced blocks of a language of a page of docs/, in their order."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", (ROOT / "docs" / page).read_text("utf-8"), re.DOTALL | re.MULTILINE)
    return [code for word, code in blocks if word == language]
