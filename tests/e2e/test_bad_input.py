"""What a user can get wrong: one line that names it, and the exit code of the contract."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.array_files import write_fashion_mnist
from helpers.tiny import tiny_config
from helpers.verbs import Outcome, call, call_with_output
from PIL import Image
from torchvision.datasets import FashionMNIST

from alexnet_dist.data.sources import arrays as array_sets
from alexnet_dist.inference.checkpoints import list_checkpoints
from alexnet_dist.inference.model_folder import read_card, read_model_weights, save_model_folder
from alexnet_dist.runs import folder as run_folder
from alexnet_dist.settings.reader import dump_config
from alexnet_dist.tracking.trackers import read_rows

OTHER_WORDS = {"predict": ["picture.jpg"], "export": ["--out", "nowhere/a.onnx"]}  # that a verb needs beside --model


def assert_refused(outcome: Outcome, code: int, *parts: str) -> None:
    """One error line with all of `parts`, the exit code, no traceback."""
    found, lines, text = outcome
    assert found == code, text
    assert len(lines) == 1, text
    assert "Traceback" not in text
    for part in parts:
        assert part in lines[0]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A tiny run on made-up images, as a file."""
    path = tmp_path / "tiny.yaml"
    path.write_text(dump_config(tiny_config(tmp_path / "run")))
    return path


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Class folders of small photographs: 2 classes, 12 for training and 4 for validation each."""
    dice = np.random.default_rng(0)
    for part, count in (("train", 12), ("val", 4)):
        for name in ("cat", "dog"):
            folder = tmp_path / "pictures" / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = dice.integers(0, 256, (70, 80, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number:02d}.jpg", quality=90)
    return tmp_path / "pictures"


@pytest.fixture
def on_pictures(config: Path, pictures: Path, tmp_path: Path) -> list[str]:
    """The words of a run on those pictures."""
    words = ["--config", str(config), "--data.source", "folder", "--data.root", str(pictures), "--data.val", "val"]
    return [*words, "--augment.resize", "72", "--train.epochs", "2", "--data.cache_dir", str(tmp_path / "cache")]


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--optimizer.lrr", "1"], ["--optimizer.lrr", "did you mean --optimizer.lr?"]),
        (["--optimizer.lr", "fast"], ["optimizer.lr", "expected float", "'fast'"]),
        (["--train.epochs", "true"], ["train.epochs", "expected int"]),
        (["--optimizer.lr", "-0.1"], ["optimizer.lr", "above 0"]),
        (["--optimizer.lr", "inf"], ["optimizer.lr"]),
        (["--optimizer.lr", ".nan"], ["optimizer.lr"]),
        (["--optimizer.momentum", "1.5"], ["optimizer.momentum", "below 1"]),
        (["--train.epochs", "2", "--train.max_steps", "9"], ["train.epochs", "train.max_steps"]),
        (["--train.micro_batch_size", "5"], ["micro_batch_size 5", "12", "use 4 or 6"]),
        (["--model.image_size", "20"], ["model"]),
        (["--model.num_classes", "2"], ["model.num_classes"]),
        (["--augment.mean", "[0.5, 0.5]"], ["augment.mean", "2 values"]),
        (["--model.conv_groups", "[1, 3, 1, 2, 2]"], ["model"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and value[0].startswith("--") else "",
)
def test_settings_that_cannot_be_meant(config: Path, words: list[str], parts: list[str], tmp_path: Path) -> None:
    assert_refused(call("train", "--config", str(config), *words), 2, *parts)


def test_missing_config_names_a_near_one() -> None:
    assert_refused(call("train", "--config", "digts"), 2, "digts", "did you mean digits?")


def test_duplicate_key_names_both_lines(config: Path) -> None:
    config.write_text(config.read_text() + "seed: 1\n")
    assert_refused(call("train", "--config", str(config)), 2, "seed stands twice", str(config))


def test_processes_that_do_not_divide_the_batch(config: Path) -> None:
    words = ["--config", str(config), "--train.global_batch_size", "13"]
    assert_refused(call("train", *words, processes=2), 2, "13", "2 processes", "use 12 or 14")


def test_batch_larger_than_the_training_set(config: Path) -> None:
    outcome = call("train", "--config", str(config), "--train.global_batch_size", "41")
    assert_refused(outcome, 3, "41", "40 images")


def test_missing_data_root_says_how_to_make_it(config: Path, tmp_path: Path) -> None:
    words = ["--config", str(config), "--data.source", "folder", "--data.root", str(tmp_path / "nowhere")]
    assert_refused(call("train", *words), 3, "nowhere", "CLASS")


def test_empty_data_root(config: Path, tmp_path: Path) -> None:
    (tmp_path / "empty" / "train").mkdir(parents=True)
    words = ["--config", str(config), "--data.source", "folder", "--data.root", str(tmp_path / "empty")]
    assert_refused(call("train", *words, processes=2), 3, "empty")


def test_empty_class_folder_is_named(on_pictures: list[str], pictures: Path) -> None:
    (pictures / "train" / "cow").mkdir()
    assert_refused(call("train", *on_pictures), 3, "cow")


def test_validation_class_that_training_lacks(on_pictures: list[str], pictures: Path) -> None:
    shutil.copytree(pictures / "val" / "cat", pictures / "val" / "cow")
    assert_refused(call("train", *on_pictures), 3, "cow")


@pytest.mark.skipif(torch.cuda.is_available(), reason="fp16 works where there is CUDA")
def test_fp16_without_cuda(config: Path) -> None:
    assert_refused(call("train", "--config", str(config), "--precision", "fp16"), 5, "fp16", "CUDA")


def test_output_folder_that_cannot_be_written(config: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    outcome = call("train", "--config", str(config), "--output_dir", str(tmp_path / "file" / "run"))
    assert_refused(outcome, 5, "file")


def test_second_start_in_the_same_folder(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "LOCK_SECONDS", 0.3)
    lock = run_folder.open_run_folder(tmp_path / "run", new=False)
    with lock:
        assert_refused(call("train", "--config", str(config)), 5, "another run is using")


@pytest.mark.parametrize("processes", [1, 2])
def test_a_loss_that_is_not_finite_makes_no_update(config: Path, finished: Path, processes: int) -> None:
    settings = (finished / "config.yaml").read_text().replace("lr: 0.01", "lr: 1.0e+30")
    (finished / "config.yaml").write_text(settings)
    words = ["--config", str(config), "--train.epochs", "9", "--optimizer.lr", "1e30"]
    assert_refused(call("train", *words, processes=processes), 6, "not finite", "step-000000")
    newest = list_checkpoints(finished / "checkpoints")[0]
    weights = torch.cat([t.flatten() for t in _load(newest / "weights.safetensors").values()])
    assert torch.isfinite(weights).all()
    assert json.loads((finished / "summary.json").read_text())["status"] == "failed"
    assert all(np.isfinite(row.get("loss", 0.0)) for row in read_rows(finished / "metrics.jsonl"))


@pytest.mark.parametrize(
    ("extra", "where", "processes"),
    [
        ([], "validation at step 3): 8 of 8 images", 2),
        (["--data.val", "null", "--data.val_fraction", "0"], "step 3, no validation set): an update", 1),
    ],
)
def test_a_model_is_kept_from_a_network_whose_outputs_are_not_finite(
    on_pictures: list[str], tmp_path: Path, extra: list[str], where: str, processes: int
) -> None:
    """The last update of an epoch gives weights of 1e28, which are numbers; its loss was finite."""
    words = [*on_pictures, "--train.global_batch_size", "24", *extra]
    code, _, text = call("train", *words, "--train.epochs", "2")
    assert code == 0, text
    model = {path.name: path.read_bytes() for path in (tmp_path / "run" / "model").iterdir()}
    settings = (tmp_path / "run" / "config.yaml").read_text().replace("\n  lr: 0.01", "\n  lr: 1.0e+30")
    (tmp_path / "run" / "config.yaml").write_text(settings)
    breaking = [*words, "--train.epochs", "3", "--optimizer.lr", "1e30"]
    outcome = call("train", *breaking, processes=processes)
    assert_refused(outcome, 6, "outputs are not finite", where, "step-00000002")
    assert {path.name: path.read_bytes() for path in (tmp_path / "run" / "model").iterdir()} == model
    assert_all_is_json(tmp_path / "run")


@pytest.mark.parametrize(
    ("processes", "extra"),
    [
        (2, ["--train.global_batch_size", "24", "--data.val", "null", "--data.val_fraction", "0"]),
        (1, ["--train.global_batch_size", "12", "--checkpoint.every_steps", "1"]),
    ],
)
def test_weights_that_are_not_finite_are_never_saved(
    on_pictures: list[str], tmp_path: Path, processes: int, extra: list[str]
) -> None:
    """Neither as the model nor in a checkpoint, although the loss of the update that broke them was finite."""
    breaking = ["--optimizer.lr", "1e30", "--optimizer.bias_weight_decay", "1e6", "--optimizer.bias_lr_factor", "1e4"]
    words = [*on_pictures, "--train.epochs", "1", *breaking, *extra]
    outcome = call("train", *words, processes=processes)
    assert_refused(outcome, 6, "a weight is not finite", "step 1", "optimizer.lr")
    assert not (tmp_path / "run" / "model").exists()
    assert list_checkpoints(tmp_path / "run" / "checkpoints") == []
    assert_all_is_json(tmp_path / "run")


def assert_all_is_json(run: Path) -> None:
    """NaN and Infinity are none."""
    for text in [*(run / "metrics.jsonl").read_text().splitlines(), (run / "summary.json").read_text()]:
        json.loads(text, parse_constant=pytest.fail)


def _load(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return dict(load_file(path))


# -- bad files --------------------------------------------------------------------------------------------------------


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize(("damage", "processes"), [(truncate, 2), (empty, 1)])
def test_a_bad_file_ends_the_run_by_name(
    on_pictures: list[str], pictures: Path, damage: Callable[[Path], None], processes: int
) -> None:
    damage(pictures / "train" / "dog" / "03.jpg")
    assert_refused(call("train", *on_pictures, processes=processes), 3, "dog/03.jpg", "on_bad_file: skip")


@pytest.mark.parametrize(("damage", "processes"), [(truncate, 2), (empty, 1)])
def test_a_bad_file_is_left_out_and_listed(
    on_pictures: list[str], pictures: Path, tmp_path: Path, damage: Callable[[Path], None], processes: int
) -> None:
    damage(pictures / "train" / "dog" / "03.jpg")
    damage(pictures / "val" / "cat" / "01.jpg")
    before = sorted((path, path.stat().st_size) for path in pictures.rglob("*.jpg"))
    code, _, text = call("train", *on_pictures, "--data.on_bad_file", "skip", processes=processes)
    assert code == 0, text
    with (tmp_path / "run" / "bad_files.csv").open() as file:
        listed = list(csv.DictReader(file))
    assert [row["path"] for row in listed] == ["train/dog/03.jpg", "val/cat/01.jpg"]
    assert all(row["reason"] for row in listed)
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    assert {row["num_examples"] for row in rows if row["event"] == "eval"} == {7}
    assert max(row["samples_seen"] for row in rows if row["event"] == "train") == 2 * 23
    assert sorted((path, path.stat().st_size) for path in pictures.rglob("*.jpg")) == before


@pytest.mark.parametrize(
    ("part", "where", "processes"), [("train", "updates 1 to 2", 2), ("val", "validation at step 2", 1)]
)
def test_a_set_of_which_no_image_can_be_read_ends_the_run(
    on_pictures: list[str], pictures: Path, tmp_path: Path, processes: int, part: str, where: str
) -> None:
    """Also where bad files are left out: headers are good, and nothing but them."""
    for path in (pictures / part).rglob("*.jpg"):
        truncate(path)
    words = [*on_pictures, "--data.on_bad_file", "skip"]
    assert_refused(call("train", *words, processes=processes), 3, "no image could be read", where)
    assert not (tmp_path / "run" / "model").exists()


# -- manifests and torchvision's files --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("train/cat/00.jpg", ["train.txt:2", "without a label"]),
        ("train/cat/00.jpg 2", ["train.txt:2", "label 2 is out of range"]),
        ("train/cat/00.jpg -1", ["train.txt:2", "negative"]),
        ("train/cat/00.jpg cow", ["train.txt:2", "unknown class 'cow'"]),
        ("train/cat/00.jpg 1\ntrain/dog/00.jpg 2", ["train.txt:3", "labels count from 0"]),
        ("train/dog/01.jpg cat", ["train.txt:2", "two labels", "line 1"]),
        ("../secret.jpg cat", ["train.txt:2", "leads out of data.root"]),
        ("train/cat/gone.jpg cat", ["gone.jpg", "No such file", "on_bad_file: skip"]),
    ],
)
def test_a_manifest_that_cannot_be_meant(config: Path, pictures: Path, line: str, parts: list[str]) -> None:
    (pictures / "classes.txt").write_text("cat\ndog\n")
    (pictures / "train.txt").write_text(f"train/dog/01.jpg dog\n{line}\n")
    words = ["--config", str(config), "--data.source", "manifest", "--data.root", str(pictures)]
    assert_refused(call("train", *words, "--data.train", "train.txt"), 3, *parts)


@pytest.fixture
def fashion(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The words of a run on files like those of Fashion-MNIST."""
    write_fashion_mnist(tmp_path / "data", monkeypatch)
    monkeypatch.setattr(array_sets, "FASHION_HTTPS", "https://127.0.0.1:9/")  # nobody listens there
    monkeypatch.setattr(FashionMNIST, "mirrors", ["http://127.0.0.1:9/"])
    words = ["--config", str(config), "--data.source", "fashion_mnist", "--data.root", str(tmp_path / "data")]
    return [*words, "--data.cache_dir", str(tmp_path / "cache")]


