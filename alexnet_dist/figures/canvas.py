"""What all figures share: colors, the empty figure, and how it becomes a file.

Matplotlib is used through its objects alone: pyplot would choose a backend for the whole program. The colors are Okabe
and Ito's, which people with every kind of color vision tell apart. Text is never read as formulas: the name of a class
may hold a `$`.
"""

from __future__ import annotations

import io
import textwrap
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alexnet_dist.base.durable import write_file
from alexnet_dist.base.errors import MachineError
from alexnet_dist.base.extras import import_installed, is_installed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, GRAY = "#0072B2", "#D55E00", "#009E73", "0.45"
DPI = 120
PADDING = 0.06  # inches around each part
MARGIN = 0.1  # inches above and below a title where places are given
TITLE_SIZE, TEXT_SIZE, SMALL_SIZE = 12.0, 10.0, 8.0  # points
LETTERS_AN_INCH, TITLE_INCHES = 10.5, 0.2  # of a line of a title
PLAIN: dict[str, Any] = {"parse_math": False}
SOFTWARE = "alexnet_dist"  # stands in each PNG file: one without it is its user's


def check_matplotlib() -> None:
    """Refuse to draw without matplotlib.

    Raises:
        MachineError: it is not installed, or cannot be imported.
    """
    if not is_installed("matplotlib"):  # as everybody has it, unless it was taken away
        raise MachineError("matplotlib is not installed", remedy="pip install matplotlib")
    import_installed("matplotlib.figure")


def new_figure(width: float, height: float, title: str, is_laid_out: bool = True) -> Figure:
    """An empty figure with a title.

    Args:
        width, height: in inches.
        title: one line or several; words that the width has no room for go into the next line.
        is_laid_out: matplotlib makes room for the words around each panel. Else the caller gives places.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=PADDING, h_pad=PADDING) if is_laid_out else None
    figure = Figure(figsize=(width, height), dpi=DPI, layout=layout)
    y = None if is_laid_out else 1 - MARGIN / height
    figure.suptitle(_wrap_title(title, width), fontsize=TITLE_SIZE, y=y, **PLAIN)
    return figure


def measure_title(title: str, width: float) -> float:
    """Inches that a title takes over a figure that is so many inches wide."""
    return TITLE_INCHES * (1 + _wrap_title(title, width).count("\n")) + 2 * MARGIN


def _wrap_title(title: str, width: float) -> str:
    letters = round(width * LETTERS_AN_INCH)
    return "\n".join(textwrap.fill(line, letters) for line in title.splitlines())


def save_figure(figure: Figure, path: Path) -> None:
    """Replace a PNG file at once. Equal figures give equal bytes with the same matplotlib.

    Raises:
        MachineError: the file cannot be written.
    """
    image = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a name in a script the font lacks
        figure.savefig(image, format="png", metadata={"Software": SOFTWARE})
    write_file(path, image.getvalue())


def is_own_figure(path: Path) -> bool:
    """Whether a file is one that `save_figure` wrote. It says so in the first of its texts."""
    try:
        with path.open("rb") as file:
            return f"Software\0{SOFTWARE}".encode() in file.read(256)
    except OSError:
        return False
