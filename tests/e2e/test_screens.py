"""docs/screens.py: what stands on a terminal is what the picture shows, and the page shows every picture."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest
from helpers.pages import COMMANDS, ROOT

pytest.importorskip("pyte")
LONG = "x" * 85


@pytest.fixture
def screens(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    return importlib.import_module("screens")


def read_picture(text: str) -> list[str]:
    return [line.text or "" for line in ElementTree.fromstring(text).iter("{http://www.w3.org/2000/svg}text")]


def test_a_terminal_is_seen_in_the_middle_and_at_the_end(screens: ModuleType, tmp_path: Path) -> None:
    command = f"printf 'epoch 1 <&>\\rpart 2'; sleep 0.3; printf '\\rover   \\n{LONG}\\n'; pwd"
    shots = screens.play(screens.Scene(command, "part 2", "middle", "end"), tmp_path)
    assert [line.rstrip() for line in shots["middle"] if line.strip()] == ["part 21 <&>"]
    (first, *rest) = read_picture(screens.draw("do it", shots["end"]))
    assert first == "$ do it"
    assert rest == [
        "over    <&>",
        "x" * 80,
        "x" * 5,
        str(tmp_path)[:80],
        *[str(tmp_path)[80:]] * (len(str(tmp_path)) > 80),
    ]


def test_ctrl_c_is_typed(screens: ModuleType, tmp_path: Path) -> None:
    scene = screens.Scene(
        # Not `sleep`: a shell takes a Ctrl-C for its child's own business where the child has just ended well.
        "trap 'echo saved; exit' INT; echo going on; while :; do read -t 0.1; done",
        "going on",
        "middle",
        "end",
        stop=True,
    )
    assert any("saved" in line for line in screens.play(scene, tmp_path)["end"])


def test_the_page_shows_every_picture_and_every_command(screens: ModuleType) -> None:
    page = (ROOT / "docs" / "first-hour.md").read_text(encoding="utf-8")
    pictures = [name for scene in screens.SCENES for name in (scene.middle, scene.end) if name]
    assert [name for name in pictures if f"(screens/{name}.svg)" not in page] == []
    assert {path.stem for path in (ROOT / "docs" / "screens").glob("*.svg")} == set(pictures)
    typed = {" ".join(command.all_words) for command in COMMANDS if command.page == "docs/first-hour.md"}
    assert typed == {scene.command for scene in screens.SCENES}
    for path in (ROOT / "docs" / "screens").iterdir():
        assert path.stat().st_size < 60_000
