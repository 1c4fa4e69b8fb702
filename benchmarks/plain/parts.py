"""What the plain programs share: the command line, sets of pictures, one pass, one evaluation, and lines of progress.

A program prints a line of JSON after each update, {"seen": pictures trained, "time": seconds}, and one after each
evaluation, {"epoch", "top1"}. It trains until its epochs are over or somebody stops it.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
EPOCHS, STEP_EPOCHS = 90, 30  # of PyTorch's ImageNet recipe
WHOLE, CENTER = [transforms.Resize((224, 224))], [transforms.Resize(256), transforms.CenterCrop(224)]
CROPS: dict[str, tuple[list[Any], list[Any]]] = {  # of training pictures, and of the others
    "random_resized": ([transforms.RandomResizedCrop(224)], CENTER),
    "random": ([transforms.Resize(256), transforms.RandomCrop(224)], CENTER),
    "whole": (WHOLE, WHOLE),
}


def new_parser(what: str) -> argparse.ArgumentParser:
    """The options that all programs have."""
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("pictures", type=Path, help="folder with train/CLASS/*")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--lr", type=float, default=0.01, help="default: what PyTorch's recipe advises for AlexNet")
    parser.add_argument("--cosine", action="store_true", help="the rate goes to 0 in a cosine, not in three steps")
    parser.add_argument("--kaiming", action="store_true", help="first weights by Kaiming's rule, not by PyTorch's")
    parser.add_argument("--crops", choices=CROPS, default="random_resized", help="default: PyTorch's recipe's")
    parser.add_argument("--adam", action="store_true", help="Adam, not SGD with momentum")
    parser.add_argument("--evaluate", action="store_true", help="top-1 of the val folder after each epoch")
    parser.add_argument("--val", default="val", help="its name")
    return parser


def find_device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast(precision: str, device: torch.device) -> Callable[[], AbstractContextManager[Any]]:
    """Makes the context of a forward pass."""
    return lambda: torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def open_train(options: argparse.Namespace, ways: list[Any] | None = None) -> DataLoader[Any]:
    """The training folder in random order; `ways` are the transforms of PyTorch's ImageNet recipe or others."""
    usual = [
        *CROPS[options.crops][0],
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]
    return _open(options, "train", ways or usual, shuffle=True)


def open_val(options: argparse.Namespace, ways: list[Any] | None = None) -> DataLoader[Any]:
    """The validation folder in its order; `ways` are the transforms of PyTorch's ImageNet recipe or others."""
    usual = [*CROPS[options.crops][1], transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    return _open(options, options.val, ways or usual, shuffle=False)


def _open(options: argparse.Namespace, part: str, ways: list[Any], shuffle: bool) -> DataLoader[Any]:
    return DataLoader(
        ImageFolder(str(options.pictures / part), transforms.Compose(ways)),
        options.batch_size,
        shuffle=shuffle,
        num_workers=options.workers,
        pin_memory=torch.cuda.is_available(),
    )


def count_classes(options: argparse.Namespace) -> int:
    """Folders of classes."""
    return sum(path.is_dir() for path in (options.pictures / "train").iterdir())


def initialize_by_kaiming(model: nn.Module) -> None:
    """Normal weights that keep the variance through ReLU, biases 0."""
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)


def make_rule(options: argparse.Namespace, model: nn.Module) -> torch.optim.Optimizer:
    """SGD as PyTorch's recipe has it, or Adam."""
    if options.adam:
        return torch.optim.Adam(model.parameters(), options.lr)
    return torch.optim.SGD(model.parameters(), options.lr, momentum=0.9, weight_decay=1e-4)


def make_schedule(options: argparse.Namespace, optimizer: torch.optim.Optimizer) -> Any:
    """A tenth of the rate after each 30 epochs, or a cosine to 0; to be stepped after each epoch."""
    if options.cosine:
        return torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda epoch: 0.5 * (1 + math.cos(math.pi * epoch / options.epochs))
        )
    return torch.optim.lr_scheduler.StepLR(optimizer, STEP_EPOCHS)


def train_epochs(
    options: argparse.Namespace,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    after_epoch: Callable[[], None],
    *,
    backward: Callable[[torch.Tensor], None] = torch.Tensor.backward,
) -> None:
    """Epoch after epoch, as an example program has it: the loss and the top-1 are read after each update.

    Args:
        options: the command line.
        model: on its device.
        optimizer: of its parameters.
        batches: one epoch each time it is walked through.
        after_epoch: steps the schedule, evaluates.
        backward: from the loss to gradients.
    """
    device, seen = next(model.parameters()).device, 0
    context = autocast(options.precision, device)
    for _ in range(options.epochs):
        model.train()
        for images, labels in batches:
            images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            with context():
                logits = model(images)  # (B, classes)
                loss = F.cross_entropy(logits, labels)
            optimizer.zero_grad()
            backward(loss)
            optimizer.step()
            (logits.argmax(1) == labels).sum().item()
            loss.item()
            seen += len(labels)
            say(seen=seen, time=time.perf_counter())
        after_epoch()


def evaluate(model: nn.Module, batches: Iterable[Any], precision: str) -> float:
    """Top-1 as a fraction."""
    model.eval()
    device = next(model.parameters()).device
    context, right, count = autocast(precision, device), 0, 0
    with torch.no_grad():
        for images, labels in batches:
            with context():
                logits = model(images.to(device))  # (B, classes)
            right += int((logits.argmax(1).cpu() == labels).sum())
            count += len(labels)
    return right / count


def make_after_epoch(
    options: argparse.Namespace, model: nn.Module, schedule: Any, ways: list[Any] | None = None
) -> Callable[[], None]:
    """What follows each epoch: the next rate, where there is a schedule, and an evaluation, if asked for."""
    val = open_val(options, ways) if options.evaluate else None
    epochs = count_up()

    def after_epoch() -> None:
        if schedule is not None:
            schedule.step()
        if val is not None:
            say(epoch=next(epochs), top1=evaluate(model, val, options.precision))

    return after_epoch


def count_up() -> Iterator[int]:
    """1, 2, 3, ..."""
    number = 0
    while True:
        number += 1
        yield number


def say(**values: float) -> None:
    """A line of progress."""
    print(json.dumps(values), flush=True)
