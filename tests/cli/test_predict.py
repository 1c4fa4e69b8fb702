"""The rows of `predict`: what pandas reads, what other programs read, and where they go."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from pathlib import Path

import pytest

from alexnet_dist.cli import predict
from alexnet_dist.cli.main import run
from alexnet_dist.cli.predict import FORMATS, choose_format, format_table
from alexnet_dist.inference.predict import Prediction

ROWS = [
    Prediction("a b.jpg", "n02102040", 0.75, [("n02102040", 0.75), ("Apple Red 2", 0.125), ("=x:1", 0.0625)]),
    Prediction("page.jpg", None, None, [], "no picture", 3),
]


def test_table_shows_words_beside_ids() -> None:
    lines = [" ".join(line.split()) for line in FORMATS["table"](ROWS).splitlines()]
    assert lines == [
        "path class confidence other classes",
        "a b.jpg English springer (n02102040) 75.0% Apple Red 2 12.5%, =x:1 6.2%",
        "page.jpg error: no picture",
    ]


def test_a_narrow_terminal_has_the_other_classes_below_the_row() -> None:
    rows = [dataclasses.replace(row, path=f"{'folder/' * 9}{row.path}") for row in ROWS]
    assert format_table(rows, columns=60).splitlines() == [
        "path                  class                         confidence",
        "    other classes",
        "folder/f...r/a b.jpg  English springer (n02102040)  75.0%",
        "    Apple Red 2 12.5%, =x:1 6.2%",
        "folder/f.../page.jpg",
        "    error: no picture",
    ]
    assert format_table(rows, columns=200) == format_table(rows)
    assert format_table(rows, columns=30).splitlines()[3:5] == ["    Apple Red 2 12.5%,", "      =x:1 6.2%"]


def test_table_leaves_out_what_rounds_to_nothing() -> None:
    sure = Prediction("a.jpg", "cat", 0.9994, [("cat", 0.9994), ("dog", 0.00052), ("rat", 0.00049), ("cow", 0.0)])
    assert FORMATS["table"]([sure]).splitlines()[1].split(maxsplit=3) == ["a.jpg", "cat", "99.9%", "dog 0.1%"]
    assert [FORMATS[form]([sure]).count(name) for form in ("csv", "jsonl") for name in ("rat", "cow")] == [1] * 4
    alone = dataclasses.replace(sure, top=sure.top[:1] + sure.top[2:])
    assert FORMATS["table"]([alone]).splitlines()[1].split() == ["a.jpg", "cat", "99.9%"]
    assert format_table([alone], columns=30).splitlines()[-1].split() == ["a.jpg", "cat", "99.9%"]


def test_csv_has_a_column_for_each_class_and_confidence() -> None:
    good, bad = csv.DictReader(io.StringIO(FORMATS["csv"](ROWS)))
    assert good == {
        "path": "a b.jpg",
        "class": "n02102040",
        "confidence": "0.750000",
        "top1_class": "n02102040",
        "top1_confidence": "0.750000",
        "top2_class": "Apple Red 2",
        "top2_confidence": "0.125000",
        "top3_class": "'=x:1",
        "top3_confidence": "0.062500",
        "error": "",
        "words": "English springer",
    }
    assert bad == dict.fromkeys(good, "") | {"path": "page.jpg", "error": "no picture"}


def test_jsonl_has_words_in_a_field_of_their_own() -> None:
    good, bad = map(json.loads, FORMATS["jsonl"](ROWS).splitlines())
    assert good["topk"][:2] == [
        {"class": "n02102040", "words": "English springer", "confidence": 0.75},
        {"class": "Apple Red 2", "words": None, "confidence": 0.125},
    ]
    assert [good.pop(key) for key in ("class", "words", "confidence")] == list(good["topk"][0].values())
    assert bad == dict.fromkeys(("class", "words", "confidence")) | {
        "path": "page.jpg",
        "topk": [],
        "error": "no picture",
    }


@pytest.mark.parametrize("form", FORMATS)
def test_no_rows_are_no_error(form: str) -> None:
    assert len(FORMATS[form]([]).splitlines()) == (0 if form == "jsonl" else 1)


@pytest.mark.parametrize(
    ("requested", "out", "expected"),
    [
        ("auto", None, "table"),
        ("auto", "rows.csv", "csv"),
        ("auto", "rows.JSONL", "jsonl"),
        ("auto", "rows.txt", "table"),
        ("auto", "csv", "table"),
        ("jsonl", "rows.csv", "jsonl"),
    ],
)
def test_format_follows_the_name_of_the_file(requested: str, out: str | None, expected: str) -> None:
    assert choose_format(requested, Path(out) if out is not None else None) == expected


def test_rows_go_to_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(predict, "predict_files", lambda *args, **keywords: iter(ROWS))
    words = ["--model", "runs/any", "a b.jpg", "page.jpg", "--out", str(tmp_path / "rows.csv")]
    assert run("predict", words) == 3  # the exit code is that of the row which could not be read
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == f"written: {tmp_path / 'rows.csv'}, 2 rows\n"
    assert (tmp_path / "rows.csv").read_text() == FORMATS["csv"](ROWS)
    assert run("predict", words) == 2
    assert "--out is there already" in capsys.readouterr().err
    assert run("predict", [*words, "--overwrite", "--format", "jsonl", "--quiet"]) == 3
    assert capsys.readouterr().err == ""
    assert (tmp_path / "rows.csv").read_text() == FORMATS["jsonl"](ROWS)
