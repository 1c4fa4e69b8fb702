"""What trackers are shown of a run: filters while it trains, the figures of plots/ when it has ended."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch import Tensor

from alexnet_dist.figures.filters import arrange_filters, choose_columns
from alexnet_dist.models import AlexNetSpec
from alexnet_dist.runs.folder import PLOTS
from alexnet_dist.tracking.pictures import Picture

CONV1 = "features.0.weight"
SIDE = 4  # pixels for a weight
TELLING = {"confusion": True, "inputs": True, "worst": True, "curves": False, "conv1": False}  # of images


def count_towers(spec: AlexNetSpec) -> int:
    """Parts of conv1 that conv2 reads apart."""
    return 2 if spec.conv_groups[1] == 2 else 1


def picture_filters(weights: Mapping[str, Tensor], spec: AlexNetSpec) -> list[Picture]:
    """The filters of conv1, a picture for each tower, without a figure around them: it takes a few milliseconds.

    Args:
        weights: of the whole network.
        spec: of the network.
    """
    towers = np.split(weights[CONV1].detach().float().cpu().numpy(), count_towers(spec))  # (N / towers, C, 11, 11)
    columns = choose_columns(len(towers[0]))
    grids = [(arrange_filters(tower, columns) * 255).round().astype(np.uint8) for tower in towers]  # (H, W, C)
    names = [f"conv1/tower_{number}" for number in (1, 2)] if len(grids) > 1 else ["conv1/filters"]
    return [
        Picture(name, grid.repeat(SIDE, 0).repeat(SIDE, 1), tells_of_images=False)
        for name, grid in zip(names, grids, strict=True)
    ]


def picture_plots(folder: Path) -> list[Picture]:
    """The figures that lie in plots/ of a run folder."""
    paths = {name: folder / PLOTS / f"{name}.png" for name in TELLING}
    return [Picture(f"plots/{name}", path, TELLING[name]) for name, path in paths.items() if path.is_file()]
