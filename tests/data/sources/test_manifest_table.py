"""Which column of a list is the label: found by its name, or refused; never the last one because it is the last."""

from __future__ import annotations

import errno
import json
import logging
import os
import time
from pathlib import Path
from typing import Any

import pytest
from helpers.images import save_jpeg
from helpers.refusals import refused
from helpers.tiny import tiny_config
from helpers.verbs import call, call_well

from alexnet_dist.assembly.sets import Splits, build_splits
from alexnet_dist.base.errors import UsageError
from alexnet_dist.data.sources.manifest_read import ListForm, read_manifest
from alexnet_dist.data.sources.manifest_table import ColumnNames
from alexnet_dist.settings.reader import build_config, dump_config

PICTURES = ("a.jpg", "b.jpg", "c.jpg", "d.jpg")
RIGHT = ["cat", "dog", "dog", "cat"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in PICTURES:
        save_jpeg(tmp_path / name)
        save_jpeg(tmp_path / "photos" / f"7{name}")
    return tmp_path


def write(root: Path, header: str, rows: list[str], name: str = "list.csv") -> Path:
    (root / name).write_text("\n".join([header, *rows] if header else rows) + "\n")
    return root / name


def read(root: Path, header: str, rows: list[str], name: str = "list.csv", **form: Any) -> list[str]:
    """The labels of a.jpg to d.jpg."""
    listed = read_manifest(root, write(root, header, rows, name), (), ListForm(**form))
    assert all(not picture.reason for picture in listed)
    label_of = {picture.file.path.removeprefix("photos/7"): picture.label for picture in listed}
    return [label_of.get(name, "") for name in PICTURES]


# The values of each column; wrong ones are numbers of patients, sizes, parts and places.
CELLS = {"p": PICTURES, "l": RIGHT, "n": "1734", "s": ["train", "val", "train", "test"], "u": "0110", "v": "1001"}


def rows_of(columns: str, mark: str = ",") -> list[str]:
    return [mark.join(str(CELLS[column][number]) for column in columns) for number in range(len(PICTURES))]


@pytest.mark.parametrize(
    ("header", "columns"),
    [
        ("filename,label,split", "pls"),
        ("filename,label,patient", "pln"),
        ("label,filename", "lp"),
        ("patient,Image Path,Class", "npl"),
        ("split,file_name,size,category", "spnl"),
        (",path,target", "npl"),
        ("Width,ClassId,Path", "nlp"),
        ("image_id,breed,width", "pln"),
        ("id,image,label", "npl"),
        ("name,file,label", "npl"),
        ("name,label,is_valid", "plu"),
        ("photo_of,label,age", "pln"),
        ("bild,klasse", "pl"),
        ("image,width,y", "pnl"),
        ("file,dog,cat", "puv"),
        ("file,age,dog,cat,split", "pnuvs"),
        ("file,dog,label,cat", "pulv"),
        ("file,level", "pl"),
    ],
)
@pytest.mark.parametrize(
    ("mark", "name"), [(",", "list.csv"), (";", "LIST.CSV"), ("\t", "list.tsv"), ("|", "list.csv")]
)
def test_columns_are_found_by_their_names(root: Path, header: str, columns: str, mark: str, name: str) -> None:
    assert read(root, header.replace(",", mark), rows_of(columns, mark), name) == RIGHT
    last = [row.split(mark)[-1] for row in rows_of(columns, mark)]
    assert (last == RIGHT) == columns.endswith("l")  # the control: the last column is another one


def test_a_first_line_of_excel_gives_the_mark(root: Path) -> None:
    assert read(root, "sep=;\r\nsize, in cm;file;label", rows_of("npl", ";")) == RIGHT


@pytest.mark.parametrize(
    ("labels", "known", "read_as"),
    [
        (["2.0", "10.0", "0", "1.00"], (), ["2", "10", "0", "1"]),
        (["2.0", "10.5", "0", "1.0"], (), ["2.0", "10.5", "0", "1.0"]),  # measures
        (["2.0", "2.1", "cat", "1.0"], (), ["2.0", "2.1", "cat", "1.0"]),
        (["2.0", "1.0", "2.0", "1.0"], ("1.0", "2.0"), ["2.0", "1.0", "2.0", "1.0"]),  # classes of these names
    ],
)
def test_whole_numbers_may_be_floats(root: Path, labels: list[str], known: tuple[str, ...], read_as: list[str]) -> None:
    rows = [f"{name},{label}" for name, label in zip(PICTURES, labels, strict=True)]
    listed = read_manifest(root, write(root, "path,label", rows), known)
    assert [picture.label for picture in listed] == read_as


def test_one_hot_cells_may_be_floats(root: Path) -> None:
    rows = [
        f"{name},{float(label == 'cat')},{float(label == 'dog')},0.0"
        for name, label in zip(PICTURES, RIGHT, strict=True)
    ]
    assert read(root, "image,cat,dog,fox", rows) == RIGHT


@pytest.mark.parametrize(
    ("header", "columns", "words"),
    [
        ("filename,patient,size", "pnn", ["is the label", "'patient', 'size'", "--data.columns.label NAME"]),
        ("filename,class,class_name", "pnl", ["'class', 'class_name'"]),
        ("path,image,label", "ppl", ["names the pictures", "'path', 'image'", "--data.columns.path NAME"]),
        ("one,two,label", "nnl", ["names the pictures", "none of 'one', 'two', 'label'"]),
        ("filename,split", "ps", ["is the label", "'filename', 'split'"]),
        ("file,x,y", "pnn", ["is the label", "'x', 'y'"]),
        ("", "pln", ["is the label", "'column 2', 'column 3'", "'a.jpg', 'cat', '1'", "NUMBER"]),
        ("file,dog,cat", "puu", ["list.csv:2", "'dog', 'cat' have 0 times 1"]),
        ("file,label,split,subset", "plss", ["says the set", "'split', 'subset'"]),
    ],
)
def test_columns_that_may_be_several_are_listed(root: Path, header: str, columns: str, words: list[str]) -> None:
    line = refused(lambda: read(root, header, rows_of(columns)))
    assert [word for word in words if word not in line] == []
    assert str(root / "list.csv") in line


@pytest.mark.parametrize(
    ("header", "columns", "given"),
    [
        ("filename,patient,what", "pnl", {"label": "what"}),
        ("filename,patient,what", "pnl", {"label": "3"}),
        ("path,image,label", "npl", {"path": "image"}),
        ("", "npl", {"path": "2", "label": "3"}),
        ("", "pln", {"label": "2"}),
        ("label,Kind Of,file", "nlp", {"label": "kind_of"}),
        ("file,label,split", "pln", {"split": "none"}),
    ],
)
def test_settings_name_columns(root: Path, header: str, columns: str, given: dict[str, str]) -> None:
    assert read(root, header, rows_of(columns), columns=ColumnNames(**given)) == RIGHT


@pytest.mark.parametrize(
    ("given", "why"), [("what", "no columns have this name"), ("9", "no columns"), ("size", "several")]
)
def test_settings_that_name_no_column(root: Path, given: str, why: str) -> None:
    line = refused(lambda: read(root, "file,size,size", rows_of("pnn"), columns=ColumnNames(label=given)), UsageError)
    assert f"data.columns.label is '{given}'" in line
    assert why in line
    assert "'file', 'size', 'size'" in line


def test_settings_have_no_effect_on_text(root: Path) -> None:
    (root / "list.txt").write_text("a.jpg cat\n")
    form = ListForm(columns=ColumnNames(label="x"))
    assert "has no effect" in refused(lambda: read_manifest(root, root / "list.txt", (), form), UsageError)


@pytest.mark.parametrize("cell", ["", " ", "nan", "NaN", "<NA>", "N/A", "NULL"])
@pytest.mark.parametrize(
    ("name", "text"),
    [("list.csv", "path,label,size\na.jpg,cat,1\nb.jpg,{},2\n"), ("list.txt", "\na.jpg cat\nb.jpg\t{}\n")],
)
def test_an_empty_label_is_named_by_its_line(root: Path, cell: str, name: str, text: str) -> None:
    (root / name).write_text(text.format(cell))
    line = refused(lambda: read_manifest(root, root / name))
    assert line.startswith(f"a line without a label ({root / name}:3)")
    if cell.strip():  # unless it is a class
        assert read_manifest(root, root / name, (cell, "cat"))[1].label == cell


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (["a.jpg,cat,1", "b.jpg,dog"], ["list.csv:3", "2 columns, the first row has 3"]),
        (["a.jpg,cat,1", "b.jpg"], ["list.csv:3", "without a label"]),
        (["a.jpg,cat,1", "b.jpg,x,y,dog,1"], ["list.csv:3", "5 columns"]),
    ],
)
def test_rows_of_another_length(root: Path, rows: list[str], words: list[str]) -> None:
    line = refused(lambda: read(root, "path,label,size", rows))
    assert [word for word in words if word not in line] == []


