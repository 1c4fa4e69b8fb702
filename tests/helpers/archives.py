"""Archives of pictures: shards, a tar, a tar of tars, a zip."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

Files = Mapping[str, bytes]
FORMS = ("shards", "tar", "nested", "zip")


def read_files(folder: Path) -> dict[str, bytes]:
    """The files below a folder by their paths, sorted."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def make_tar(files: Files, form: int = tarfile.GNU_FORMAT) -> bytes:
    """A tar with these members."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def write_tar(path: Path, files: Files, form: int = tarfile.GNU_FORMAT) -> Path:
    """Write a tar with these members."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(make_tar(files, form))
    return path


def write_nested(path: Path, files: Files) -> Path:
    """A tar with a tar for each class, as ImageNet is delivered."""
    classes: dict[str, dict[str, bytes]] = {}
    for name, data in files.items():
        top, _, rest = name.partition("/")
        classes.setdefault(top, {})[rest] = data
    return write_tar(path, {f"{top}.tar": make_tar(members) for top, members in classes.items()})


def write_zip(path: Path, files: Files, compression: int = zipfile.ZIP_STORED) -> Path:
    """A zip with these members."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def write_shards(folder: Path, files: Files, num_shards: int, stem: str = "train") -> None:
    """WebDataset's shards: the label of a picture, the name of its top folder, lies beside it in KEY.cls."""
    shards: list[dict[str, bytes]] = [{} for _ in range(num_shards)]
    for number, (name, data) in enumerate(files.items()):
        key, _, ending = name.rpartition(".")
        shards[number % num_shards] |= {f"{key}.{ending}": data, f"{key}.cls": name.partition("/")[0].encode()}
    for number, members in enumerate(shards):
        write_tar(folder / f"{stem}-{number:04d}.tar", members)


def write_forms(root: Path, part: str, files: Files, num_shards: int) -> None:
    """The same pictures in each of `FORMS`, as the set `part` of the folder ROOT/FORM."""
    write_shards(root / "shards" / part, files, num_shards, part)
    write_tar(root / "tar" / f"{part}.tar", files)
    write_nested(root / "nested" / f"{part}.tar", files)
    write_zip(root / "zip" / f"{part}.zip", files)
