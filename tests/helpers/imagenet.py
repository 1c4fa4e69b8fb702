"""ImageNet 2012 as it is delivered, in small: a few pictures of a few classes."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np

from helpers.archives import make_tar, write_nested, write_tar
from helpers.images import save_jpeg

IDS = ("n02102040", "n01440764", "n03000684")  # by their number in the kit, which is not their order
VAL = (2, 0, 1, 1, 2, 0)  # class of each validation picture, by its place in IDS


def make_pictures(folder: Path) -> None:
    """Folders of classes, train/ID and val/ID, that the others hold the same pictures as."""
    for place, name in enumerate(IDS):
        for number in range(5):
            save_jpeg(folder / "train" / name / f"{name}_{number}.JPEG", 80 + place, 72 + number)
    for number, place in enumerate(VAL, start=1):
        save_jpeg(folder / "val" / IDS[place] / f"ILSVRC2012_val_{number:08d}.JPEG", 72 + number, 80)


def flatten_val(folder: Path) -> dict[str, bytes]:
    """The validation pictures by their names alone."""
    return {
        path.name: path.read_bytes() for path in sorted((folder / "val").rglob("*.JPEG"), key=lambda path: path.name)
    }


def make_kit() -> dict[str, bytes]:
    """The two files of the development kit that matter. A synset of synsets is no class."""
    from scipy.io import savemat

    rows = [(number, name, "words", "gloss", 0, 0, 0, 1) for number, name in enumerate(IDS, start=1)]
    rows.append((len(IDS) + 1, "n00001740", "entity", "gloss", 3, 0, 0, 0))
    names = (
        "ILSVRC2012_ID",
        "WNID",
        "words",
        "gloss",
        "num_children",
        "children",
        "wordnet_height",
        "num_train_images",
    )
    synsets = np.array(rows, dtype=[(name, object) for name in names])
    buffer = io.BytesIO()
    savemat(buffer, {"synsets": synsets})
    truth = "".join(f"{place + 1}\n" for place in VAL).encode()
    return {"meta.mat": buffer.getvalue(), "ILSVRC2012_validation_ground_truth.txt": truth}


def write_kit(root: Path, packed: bool = True) -> None:
    """The kit as it is delivered, or unpacked."""
    files = {f"ILSVRC2012_devkit_t12/data/{name}": data for name, data in make_kit().items()}
    if packed:
        with tarfile.open(root / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as archive:
            for name, data in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        return
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)


def write_solution(path: Path) -> None:
    """Kaggle's table of validation pictures, with a second box for some."""
    rows = [f"ILSVRC2012_val_{number:08d},{IDS[place]} 1 2 30 40" for number, place in enumerate(VAL, start=1)]
    path.write_text("\n".join(["ImageId,PredictionString", *rows[::-1]]) + f" {IDS[0]} 5 6 7 8\n")


def write_official(root: Path, pictures: Path) -> None:
    """The archives of image-net.org, and the kit."""
    train = {
        path.relative_to(pictures / "train").as_posix(): path.read_bytes() for path in (pictures / "train").rglob("*.*")
    }
    write_nested(root / "ILSVRC2012_img_train.tar", dict(sorted(train.items(), reverse=True)))
    write_tar(root / "ILSVRC2012_img_val.tar", flatten_val(pictures))
    write_kit(root)


def write_kaggle(root: Path, pictures: Path) -> None:
    """Kaggle's tree, with a test set that has no classes."""
    place = root / "ILSVRC" / "Data" / "CLS-LOC"
    _copy(pictures / "train", place / "train")
    _write_flat(place / "val", pictures)
    (place / "test").mkdir()
    (place / "test" / "ILSVRC2012_test_00000001.JPEG").write_bytes(b"")
    write_solution(root / "LOC_val_solution.csv")


def write_extracted(root: Path, pictures: Path) -> None:
    """Extracted archives: folders of classes, a flat val, and the kit beside them, unpacked."""
    _copy(pictures / "train", root / "train")
    _write_flat(root / "val", pictures)
    write_kit(root, packed=False)


def write_half_extracted(root: Path, pictures: Path) -> None:
    """The outer archive of training extracted: a tar for each class."""
    for folder in (pictures / "train").iterdir():
        (root / "train").mkdir(parents=True, exist_ok=True)
        members = {path.name: path.read_bytes() for path in folder.iterdir()}
        (root / "train" / f"{folder.name}.tar").write_bytes(make_tar(members))
    write_tar(root / "val" / "ILSVRC2012_img_val.tar", flatten_val(pictures))
    write_solution(root / "LOC_val_solution.csv")


def _copy(source: Path, target: Path) -> None:
    for path in source.rglob("*.JPEG"):
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(path.read_bytes())


def _write_flat(folder: Path, pictures: Path) -> None:
    folder.mkdir(parents=True)
    for name, data in flatten_val(pictures).items():
        (folder / name).write_bytes(data)


LAYOUTS = {
    "official": write_official,
    "kaggle": write_kaggle,
    "extracted": write_extracted,
    "half": write_half_extracted,
    "folders": lambda root, pictures: (
        _copy(pictures / "train", root / "train"),
        _copy(pictures / "val", root / "val"),
    ),
}
