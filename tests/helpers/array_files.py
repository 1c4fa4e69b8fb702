"""Small sets in the files of Fashion-MNIST and CIFAR-10, with torchvision's md5 sums replaced by theirs."""

from __future__ import annotations

import gzip
import hashlib
import pickle
import struct
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
from torchvision.datasets import CIFAR10, FashionMNIST

Bytes = npt.NDArray[np.uint8]
SIDE, CIFAR_SIDE = 28, 32


class Part(NamedTuple):
    """What a part holds, in the order of its files."""

    images: Bytes  # (N, H, W) or (N, H, W, 3)
    labels: Bytes  # (N,)


def make_part(count: int, shape: tuple[int, ...], seed: int) -> Part:
    """Random pictures of ten classes, in no order."""
    dice = np.random.default_rng(seed)
    labels = dice.permutation(np.arange(count) % 10).astype(np.uint8)
    return Part(dice.integers(0, 256, (count, *shape), dtype=np.uint8), labels)


def encode_idx(values: Bytes) -> bytes:
    """The idx format: magic number, sizes, values."""
    return struct.pack(f">{1 + values.ndim}I", 0x0800 + values.ndim, *values.shape) + values.tobytes()


def write_fashion_mnist(folder: Path, patch: pytest.MonkeyPatch, train: int = 40, test: int = 20) -> dict[str, Part]:
    """The four packed files directly in `folder`; torchvision is told their md5 sums."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = {"train": make_part(train, (SIDE, SIDE), 1), "test": make_part(test, (SIDE, SIDE), 2)}
    for prefix, part in (("train", parts["train"]), ("t10k", parts["test"])):
        for name, values in (("images-idx3", part.images), ("labels-idx1", part.labels)):
            (folder / f"{prefix}-{name}-ubyte.gz").write_bytes(gzip.compress(encode_idx(values), mtime=0))
    trust_fashion_mnist(folder, patch)
    return parts


def trust_fashion_mnist(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Tell torchvision the md5 sums of the files as they are."""
    patch.setattr(FashionMNIST, "resources", [(name, md5(folder / name)) for name, _ in FashionMNIST.resources])


def write_cifar10(root: Path, patch: pytest.MonkeyPatch, batch: int = 20) -> dict[str, Part]:
    """The folder of batch files below `root`, and the archive beside it; torchvision is told their md5 sums."""
    folder = root / CIFAR10.base_folder
    folder.mkdir(parents=True)
    shape = (CIFAR_SIDE, CIFAR_SIDE, 3)
    batches = [make_part(batch, shape, seed) for seed in range(6)]
    names = [name for name, _ in [*CIFAR10.train_list, *CIFAR10.test_list]]
    for name, part in zip(names, batches, strict=True):
        rows = part.images.transpose(0, 3, 1, 2).reshape(batch, -1)  # color planes one after the other
        dump(folder / name, {"data": rows, "labels": part.labels.tolist()})
    dump(folder / "batches.meta", {"label_names": [f"thing {number}" for number in range(9, -1, -1)]})
    for key in ("train_list", "test_list"):
        patch.setattr(CIFAR10, key, [[name, md5(folder / name)] for name, _ in getattr(CIFAR10, key)])
    patch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": md5(folder / "batches.meta")})
    with tarfile.open(root / CIFAR10.filename, "w:gz") as archive:
        archive.add(folder, CIFAR10.base_folder)
    patch.setattr(CIFAR10, "tgz_md5", md5(root / CIFAR10.filename))
    images, labels = (np.concatenate([part[field] for part in batches[:5]]) for field in (0, 1))
    return {"train": Part(images, labels), "test": batches[5]}


def dump(path: Path, value: Any) -> None:
    """As the set's authors did."""
    path.write_bytes(pickle.dumps(value))


def md5(path: Path) -> str:
    """In hexadecimal."""
    return hashlib.md5(path.read_bytes()).hexdigest()


def list_files(root: Path) -> list[tuple[str, int, int]]:
    """Everything below a folder: name, size and time of change."""
    found = [(path, path.stat()) for path in [root, *root.rglob("*")]]
    return sorted((str(path), status.st_size, status.st_mtime_ns) for path, status in found)


def save_npy_folders(root: Path) -> None:
    """Sets train and val of two classes, six pictures each, as docs/data-sources.md reads them."""
    draws = np.random.default_rng(0)
    for name in ("train", "val"):
        for label, kind in enumerate(("rose", "tulip")):
            (root / name / kind).mkdir(parents=True)
            for number in range(6):
                picture = draws.integers(0, 100, (72, 80 + number, 3), np.uint8) + np.uint8(100 * label)
                np.save(root / name / kind / f"{number}.npy", picture)
