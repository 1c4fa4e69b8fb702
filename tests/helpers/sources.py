"""The same pictures for every source of image files: what the settings of each are."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from helpers.archives import read_files, write_shards, write_zip
from helpers.imagenet import IDS, make_pictures, write_half_extracted, write_kaggle, write_official
from helpers.parquet_files import write_folder_as_parquet

Write = Callable[[Path, Path], dict[str, str]]


def _write_folder(root: Path, pictures: Path) -> dict[str, str]:
    shutil.copytree(pictures, root, dirs_exist_ok=True)
    return {"source": "folder", "train": "train", "val": "val"}


def _write_manifest(root: Path, pictures: Path) -> dict[str, str]:
    shutil.copytree(pictures, root, dirs_exist_ok=True)
    for part in ("train", "val"):
        lines = [f"{part}/{path} {path.split('/')[0]}\n" for path in read_files(pictures / part)]
        (root / f"{part}.txt").write_text("".join(lines[::-1]))
    return {"source": "manifest", "train": "train.txt", "val": "val.txt"}


def _write_tar(root: Path, pictures: Path) -> dict[str, str]:
    for part in ("train", "val"):
        write_shards(root, read_files(pictures / part), 2, part)
    return {"source": "tar", "train": "train-{0000..0001}.tar", "val": "val-*.tar"}


def _write_inside(root: Path, pictures: Path) -> dict[str, str]:
    write_zip(root / "all.zip", read_files(pictures))
    return {"source": "tar", "train": "all.zip!train", "val": "all.zip!val"}


def _write_imagenet(root: Path, pictures: Path) -> dict[str, str]:
    root.mkdir(parents=True, exist_ok=True)
    write_official(root, pictures)
    return {"source": "imagenet", "train": "train", "val": "val"}


def _write_kaggle(root: Path, pictures: Path) -> dict[str, str]:
    write_kaggle(root, pictures)
    return {"source": "imagenet", "train": "train", "val": "val"}


def _write_half_extracted(root: Path, pictures: Path) -> dict[str, str]:
    write_half_extracted(root, pictures)
    return {"source": "imagenet", "train": "train", "val": "val"}


def _write_parquet(root: Path, pictures: Path) -> dict[str, str]:
    for part in ("train", "val"):
        write_folder_as_parquet(pictures / part, root, sorted(IDS), split=part)
    return {"source": "parquet", "train": "train", "val": "val"}


WRITERS: dict[str, Write] = {
    "folder": _write_folder,
    "manifest": _write_manifest,
    "tar": _write_tar,
    "inside": _write_inside,
    "imagenet": _write_imagenet,
    "kaggle": _write_kaggle,
    "half extracted": _write_half_extracted,
    "parquet": _write_parquet,
}


def write_source(name: str, root: Path) -> dict[str, str]:
    """Write three classes of five training and two validation pictures, as `WRITERS` name it; the settings of `data`.

    Args:
        name: of the form.
        root: a folder; the pictures themselves lie in `pictures` beside it.
    """
    pictures = root.with_name("pictures")
    if not pictures.is_dir():
        make_pictures(pictures)
    return {**WRITERS[name](root, pictures), "root": str(root)}