@pytest.mark.parametrize(("damage", "parts"), [(truncate, ["md5"]), (Path.unlink, ["missing", "--data.download true"])])
def test_a_packed_file_that_is_damaged_or_missing(
    fashion: list[str], tmp_path: Path, damage: Callable[[Path], None], parts: list[str]
) -> None:
    damage(tmp_path / "data" / "train-images-idx3-ubyte.gz")
    assert_refused(call("train", *fashion), 3, "train-images-idx3-ubyte.gz", *parts)


def test_no_network_for_a_download(fashion: list[str], tmp_path: Path) -> None:
    (tmp_path / "data" / "train-labels-idx1-ubyte.gz").unlink()
    outcome = call("train", *fashion, "--data.download", "true", processes=2)
    assert_refused(outcome, 5, "cannot fetch train-labels-idx1-ubyte.gz", "Connection refused", "ROOT/FashionMNIST/raw")


def test_a_part_that_the_set_does_not_have(fashion: list[str]) -> None:
    assert_refused(call("train", *fashion, "--data.val", "valid"), 2, "data.val is 'valid'", "train or test")


# -- weights and checkpoints ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a finished tiny run, not to be written to."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "tiny.yaml").write_text(dump_config(tiny_config(folder / "run")))
    code, _, text = call("train", "--config", folder / "tiny.yaml")
    assert code == 0, text
    return folder / "run"