# -- parts of a set ---------------------------------------------------------------------------------------------------


def split(root: Path, **data: Any) -> Splits:
    settings = {"source": "manifest", "root": str(root), "train": "list.csv", "cache_dir": str(root / "cache"), **data}
    values = {f"data.{key}": value for key, value in settings.items()}
    return build_splits(build_config({**values, "train.epochs": 1}).data, 0, False)


def write_parts(root: Path, parts: dict[str, int], header: str = "path,label,split") -> None:
    rows = []
    for part, count in parts.items():
        for number in range(count):
            save_jpeg(root / f"{part}{number}.jpg")
            rows.append(f"{part}{number}.jpg,{('cat', 'dog')[number % 2]},{part}")
    write(root, header, rows)


@pytest.mark.parametrize("policy", ["fail", "skip"])
def test_where_no_picture_is_there_the_remedy_is_the_folder(root: Path, policy: str) -> None:
    write(root, "path,label", [f"old/{row}" for row in rows_of("pl")])
    line = refused(lambda: split(root, on_bad_file=policy))
    assert line.startswith("no listed picture is there (")
    assert "the first is 'old/a.jpg'; set data.root, or data.image_dir" in line
    write(root, "path,label", [*rows_of("pl"), "x.jpg,cat"])  # one that is not there is a bad file
    assert len(split(root, on_bad_file="skip", val_fraction=0).train) == len(PICTURES)


