from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from helpers.class_folders import write_class_folders
from helpers.refusals import refused

from alexnet_dist.assembly.public_loader import make_index
from alexnet_dist.base.durable import parse_json
from alexnet_dist.base.errors import UsageError
from alexnet_dist.cli.prepare.pack import main


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    for part in ("train", "val"):
        write_class_folders(tmp_path / "data" / part)
    return ["--data.root", str(tmp_path / "data"), "--data.val", "val", "--data.cache_dir", str(tmp_path / "cache")]


def test_folders_become_shards_and_a_list_of_them(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main([*words, "--out", str(out)]) == 0
    assert f"--data.source tar --data.root {out} --data.val val" in capsys.readouterr().out
    names = {"_info.json", "classes.txt", "train-0000.tar", "val-0000.tar"}
    assert {path.name for path in out.iterdir()} == names
    train = parse_json((out / "_info.json").read_bytes())["splits"]["train"]
    assert (train["num_samples"], train["filenames"], train["shard_lengths"]) == (10, ["train-0000.tar"], [10])
    found = [
        make_index(place, part="train", source=source, cache_dir=tmp_path / "cache")
        for place, source in ((tmp_path / "data", "folder"), (out, "tar"))
    ]
    assert found[0].classes == found[1].classes
    assert found[0].labels.tolist() == found[1].labels.tolist()
    assert all((found[0].load_pixels(n) == found[1].load_pixels(n)).all() for n in range(10))


def test_shards_that_are_there_stay_unless_they_are_to_be_replaced(words: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out).mkdir()
    (out / "train-0007.tar").write_text("mine")
    line = refused(lambda: main([*words, "--out", str(out)]), UsageError)
    assert "train-0007.tar" in line
    assert "--overwrite" in line
    main([*words, "--out", str(out), "--overwrite"])
    assert not (out / "train-0007.tar").exists()


@pytest.mark.parametrize("out", ["data", "data/train", "data/train/deep", "."])
def test_nothing_is_written_among_the_pictures(words: list[str], tmp_path: Path, out: str) -> None:
    assert "--out" in refused(lambda: main([*words, "--out", str(tmp_path / out)]), UsageError)
    shutil.rmtree(tmp_path / "data" / "val")
    assert not list(tmp_path.rglob("*.tar"))


@pytest.mark.parametrize(
    ("more", "part"),
    [
        ([], "--out is missing"),
        (["--out", "x", "--shard_mb", "0"], "--shard_mb"),
        (["--out", "x", "--seed", "-1"], "--seed"),
        (["--out", "x", "--data.source", "synthetic", "--data.val", "null"], "no image files"),
    ],
)
def test_options_that_cannot_be_meant(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: list[str], part: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=part):
        main([*words, *more])
