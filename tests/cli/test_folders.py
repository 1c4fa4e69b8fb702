"""Folders as words of a command line: images to train on or to evaluate on, and models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from alexnet_dist.cli import evaluate, predict, train
from alexnet_dist.cli.main import run
from alexnet_dist.data.sources.given_folder import OF_OTHER_SOURCES, recognize_folder

LAYOUTS = {
    "classes": (["cat", "dog"], {"train": "."}, "2 class folders; a part is kept"),
    "train_val": (["train/cat", "val/cat"], {"train": "train", "val": "val"}, "class folders in 'train', 'val'"),
    "training": (
        ["training/a", "Validation/a"],
        {"train": "training", "val": "Validation"},
        "'training', 'Validation'",
    ),
    "three": (
        ["train/a", "valid/a", "test/a"],
        {"train": "train", "val": "valid", "test": "test"},
        "'train', 'valid', 'test'",
    ),
    "train_alone": (["train/a", "__MACOSX"], {"train": "train"}, "class folders in 'train'; a part is kept"),
    "flat_test": (["train/a", "val/a", "test"], {"train": "train", "val": "val"}, "class folders in 'train', 'val'"),
}


def fill(root: Path, folders: list[str]) -> Path:
    for folder in folders:
        (root / folder).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(root / folder / "0.png")
    return root


@pytest.mark.parametrize(("folders", "sets", "said"), LAYOUTS.values(), ids=list(LAYOUTS))
def test_layouts_of_a_folder_are_recognized_and_said(
    folders: list[str], sets: dict[str, str], said: str, tmp_path: Path
) -> None:
    found = recognize_folder(fill(tmp_path, folders))
    assert {key: found.settings[f"data.{key}"] for key in ("train", "val", "test")} == {
        **dict.fromkeys(("train", "val", "test")),
        **sets,
    }
    assert found.settings["data.root"] == str(tmp_path)
    assert said in found.layout


@pytest.mark.parametrize(
    ("folders", "said"),
    [
        ([], "it has no folder and 0 files"),
        (["cat"], "it has the folders 'cat' and 0 files"),
        (["val/cat", "test/cat"], "it has the folders 'test', 'val'"),
        (["."], "it has no folder and 1 files, 1 of them images"),
        (["flowers/train/a", "b/c"], "did you mean pictures/flowers?"),
    ],
)
def test_a_folder_that_is_neither_says_what_it_has(
    folders: list[str],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("pictures", *(f"pictures/{folder}" for folder in folders)):
        Path(folder).mkdir(parents=True, exist_ok=True)
    if folders == ["."]:
        Image.new("RGB", (8, 8)).save("pictures/0.png")
    assert run("train", ["pictures"]) == 3
    line = capsys.readouterr().err
    assert line.startswith("error: neither classes nor train and val (pictures): ")
    assert said in line


@pytest.fixture
def flowers(tmp_path: Path) -> Path:
    return fill(tmp_path / "flowers", ["rose", "tulip"])


def test_a_folder_alone_takes_the_general_recipe(flowers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = train.settle_settings([str(flowers)], None, {"train.epochs": 2})
    assert (config.output_dir, config.data.root, config.data.val) == ("runs/flowers", str(flowers), None)
    assert (config.train.epochs, config.augment.pixel_range) == (2, 255)
    said = capsys.readouterr().err
    assert said == f"images    {flowers}: 2 class folders; a part is kept for validation\n" + (
        "recipe    imagenet_subset; --config names another\n"
    )
    (flowers.parent / "listed.yaml").write_text(
        "base: smoke\ndata: {source: manifest, root: x, train: a.csv, classes: names.txt, columns: {label: kind}}\n"
    )
    listed = train.settle_settings([str(flowers)], str(flowers.parent / "listed.yaml"), {}).data
    assert (listed.source, listed.classes, listed.columns.label) == ("folder", None, None)
    named = train.settle_settings([str(flowers)], "fruits", {"output_dir": "x"})
    assert (named.output_dir, named.data.train, named.model.variant) == ("x", ".", "ungrouped")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (
            ["FLOWERS", "--data.root", "x"],
            2,
            "a folder and --data.root exclude each other (command line): ",
        ),
        (["--data.source=digits", "FLOWERS"], 2, "a folder and --data.source exclude each other"),
        (["FLOWERS", "FLOWERS"], 2, "more than one folder (command line): "),
        (["digits"], 2, "no folder 'digits' (command line); did you mean --config digits?"),
        (["FLOWER"], 3, "no such folder (FLOWER): its folder has 'flowers'; did you mean 'flowers'?"),
        ([], 2, "--config is missing; try --config digits, or give the folder of your images"),
    ],
)
def test_folders_that_train_refuses(
    words: list[str], code: int, message: str, flowers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def place(text: str) -> str:
        return text.replace("FLOWERS", str(flowers)).replace("FLOWER", str(flowers)[:-1])

    assert run("train", [place(word) for word in words]) == code
    assert capsys.readouterr().err.startswith(f"error: {place(message)}")


@pytest.mark.parametrize(
    ("words", "model", "given"),
    [
        (["runs/a", "--split", "test", "FLOWERS"], "runs/a", {"data.root": "FLOWERS", "data.test": "."}),
        (["--model", "runs/a", "FLOWERS"], "runs/a", {"data.root": "FLOWERS", "data.val": "."}),
        (["--batch_size=3", "runs/a"], "runs/a", {}),
        (["runs/a", "PARTS"], "runs/a", {"data.root": "PARTS", "data.val": "valid"}),
        (["runs/a", "FLOWERS", "--data.val", "rose"], "runs/a", {"data.root": "FLOWERS", "data.val": "rose"}),
    ],
)
def test_evaluate_takes_a_model_and_a_folder_as_words(
    words: list[str],
    model: str,
    given: dict[str, Any],
    flowers: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parts = fill(tmp_path / "parts", ["train/rose", "valid/rose"])
    asked: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(
        evaluate, "evaluate_model", lambda path, split, given, *_, **__: asked.append((str(path), given))
    )

    def place(text: str) -> str:
        return text.replace("FLOWERS", str(flowers)).replace("PARTS", str(parts))

    assert run("evaluate", [place(word) for word in words]) == 0
    source = {**OF_OTHER_SOURCES, "data.source": "folder"} if given else {}
    assert asked == [(model, {**source, **{key: place(value) for key, value in given.items()}})]


@pytest.mark.parametrize(
    ("words", "model", "paths"),
    [
        (["runs/a", "x.png", "y.png"], "runs/a", ["x.png", "y.png"]),
        (["--topk", "1", "runs/a", "x.png", "--format", "csv", "y.png"], "runs/a", ["x.png", "y.png"]),
        (["x.png", "--model", "runs/a", "y.png"], "runs/a", ["x.png", "y.png"]),
        (["--model=runs/a", "--", "-x.png"], "runs/a", ["-x.png"]),
    ],
)
def test_predict_takes_the_model_as_its_first_word(
    words: list[str], model: str, paths: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, list[str]]] = []
    monkeypatch.setattr(
        predict, "predict_files", lambda path, found, *_, **__: asked.append((str(path), list(found))) or []
    )
    assert run("predict", words) == 0
    assert asked == [(model, paths)]


def test_a_model_that_is_no_run_lists_the_runs_beside_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("runs/digits/model", "runs/kept"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "model.safetensors").touch()
    assert run("evaluate", ["runs/qqq", "--data.workers", "0"]) == 4
    listed = "give a run folder after training, its model/ or a checkpoint: runs/kept, runs/digits"
    assert capsys.readouterr().err.rstrip("\n").endswith(listed)
    assert run("predict", ["runs", "x.png"]) == 4
    assert listed in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train --data data/x", "--data is a section@: got 'data/x'; did you mean --data.root?"),
        ("train --model=alexnet", "--model is a section@: got 'alexnet'; did you mean --model.variant?"),
        (
            "train --optimizer adam",
            "--optimizer is a section@: got 'adam'; did you mean --optimizer.name?",
        ),
        ("summary --model runs/x", "--model is a section@: got 'runs/x'; did you mean --weights?"),
        ("evaluate m --data data/x", "--data is a section@: got 'data/x'; did you mean --data.root?"),
        (
            "train --batch-size 32",
            "unknown option --batch-size@; did you mean --train.global_batch_size?",
        ),
        ("train -b 32", "unknown option -b@; did you mean --train.global_batch_size?"),
        ("evaluate m --batch-size 32", "unknown option --batch-size@; did you mean --batch_size?"),
        ("train --profiler", "unknown option --profiler@; did you mean --profile?"),
        ("train --profile 0", "--profile must be 1 or more"),
        ("train --fancy", "unknown option --fancy@; see --help all"),
        ("doctor nowhere", "unexpected word 'nowhere'@; see --help"),
        (
            "doctor /",
            "unexpected word '/'@; a folder stands behind its option here, --data.root or --data; see --help",
        ),
        ("train --gpus 2", "unknown option --gpus@; processes are started by a launcher: see alexnet-dist launch"),
    ],
)
def test_options_of_other_programs_are_answered_with_ours(
    words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    verb, *rest = words.split()
    assert run(verb, rest) == 2
    assert capsys.readouterr().err == f"error: {message.replace('@', ' (command line)')}\n"
