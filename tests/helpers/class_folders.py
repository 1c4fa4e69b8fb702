"""A folder of pictures, a folder for each class, and what is found in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alexnet_dist.data.index import SampleIndex
from alexnet_dist.data.sources.folders import scan_folder
from helpers.images import save_jpeg


def scan(root: Path, **settings: Any) -> SampleIndex:
    """The index of a folder; what is remembered of it lies beside it."""
    defaults: dict[str, Any] = {"classes": None, "on_bad_file": "fail", "cache_dir": root.parent / "cache"}
    return scan_folder(root, **(defaults | settings))


def write_class_folders(folder: Path) -> None:
    """Three classes with 2, 4 and 4 images; one nested, one of another size."""
    for name, count in (("cat", 2), ("dog", 3), ("red fox", 4)):
        for number in range(count):
            save_jpeg(folder / name / f"{number}.jpg")
    save_jpeg(folder / "dog" / "more" / "wide.JPEG", width=64, height=16)


def spoil_files(root: Path) -> None:
    """Four files that are no pictures."""
    (root / "dog" / "empty.jpg").write_bytes(b"")
    (root / "dog" / "page.jpg").write_bytes(b"<html></html>")
    (root / "cat" / "text.png").write_bytes(b"hello")
    (root / "red fox" / "cut.jpg").write_bytes((root / "red fox" / "0.jpg").read_bytes()[:50])
