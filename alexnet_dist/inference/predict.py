"""From image files to their likeliest classes: what `predict` prints, and what a program gets."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alexnet_dist import models
from alexnet_dist.base.errors import CheckpointError, DataError, UsageError
from alexnet_dist.base.machine import find_device
from alexnet_dist.data.class_words import find_words
from alexnet_dist.data.decode import UnreadableImageError, read_header
from alexnet_dist.data.engines.loader import Batch, Loader
from alexnet_dist.data.engines.torchvision import iterate_batches
from alexnet_dist.data.files.names import Names
from alexnet_dist.data.files.scan import FileSet
from alexnet_dist.data.index import SampleIndex
from alexnet_dist.data.plan import Plan, find_unfit
from alexnet_dist.data.sources.loose import open_pictures
from alexnet_dist.inference.model_folder import ModelCard, name_class

BATCH_SIZE = 64
NOT_FINITE = "the network's output is not finite: use other weights"


@dataclass(frozen=True)
class Prediction:
    """What is said of one image file.

    Args:
        path: as given; ARCHIVE!MEMBER of a picture in an archive, FILE!ROW/NAME of one in a parquet file.
        label: the likeliest class; None for a file that cannot be read.
        confidence: its softmax probability, 0 to 1.
        top: the likeliest classes with their probabilities, best first.
        error: why the file cannot be read, or that the network's output is not finite.
        exit_code: of the verb: 3 in the first case, 4 in the second.
    """

    path: str
    label: str | None
    confidence: float | None
    top: list[tuple[str, float]]
    error: str | None = None
    exit_code: int = 0


def describe_prediction(row: Prediction) -> dict[str, Any]:
    """A prediction as JSON has it: class, words, confidence, and topk with the same three of each likely class."""
    ranked = [{"class": name, "words": find_words(name), "confidence": value} for name, value in row.top]
    said = {"class": row.label, "words": find_words(row.label or ""), "confidence": row.confidence}
    return {**said, "topk": ranked}


@dataclass(frozen=True, eq=False)
class PictureBatch:
    """Some image files as the network takes them.

    Args:
        paths: (B,) as given.
        images: (B, C, S, S) on the network's device and in its type; black for a file that cannot be read.
        reasons: (B,) why a file cannot be read; "" for the others.
    """

    paths: list[str]
    images: Tensor
    reasons: list[str]

    @property
    def good(self) -> list[int]:
        """Positions of the files that could be read."""
        return [position for position, reason in enumerate(self.reasons) if not reason]


def predict(
    model: models.AlexNet | str | Path,
    paths: str | Path | Sequence[str | Path],
    topk: int = 5,
    device: str | torch.device | None = None,
) -> list[Prediction]:
    """The classes of image files, as the verb `predict` finds them.

    The preprocessing is that of evaluation. The network computes without dropout, in batches of 64. A file that cannot
    be read is no error here: its prediction has the reason in `error`, and no label.

    Args:
        model: a network of `from_pretrained`, or what `from_pretrained` takes: a run folder, its model/, a checkpoint,
            a saved folder, or a name on the hub.
        paths: an image file, an archive or a parquet file of them, or several.
        topk: classes in each prediction, best first.
        device: where to compute: "auto", "cpu", "cuda" or a device. None: where the network is, and "auto" for one that
            is loaded here. A network that is given stays where it is moved to.

    Raises:
        CheckpointError: no model there, or a damaged one.
        MachineError: no such device, or the hub does not give the model.
        UsageError: a topk below 1.
        TypeError: a network without classes and preprocessing.
    """
    from alexnet_dist.inference.hub import AlexNet  # with it comes huggingface_hub, which the verb does without

    if topk < 1:
        raise UsageError("topk must be 1 or more")
    network = AlexNet.from_pretrained(model) if isinstance(model, str | Path) else model
    if not isinstance(network, AlexNet):
        raise TypeError(f"model must be a network of from_pretrained, or a path or name; got {type(model).__name__}")
    if device is not None or network is not model:
        network.to(find_device(device or "auto"))
    many = [paths] if isinstance(paths, str | os.PathLike) else paths
    was_training = network.training
    try:
        with _exact_products():
            images = open_pictures([os.fspath(path) for path in many])
            return list(predict_pictures(network.eval(), network.card, images, topk))
    finally:
        network.train(was_training)


@contextlib.contextmanager
def _exact_products() -> Iterator[None]:
    """float32 as the verb computes it: a GPU would round the factors to 10 bits in convolutions, if left to PyTorch."""
    places = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)  # type: ignore[attr-defined]
    before = [place.fp32_precision for place in places]
    for place in places:
        place.fp32_precision = "ieee"
    try:
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.fp32_precision = value


def predict_pictures(
    network: models.AlexNet, card: ModelCard, images: Sequence[FileSet], topk: int, batch_size: int = BATCH_SIZE
) -> Iterator[Prediction]:
    """The predictions for image files, in their order, on the network's device.

    Args:
        network: in evaluation mode.
        card: its classes and preprocessing.
        images: the files, see `open_pictures`.
        topk: classes in each prediction.
        batch_size: images that go through the network together.
    """
    for batch in load_pictures(network, card, images, batch_size):
        yield from predict_batch(network, card, batch, topk)


def load_pictures(
    network: models.AlexNet, card: ModelCard, images: Sequence[FileSet], batch_size: int = BATCH_SIZE
) -> Iterator[PictureBatch]:
    """The network's input for image files, in their order; arguments as of `predict_pictures`."""
    for some in images:
        for start in range(0, len(some.files), batch_size):
            batch = some.take(range(start, min(start + batch_size, len(some.files))))
            yield _load_batch(network, card, batch)


