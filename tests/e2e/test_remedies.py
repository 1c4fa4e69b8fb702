"""Every remedy that a message names for a run is tried, and the run goes on."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny import tiny_config
from helpers.verbs import call
from PIL import Image
from safetensors.torch import load_file

from alexnet_dist.inference.checkpoints import list_checkpoints
from alexnet_dist.runs.image_list import Changes
from alexnet_dist.settings.reader import dump_config
from alexnet_dist.tracking.trackers import read_rows

NUM_IMAGES = 24


class Run:
    """A tiny run on pictures, started again and again as a user would."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "tiny.yaml"
        self.run = folder / "run"
        self.pictures = folder / "pictures"
        self.config.write_text(dump_config(tiny_config(self.run)))
        self.words: list[object] = ["--data.source", "folder", "--data.root", self.pictures, "--augment.resize", 72]
        self.words += ["--data.cache_dir", folder / "cache", "--data.val_fraction", 0.25, "--train.epochs", 3]
        self.words += ["--model.dropout", 0.0, "--precision", "fp32"]  # so that processes need not be as many
        self.words += ["--checkpoint.every_steps", 1, "--log.every_steps", 1, "--train.global_batch_size", 6]

    def make_pictures(self) -> Run:
        """Two classes, in the run's folder, and once more beside it."""
        dice = np.random.default_rng(0)
        for name in ("cat", "dog"):
            (self.pictures / "train" / name).mkdir(parents=True)
            for number in range(NUM_IMAGES // 2):
                pixels = dice.integers(0, 256, (70, 80, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(self.pictures / "train" / name / f"{number:02d}.jpg", quality=90)
        shutil.copytree(self.pictures / "train", self.folder / "whole")
        return self

    def keep(self) -> Run:
        """Remember all of it as it is now, beside it."""
        shutil.copytree(self.folder, self.folder.with_name("kept"))
        return self

    def restore(self) -> Run:
        """All of it as it was kept, in the same place: a run knows its own."""
        shutil.rmtree(self.folder)
        shutil.copytree(self.folder.with_name("kept"), self.folder)
        return self

    @property
    def picture(self) -> Path:
        """One of the training images."""
        return self.pictures / "train" / "dog" / self._training_name("dog")

    def _training_name(self, name: str) -> str:
        held_out = self.held_out()
        return next(f"{n:02d}.jpg" for n in range(99) if f"train/{name}/{n:02d}.jpg" not in held_out)

    def held_out(self) -> set[str]:
        """The images that are kept for validation."""
        with (self.run / "held_out.csv").open(newline="") as file:
            return {row["path"] for row in csv.DictReader(file)}

    def train(self, *words: object, processes: int = 1) -> tuple[int, str]:
        """Start it; exit code and messages."""
        code, lines, text = call("train", "--config", self.config, *self.words, *words, processes=processes)
        assert "Traceback" not in text
        assert len(lines) == (1 if code else 0), text
        return code, text

    def starts(self) -> list[dict[str, Any]]:
        """What run.json says of each start."""
        starts: list[dict[str, Any]] = json.loads((self.run / "run.json").read_text())["starts"]
        return starts

    def step(self) -> int:
        """Of the newest checkpoint."""
        return int(list_checkpoints(self.run / "checkpoints")[0].name[5:])


BEGINNING = ("--train.epochs", "null", "--train.max_steps", 2)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that made 2 updates of 9, kept as it is."""
    folder = tmp_path_factory.mktemp("first") / "place"
    folder.mkdir()
    run = Run(folder).make_pictures()
    assert run.train(*BEGINNING)[0] == 0
    assert run.step() == 2
    return run.keep()


@pytest.fixture
def begun(first: Run) -> Run:
    """A run that made 2 updates of 9."""
    return first.restore()


@pytest.fixture(scope="module")
def first_with_a_cut_picture(first: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Begun with the damaged file, as a scan of headers does not see that it is cut."""
    folder = tmp_path_factory.mktemp("cut") / "place"
    folder.mkdir()
    run = Run(folder).make_pictures()
    cut(run.pictures / first.restore().picture.relative_to(first.pictures))
    assert run.train(*BEGINNING, "--data.on_bad_file", "skip")[0] == 0
    return run.keep()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def skip(run: Run, path: Path) -> list[object]:
    return ["--data.on_bad_file", "skip"]


def remove(run: Run, path: Path) -> list[object]:
    path.unlink()
    return []


def mend(run: Run, path: Path) -> list[object]:
    shutil.copy(run.folder / "whole" / path.parent.name / path.name, path)
    return []


def exchange(run: Run, path: Path) -> list[object]:
    Image.new("RGB", (90, 75), (9, 99, 199)).save(path)  # mended by another picture: other bytes than at the beginning
    return []


@pytest.mark.parametrize(
    ("damage", "remedy"),
    [
        (cut, remove),
        # A file that began as a damaged one is another when it is mended, too; and what is gone was whole or empty.
        *(
            pytest.param(*pair, marks=pytest.mark.slow)
            for pair in ((empty, skip), (cut, skip), (cut, mend), (cut, exchange), (empty, remove))
        ),
    ],
)
def test_a_picture_that_is_damaged_in_the_middle_of_a_run(
    request: pytest.FixtureRequest, damage: Callable[[Path], None], remedy: Callable[[Run, Path], list[object]]
) -> None:
    # The size of a file that is cut later tells that it is another: at the beginning it need not have been whole.
    begun: Run = request.getfixturevalue("first_with_a_cut_picture" if damage is cut else "first").restore()
    picture, held_out = begun.picture, begun.held_out()
    if damage is not cut:
        damage(picture)
    code, text = begun.train()
    assert code == 3
    assert f"dog/{picture.name}" in text
    assert "set data.on_bad_file: skip" in text
    code, text = begun.train(*remedy(begun, picture))
    assert code == 0, text
    assert begun.step() == 9
    assert begun.held_out() == held_out  # no image that was trained on is held out now
    num_train = 17 if remedy is remove or (remedy is skip and damage is empty) else 18
    assert json.loads((begun.run / "run.json").read_text())["data"]["num_train"] == num_train
    if num_train == 17:
        assert "train has 17 images instead of 18, the order is drawn anew, 3 steps an epoch" in text
        assert f"train/dog/{picture.name} is gone; from step" in text
    assert begun.train(*(["--data.on_bad_file", "skip"] if remedy is skip else []))[0] == 0  # and so it stays
    assert begun.starts()[-1]["step"] == 9


def test_what_the_run_has_not_named_is_refused(begun: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = begun.picture
    cut(picture)
    (begun.pictures / "train" / "cat" / "new.jpg").write_bytes(picture.read_bytes())
    for words in ([], ["--data.on_bad_file", "skip"]):
        code, text = begun.train(*words)
        assert code == 3, text
        assert "train/cat/new.jpg is new" in text
    (begun.pictures / "train" / "cat" / "new.jpg").unlink()
    mend(begun, picture)
    assert begun.train()[0] == 0  # "restore them"
    (begun.pictures / "train" / "cat" / "new.jpg").write_bytes(picture.read_bytes())
    monkeypatch.setattr(Changes, "not_among", lambda *_: Changes())
    assert begun.train()[0] == 0  # a comparison that overlooks it would go on


def test_after_a_divergence_a_lower_rate_goes_on(begun: Run) -> None:
    high = ["--optimizer.lr", 1e25]
    code, text = begun.train(*high, processes=2)
    assert code == 6
    assert "the last good checkpoint is step-00000002; lower optimizer.lr or warm up" in text
    for words in (["--optimizer.lr", 0.001], ["--schedule.warmup_steps", 5]):
        shutil.rmtree(begun.folder / "copy", ignore_errors=True)
        shutil.copytree(begun.run, begun.folder / "copy")
        code, text = begun.train(*words, "--output_dir", begun.folder / "copy")
        assert code == 0, text
        assert "; from step 2 on" in text
    rates = [row["lr"] for row in read_rows(begun.folder / "copy" / "metrics.jsonl") if row["event"] == "train"]
    assert rates == pytest.approx([0.01, 0.01, 0.006, 0.008, 0.01, 0.01, 0.01, 0.01, 0.01])


def test_a_divergence_from_the_beginning_begins_again(tmp_path: Path) -> None:
    run = Run(tmp_path).make_pictures()
    code, text = run.train("--optimizer.lr", 1e5)
    assert code == 6
    assert "there is no good checkpoint, the next start begins at step 0; lower optimizer.lr" in text
    assert run.train("--optimizer.lr", 0.001)[0] == 0
    assert [start["step"] for start in run.starts()] == [0, 0]
    assert len(list((run.run / "checkpoints" / "abandoned-1").glob("step-*"))) > 0


def test_a_changed_rate_gives_the_same_on_any_number_of_processes(begun: Run) -> None:
    ends = []
    for processes in (1, 2):
        folder = begun.folder / str(processes)
        shutil.copytree(begun.run, folder)
        words = ["--optimizer.lr", 0.002, "--output_dir", folder]
        code, text = begun.train(*words, processes=processes)
        assert code == 0, text
        rates = [row["lr"] for row in read_rows(folder / "metrics.jsonl") if row["event"] == "train"]
        assert rates == [0.01] * 2 + [0.002] * 7
        newest = list_checkpoints(folder / "checkpoints")[0]
        ends.append(load_file(newest / "weights.safetensors") | load_file(newest / "optimizer.safetensors"))
    for name, tensor in ends[0].items():
        torch.testing.assert_close(ends[1][name], tensor, atol=1e-6, rtol=1e-4)


def _spread(names: Iterable[str], often: Sequence[str]) -> list[Any]:
    """Some in `make test`, and the others among the slow tests."""
    return [name if name in often else pytest.param(name, marks=pytest.mark.slow) for name in names]


ENDED: dict[str, tuple[list[object], str, list[object]]] = {
    "more epochs": ([], "raise train.epochs to go on", ["--train.epochs", 4]),
    "more patience": (
        ["--train.early_stop", 1, "--optimizer.lr", 1e-12],
        "raise train.early_stop to go on",
        ["--train.early_stop", 2, "--optimizer.lr", 1e-12],
    ),
    "afresh": ([], "or use --new", ["--new"]),
}


@pytest.mark.parametrize("name", _spread(ENDED, ["more epochs"]))
def test_what_a_finished_run_offers(tmp_path: Path, name: str) -> None:
    words, message, remedy = ENDED[name]
    run = Run(tmp_path).make_pictures()
    assert run.train(*words)[0] == 0
    step = run.step()
    code, text = run.train(*words)
    assert (code, message in text) == (0, True), text
    code, text = run.train(*remedy)
    assert code == 0, text
    assert run.starts()[-1]["step"] == (0 if name == "afresh" else step)
    assert run.step() > step or name == "afresh"


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) * 3 // 4] ^= 4
    path.write_bytes(data)


def damage_newest(run: Run) -> list[object]:
    flip_a_bit(list_checkpoints(run.run / "checkpoints")[0] / "weights.safetensors")
    return ["--resume_from", "step-00000002"]


def damage_all(run: Run) -> list[object]:
    for path in list_checkpoints(run.run / "checkpoints"):
        flip_a_bit(path / "weights.safetensors")
    return []


def other_setting(run: Run) -> list[object]:
    return ["--optimizer.momentum", 0.5]


def unknown_checkpoint(run: Run) -> list[object]:
    return ["--resume_from", "step-00000099"]


def move_in_another(run: Run) -> list[object]:
    words = ["--train.epochs", "null", "--train.max_steps", 4, "--seed", 1, "--output_dir", run.folder / "other"]
    assert run.train(*words)[0] == 0
    shutil.copytree(run.folder / "other" / "checkpoints" / "step-00000004", run.run / "checkpoints" / "step-00000004")
    return []


def move_it_out(run: Run) -> list[object]:
    shutil.move(run.run / "checkpoints" / "step-00000004", run.folder / "out")
    return []


def begin_from_it(run: Run) -> list[object]:
    return ["--output_dir", run.folder / "third", "--resume_from", run.run / "checkpoints" / "step-00000004"]


def no_words(run: Run) -> list[object]:
    return []


def afresh(run: Run) -> list[object]:
    return ["--new"]


# What is done to a run that made 2 updates: the exit code, what the line says, and what it says to do.
REFUSED: dict[str, tuple[Callable[[Run], list[object]], int, str, Callable[[Run], list[object]]]] = {
    "damaged, named": (damage_newest, 4, "leave --resume_from out", no_words),
    "missing, named": (unknown_checkpoint, 4, "leave --resume_from out", no_words),
    "all damaged": (damage_all, 4, "--new", afresh),
    "other setting": (other_setting, 2, "use those again", no_words),
    "other setting, afresh": (other_setting, 2, "--new", lambda run: ["--new", *other_setting(run)]),
    "other run's": (move_in_another, 4, "move it out of checkpoints/", move_it_out),
    "other run's, begun from": (move_in_another, 4, "--resume_from PATH", begin_from_it),
}


@pytest.mark.parametrize("name", _spread(REFUSED, ["damaged, named", "other setting"]))
def test_what_a_refused_start_offers(begun: Run, name: str) -> None:
    prepare, exit_code, message, remedy = REFUSED[name]
    words = prepare(begun)
    code, text = begun.train(*words)
    assert (code, message in text) == (exit_code, True), text
    code, text = begun.train(*remedy(begun))
    assert code == 0, text
    assert torch.isfinite(load_file(begun.run / "model" / "model.safetensors")["features.0.weight"]).all()
