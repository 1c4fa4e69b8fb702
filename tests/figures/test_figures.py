"""The figures: what they are computed from, and that any name, number of classes or of rows can be drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from alexnet_dist.base.text import cut_end
from alexnet_dist.data.engines.finish import scale_pixels, show_images
from alexnet_dist.data.engines.loader import Normalization
from alexnet_dist.figures.confusion import CLASS_COLUMNS, count_confusion, draw_confusion, tabulate_classes
from alexnet_dist.figures.contact_sheet import draw_contact_sheet
from alexnet_dist.figures.curves import draw_curves, find_best, find_drops, find_unit
from alexnet_dist.figures.filters import arrange_filters, choose_columns, draw_filters
from alexnet_dist.figures.overlay import blend_evidence, draw_explanation
from alexnet_dist.training.metrics import count_correct
from alexnet_dist.training.predictions import Predictions, find_worst, join_predictions, rate_images

# Formulas that would not even parse, glyphs that the font lacks, no text at all.
ODD_NAMES = [r"$\frac$", "a_b^c $", "犬 with spaces", "", "x" * 300]


def read_png_size(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG")
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


# -- classes ----------------------------------------------------------------------------------------------------------


def test_table_of_classes() -> None:
    from sklearn.metrics import classification_report

    labels, predicted = np.array([0, 0, 0, 1, 1, 3]), np.array([0, 1, 1, 1, 3, 3])
    counts = count_confusion(labels, predicted, 4)
    assert counts.tolist() == [[1, 2, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0], [0, 0, 0, 1]]
    rows = tabulate_classes(counts, ["a", "b", "c", "d"], ["", "bee", "", ""])
    assert [row[:6] for row in rows] == [
        ("a", "3", "0.3333", "1.0000", "b", "2"),
        ("b", "2", "0.5000", "0.3333", "d", "1"),
        ("c", "0", "", "", "", ""),
        ("d", "1", "1.0000", "0.5000", "", ""),
    ]
    report = classification_report(labels, predicted, labels=range(4), output_dict=True, zero_division=0)
    keys = CLASS_COLUMNS[6:9]
    ours = [{key: float(cell or 0) for key, cell in zip(keys, row[6:9], strict=True)} for row in rows]
    theirs = [{key: pytest.approx(report[str(label)][key], abs=1e-4) for key in keys} for label in range(4)]
    assert ours == theirs
    assert [row[9:] for row in rows] == [("", "bee"), ("bee", ""), ("", ""), ("", "")]


@pytest.mark.heavy
@pytest.mark.filterwarnings("ignore:A single label was found")  # scikit-learn's, of a network with one class
@pytest.mark.parametrize("num_classes", [1, 2, 20, 21, 51, 1000])
def test_confusion_of_any_size_fits_a_page(tmp_path: Path, num_classes: int) -> None:
    labels = np.arange(num_classes)
    names = (ODD_NAMES * num_classes)[:num_classes]
    draw_confusion(tmp_path / "c.png", count_confusion(labels, labels[::-1], num_classes), names, ODD_NAMES[0])
    assert all(400 < side < 1400 for side in read_png_size(tmp_path / "c.png"))


# -- predictions ------------------------------------------------------------------------------------------------------


def test_predictions_count_as_evaluation_counts() -> None:
    torch.manual_seed(0)
    scores = torch.randint(0, 3, (64, 7)).float()  # with many ties
    ids, labels, mask = torch.arange(64), torch.randint(0, 7, (64,)), (torch.arange(64) % 5 > 0).float()
    rows = rate_images(ids, scores, labels, mask)
    assert rows.ids.tolist() == ids[mask.bool()].tolist()
    assert (rows.predicted == rows.labels).sum() == (count_correct(scores, labels, 1) * mask).sum()
    softmax = scores.double().softmax(1)
    assert rows.truth.tolist() == softmax.gather(1, labels[:, None])[mask.bool(), 0].tolist()
    assert rows.confidence.tolist() == softmax.max(dim=1).values[mask.bool()].tolist()


def make_rows(ids: list[int], labels: list[int], predicted: list[int], truth: list[float]) -> Predictions:
    return Predictions(*map(np.array, (ids, labels, predicted, [0.5] * len(ids), truth)))


def test_shares_are_joined_in_the_order_of_the_set() -> None:
    joined = join_predictions([make_rows([2, 0], [5, 6], [1, 1], [0.2, 0.3]), make_rows([1], [7], [1], [0.1])])
    assert joined.ids.tolist() == [0, 1, 2]
    assert joined.labels.tolist() == [6, 7, 5]
    assert joined.truth.tolist() == [0.3, 0.1, 0.2]


@pytest.mark.parametrize(
    ("labels", "predicted", "truth", "count", "expected"),
    [
        # the wrong ones by how unlikely their label was, then the least sure right one
        ([1, 1, 1, 1], [1, 0, 0, 1], [0.2, 0.4, 0.1, 0.3], 3, [2, 1, 0]),
        # a third of the places for a class while others are wrong, and the right one stays out
        ([0, 0, 0, 0, 1, 1], [1, 1, 1, 1, 0, 1], [0.1, 0.2, 0.3, 0.4, 0.9, 0.0], 3, [0, 1, 4]),
        ([0, 0, 0, 1, 2, 3], [1, 1, 1, 0, 0, 0], [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], 3, [0, 3, 4]),
        # there are fewer images than places
        ([0, 0], [0, 1], [0.9, 0.1], 24, [1, 0]),
    ],
)
def test_worst_are_wrong_and_of_several_classes(
    labels: list[int], predicted: list[int], truth: list[float], count: int, expected: list[int]
) -> None:
    assert find_worst(make_rows(list(range(len(labels))), labels, predicted, truth), count).tolist() == expected


# -- curves -----------------------------------------------------------------------------------------------------------


def log_row(step: int, lr: float = 0.1, loss: float = 1.0) -> dict[str, Any]:
    return {"event": "train", "step": step, "epoch": step // 4, "loss": loss, "top1": 0.5, "lr": lr}


def eval_row(step: int, top1: float) -> dict[str, Any]:
    return {"event": "eval", "split": "val", "step": step, "epoch": step // 4, "loss": 1.0, "top1": top1}


TEST_ROW = {"event": "test", "split": "test", "step": 40, "epoch": 10, "loss": 1.1, "top1": 0.4}
EPOCH_ROW = {"event": "epoch", "epoch": 2, "step": 8, "train_loss": 1.0, "train_top1": 0.5}


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        ([1, 1, 0.1, 0.1, 0.1, 0.01], [2, 5]),
        ([1, 1, 0.5, 0.5, 0.25], [2, 4]),
        ([0.1, 0.5, 1, 1, 1], []),  # a warm-up
        ([1, 0.8, 0.5, 0.2, 0.05], []),  # a cosine
        ([1], []),
    ],
)
def test_drops_of_the_learning_rate(rates: list[float], expected: list[int]) -> None:
    assert find_drops([log_row(step, lr) for step, lr in enumerate(rates, start=1)]) == expected


def test_best_is_the_first_of_the_highest() -> None:
    rows = [eval_row(4, 0.2), eval_row(8, 0.4), eval_row(12, 0.4)]
    assert find_best(rows) == rows[1]
    assert find_best([]) is None


def test_axis_counts_epochs_where_one_ended() -> None:
    assert find_unit([log_row(1)]) == (1.0, "update (no epoch has ended)")
    assert find_unit([log_row(1), EPOCH_ROW]) == (4.0, "epoch")


@pytest.mark.heavy
@pytest.mark.parametrize(
    "rows",
    [
        [],
        [log_row(1)],
        [log_row(1), eval_row(1, 0.0)],
        [log_row(step, loss=1e9 if step < 3 else 1.0) for step in range(1, 100)] + [EPOCH_ROW],
        [log_row(step, lr=10.0 ** -(step // 8)) for step in range(1, 41)] + [eval_row(40, 0.5), TEST_ROW],
        [{"event": "test", "step": 3, "top1": 0.1}, log_row(1, loss=float("nan")), log_row(2)],
    ],
    ids=["nothing", "a log point", "no epoch", "no validation", "drops and a test", "odd"],
)
def test_curves_of_any_run(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    draw_curves(tmp_path / "a.png", rows, "a run")
    assert read_png_size(tmp_path / "a.png") == (1320, 696)


@pytest.mark.heavy
def test_equal_rows_give_equal_bytes(tmp_path: Path) -> None:
    for name in "ab":
        draw_curves(tmp_path / name, [log_row(1), log_row(2, loss=0.5), eval_row(2, 0.5), TEST_ROW], "a run")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


# -- filters and pictures ---------------------------------------------------------------------------------------------


def test_filters_keep_their_colors_and_zero_is_gray() -> None:
    weights = np.zeros((3, 3, 2, 2))
    weights[0, 0] = 0.02  # red
    weights[1, 2] = [[-8, 4], [0, 8]]  # blue; each filter has a scale of its own
    grid = arrange_filters(weights, 2)
    assert grid.shape == (5, 5, 3)
    assert grid[0, 0].tolist() == [1, 0.5, 0.5]
    assert grid[0:2, 3:5, 2].tolist() == [[0, 0.75], [0.5, 1]]
    assert (grid[:, 2] == 1).all()  # the line between them
    assert (grid[3:5, 0:2] == 0.5).all()  # a filter of zeros
    assert (grid[3:5, 3:5] == 1).all()  # an empty place


@pytest.mark.parametrize(("count", "columns"), [(96, 12), (64, 8), (48, 8), (32, 8), (4, 2), (1, 1)])
def test_filters_fill_their_grid(count: int, columns: int) -> None:
    assert choose_columns(count) == columns


@pytest.mark.parametrize(("count", "channels", "towers"), [(96, 3, 2), (64, 1, 1), (97, 3, 1), (2, 1, 2)])
def test_filters_of_any_network_are_drawn(tmp_path: Path, count: int, channels: int, towers: int) -> None:
    draw_filters(tmp_path / "f.png", np.random.default_rng(0).normal(size=(count, channels, 11, 11)), towers, "conv1")
    assert min(read_png_size(tmp_path / "f.png")) > 100


@pytest.mark.parametrize(("count", "channels", "mark"), [(1, 3, None), (7, 1, "wrong"), (24, 3, "right")])
def test_contact_sheet(tmp_path: Path, count: int, channels: int, mark: str | None) -> None:
    pictures, marks = np.zeros((count, 8, 8, channels), np.uint8), None if mark is None else [mark] * count
    draw_contact_sheet(tmp_path / "s.png", pictures, [ODD_NAMES[:2]] * count, ODD_NAMES[2], marks)
    assert min(read_png_size(tmp_path / "s.png")) > 200


def test_tiles_are_evenly_spaced_and_marked_by_color(tmp_path: Path) -> None:
    draw_contact_sheet(tmp_path / "s.png", np.zeros((12, 8, 8, 3), np.uint8), [["a"]] * 12, "t", ["wrong", "right"] * 6)
    with Image.open(tmp_path / "s.png") as opened:
        pixels = np.asarray(opened.convert("RGB"))
    is_black = (pixels == 0).all(axis=2)
    rows = np.flatnonzero(is_black.sum(axis=1) > 600)
    columns = np.flatnonzero(is_black[rows[0] + 9])
    lefts = columns[np.diff(columns, prepend=-9) > 9]
    assert set(np.diff(lefts)) == {216}
    frames = [tuple(pixels[rows[0] + 90, left - 3]) for left in lefts[:2]]
    assert frames == [(0xD5, 0x5E, 0x00), (0x00, 0x72, 0xB2)]


@pytest.mark.parametrize("channels", [1, 3])
def test_shown_images_are_the_pixels_before_the_input_scale(channels: int) -> None:
    pixels = torch.randint(0, 256, (4, 6, 6, channels), dtype=torch.uint8)
    scale = Normalization((123.7, 116.3, 103.5)[:channels], (58.4, 57.1, 1.0)[:channels])
    assert torch.equal(
        torch.from_numpy(show_images(scale_pixels(scale, pixels, torch.zeros(4, 3), True), scale)), pixels
    )
    bright = show_images(scale_pixels(scale, pixels, torch.full((4, 3), 300.0), True), scale)
    assert (bright == 255).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_evidence_is_laid_over_a_picture(tmp_path: Path, channels: int) -> None:
    pictures, evidence = np.full((2, 8, 8, channels), 200, np.uint8), np.zeros((2, 8, 8), np.float32)
    evidence[1, 2, 3] = 1
    blended = blend_evidence(pictures, evidence)
    assert blended.shape == (2, 8, 8, 3)
    assert (blended[0] == 146).all()  # gray and dark, where there is none
    assert np.argwhere((blended[1] != 146).any(axis=2)).tolist() == [[2, 3]]
    assert blended[1, 2, 3, 0] > 200
    draw_explanation(tmp_path / "e.png", pictures[1], evidence[1], "\n".join(ODD_NAMES))
    wide, high = read_png_size(tmp_path / "e.png")
    assert wide > high > 300


def test_long_names_end_in_an_ellipsis() -> None:
    assert cut_end("abcdef", 6) == "abcdef"
    assert cut_end("abcde fg", 7) == "abcde…"
