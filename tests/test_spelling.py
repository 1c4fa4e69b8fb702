"""American spelling throughout: identifiers, comments, docstrings, messages, pages and recipes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("alexnet_dist", "benchmarks", "configs", "docs", "launch", "tests")
ENDINGS = {".py", ".md", ".yaml", ".yml", ".toml", ".sh", ".sbatch", ".css", ".ipynb"}

WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")  # of InitialWords and of words_with_lines, too
BRITISH = re.compile(
    r"(?:behavi|col|endeav|fav|flav|hon|hum|lab|neighb|rig|rum|vap)our"
    r"|cent(?:re|ring)|(?:kilo|milli|centi|nano)metre|litre|fibre|theatre|calibre|grey"
    r"|licence|defence|offence|pretence|analogue|catalogue|dialogue|programmes?$"
    r"|artefact|judgement|ageing|mould|plough|sceptic|whilst|amongst|learnt|spelt|burnt|dreamt|leant"
    r"|(?:cancel|label|level|model|signal|total|travel|tunnel|channel|dial|fuel|equal)l(?:ed|er|ing)|fulfils?$"
    r"|(?:anal|paral|catal)yse"
    r"|..is(?:e[ds]?|ers?|ing|ations?)$"
)
# Words that have this s in America, too.
SAME = re.compile(
    r"(?:f?adv|ar|comp?r|concr?|dev|exerc|no|p?o|poi|pra|prec|prem|prom|ra|rev|r|superv|surpr|[a-z]*w)is(?:e[ds]?|ers?|ing)"
)
# Names that users write and files hold, and what users of other programs type.
KEPT = (
    '"centre"',
    "crop: centre",
    "crop centre",
    "crop=centre",
    "centre_crop",
    "ablation_weak_colour",
    '"optimiser',
    "CANCELLED",  # SLURM's
)


def find_british(text: str) -> Iterator[tuple[int, str]]:
    """Line numbers, from 1, and words."""
    for number, line in enumerate(text.splitlines(), start=1):
        for kept in KEPT:
            line = line.replace(kept, "")
        words = WORD.findall(line)
        yield from ((number, w) for w in words if BRITISH.search(w.lower()) and not SAME.fullmatch(w.lower()))


def test_spelling_is_american() -> None:
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in ENDINGS]
    files += [path for path in ROOT.iterdir() if path.suffix in ENDINGS or path.name == "Makefile"]
    assert len(files) > 200
    found = [
        f"{path.relative_to(ROOT)}:{number}: {word}"
        for path in sorted(files)
        if path != Path(__file__).resolve()
        for number, word in find_british(path.read_text())
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("the COLOUR of a neighbouring centre", ["COLOUR", "neighbouring", "centre"]),
        ("def normalise_rows(): ...", ["normalise"]),
        ("summarised, optimisers, MyInitialisation", ["summarised", "optimisers", "Initialisation"]),
        ("relabelled and travelling", ["relabelled", "travelling"]),
        ("--augment.crop centre of 'ablation_weak_colour'", []),
        ("noise is raised otherwise; promises advise precise exercises", []),
        ("labels, modeling, licenses, color, center, programmed, calling, controlled", []),
    ],
)
def test_what_is_british(text: str, words: list[str]) -> None:
    assert [word for _, word in find_british(text)] == words
