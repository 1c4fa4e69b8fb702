"""The Python of docs/python-api.md and README.md, word for word, in a folder that is laid out as the pages have it."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.images import save_jpeg
from helpers.pages import ROOT, read_code

import alexnet_dist

BLOCKS = read_code("python-api.md") + read_code("README.md")
(LOOP,) = (code for code in BLOCKS if "STEPS, BATCH, SIDE = " in code)
KINDS = ("daisy", "rose", "tulip")
# In configs/ of the working folder, where it goes before the one that is shipped: the page's runs take a second each.
TINY = """
model: {variant: paper, image_size: 64, conv_channels: [8, 16, 16, 16, 16], fc_width: 16}
data: {workers: 0, val: val}
augment: {resize: 72}
train: {epochs: 1, global_batch_size: 6}
log: {plots: false, report: false}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What the page speaks of, as the working folder."""
    folder = tmp_path_factory.mktemp("api")
    rows = ["file,kind,split\n"]
    for number in range(18):
        split, kind = "val" if number > 11 else "train", KINDS[number % 3]
        path = folder / "data" / "flowers" / split / kind / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_jpeg(path, 260 + 3 * number, 300 - 2 * number)
        rows.append(f"{path.relative_to(folder / 'data' / 'flowers')},{kind},{split}\n")
    (folder / "data" / "flowers" / "list.csv").write_text("".join(rows))
    save_jpeg(folder / "picture.jpg", 90, 80)
    (folder / "damaged.jpg").write_bytes((folder / "picture.jpg").read_bytes()[:300])
    (folder / "configs").mkdir()
    (folder / "configs" / "imagenet_subset.yaml").write_text(TINY)
    with contextlib.chdir(folder):
        yield folder


@pytest.fixture(scope="module")
def said(folder: Path) -> list[str]:
    """What each example prints; they follow each other as in a notebook."""
    names: dict[str, Any] = {}
    outputs = []
    for code in BLOCKS:
        text = io.StringIO()
        with contextlib.redirect_stdout(text):
            if code is not LOOP:
                few = code.replace("batch_size=64", "batch_size=6")  # of README: the folder has 12 images
                exec(compile(few, "page.md", "exec"), names)
        outputs.append(text.getvalue())
    return outputs


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_example_says_what_it_should(said: list[str], number: int) -> None:
    words = {
        'summary["best_top1"]': ["0.", " "],
        "stop.set": ["Stopped by the program. Saved at step "],
        'base": "imagenet_subset"': [],
        "import predict": ["picture.jpg ", "damaged.jpg None None [] "],
        "import AlexNet\n": ["\n"],
        "widget = [": [],
        "import explain_classes": ["torch.Size([1, 64, 64]) tensor(1.)"],
        "create_feature_extractor": ["torch.Size([1, 8, 15, 15]) torch.Size([1, 16])"],
        'make_spec("paper", num_classes=3': [],
        "STEPS, BATCH": [],
        "val = make_loader": ["always daisy: 2 of 6 torchvision "],
        'source="manifest"': ["6 ('daisy', 'rose', 'tulip') val/daisy/12.jpg 1797 10"],
        "import make_loader, predict, train": ["\n"],
        "trian": ["no such folder (", "did you mean 'train'?"],
    }
    (found,) = (parts for sign, parts in words.items() if sign in BLOCKS[number])
    assert all(part in said[number] for part in found), said[number]


def test_the_page_has_every_public_name() -> None:
    page = (ROOT / "docs" / "python-api.md").read_text(encoding="utf-8")
    missing = [name for name in alexnet_dist.__all__ if f"`{name}`" not in page and not name.startswith("_")]
    assert missing == []
    assert all(hasattr(alexnet_dist, name) for name in alexnet_dist.__all__)


def lay_out_loop(folder: Path, place: Path, steps: int) -> str:
    """The page's script with smaller numbers, and the pictures beside it."""
    place.mkdir(exist_ok=True)
    if not (place / "data").exists():
        (place / "data").symlink_to(folder / "data")
    code = LOOP.replace("2000, 64, 224", f"{steps}, 4, 64").replace("image_size=SIDE)", "image_size=SIDE, fc_width=16)")
    assert code != LOOP
    return code


def read_saved(place: Path, steps: int) -> dict[str, torch.Tensor]:
    saved: dict[str, Any] = torch.load(place / "loop.pt", weights_only=True)
    assert saved["step"] == steps
    weights: dict[str, torch.Tensor] = saved["model"]
    return weights


def run_loop(folder: Path, place: Path, steps: int) -> dict[str, torch.Tensor]:
    """The weights that the page's script ends with."""
    code = lay_out_loop(folder, place, steps)
    with contextlib.chdir(place):
        exec(compile(code, "loop.py", "exec"), {"__name__": "__main__"})
    return read_saved(place, steps)


@pytest.mark.slow
def test_a_loop_of_ones_own_goes_on_with_the_same_bits(folder: Path, tmp_path: Path) -> None:
    whole = run_loop(folder, tmp_path / "whole", 5)
    begun = run_loop(folder, tmp_path / "parts", 2)
    ended = run_loop(folder, tmp_path / "parts", 5)
    assert all(torch.equal(tensor, ended[name]) for name, tensor in whole.items())
    assert any(not torch.equal(tensor, ended[name]) for name, tensor in begun.items())


@pytest.mark.slow
def test_a_loop_of_ones_own_runs_on_two_processes(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "loop.py").write_text(lay_out_loop(folder, tmp_path, 4))
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "loop.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert all(bool(tensor.isfinite().all()) for tensor in read_saved(tmp_path, 4).values())