def test_where_no_picture_is_there_a_link_to_itself_is_no_folder(root: Path) -> None:
    (root / "loop").symlink_to("loop")
    assert "set --data.image_dir photos" in refused(
        lambda: read(root, "path,label", [f"7{row}" for row in rows_of("pl")])
    )


def test_where_no_picture_is_there_the_root_may_be_closed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be entered, but not listed."""

    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    listed = read_manifest(root, write(root, "path,label", [f"7{row}" for row in rows_of("pl")]))
    assert all(picture.reason for picture in listed)


def test_a_split_column_selects_rows(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_parts(root, {"Training": 8, "valid": 4, "test": 2})
    with caplog.at_level(logging.INFO, "alexnet_dist"):
        splits = split(root, val="list.csv", test="list.csv")
    assert splits.val is not None
    assert splits.test is not None
    assert [len(index) for index in (splits.train, splits.val, splits.test)] == [8, 4, 2]
    assert {path[:5] for path in splits.train.paths} == {"Train"}
    assert "label = 'label', path = 'path', part = 'split'; 8 rows are used (test 2, train 8, val 4)" in caplog.text
    assert "not used, data." not in caplog.text


@pytest.mark.parametrize(
    ("flag", "counts"), [("is_valid", (8, 4, None)), ("is_test", (8, None, 4)), ("IsTrain", (4, None, 8))]
)
def test_a_column_of_flags_selects_rows(root: Path, flag: str, counts: tuple[int | None, ...]) -> None:
    write_parts(root, {"False": 8, "True": 4}, f"name,label,{flag}")
    named = {key: "list.csv" for key, count in zip(("train", "val", "test"), counts, strict=True) if count}
    splits = split(root, val_fraction=0, **named)
    found = [len(index) if index is not None else None for index in (splits.train, splits.val, splits.test)]
    assert found == [counts[0], counts[1], counts[2]]


def test_rows_that_no_set_takes_are_said(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_parts(root, {"train": 8, "val": 4})
    with caplog.at_level(logging.INFO, "alexnet_dist"):
        splits = split(root, val_fraction=0.25)
    assert "rows of val are not used, data.val names no list" in caplog.text
    assert splits.val is not None
    assert len(splits.train) + len(splits.val) == 8


def test_a_list_of_one_part_is_taken_whole(root: Path) -> None:
    write_parts(root, {"test": 8})
    assert len(split(root, val_fraction=0).train) == 8


@pytest.mark.parametrize(
    ("parts", "data", "words"),
    [
        ({"train": 4, "test": 4}, {"val": "list.csv"}, ["no row is of part val", "test 4, train 4", "--data.test"]),
        ({"train": 4, "extra": 4}, {}, ["no such part of a set", "list.csv:6", "'extra' in column 'split'"]),
        ({"0": 4, "2": 4}, {}, ["no such part of a set", "list.csv:2", "'0' in column 'split'"]),
    ],
)
def test_parts_that_are_not_there(root: Path, parts: dict[str, int], data: dict[str, str], words: list[str]) -> None:
    write_parts(root, parts)
    line = refused(lambda: split(root, **data))
    assert [word for word in words if word not in line] == []
    assert len(split(root, val_fraction=0, **{"columns.split": "none"}).train) == 8  # the remedy


# -- where pictures lie -----------------------------------------------------------------------------------------------


def test_ids_without_extension(root: Path) -> None:
    form = {"image_dir": "photos", "image_suffix": ".jpg"}
    rows = [f"7{name.removesuffix('.jpg')},{label}" for name, label in zip(PICTURES, RIGHT, strict=True)]
    assert read(root, "id,breed", rows, **form) == RIGHT
    assert read(root, "", rows, **form) == RIGHT
    assert read(root, "id,breed", [row.replace(",", ".jpg,") for row in rows], **form) == RIGHT
    line = refused(lambda: read(root, "id,breed", rows))
    assert "set --data.image_dir photos --data.image_suffix .jpg" in line


@pytest.mark.parametrize("form", [{"image_dir": ".."}, {"image_dir": "/etc"}, {"image_suffix": "/../../x"}])
def test_settings_lead_nowhere_out_of_the_root(root: Path, form: dict[str, str]) -> None:
    assert "leads out of data.root" in refused(lambda: read(root, "path,label", rows_of("pl"), **form))


# -- what is no list --------------------------------------------------------------------------------------------------

COCO = {
    "info": {"year": 2017},
    "images": [{"file_name": f"{number}.jpg", "id": number} for number in range(20_000)],
    "annotations": [{"image_id": 0, "category_id": 1}],
    "categories": [{"id": 1, "name": "cat"}],
}
ROWS = '{"file_name": "a.jpg", "label": 1}\n{"file_name": "b.jpg", "label": 0}\n'


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (json.dumps(COCO), ["COCO's JSON", "write a CSV file"]),
        (json.dumps(COCO, indent=1), ["COCO's JSON"]),
        (ROWS, ["JSON lines", "pandas.read_json"]),
        (json.dumps([{"path": "a.jpg"}]), ["is JSON"]),
        ("[" * 100_000, ["is JSON"]),
        (b"PAR1\x15\x04", ["a Parquet file", "pandas.read_parquet"]),
        (b"PK\x03\x04\x14\x00", ["a workbook or a zip file", "save the sheet as CSV"]),
        (b"\x1f\x8b\x08", ["gzip"]),
    ],
)
@pytest.mark.parametrize("name", ["list.txt", "list.csv", "metadata.jsonl"])
def test_other_formats_are_named_at_once(root: Path, data: str | bytes, words: list[str], name: str) -> None:
    (root / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    begin = time.monotonic()
    line = refused(lambda: read_manifest(root, root / name))
    assert time.monotonic() - begin < 2
    assert [word for word in [str(root / name), *words] if word not in line] == []


@pytest.mark.parametrize(
    ("name", "words"),
    [("list.txt", ["a line is too long", "100,004 characters"]), ("list.csv", ["a line without a label"])],
)
def test_a_file_without_lines_is_refused_at_once(root: Path, name: str, words: list[str]) -> None:
    """A row of a table may be as long as it likes: it holds other columns too."""
    (root / name).write_text("x" * 100_000 + " cat")
    begin = time.monotonic()
    line = refused(lambda: read_manifest(root, root / name))
    assert time.monotonic() - begin < 2
    assert [word for word in [f"{root / name}:1", *words] if word not in line] == []


def test_a_picture_in_brackets_is_no_json(root: Path) -> None:
    save_jpeg(root / "[1]" / "{a}.jpg")
    (root / "list.txt").write_text("[1]/{a}.jpg cat\n")
    assert not read_manifest(root, root / "list.txt")[0].reason


@pytest.mark.parametrize("classes", [None, "\n".join("abc")])
def test_imagenets_numbers_of_lines_are_no_labels(root: Path, classes: str | None) -> None:
    """train_cls.txt: a path without extension, and the number of its line."""
    (root / "list.csv").write_text("")
    (root / "train_cls.txt").write_text("".join(f"n01/{number} {number + 1}\n" for number in range(9)))
    if classes is not None:
        (root / "classes.txt").write_text(classes)
    line = refused(lambda: split(root, train="train_cls.txt"))
    assert "the numbers are no labels" in line
    assert "--data.source folder" in line


def test_a_list_in_the_place_of_a_folder(root: Path) -> None:
    write(root, "path,label", rows_of("pl"))
    assert "a list is read with --data.source manifest" in refused(lambda: split(root, source="folder"))


# -- a run ------------------------------------------------------------------------------------------------------------


@pytest.mark.heavy
def test_a_run_says_which_column_and_which_classes(tmp_path: Path) -> None:
    rows = []
    for number in range(16):
        save_jpeg(tmp_path / "data" / "pictures" / f"{number}.jpg", 70, 72)
        rows.append(f"p{number % 5},{number},{('cat', 'dog')[number % 2]},{'train' if number < 12 else 'val'}")
    write(tmp_path / "data", "patient,id,kind,split", rows)
    config = tiny_config(
        tmp_path / "run",
        data__source="manifest",
        data__root=str(tmp_path / "data"),
        data__train="list.csv",
        data__val="list.csv",
        data__cache_dir=str(tmp_path / "cache"),
        train__epochs=1,
    )
    (tmp_path / "config.yaml").write_text(dump_config(config))
    words = ["--config", tmp_path / "config.yaml", "--data.image_dir", "pictures", "--data.image_suffix", ".jpg"]
    code, errors, _ = call("train", *words)
    assert code == 3
    assert "cannot tell which column is the label" in errors[0]
    text = call_well("train", *words, "--data.columns.label", "kind")
    assert (
        "label = 'kind', path = 'id', part = 'split'; not used: 'patient'; 12 rows are used (train 12, val 4)" in text
    )
    assert "classes   'cat', 'dog'" in text
    assert "12 train, 4 val" in text
    code, _, text = call("evaluate", "--model", tmp_path / "run", "--out", tmp_path / "out.json", "--data.workers", 0)
    assert code == 0, text
    assert json.loads((tmp_path / "out.json").read_text())["num_examples"] == 4
