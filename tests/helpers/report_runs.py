"""Runs with everything that a report shows, some of it by people who mean no good."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from alexnet_dist.base.durable import write_csv
from alexnet_dist.figures.confusion import CLASS_COLUMNS, draw_confusion, tabulate_classes
from alexnet_dist.figures.contact_sheet import draw_contact_sheet
from alexnet_dist.figures.filters import draw_filters
from helpers.past_runs import make_run

EVIL = '<img src=x onerror="window.hacked=1"></script><script>window.hacked=1</script>'
NAMES = [EVIL, "\x1b[31mred\x07", "=cmd()|'x'!A1", "plain"]
COLUMNS = ("path", "true_class", "predicted_class", "confidence", "true_confidence", "right")


def make_full_run(folder: Path, epochs: int = 3, steps_per_epoch: int = 4, seed: int = 0, pictures: int = 2) -> Path:
    """A finished run with tables, figures of as many pictures, which are as hard to pack as any, and bad files."""
    top1 = [0.2 + 0.7 * epoch / epochs + 0.01 * seed for epoch in range(epochs)]
    make_run(folder, top1, test=0.8, settings={"seed": seed}, steps_per_epoch=steps_per_epoch)
    plots, random = folder / "plots", np.random.default_rng(seed)
    plots.mkdir()
    counts = np.array([[3, 1, 0, 0], [0, 4, 0, 0], [2, 0, 2, 0], [0, 0, 0, 4]])
    write_csv(plots / "classes.csv", CLASS_COLUMNS, tabulate_classes(counts, NAMES, [""] * 4))
    said = [(name, "plain", "0.900000", f"0.0{n}", str(name == "plain")) for n, name in enumerate(NAMES)]
    rows = [(f"{row[0]}/1.jpg", *row) for row in said]
    write_csv(plots / "predictions.csv", COLUMNS, rows)
    write_csv(folder / "bad_files.csv", ("path", "reason"), [(f"{EVIL}.jpg", "damaged image")])
    draw_confusion(plots / "confusion.png", counts, NAMES, "confusion")
    draw_filters(plots / "conv1.png", random.normal(size=(96, 3, 11, 11)), 2, "conv1")
    noise = random.integers(0, 256, (pictures, 192, 192, 3), dtype=np.uint8)
    for name in ("inputs", "worst"):
        draw_contact_sheet(plots / f"{name}.png", noise, [(EVIL,)] * pictures, name)
    return folder
