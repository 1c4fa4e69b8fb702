"""Before the first update: does what tells one image from another reach the logits?"""

from __future__ import annotations

import logging
from dataclasses import replace

import torch

from alexnet_dist.data.engines.loader import Loader
from alexnet_dist.models import AlexNet
from alexnet_dist.models.signal import LEAST_SIGNAL, measure_signal

logger = logging.getLogger("alexnet_dist")

NUM_IMAGES = 16


def check_signal(model: AlexNet, loader: Loader) -> dict[str, float] | None:
    """Measure the signal on the first training images, and warn where hardly any reaches the logits.

    Args:
        model: whole, on the CPU.
        loader: of training.

    Returns:
        What `measure_signal` finds; None where fewer than two of the images can be read.
    """
    plan = replace(loader.plan, global_batch_size=min(NUM_IMAGES, loader.plan.global_batch_size))
    whole = replace(loader, plan=plan, shard_id=0, num_shards=1, workers=0, device=torch.device("cpu"))
    batch = next(whole.batches(0, 1))
    images = batch.images[batch.mask.bool()].float()  # (B, C, S, S)
    if len(images) < 2:
        return None
    signal = measure_signal(model, images)
    last = signal["fc8"]
    if last < LEAST_SIGNAL:
        logger.warning(
            "the logits of two images differ by %.1g of their size: such a network hardly learns; set "
            "augment.pixel_range: 255 with model.init: source2012, or model.init: kaiming",
            last,
        )
    return signal
