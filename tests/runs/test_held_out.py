"""The split of a run is what it was, and a model folder, which may be given away, names no place of this machine."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.images import save_jpeg
from helpers.tiny import tiny_config
from helpers.verbs import call, call_well

from alexnet_dist.assembly.sets import build_splits
from alexnet_dist.base.durable import write_json
from alexnet_dist.inference.model_folder import read_card, read_model_weights, save_model_folder
from alexnet_dist.runs.folder import store_settings
from alexnet_dist.runs.held_out import restore_splits, write_held_out
from alexnet_dist.settings.reader import build_config, dump_config, read_yaml
from alexnet_dist.settings.schema import Config, DataConfig, walk_fields

pytestmark = pytest.mark.heavy  # a run is trained

CANARY = "canary-of-this-machine"
FRACTION, PER_CLASS = 0.3, 12
SKIPPING = ["--data.on_bad_file", "skip"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, data/, and a run, run/, that has held out a part of them."""
    place = tmp_path_factory.mktemp(CANARY)
    for name in "ab":
        for number in range(PER_CLASS):
            save_jpeg(place / "data" / "train" / name / f"{number:02}.jpg", 70 + number, 80 - number)
    private = {"entity": CANARY, "project": CANARY, "name": CANARY, "tags": [CANARY]}
    config = tiny_config(
        place / "run",
        data__source="folder",
        data__root=str(place / "data"),
        data__val_fraction=FRACTION,
        data__cache_dir=str(place / "cache"),
        train__epochs=1,
        **{f"tracking__{key}": value for key, value in private.items()},
    )
    (place / "config.yaml").write_text(dump_config(config))
    call_well("train", "--config", place / "config.yaml")
    return place


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    """The same, to be changed."""
    shutil.copytree(trained, tmp_path / "copy")
    return tmp_path / "copy"


def read_held_out(place: Path) -> list[str]:
    with (place / "run" / "held_out.csv").open() as file:
        return [row["path"] for row in csv.DictReader(file)]


def add_images(place: Path) -> None:
    for name in "ab":
        for number in range(4):
            save_jpeg(place / "data" / "train" / name / f"0{number}-new.jpg", 90, 90)


def evaluate(place: Path, *words: object, model: str = "run", processes: int = 1) -> tuple[int, str, int]:
    """Exit code, what is said, and how many images were evaluated."""
    out = place / "out.json"
    out.unlink(missing_ok=True)
    words = ("--model", place / model, "--data.root", place / "data", "--data.workers", 0, "--out", out, *words)
    code, _, text = call("evaluate", *words, processes=processes)
    return code, text, json.loads(out.read_text())["num_examples"] if out.exists() else 0


def test_a_damaged_list_of_the_images_is_written_again(copy: Path) -> None:
    path, words = copy / "run" / "images.csv.gz", ("--output_dir", copy / "run", "--data.root", copy / "data")
    whole = path.read_bytes()
    for damaged in (whole[:-9], b"", None):
        path.unlink() if damaged is None else path.write_bytes(damaged)
        call_well("train", "--config", copy / "config.yaml", *words)
        assert path.read_bytes() == whole


@pytest.mark.parametrize(("model", "processes"), [("run", 1), ("run/model", 2)])
def test_images_that_came_later_are_not_evaluated(copy: Path, model: str, processes: int) -> None:
    add_images(copy)
    code, text, num_examples = evaluate(copy, model=model, processes=processes)
    assert (code, num_examples) == (0, len(read_held_out(copy)))
    assert "the images changed since the run began (train/a/00-new.jpg is new, " in text
    assert text.count("... and 5 more); val is as listed in held_out.csv") == 1
    result = json.loads((copy / "out.json").read_text())
    assert result["top1"] == pytest.approx(json.loads((copy / "run" / "summary.json").read_text())["best_top1"])


def test_the_split_is_the_one_of_the_list(copy: Path) -> None:
    """The control: a split that is drawn again evaluates images that the network was trained on."""
    held_out = set(read_held_out(copy))
    add_images(copy)
    data = build_config({**read_yaml(copy / "run" / "config.yaml")[0], "data.root": str(copy / "data")}).data
    splits, drawn = restore_splits(data, 0, False, copy / "run", None), build_splits(data, 0, False)
    assert splits.val is not None
    assert drawn.val is not None
    assert {f"train/{path}" for path in splits.val.paths} == held_out
    assert not {f"train/{path}" for path in splits.train.paths} & held_out
    assert len(splits.train) + len(splits.val) == 2 * PER_CLASS + 8
    assert {f"train/{path}" for path in drawn.val.paths} - held_out  # some of them are not new either
    assert any("new" not in path and f"train/{path}" not in held_out for path in drawn.val.paths)


