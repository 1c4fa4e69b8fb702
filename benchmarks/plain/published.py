"""The ways of the five published systems, as their programs have them: pictures, network, rule, batch; all in fp32.

    python benchmarks/plain/published.py PICTURES --name fruits [--evaluate]

Each class folder is a class. Decoding workers are PyTorch's default, none. The two faults that change the speed are
kept: Fashion-MNIST's program makes one channel of 227 x 227, and cat_dog's squares of 227 without padding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from parts import MEAN, STD, count_classes, find_device, make_after_epoch, new_parser, open_train, train_epochs
from torch import nn
from torch.optim import SGD, Adam, Optimizer, RMSprop
from torchvision import transforms
from torchvision.models import alexnet

HALVE_EVERY = 256  # updates, of rmsprop_kfold's text


@dataclass(frozen=True)
class System:
    """A published program.

    Args:
        train: transforms of training pictures, before they are tensors.
        val: the same of the others.
        after: what follows ToTensor.
        network: made for a number of classes.
        rule: made for parameters.
        batch_size: pictures in an update.
        halves: whether the rate is halved every 256 updates.
    """

    train: tuple[Any, ...]
    val: tuple[Any, ...]
    after: tuple[Any, ...]
    network: Callable[[int], nn.Module]
    rule: Callable[[Iterable[nn.Parameter]], Optimizer]
    batch_size: int
    halves: bool = False


def one_column(channels: int, padding: int, side: int) -> Callable[[int], nn.Module]:
    """96-256-384-384-256 in one column without normalization.

    Args:
        channels: of a picture.
        padding: of conv1.
        side: of the last maps, in pixels.
    """

    def build(num_classes: int) -> nn.Module:
        return nn.Sequential(
            *(nn.Conv2d(channels, 96, 11, 4, padding), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2)),
            *(nn.Conv2d(96, 256, 5, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2)),
            *(nn.Conv2d(256, 384, 3, padding=1), nn.ReLU(inplace=True)),
            *(nn.Conv2d(384, 384, 3, padding=1), nn.ReLU(inplace=True)),
            *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2), nn.Flatten()),
            *(nn.Linear(256 * side * side, 4096), nn.ReLU(inplace=True), nn.Dropout(0.5)),
            *(nn.Linear(4096, 4096), nn.ReLU(inplace=True), nn.Dropout(0.5)),
            nn.Linear(4096, num_classes),
        )

    return build


def adam(parameters: Iterable[nn.Parameter]) -> Optimizer:
    """Three of the five have it."""
    return Adam(parameters, 1e-3)


HALF = (transforms.Normalize((0.5,) * 3, (0.5,) * 3),)
GRAY = (transforms.Grayscale(), transforms.Resize((227, 227)))
WHOLE_227 = (transforms.Resize(227), transforms.CenterCrop(227))
WHOLE_224 = (transforms.Resize((224, 224)),)
SYSTEMS = {
    "fruits": System(
        train=(*WHOLE_224, transforms.RandomHorizontalFlip(), transforms.RandomVerticalFlip()),
        val=WHOLE_224,
        after=(transforms.Normalize(MEAN, STD),),
        network=one_column(3, padding=1, side=5),
        rule=adam,
        batch_size=64,
    ),
    "fashion_mnist": System(GRAY, GRAY, (), one_column(1, padding=0, side=6), adam, batch_size=32),
    "rmsprop_kfold": System(
        train=(transforms.RandomResizedCrop(227), transforms.RandomHorizontalFlip()),
        val=WHOLE_227,
        after=HALF,
        network=lambda num_classes: alexnet(num_classes=num_classes),
        rule=lambda parameters: RMSprop(parameters, 1e-3, momentum=0.9, weight_decay=5e-4),
        batch_size=32,
        halves=True,
    ),
    "cat_dog": System(WHOLE_227, WHOLE_227, (), one_column(3, padding=0, side=6), adam, batch_size=32),
    "paper_notes": System(
        train=WHOLE_224,
        val=WHOLE_224,
        after=HALF,
        network=lambda num_classes: alexnet(num_classes=num_classes),
        rule=lambda parameters: SGD(parameters, 0.01, momentum=0.9, weight_decay=5e-4),
        batch_size=128,
    ),
}


def main() -> None:
    """Train."""
    parser = new_parser(__doc__ or "")
    parser.add_argument("--name", choices=SYSTEMS, required=True)
    parser.set_defaults(workers=0, batch_size=None)
    options = parser.parse_args()
    system = SYSTEMS[options.name]
    options.batch_size = options.batch_size or system.batch_size
    model = system.network(count_classes(options)).to(find_device())
    optimizer = system.rule(model.parameters())
    if system.halves:
        rates = torch.optim.lr_scheduler.StepLR(optimizer, HALVE_EVERY, 0.5)
        optimizer.register_step_post_hook(lambda *_: rates.step())
    after_epoch = make_after_epoch(options, model, None, [*system.val, transforms.ToTensor(), *system.after])
    batches = open_train(options, [*system.train, transforms.ToTensor(), *system.after])
    train_epochs(options, model, optimizer, batches, after_epoch)


if __name__ == "__main__":
    main()
