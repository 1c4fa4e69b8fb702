"""What a user could have written instead: torchvision's and NVIDIA's own loaders, with random resized crops."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, RandomSampler, Subset

from alexnet_dist.data.index import SampleIndex
from alexnet_dist.data.plan import IMAGENET_MEAN, IMAGENET_STD

CROP_SIZE = 224
MANY_IMAGES = 10**8
PREFETCH = 2  # batches that each worker, or DALI, makes ahead: the default of both


def iterate_standard(index: SampleIndex, batch_size: int, workers: int, device: torch.device) -> Iterator[object]:
    """ImageFolder, transforms and DataLoader as in PyTorch's ImageNet example; no end.

    Args:
        index: which of the files; one that stands there twice is read twice as often.
        batch_size: images in a batch.
        workers: processes.
        device: where batches go.
    """
    # One long pass: a new one would start new workers each time.
    subset = open_image_folder(index)
    loader = DataLoader(
        subset,
        batch_size,
        sampler=RandomSampler(subset, num_samples=MANY_IMAGES),
        num_workers=workers,
        pin_memory=device.type == "cuda",
    )
    for images, labels in loader:
        yield images.to(device, non_blocking=True), labels.to(device, non_blocking=True)


def open_image_folder(index: SampleIndex) -> Subset[Any]:
    """torchvision's view of the same files, in the same order."""
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import Compose, Normalize, RandomHorizontalFlip, RandomResizedCrop, ToTensor

    transforms = [
        RandomResizedCrop(CROP_SIZE),
        RandomHorizontalFlip(),
        ToTensor(),
        Normalize(IMAGENET_MEAN, IMAGENET_STD),
    ]
    folder = ImageFolder(index.root, Compose(transforms))
    numbers = {Path(path): number for number, (path, _) in enumerate(folder.samples)}
    return Subset(folder, [numbers[index.root / path] for path in index.paths])


def iterate_plain_dali(
    index: SampleIndex, batch_size: int, threads: int, device: torch.device, is_fancy: bool = False
) -> Iterator[object]:
    """A file reader and its pipeline as in NVIDIA's ImageNet example; no end.

    Args:
        index: which of the files.
        batch_size: images in a batch.
        threads: of DALI.
        device: where it decodes and where batches go.
        is_fancy: chroma is interpolated, as Pillow does it; DALI's default repeats it.
    """
    import nvidia.dali as dali_package
    from nvidia.dali.plugin.pytorch import DALIClassificationIterator

    dali: Any = dali_package  # it has types for half of its functions
    on_gpu = device.type == "cuda"
    files = [str(index.root / path) for path in index.paths]
    pipeline = dali.pipeline_def(_define_graph)(
        files,
        index.labels.tolist(),
        "gpu" if on_gpu else "cpu",
        is_fancy,
        batch_size=batch_size,
        num_threads=threads,
        device_id=torch.cuda.current_device() if on_gpu else None,
        prefetch_queue_depth=PREFETCH,
    )
    pipeline.build()
    for (batch,) in DALIClassificationIterator(pipeline, size=-1):
        yield batch


def _define_graph(files: list[str], labels: list[int], place: str, is_fancy: bool) -> tuple[Any, Any]:
    from nvidia.dali import fn as typed_fn
    from nvidia.dali import types as typed_types

    fn: Any = typed_fn
    types: Any = typed_types
    jpegs, targets = fn.readers.file(files=files, labels=labels, random_shuffle=True, name="Reader")
    images = fn.decoders.image_random_crop(
        jpegs,
        device="mixed" if place == "gpu" else "cpu",
        output_type=types.RGB,
        random_area=[0.08, 1.0],
        random_aspect_ratio=[3 / 4, 4 / 3],
        num_attempts=10,
        jpeg_fancy_upsampling=is_fancy,
    )
    images = fn.resize(images, device=place, size=[CROP_SIZE, CROP_SIZE], interp_type=types.INTERP_TRIANGULAR)
    images = fn.crop_mirror_normalize(
        images,
        device=place,
        dtype=types.FLOAT,
        output_layout="CHW",
        crop=(CROP_SIZE, CROP_SIZE),
        mean=[255 * value for value in IMAGENET_MEAN],
        std=[255 * value for value in IMAGENET_STD],
        mirror=fn.random.coin_flip(probability=0.5),
    )
    return images, targets.gpu() if place == "gpu" else targets