def _remove(place: Path) -> None:
    (place / "data" / read_held_out(place)[0]).unlink()


def _move_to_other_class(place: Path) -> None:
    path = read_held_out(place)[0]
    (place / "data" / path).rename(place / "data" / path.replace("/a/", "/b/x"))


def _change_size(place: Path) -> None:
    save_jpeg(place / "data" / read_held_out(place)[0], 200, 200)


def _edit_list(place: Path) -> None:
    path = place / "run" / "held_out.csv"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")


def _cut_list(place: Path) -> None:
    (place / "run" / "held_out.csv").write_bytes(b"path,class\ntrain/a")


def _lose_list(place: Path) -> None:
    add_images(place)
    (place / "run" / "held_out.csv").unlink()


@pytest.mark.parametrize(
    ("change", "words", "expected"),
    [
        (_remove, SKIPPING, "1 of 7 are not there: 'train/a/"),
        (_move_to_other_class, [], "1 of 7 are not there"),
        (_change_size, SKIPPING, "bytes in all, and had"),
        (_edit_list, [], "the list of held-out images cannot be trusted"),
        (_cut_list, SKIPPING, "the list of held-out images cannot be trusted"),
        (_lose_list, [], "the held-out images are not known"),
    ],
)
def test_what_is_not_as_it_was_is_refused(
    copy: Path, change: Callable[[Path], None], words: list[str], expected: str
) -> None:
    change(copy)
    code, text, num_examples = evaluate(copy, *words)
    assert (code, num_examples) == (3, 0)
    assert expected in text
    if change is _lose_list:
        shutil.copytree(copy / "data" / "train", copy / "data" / "val")
        assert evaluate(copy, "--data.val", "val")[0] == 0  # the remedy


def test_a_lost_list_of_unchanged_images_is_drawn_again(copy: Path) -> None:
    number = len(read_held_out(copy))
    (copy / "run" / "held_out.csv").unlink()
    code, text, num_examples = evaluate(copy)
    assert (code, num_examples) == (0, number)
    assert "changed" not in text


def test_an_older_run_has_its_split_as_well(copy: Path) -> None:
    facts = json.loads((copy / "run" / "run.json").read_text())
    del facts["held_out"]
    (copy / "run" / "run.json").write_text(json.dumps(facts))
    (copy / "run" / "images.csv.gz").unlink()
    add_images(copy)
    code, text, num_examples = evaluate(copy)
    assert (code, num_examples) == (0, len(read_held_out(copy)))
    assert "the images changed since the run began (17 in training then, 25 now)" in text
    _edit_list(copy)
    assert evaluate(copy)[0] == 3


def test_a_held_out_image_that_turned_bad(copy: Path) -> None:
    (copy / "data" / read_held_out(copy)[0]).write_bytes(b"no image")
    assert evaluate(copy)[0] == 3
    assert evaluate(copy, "--data.on_bad_file", "skip")[::2] == (0, len(read_held_out(copy)) - 1)
    assert json.loads((copy / "out.json").read_text())["num_bad_files"] == 1


def test_a_changed_set_is_named(tmp_path: Path) -> None:
    for path in (f"{part}/{name}/{number}.jpg" for part in ("train", "val") for name in "ab" for number in range(6)):
        save_jpeg(tmp_path / "data" / path, 70, 72)
    data = {"source": "folder", "root": str(tmp_path / "data"), "val": "val", "val_fraction": 0.3}
    settings = {f"data__{key}": value for key, value in {**data, "cache_dir": str(tmp_path / "cache")}.items()}
    config = tiny_config(tmp_path / "run", train__epochs=1, **settings)
    (tmp_path / "config.yaml").write_text(dump_config(config))
    call_well("train", "--config", tmp_path / "config.yaml")
    assert "changed" not in evaluate(tmp_path)[1]
    save_jpeg(tmp_path / "data" / "val" / "a" / "new.jpg", 70, 72)
    code, text, num_examples = evaluate(tmp_path)
    assert (code, num_examples) == (0, 13)
    assert "the val images changed since the run began: val/a/new.jpg is new" in text
    code, text, _ = evaluate(tmp_path, "--data.val", "null")
    assert code == 3  # what would be drawn are images that the network has learned from
    assert "the held-out images are not known" in text