@torch.no_grad()
def predict_batch(network: models.AlexNet, card: ModelCard, batch: PictureBatch, topk: int) -> list[Prediction]:
    """What the network, which is in evaluation mode, says of the pictures of a batch."""
    logits = network(batch.images)  # (B, classes)
    top = logits.softmax(dim=1).topk(min(topk, card.spec.num_classes), dim=1)  # (B, k)
    is_finite = logits.isfinite().all(dim=1).tolist()
    predictions = []
    for position, (path, reason) in enumerate(zip(batch.paths, batch.reasons, strict=True)):
        if reason:
            predictions.append(Prediction(path, None, None, [], reason, DataError.exit_code))
            continue
        if not is_finite[position]:
            predictions.append(Prediction(path, None, None, [], NOT_FINITE, CheckpointError.exit_code))
            continue
        names = [name_class(card, label) for label in top.indices[position].tolist()]
        ranked = list(zip(names, top.values[position].tolist(), strict=True))
        predictions.append(Prediction(path, ranked[0][0], ranked[0][1], ranked))
    return predictions


def _read_headers(images: FileSet, card: ModelCard) -> tuple[list[tuple[int, int]], list[str]]:
    """Sizes of the images, a stand-in for those that cannot be used, and the reasons why not ("" for the others)."""
    side = card.spec.image_size
    sizes, reasons = [(side, side)] * len(images.files), [""] * len(images.files)
    for position in range(len(images.files)):
        try:
            width, height, _ = read_header(images.find_encoded(position), card.max_pixels)
            sizes[position] = (width, height)
        except UnreadableImageError as error:
            reasons[position] = str(error)
    for position, reason in find_unfit(np.array(sizes), card.evaluation).items():
        reasons[position] = reasons[position] or reason
    return sizes, reasons


def _load_batch(network: models.AlexNet, card: ModelCard, images: FileSet) -> PictureBatch:
    sizes, reasons = _read_headers(images, card)
    batch = _decode_batch(network, card, images, sizes)
    paths = [file.path for file in images.files]
    undecoded = {bad.path: bad.reason for bad in batch.bad_files}  # the loader writes ./a.jpg as a.jpg
    for position, is_image in enumerate(batch.mask.bool().tolist()):
        if not is_image:
            reasons[position] = reasons[position] or undecoded.get(str(Path(paths[position])), "cannot be decoded")
    return PictureBatch(paths, batch.images, reasons)


def _decode_batch(network: models.AlexNet, card: ModelCard, images: FileSet, sizes: list[tuple[int, int]]) -> Batch:
    count = len(images.files)
    zeros = np.zeros(count, np.int64)
    index = SampleIndex(
        images.root,
        Names.of(file.path for file in images.files),
        zeros,
        np.array(sizes, np.int32),
        np.array([file.byte_size for file in images.files], np.int64),
        zeros > 0,
        card.classes,
        containers=images.containers,
    )
    like = next(network.parameters())
    loader = Loader(
        plan=Plan(index.sizes, card.evaluation, count, seed=0, shuffle=False, skips_unfit=True),
        index=index,
        normalization=card.normalization,
        channels=card.spec.in_channels,
        max_pixels=card.max_pixels,
        shard_id=0,
        num_shards=1,
        device=like.device,
        channels_last=True,
        workers=0,
        engine=iterate_batches,
        dtype=like.dtype,
    )
    return next(loader.batches(0, 1))