@pytest.fixture
def finished(finished_once: Path, tmp_path: Path) -> Path:
    """The run folder of a finished tiny run."""
    return Path(shutil.copytree(finished_once, tmp_path / "run"))


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) * 3 // 4] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, empty])
def test_no_intact_checkpoint(config: Path, finished: Path, damage: Callable[[Path], None]) -> None:
    for checkpoint in list_checkpoints(finished / "checkpoints"):
        damage(checkpoint / "optimizer.safetensors")
    outcome = call("train", "--config", str(config), "--train.epochs", "6")
    assert_refused(outcome, 4, "no intact checkpoint", "optimizer.safetensors")


def test_a_named_checkpoint_that_is_damaged(config: Path, finished: Path) -> None:
    newest = list_checkpoints(finished / "checkpoints")[0]
    flip_a_bit(newest / "weights.safetensors")
    outcome = call("train", "--config", str(config), "--train.epochs", "6", "--resume_from", newest.name)
    assert_refused(outcome, 4, newest.name, "sha256")


@pytest.mark.parametrize(
    ("verb", "damage"), [("evaluate", truncate), ("predict", flip_a_bit), ("export", truncate), ("export", flip_a_bit)]
)
def test_damaged_model(finished: Path, damage: Callable[[Path], None], verb: str) -> None:
    damage(finished / "model" / "model.safetensors")
    words = OTHER_WORDS.get(verb, [])
    assert_refused(call(verb, "--model", str(finished), *words), 4, "damaged model")


