"""What a layer of a trained network makes of pictures: the vectors by which pictures are compared and searched."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from alexnet_dist.base.errors import CheckpointError, DataError, UsageError
from alexnet_dist.data.files.scan import FileSet
from alexnet_dist.inference.model_folder import ModelCard
from alexnet_dist.inference.predict import NOT_FINITE, load_pictures
from alexnet_dist.models import LAYER_NAMES, AlexNet, split_behind

CONVOLUTIONS = LAYER_NAMES[:5]
LOGITS = LAYER_NAMES[-1]  # the one layer without a ReLU behind it


class FeatureBatch(NamedTuple):
    """Some pictures as a layer has them."""

    paths: list[str]  # (N,) of the pictures that could be read
    features: npt.NDArray[np.float32]  # (N, width)
    left_out: list[tuple[str, str, int]]  # the others: path, reason, exit code


def check_layer(layer: str, option: str = "--features") -> None:
    """Refuse the name of a layer that is none of the eight.

    Raises:
        UsageError: those that there are are named.
    """
    if layer not in LAYER_NAMES:
        raise UsageError(f"no layer {layer!r}", where=option, remedy=f"give one of {', '.join(LAYER_NAMES)}")


@torch.no_grad()
def compute_features(model: AlexNet, images: Tensor, layer: str) -> Tensor:
    """What a layer gives, behind its ReLU; fc8 has none, and gives the logits.

    Args:
        model: in evaluation mode, on any device, in any floating-point type.
        images: (B, in_channels, S, S), as `preprocess` gives them; on the model's device and in its type.
        layer: conv1 to conv5, fc6, fc7 or fc8.

    Returns:
        (B, width) float32, or float64 of a model in float64. Maps are flattened in the order channel, row, column.

    Raises:
        ValueError: no such layer.
    """
    values: Tensor = split_behind(model, layer)[0](images).flatten(1)  # (B, width)
    return (values if layer == LOGITS else values.relu()).to(torch.promote_types(values.dtype, torch.float32))


def read_features(model: AlexNet, card: ModelCard, images: Sequence[FileSet], layer: str) -> Iterator[FeatureBatch]:
    """What a layer makes of image files, in their order, batch by batch.

    Args:
        model: in evaluation mode.
        card: its preprocessing.
        images: the files, see `open_pictures`.
        layer: see `compute_features`.
    """
    for batch in load_pictures(model, card, images):
        values = compute_features(model, batch.images, layer).float()  # (B, width)
        is_finite = values.isfinite().all(dim=1).tolist()
        left_out, kept = [], []
        for position, (path, reason) in enumerate(zip(batch.paths, batch.reasons, strict=True)):
            if reason:
                left_out.append((path, reason, DataError.exit_code))
            elif not is_finite[position]:
                left_out.append((path, NOT_FINITE, CheckpointError.exit_code))
            else:
                kept.append(position)
        yield FeatureBatch([batch.paths[position] for position in kept], values[kept].cpu().numpy(), left_out)