def test_a_class_that_changed_in_a_manifest(copy: Path) -> None:
    """Paths are the same there, labels need not be."""
    lines = [f"train/{name}/{number:02}.jpg {name}" for name in "ab" for number in range(PER_CLASS)]
    (copy / "data" / "list.txt").write_text("\n".join(lines))
    words = ("--data.source", "manifest", "--data.train", "list.txt")
    assert evaluate(copy, *words)[::2] == (0, len(read_held_out(copy)))
    first = read_held_out(copy)[0]
    (copy / "data" / "list.txt").write_text("\n".join(lines).replace(f"{first} a", f"{first} b"))
    code, text, _ = evaluate(copy, *words)
    assert code == 3
    assert f"'{first}' was 'a' and is 'b'" in text


@pytest.mark.parametrize("words", [("--data.val_fraction", 0.5), ("--data.folds", 3, "--data.fold", 1)])
def test_evaluation_holds_out_no_other_images(trained: Path, words: tuple[object, ...]) -> None:
    code, text, _ = evaluate(trained, *words)
    assert code == 2
    assert f"{words[0]} has no effect".removeprefix("--") in text


def test_a_model_away_from_its_run(copy: Path) -> None:
    """What is drawn is proven to be the run's own, or refused."""
    shutil.move(copy / "run" / "model", copy / "given")
    shutil.copytree(copy / "data" / "train", copy / "data" / "val")
    assert evaluate(copy, model="given")[::2] == (0, len(read_held_out(copy)))
    code, text, _ = evaluate(copy, "--data.root", copy / "nowhere", model="given")
    assert code == 3
    add_images(copy)
    code, text, _ = evaluate(copy, model="given")
    assert code == 3
    assert "evaluate the run folder, or give a set with --data.val" in text
    assert evaluate(copy, "--data.val", "val", model="given")[::2] == (0, 2 * PER_CLASS)
    code, _, text = call("evaluate", "--model", copy / "given")
    assert code == 2
    assert "set --data.root FOLDER" in text


def test_export_checks_on_the_images_that_were_held_out(copy: Path) -> None:
    values = {**read_yaml(copy / "run" / "config.yaml")[0], "data.root": str(copy / "data")}
    store_settings(copy / "run", build_config(values))
    words = ("--model", copy / "run", "--format", "torchvision", "--out", copy / "x.pt", "--check")
    add_images(copy)
    (copy / "data" / read_held_out(copy)[0]).unlink()
    code, _, text = call("export", *words)
    assert code == 2
    assert "no pictures to check on: the held-out images changed" in text


def test_a_fold_is_what_it_was(tmp_path: Path) -> None:
    for name in "ab":
        for number in range(6):
            save_jpeg(tmp_path / "train" / name / f"{number}.jpg")
    data = DataConfig(root=str(tmp_path), folds=3, fold=2, cache_dir=str(tmp_path / "cache"))
    fold = build_splits(data, 5, False)
    assert fold.val is not None
    write_json(tmp_path / "run.json", {"held_out": write_held_out(tmp_path, fold.val, tmp_path)})
    for number in range(6):
        save_jpeg(tmp_path / "train" / "a" / f"0{number}.jpg")
    restored, drawn = restore_splits(data, 5, False, tmp_path, None), build_splits(data, 5, False)
    assert restored.val is not None
    assert restored.val.paths == fold.val.paths
    assert drawn.val is not None
    assert drawn.val.paths != fold.val.paths  # the control


# -- the model folder -------------------------------------------------------------------------------------------------


def test_a_model_folder_names_no_place_and_no_person(trained: Path) -> None:
    for path in (trained / "run" / "model").iterdir():
        assert CANARY.encode() not in path.read_bytes(), path.name
    assert CANARY in (trained / "run" / "config.yaml").read_text()  # the control
    settings = read_card(trained / "run" / "model").settings
    assert settings["data.val_fraction"] == FRACTION
    kinds = {key: str(item.type) for key, item in walk_fields(Config)}
    assert not [key for key in settings if "str" in kinds[key]]  # none of them is free text


def test_a_model_folder_does_not_say_where_is_written(copy: Path) -> None:
    """config.json of an older version, or of a stranger."""
    shutil.copytree(copy / "data" / "train", copy / "data" / "val")
    theirs = {"data.cache_dir": "theirs", "output_dir": "their-run", "data.val": "data/val"}
    values = {**read_yaml(copy / "run" / "config.yaml")[0], "data.root": str(copy / "data"), "data.engine": "cache"}
    settings = dataclasses.asdict(build_config({**values, **{key: str(copy / value) for key, value in theirs.items()}}))
    card, weights = read_card(copy / "run" / "model"), read_model_weights(copy / "run" / "model")
    save_model_folder(copy / "given", weights, dataclasses.replace(card, source={"settings": settings}))
    before = sorted(copy.rglob("*"))
    call_well("evaluate", "--model", copy / "given", "--data.workers", 0)
    assert sorted(copy.rglob("*")) == before