def test_a_network_of_nan_says_nothing(finished: Path, pictures: Path, tmp_path: Path) -> None:
    """Exit code 6 of evaluate and export; a row with its error, and 4, of predict; 3 where a file cannot be read."""
    card, weights = read_card(finished / "model"), read_model_weights(finished / "model")
    weights["classifier.6.bias"][0] = float("nan")
    save_model_folder(finished / "model", weights, card)
    for words in ([], ["--ten_crop"]):
        assert_refused(call("evaluate", "--model", finished, *words), 6, "not finite", ": 5 of 5 images")
    out = tmp_path / "net.safetensors"
    exporting = ["export", "--model", finished, "--format", "torch_export", "--out", out]
    exporting = ["export", "--model", finished, "--format", "torch_export", "--out", out]
    for words in ([], ["--check"]):
        assert_refused(call(*exporting, *words), 6, "not finite")
    assert not out.exists()
    good, bad = pictures / "val" / "cat" / "00.jpg", tmp_path / "bad.jpg"
    empty(bad)
    for paths, expected in (([good], 4), ([good, bad], 3)):
        code, errors, output = call_with_output("predict", "--model", finished, *paths, "--format", "jsonl")
        assert code == expected, errors
        rows = [json.loads(line, parse_constant=pytest.fail) for line in output.splitlines()]
        assert (rows[0]["class"], rows[0]["confidence"], rows[0]["topk"]) == (None, None, [])
        assert "not finite" in rows[0]["error"]


