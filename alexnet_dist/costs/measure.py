"""How fast one process trains a network alone: what the cost model is told of the computer."""

from __future__ import annotations

import statistics
import time

import torch

from alexnet_dist.assembly.learning import build_rule
from alexnet_dist.assembly.loaders import place_model
from alexnet_dist.assembly.network import check_can_be_built
from alexnet_dist.costs.model import Compute
from alexnet_dist.data.engines.loader import Batch
from alexnet_dist.models import AlexNetSpec, build_model
from alexnet_dist.parallel.runtime import Runtime
from alexnet_dist.settings.schema import Config
from alexnet_dist.training.optim import set_lr
from alexnet_dist.training.step import DeviceCounters, train_step

LR = 1e-5  # so small that noise is not learned: a network that diverges computes at another speed
LEAST_STEPS = 5


def measure_compute(runtime: Runtime, config: Config, spec: AlexNetSpec, images: int, seconds: float = 3.0) -> Compute:
    """Time the training step on made-up images, at two batch sizes: their difference is what images cost.

    The other size is an eighth: what is left at no images then depends little on the noise of either.

    On several processes each trains alone, and all begin each step together, as in the run: where they share a machine
    they compete for the same part of it at the same time. The slowest of each step counts: the others will wait for it.

    Args:
        runtime: this process.
        config: settings of the optimizer and of the memory layout.
        spec: the network.
        images: per step.
        seconds: to spend, at least; several steps of each size are made in any case.
    """
    alone = runtime.alone()
    check_can_be_built(spec)
    model = build_model(spec, config.seed)
    place_model(model, runtime, config.channels_last)
    model.train()
    optimizer = build_rule(config.optimizer, model)
    set_lr(optimizer, LR)
    counters = DeviceCounters.on(runtime.device)

    def step(batch: Batch) -> float:
        runtime.agree(0)
        start = time.perf_counter()
        size = batch.num_images
        train_step(alone, model, optimizer, batch, micro_batch_size=size, scale=1 / size, counters=counters)
        if runtime.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    other = max(1, images // 8) if images > 1 else 2
    batches = [_make_batch(size, spec, runtime.device, config.channels_last) for size in (other, images)]
    spent = [step(batch) + step(batch) for batch in batches]  # warm up; the first steps also allocate
    steps = max(LEAST_STEPS, *runtime.gather(int(2 * seconds / sum(spent))))
    times = [[step(batch) for batch in batches] for _ in range(steps)]
    slowest = [list(map(max, zip(*runtime.gather(column), strict=True))) for column in zip(*times, strict=True)]
    return split_times(*zip((other, images), map(statistics.median, slowest), strict=True))


def split_times(other: tuple[int, float], measured: tuple[int, float]) -> Compute:
    """What an image and what an update costs.

    Args:
        other: images and seconds of a step.
        measured: of another one, for which the result is exact.
    """
    (other_images, other_seconds), (images, seconds) = other, measured
    per_image = max(0.0, (seconds - other_seconds) / (images - other_images))
    per_update = max(0.0, seconds - images * per_image)
    return Compute((seconds - per_update) / images, per_update)


def _make_batch(size: int, spec: AlexNetSpec, device: torch.device, channels_last: bool) -> Batch:
    images = torch.randn(size, spec.in_channels, spec.image_size, spec.image_size)  # (B, C, S, S)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return Batch(
        images=images.to(device, memory_format=layout),
        labels=torch.zeros(size, dtype=torch.int64, device=device),
        mask=torch.ones(size, device=device),
        ids=torch.arange(size),
        num_images=size,
        bad_files=[],
    )
