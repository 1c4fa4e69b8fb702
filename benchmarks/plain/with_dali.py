"""The same recipe with NVIDIA's loader: a plain DALI pipeline feeds torchvision's AlexNet.

python benchmarks/plain/with_dali.py PICTURES [--precision bf16] [--evaluate]
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nvidia.dali as dali_package
import torch
from nvidia.dali import fn as typed_fn
from nvidia.dali import types as typed_types
from nvidia.dali.plugin.base_iterator import LastBatchPolicy
from nvidia.dali.plugin.pytorch import DALIClassificationIterator
from parts import (
    MEAN,
    STD,
    count_classes,
    find_device,
    initialize_by_kaiming,
    make_after_epoch,
    make_rule,
    make_schedule,
    new_parser,
    train_epochs,
)
from torchvision.models import alexnet

dali: Any = dali_package  # it has types for half of its functions
fn: Any = typed_fn
types: Any = typed_types


class Batches:
    """One epoch of a DALI pipeline each time it is walked through."""

    def __init__(self, folder: Path, batch_size: int, threads: int, on_gpu: bool) -> None:
        pipeline = dali.pipeline_def(define_graph)(
            *(str(folder), "gpu" if on_gpu else "cpu"),
            batch_size=batch_size,
            num_threads=threads,
            device_id=0 if on_gpu else None,
        )
        self.iterator = DALIClassificationIterator(
            pipeline, reader_name="Reader", last_batch_policy=LastBatchPolicy.PARTIAL, auto_reset=True
        )

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for (batch,) in self.iterator:
            yield batch["data"], batch["label"].flatten().long()


def define_graph(folder: str, place: str) -> tuple[Any, Any]:
    """A file reader, a decoder with random windows, a resize and a normalization, as in NVIDIA's ImageNet example."""
    jpegs, labels = fn.readers.file(file_root=folder, random_shuffle=True, pad_last_batch=True, name="Reader")
    images = fn.decoders.image_random_crop(
        jpegs,
        device="mixed" if place == "gpu" else "cpu",
        output_type=types.RGB,
        random_area=[0.08, 1.0],
        random_aspect_ratio=[3 / 4, 4 / 3],
        num_attempts=10,
    )
    images = fn.resize(images, device=place, size=[224, 224], interp_type=types.INTERP_TRIANGULAR)
    images = fn.crop_mirror_normalize(
        images,
        device=place,
        dtype=types.FLOAT,
        output_layout="CHW",
        crop=(224, 224),
        mean=[255 * value for value in MEAN],
        std=[255 * value for value in STD],
        mirror=fn.random.coin_flip(probability=0.5),
    )
    return images, labels.gpu() if place == "gpu" else labels


def main() -> None:
    """Train."""
    options = new_parser(__doc__ or "").parse_args()
    device = find_device()
    model = alexnet(num_classes=count_classes(options))
    if options.kaiming:
        initialize_by_kaiming(model)
    model.to(device)
    optimizer = make_rule(options, model)
    after_epoch = make_after_epoch(options, model, make_schedule(options, optimizer))
    batches = Batches(options.pictures / "train", options.batch_size, options.workers, device.type == "cuda")
    train_epochs(options, model, optimizer, batches, after_epoch)


if __name__ == "__main__":
    main()