@pytest.mark.parametrize("verb", ["evaluate", "predict", "export"])
def test_missing_model(tmp_path: Path, verb: str) -> None:
    words = OTHER_WORDS.get(verb, [])
    assert_refused(call(verb, "--model", str(tmp_path / "nothing"), *words), 4, "no model", "nothing")


def test_pretrained_weights_of_another_shape(config: Path, finished: Path, tmp_path: Path) -> None:
    weights = str(finished / "model" / "model.safetensors")
    words = ["--config", str(config), "--output_dir", str(tmp_path / "other"), "--model.pretrained", weights]
    assert_refused(call("train", *words, "--model.fc_width", "24"), 4, "classifier", weights)
    assert call("train", *words, "--train.epochs", "1")[0] == 0


def test_pretrained_weights_for_as_many_other_classes(
    on_pictures: list[str], finished: Path, pictures: Path, tmp_path: Path
) -> None:
    for part in ("train", "val"):
        shutil.copytree(pictures / part / "dog", pictures / part / "fox")
    words = [*on_pictures, "--output_dir", str(tmp_path / "other"), "--model.pretrained", str(finished)]
    outcome = call("train", *words, processes=2)
    assert_refused(outcome, 4, "class 0", "'cat'", "model.safetensors")


def test_no_network_for_torchvisions_weights(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there
    words = ["--config", str(config), "--model.pretrained", "torchvision", "--data.cache_dir", str(tmp_path / "cache")]
    outcome = call("train", *words, processes=2)
    assert_refused(outcome, 5, "cannot fetch alexnet-owt-7be5be79.pth", "refused", "--model.pretrained FILE")


def test_evaluation_on_other_classes(on_pictures: list[str], pictures: Path, tmp_path: Path) -> None:
    assert call("train", *on_pictures, "--train.epochs", "1")[0] == 0
    (pictures / "val" / "dog").rename(pictures / "val" / "wolf")
    assert_refused(call("evaluate", "--model", str(tmp_path / "run")), 4, "'wolf'")


def test_a_pickle_that_runs_code_is_refused(config: Path, tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (open, (str(tmp_path / "canary"), "w"))  # type: ignore[return-value]

    torch.save({"features.0.weight": Payload()}, tmp_path / "evil.pt")
    outcome = call("train", "--config", str(config), "--model.pretrained", str(tmp_path / "evil.pt"))
    assert_refused(outcome, 4, "evil.pt")
    assert not (tmp_path / "canary").exists()


# -- a run that is there already --------------------------------------------------------------------------------------


def test_a_changed_setting_is_refused_with_the_difference(config: Path, finished: Path) -> None:
    outcome = call("train", "--config", str(config), "--optimizer.momentum", "0.5", "--log.every_steps", "5")
    assert_refused(outcome, 2, "optimizer.momentum was 0.9, is 0.5", "--new")
    assert "log.every_steps" not in outcome[1][0]


def test_new_keeps_the_old_run(config: Path, finished: Path) -> None:
    old = (finished / "summary.json").read_text()
    code, _, text = call("train", "--config", str(config), "--train.epochs", "1", "--optimizer.lr", "0.02", "--new")
    assert code == 0, text
    assert (finished.with_name("run.1") / "summary.json").read_text() == old
    assert json.loads((finished / "run.json").read_text())["starts"][0]["step"] == 0


def test_an_image_that_was_altered_in_place_is_said(on_pictures: list[str], pictures: Path) -> None:
    assert call("train", *on_pictures)[0] == 0
    path, other = pictures / "train" / "cat" / "00.jpg", pictures / "train" / "cat" / "01.jpg"
    data = bytearray(path.read_bytes())
    data[-30] ^= 1
    path.write_bytes(data)  # its size is what it was
    code, _, text = call("train", *on_pictures, "--train.epochs", "3")
    assert code == 0, text
    (line,) = [line for line in text.splitlines() if "changed or copied" in line]
    assert line.startswith(
        f"1 image(s) were changed or copied since the last start, and have their names and sizes ({path})"
    )
    os.utime(other, ns=(0, 0))  # an older time of change says nothing
    code, _, text = call("train", *on_pictures, "--train.epochs", "4")
    assert (code, "changed or copied" in text) == (0, False)


def test_images_that_changed_since_the_run_began_and_another_root_with_the_same(
    on_pictures: list[str], pictures: Path, tmp_path: Path
) -> None:
    assert call("train", *on_pictures)[0] == 0
    shutil.copytree(pictures, tmp_path / "moved")
    shutil.copy(pictures / "train" / "cat" / "00.jpg", pictures / "train" / "cat" / "new.jpg")
    words = [*on_pictures, "--train.epochs", "3"]
    assert_refused(call("train", *words), 3, "num_train was 24, is 25")
    code, _, text = call("train", *words, "--data.root", str(tmp_path / "moved"))
    assert code == 0, text
    assert "resumed from step-" in text


def test_a_finished_run_says_so(config: Path, finished: Path) -> None:
    code, _, text = call("train", "--config", str(config))
    assert code == 0
    assert "this run is finished" in text
