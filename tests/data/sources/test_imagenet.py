"""`data.source: imagenet`: every way in which ImageNet 2012 is delivered gives the index of its class folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.archives import write_tar
from helpers.class_folders import scan
from helpers.imagenet import (
    IDS,
    LAYOUTS,
    flatten_val,
    make_kit,
    make_pictures,
    write_extracted,
    write_kaggle,
    write_kit,
    write_official,
)
from helpers.refusals import refused

from alexnet_dist.assembly.sets import build_splits
from alexnet_dist.base.errors import UsageError
from alexnet_dist.data.files.index_files import FileRules
from alexnet_dist.data.files.verify import verify_files
from alexnet_dist.data.index import BadFilesError, SampleIndex
from alexnet_dist.data.sources.given_folder import recognize_folder
from alexnet_dist.data.sources.source import SourceOptions, open_source
from alexnet_dist.settings.reader import load_config

SOURCE = open_source("imagenet")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("pictures") / "images"
    make_pictures(folder)
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def options_of(root: Path, on_bad_file: Any = "fail", **parts: str) -> SourceOptions:
    rules = FileRules(root.parent / "cache", on_bad_file=on_bad_file)
    return SourceOptions("imagenet", root, parts or {"train": "train", "val": "val"}, rules)


def index(root: Path, on_bad_file: Any = "fail") -> dict[str, SampleIndex]:
    options = options_of(root, on_bad_file)
    SOURCE.check(options)
    train = SOURCE.list_split(options, "train", None)
    return {"train": train, "val": SOURCE.list_split(options, "val", train.classes)}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_the_same_set(layout: str, pictures: Path, root: Path) -> None:
    LAYOUTS[layout](root, pictures)
    assert SOURCE.count_classes(options_of(root))[0] == len(IDS)
    for part, found in index(root).items():
        expected = scan(pictures / part, cache_dir=root.parent / "other")
        assert found.classes == expected.classes == tuple(sorted(IDS))
        for field in ("labels", "sizes", "byte_sizes", "is_plain"):
            np.testing.assert_array_equal(getattr(found, field), getattr(expected, field))
        assert [Path(path.split("!")[-1]).name for path in found.paths] == [Path(path).name for path in expected.paths]
        for number in range(len(found)):
            np.testing.assert_array_equal(found.load_pixels(number), expected.load_pixels(number))
        assert SOURCE.list_files is not None
        files = SOURCE.list_files(options_of(root), part)
        reasons = verify_files(files, cache_dir=root.parent / "c", max_pixels=10**6, workers=1, progress=False)
        assert reasons == [""] * len(found)
        assert set(SOURCE.name_classes(options_of(root), part, ())) == set(IDS)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_recipe_changes_its_root_alone(layout: str, pictures: Path, root: Path) -> None:
    LAYOUTS[layout](root, pictures)
    data = load_config("paper_imagenet", {"data.root": str(root), "data.cache_dir": str(root.parent / "cache")}).data
    splits = build_splits(data, seed=1, progress=False)
    assert splits.counts() == {"train": 15, "val": 6, "test": 0}
    if layout in ("official", "kaggle"):
        assert recognize_folder(root).settings["data.source"] == "imagenet"


def test_the_root_may_be_kaggles_pictures(pictures: Path, root: Path) -> None:
    write_kaggle(root, pictures)
    assert len(index(root / "ILSVRC" / "Data" / "CLS-LOC")["val"]) == 6


def cut_kit(root: Path) -> None:
    path = root / "ILSVRC2012_devkit_t12.tar.gz"
    path.write_bytes(path.read_bytes()[:100])


def write_other_year(root: Path) -> None:
    (root / "ILSVRC2012_devkit_t12.tar.gz").rename(root / "ILSVRC2010_devkit-1.0.tar.gz")


def write_other_kit(root: Path) -> None:
    write_tar(root / "ILSVRC2012_devkit_t12.tar.gz", {"ILSVRC2010_devkit/data/meta.mat": make_kit()["meta.mat"]})


def write_other_meta(root: Path) -> None:
    name = "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"
    kit = {name: b"1\n2\n", "ILSVRC2012_devkit_t12/data/meta.mat": b"MATLAB 5.0 or not"}
    write_tar(root / "ILSVRC2012_devkit_t12.tar.gz", kit)


def write_short_truth(root: Path) -> None:
    kit = make_kit() | {"ILSVRC2012_validation_ground_truth.txt": b"1\n9\n"}
    write_tar(root / "ILSVRC2012_devkit_t12.tar.gz", {f"ILSVRC2012_devkit_t12/data/{name}": kit[name] for name in kit})


KITS: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing": (lambda root: (root / "ILSVRC2012_devkit_t12.tar.gz").unlink(), "nothing here says which class each is"),
    "other year": (write_other_year, "there is 'ILSVRC2010_devkit-1.0.tar.gz', of another year"),
    "other kit": (write_other_kit, "it has no ILSVRC2012_validation_ground_truth.txt"),
    "other meta": (write_other_meta, "meta.mat cannot be read"),
    "cut": (cut_kit, "a damaged development kit"),
    "short": (write_short_truth, "ILSVRC2012_validation_ground_truth.txt has '9'"),
}


@pytest.mark.parametrize("case", KITS)
def test_kits_that_are_none(case: str, pictures: Path, root: Path) -> None:
    write_official(root, pictures)
    spoil, said = KITS[case]
    spoil(root)
    assert said in refused(lambda: SOURCE.check(options_of(root)))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("image,label\na,b\n", "its columns are 'image', 'label', not 'ImageId', 'PredictionString'"),
        ("", "it is empty"),
        ("ImageId,PredictionString\nILSVRC2012_val_00000001,7 1 2\n", "LOC_val_solution.csv:2"),
        ("ImageId,PredictionString\nILSVRC2012_val_00000001\n", "a line without a class"),
        (
            "ImageId,PredictionString\nother,n01440764 1 2\n",
            "LOC_val_solution.csv names none of 6",
        ),
    ],
)
def test_tables_that_are_not_kaggles(text: str, said: str, pictures: Path, root: Path) -> None:
    write_kaggle(root, pictures)
    (root / "LOC_val_solution.csv").write_text(text)
    assert said in refused(lambda: index(root))


def test_pictures_that_nothing_names(pictures: Path, root: Path) -> None:
    write_official(root, pictures)
    more = flatten_val(pictures)
    write_tar(root / "ILSVRC2012_img_val.tar", more | {"ILSVRC2012_val_00050001.JPEG": next(iter(more.values()))})
    line = refused(lambda: index(root), BadFilesError)
    assert "ILSVRC2012_img_val.tar!ILSVRC2012_val_00050001.JPEG): nothing says which class it is of" in line
    assert len(index(root, "skip")["val"]) == 6
    (root / "ILSVRC2012_img_train.tar").unlink()
    assert "no train set of ImageNet" in refused(lambda: index(root))
    assert "data.test is 'test'" in refused(lambda: SOURCE.check(options_of(root, test="test")), UsageError)


def test_classes_that_training_lacks(pictures: Path, root: Path) -> None:
    write_extracted(root, pictures)
    for path in (root / "train" / IDS[0]).iterdir():
        path.unlink()
    (root / "train" / IDS[0]).rmdir()
    assert f"'{IDS[0]}' are not among its 2" in refused(lambda: index(root))


def test_a_flat_val_of_class_folders_names_this_source(pictures: Path, root: Path) -> None:
    write_extracted(root, pictures)
    write_kit(root)
    assert "set --data.source imagenet" in refused(lambda: scan(root / "val", classes=sorted(IDS)))
