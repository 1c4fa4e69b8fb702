"""The pictures of a report: figures of plots/, or what a run that goes on has shown to its trackers."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import Image

from alexnet_dist.figures.canvas import is_own_figure
from alexnet_dist.tracking.pictures import Judgment, Pictures

MOST_PICTURE_BYTES = 3_000_000  # of a page, in base64; Vega has 0.9 MB, the rows of a run of 90 epochs less
QUALITY, SCALES = 82, (1.0, 0.75, 0.5, 0.35, 0.25)  # of a picture that has no room as PNG
IN_BASE64 = 4 / 3
CONFUSION, CONV1, INPUTS, WORST, EXPLAINED = (
    f"{name}.png" for name in ("confusion", "conv1", "inputs", "worst", "worst_explained")
)
FIGURES = {  # of plots/: what they show
    CONFUSION: "Confusion matrix: rows are true classes, columns predicted ones",
    CONV1: "Filters of conv1, each tower's apart; gray is 0",
    INPUTS: "The first training images as the network sees them, after augmentation",
    WORST: "The worst predictions: what each picture is, and what the network said",
    EXPLAINED: "The same pictures: bright is what speaks for the class that was said (LayerCAM at conv5)",
}
DIAGRAMS = (CONFUSION, "curves.png")
FILTERS = "Filters of conv1; gray is 0"
SHOWN = {  # what trackers are shown by name: the figure whose place it takes, and what it shows
    "val/confusion": (CONFUSION, FIGURES[CONFUSION]),
    "conv1/filters": (CONV1, FILTERS),
    "conv1/tower_1": (CONV1, f"{FILTERS} (first tower)"),
    "conv1/tower_2": (CONV1, f"{FILTERS} (second tower)"),
    "train/inputs": (INPUTS, FIGURES[INPUTS]),
    "val/worst": (WORST, FIGURES[WORST]),
}


@dataclass(frozen=True)
class Picture:
    """A picture that lies in the page; one without photographs may change its colors on a dark page."""

    source: str
    alt: str
    caption: str
    width: int
    height: int
    is_diagram: bool = False


class Newest:
    """The newest of each picture that a run has shown while it goes on; `worst`: rows, as predictions.csv has them."""

    def __init__(self) -> None:
        self.worst: list[dict[str, str]] = []
        self._pictures: dict[str, Picture] = {}

    def take(self, pictures: Pictures) -> None:
        """Keep what takes the place of a figure; the figures of a run's end are read from plots/."""
        for picture in pictures.pictures:
            if picture.name in SHOWN and not isinstance(picture.content, Path):
                figure, about = SHOWN[picture.name]
                png = io.BytesIO()
                image = Image.fromarray(picture.content.squeeze())  # (H, W, 3), or (H, W)
                image.save(png, "PNG")
                most = MOST_PICTURE_BYTES // len(FIGURES)
                source = _pack(png.getvalue(), int(most / IN_BASE64))
                when = "" if figure == INPUTS else f" After {pictures.step:,} updates."
                self._pictures[picture.name] = Picture(
                    source, about, f"{about}.{when}", *image.size, figure in DIAGRAMS
                )
        if pictures.worst and "val/worst" in self._pictures:
            self.worst = [_describe(judgment) for judgment in pictures.worst]

    def find(self, figure: str) -> list[Picture] | None:
        """What takes the place of a figure of plots/; None = nothing does."""
        found = [
            self._pictures[name] for name, (place, _) in SHOWN.items() if place == figure and name in self._pictures
        ]
        if figure == EXPLAINED and "val/worst" in self._pictures:  # its pictures are others
            return []
        return found or None


def find_pictures(folder: Path, figure: str, most: int, newest: Newest | None) -> Sequence[Picture]:
    """A figure for the page, or what takes its place.

    Args:
        folder: plots/ of the run.
        figure: its file.
        most: bytes that it may have in the page.
        newest: what the run that goes on has shown.
    """
    newer = None if newest is None else newest.find(figure)
    older = embed(folder / figure, FIGURES[figure], most) if newer is None else None
    return newer or ([] if older is None else [older])


def _describe(judgment: Judgment) -> dict[str, str]:
    return {
        "path": judgment.path,
        "right": str(judgment.truth == judgment.prediction),
        "true_class": judgment.truth,
        "true_confidence": str(judgment.true_confidence),
        "predicted_class": judgment.prediction,
        "confidence": str(judgment.confidence),
    }


def embed_curves(folder: Path, most: int) -> Picture | None:
    """The figure of the curves in plots/, for a page without charts."""
    return embed(folder / "curves.png", "Loss, accuracy and learning rate over the run", most)


def embed(path: Path, about: str, most: int) -> Picture | None:
    """A figure that this program drew, as a part of the page; None where there is none, or it cannot be read.

    Args:
        path: the PNG.
        about: what it shows.
        most: bytes that it may have in the page.
    """
    if path.is_symlink() or not path.is_file() or not is_own_figure(path):
        return None
    facts = path.stat()
    try:
        source, width, height = _pack_file(path, facts.st_mtime_ns, facts.st_size, int(most / IN_BASE64))
    except (OSError, ValueError):
        return None
    return Picture(source, about, f"{about}.", width, height, path.name in DIAGRAMS)


@lru_cache(maxsize=64)
def _pack_file(path: Path, changed_ns: int, size: int, most: int) -> tuple[str, int, int]:
    """A figure as the source of an image, its width and its height; `changed_ns`, `size`: of this version."""
    data = path.read_bytes()
    with Image.open(io.BytesIO(data)) as image:
        width, height = image.size
    return _pack(data, most), width, height


def _pack(data: bytes, most: int) -> str:
    """The source of an image: a PNG file as it is or, where that is too much, as WebP."""
    kind = "png"
    with Image.open(io.BytesIO(data)) as image:
        width, height = image.size
        for scale in SCALES:
            if len(data) <= most:
                break
            smaller = image.convert("RGB").resize((round(width * scale), round(height * scale)))
            packed = io.BytesIO()
            smaller.save(packed, "WEBP", quality=QUALITY, method=2)
            data, kind = packed.getvalue(), "webp"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
