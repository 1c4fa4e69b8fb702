"""PyTorch's own ImageNet recipe on torchvision's AlexNet: ImageFolder, DataLoader, SGD, three rates.

python benchmarks/plain/imagenet.py PICTURES [--precision bf16] [--compile] [--evaluate]
"""

from __future__ import annotations

import torch
from parts import (
    count_classes,
    find_device,
    initialize_by_kaiming,
    make_after_epoch,
    make_rule,
    make_schedule,
    new_parser,
    open_train,
    train_epochs,
)
from torchvision.models import alexnet


def main() -> None:
    """Train."""
    parser = new_parser(__doc__ or "")
    parser.add_argument("--compile", action="store_true", help="torch.compile(mode='max-autotune')")
    options = parser.parse_args()
    model = alexnet(num_classes=count_classes(options))
    if options.kaiming:
        initialize_by_kaiming(model)
    model.to(find_device())
    optimizer = make_rule(options, model)
    after_epoch = make_after_epoch(options, model, make_schedule(options, optimizer))
    compiled = torch.compile(model, mode="max-autotune") if options.compile else model
    train_epochs(options, compiled, optimizer, open_train(options), after_epoch)


if __name__ == "__main__":
    main()
