"""The pictures of docs/first-hour.md: a newcomer's commands on a terminal of 80 columns, and two figures of a run.

    python docs/screens.py data/fruits10              # all pictures again: docs/screens/*.svg
    python docs/screens.py data/fruits10 --only 06 07

The folder of pictures has train/ and valid/. The commands run one after the other in a fresh clone of this checkout's
last commit. The clone stays, so that single pictures can be made again. The packages are those of the Python that runs
this script. It needs the package pyte, which knows what stands on a terminal.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

import pyte
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "docs" / "screens"
COLUMNS, ROWS = 80, 100  # more rows than any screen has: nothing scrolls away
CHAR, LINE, EDGE = 8.4, 19, 16  # of a picture, in pixels
FIGURE_WIDTH = 720
CTRL_C = b"\x03"
OWN = "python launch/train.py data/fruits --config fruits --train.epochs 4"
FIGURES = ("curves.png", "confusion.png")  # of the run; others show pictures that are not ours
FOREIGN = ("COLUMNS", "LINES", "XDG_CACHE_HOME")  # variables of the environment that a newcomer has not
FONT = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', 'Liberation Mono', monospace"


@dataclass(frozen=True)
class Scene:
    """A command, and the pictures of it.

    Args:
        command: as it is typed.
        moment: the text that stands on the screen when a picture of the middle is taken, as a regular expression.
        middle: the name of that picture; "" for none.
        end: the name of the picture at the end; "" for none.
        stop: press Ctrl-C after the picture of the middle.
    """

    command: str
    moment: str = ""
    middle: str = ""
    end: str = ""
    stop: bool = False


SCENES = (
    Scene("make train", r"epoch 3/\d+ .* 1\d/\d+ loss", "01-digits", "02-digits-end"),
    Scene(OWN, r"epoch 2/\d+ .* [6-9]/\d+ loss", "03-train", "04-stop", stop=True),
    Scene(OWN, end="05-again"),
    Scene("python launch/evaluate.py runs/fruits", end="06-evaluate"),
    Scene("python launch/predict.py runs/fruits one.jpg two.jpg", end="07-predict"),
    Scene("python launch/train.py --help", end="08-help"),
    Scene("python launch/train.py --help schedule", end="09-help-schedule"),
    Scene("python launch/train.py --config smoke", end="10-smoke"),
    Scene("python launch/export.py --model runs/fruits --out fruits.onnx --check", end="11-export"),
    Scene("python launch/doctor.py --config smoke", end="12-doctor"),
)


def main() -> None:
    """Type all commands, and draw the pictures that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path, help="class folders in train/ and valid/")
    parser.add_argument("--only", nargs="+", default=[""], help="beginnings of the names of pictures")
    parser.add_argument("--home", type=Path, default=Path("/tmp/you"), help="folder of the clone and its cache folder")
    options = parser.parse_args()
    OUT.mkdir(exist_ok=True)
    clone = options.home / "alexnet_dist"
    if not clone.exists():
        make_clone(clone, options.pictures.resolve())
    for scene in SCENES:
        if any(name.startswith(tuple(options.only)) for name in (scene.middle, scene.end) if name):
            for picture, lines in play(scene, clone).items():
                (OUT / f"{picture}.svg").write_text(draw(scene.command, lines), encoding="utf-8")
    for name in FIGURES:
        shrink(clone / "runs" / "fruits" / "plots" / name, OUT / name)


def make_clone(clone: Path, pictures: Path) -> None:
    """A fresh clone with the pictures in data/fruits, and this environment as its .venv."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    (clone / "data").mkdir()
    (clone / "data" / "fruits").symlink_to(pictures)
    shown = sorted(path for path in pictures.glob("valid/*/*") if path.is_file())
    shutil.copy(shown[0], clone / "one.jpg")
    shutil.copy(shown[-1], clone / "two.jpg")
    (clone / ".venv").mkdir()
    for name in ("bin", "lib", "pyvenv.cfg"):
        (clone / ".venv" / name).symlink_to(Path(sys.prefix) / name)
    (clone / ".venv" / ".installed").touch()  # `make train` then begins where the environment is made


def play(scene: Scene, clone: Path) -> dict[str, list[str]]:
    """Type a command and wait for its end; the lines of each picture."""
    screen = pyte.Screen(COLUMNS, ROWS)
    stream = pyte.ByteStream(screen)
    shots: dict[str, list[str]] = {}
    child, terminal = pty.fork()
    if child == 0:
        start(scene.command, clone)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    while data := read(terminal):
        stream.feed(data)
        if scene.middle and scene.middle not in shots and re.search(scene.moment, "\n".join(screen.display)):
            shots[scene.middle] = list(screen.display)
            if scene.stop:
                os.write(terminal, CTRL_C)
    os.close(terminal)
    os.waitpid(child, 0)
    missing = {scene.middle} - {"", *shots}
    if missing:
        sys.exit(f"{scene.moment!r} did not come:\n" + "\n".join(line for line in screen.display if line.strip()))
    return shots | ({scene.end: list(screen.display)} if scene.end else {})


def start(command: str, clone: Path) -> None:
    """Become a shell that runs a command as in a fresh login; returns never."""
    os.chdir(clone)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell cannot trap what is ignored where it begins, as behind a `&`
    path = f"{clone / '.venv' / 'bin'}:{os.environ['PATH']}"
    changed = {"PATH": path, "PYTHONPATH": str(clone), "HOME": str(clone.parent), "TERM": "xterm-256color"}
    kept = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    os.execvpe("bash", ["bash", "-c", command], kept | changed)


def read(terminal: int) -> bytes:
    """What was written since; nothing at the end."""
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # Linux, where the last process has ended
        return b""


def shrink(figure: Path, target: Path) -> None:
    """A figure as wide as a terminal, with as many colors as it needs."""
    with Image.open(figure) as image:
        size = (FIGURE_WIDTH, round(image.height * FIGURE_WIDTH / image.width))
        small = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    small.quantize(256, Image.Quantize.FASTOCTREE).save(target, optimize=True)


def draw(command: str, lines: list[str]) -> str:
    """An SVG of a screen: dark, with an edge that is seen on a dark page, too."""
    shown = [line.rstrip() for line in lines]
    while shown and not shown[-1]:
        shown.pop()
    width, height = round(COLUMNS * CHAR + 2 * EDGE), (len(shown) + 1) * LINE + 2 * EDGE
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    rows = [draw_line(f"$ {command}", 0, ' class="typed"')]
    rows += [draw_line(line, number, "") for number, line in enumerate(shown, 1) if line]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size}>',
            f"<style>text{{font:14px {FONT};fill:#e6edf3;white-space:pre}}.typed{{fill:#7ee787}}</style>",
            f'<rect x="1" y="1" width="{width - 2}" height="{height - 2}" rx="8" fill="#161b22" stroke="#6e7681"/>',
            *rows,
            "</svg>\n",
        ]
    )


def draw_line(text: str, number: int, style: str) -> str:
    """A line of text, as wide as its letters are many whatever the font."""
    kept = len(text) - len(text.lstrip())
    where = f'x="{EDGE + kept * CHAR:.1f}" y="{EDGE + number * LINE + 14}"'
    length = f'textLength="{(len(text) - kept) * CHAR:.1f}" lengthAdjust="spacingAndGlyphs"'
    return f'<text {where} {length} xml:space="preserve"{style}>{escape(text.lstrip())}</text>'


if __name__ == "__main__":
    main()
