"""The same recipe as a plain Accelerate script: `prepare`, and its `backward`.

python benchmarks/plain/with_accelerate.py PICTURES [--precision bf16] [--evaluate]
"""

from __future__ import annotations

from accelerate import Accelerator
from parts import (
    count_classes,
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
    options = new_parser(__doc__ or "").parse_args()
    accelerator = Accelerator(mixed_precision="bf16" if options.precision == "bf16" else "no")
    model = alexnet(num_classes=count_classes(options))
    if options.kaiming:
        initialize_by_kaiming(model)
    optimizer = make_rule(options, model)
    model, optimizer, batches = accelerator.prepare(model, optimizer, open_train(options))
    after_epoch = make_after_epoch(options, model, make_schedule(options, optimizer))
    options.precision = "fp32"  # Accelerate has wrapped the forward pass in its own autocast
    train_epochs(options, model, optimizer, batches, after_epoch, backward=accelerator.backward)


if __name__ == "__main__":
    main()
